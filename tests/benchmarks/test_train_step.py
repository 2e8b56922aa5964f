"""The benchmark of the training step, on a problem that is small enough to run in a moment."""

import numpy as np
import pytest

from benchmarks.training import train_step
from benchmarks.training.keras_attention import KerasAttentionOneRank
from trainer.layers.token_dense import TokenDense
from trainer.ops import fused

pytestmark = pytest.mark.slow

SMALL = {"b": 4, "n": 3, "u": 6, "d": 16}


def test_the_model_on_keras_attention_is_the_same_model():
    problem = train_step.deep_problem(**SMALL, layers=2)
    model, generator = problem.make(), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0, 0.3, variable.shape))
    for block in model.blocks:
        block.candidate_bias.assign(np.zeros(block.candidate_bias.shape))
    batch = {**problem.batch, "sequences": {"seen": dict(problem.batch["sequences"]["seen"])}}
    batch["sequences"]["seen"]["mask"] = np.arange(SMALL["u"]) < np.array([[6], [3], [1], [0]])
    logits = model(batch).numpy()
    np.testing.assert_allclose(KerasAttentionOneRank.of(model)(batch).numpy(), logits, atol=1e-4)
    assert np.ptp(logits) > 0.1


@pytest.mark.skipif(fused.unavailable() is not None, reason="the fused attention is not built")
def test_it_compares_ways_and_says_when_one_learns_something_else():
    problem = train_step.deep_problem(**SMALL, layers=1)
    ways = {name: train_step.WAYS[name] for name in ("fused", "portable", "recomputed", "Keras dense", "Keras MHA")}
    ours = TokenDense.call
    rows = train_step.compare(problem, ways, rounds=2)
    assert TokenDense.call is ours
    figures = train_step.find_figures(rows, waited=1.5)
    assert set(figures) == {
        *("train.gemm_percent", "train.over_keras_mha", "train.input_wait_percent", "train.max_abs_loss_difference"),
    }
    assert figures["train.max_abs_loss_difference"] < 1e-4 and figures["train.input_wait_percent"] == 1.5
    assert all(row["cpu_ms"] > 0 and row["rounds"] == 2 for row in rows)

    wrong = train_step.compare(
        problem, {"fused": ways["fused"], "other": train_step.Way(settings={"embedding_l2": 0.1})}, 2
    )
    assert wrong[1]["loss_difference"] > 1e-3
