"""Heads against numpy in float64, who learns from whom, and what they refuse."""

import numpy as np
import pytest
import tensorflow as tf

from tests.testing.layer_cases import normal, tasks_of_weights
from tests.testing.layer_checks import numpy, spread_weights
from trainer.heads.base import Head
from trainer.heads.mmoe import MMoE
from trainer.heads.registry import HEADS
from trainer.heads.shared_bottom import SharedBottom
from trainer.heads.single_task import SingleTask

B, N, K, D = 3, 5, 3, 8
TASKS = tasks_of_weights(*[1.0] * K)


def made(cls, inputs, **settings):
    head = cls(TASKS, **settings)
    head.build(inputs.shape)
    spread_weights(head)
    return head


def dense(x, layer, place=None, activation=True):
    """A dense layer in float64, or one of a stack."""
    kernel, bias = numpy(layer.kernel).astype("float64"), numpy(layer.bias).astype("float64")
    products = x @ (kernel if place is None else kernel[place]) + (bias if place is None else bias[place])
    return np.maximum(products, 0) if activation else products


def logit(x, head, k):
    return x @ numpy(head.logits.kernel)[k].astype("float64") + numpy(head.logits.bias)[k]


def inputs_of(k, inputs):
    """What task k sees, [B, N, D]."""
    return (inputs if inputs.ndim == 3 else inputs[:, :, k]).astype("float64")


def by_hand_shared_bottom(head, x, k):
    for layer in head.bottom:
        x = dense(x, layer)
    return logit(dense(x, head.towers, k), head, k)


def by_hand_single_task(head, x, k):
    for layer in head.networks:
        x = dense(x, layer, k)
    return logit(x, head, k)


def by_hand_mmoe(head, x, k):
    scores = dense(x, head.gates, k, activation=False)
    gates = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    mixed = 0
    for expert in range(head.experts):
        of_expert = x
        for layer in head.expert_layers:
            of_expert = dense(of_expert, layer, expert)
        mixed = mixed + gates[..., expert, None] * of_expert
    for layer in head.tower_layers:
        mixed = dense(mixed, layer, k)
    return logit(mixed, head, k)


HEAD_CASES = {
    "shared_bottom": (SharedBottom, {"hidden": (6, 4)}, by_hand_shared_bottom),
    "single_task": (SingleTask, {"hidden": (6, 4)}, by_hand_single_task),
    "mmoe": (MMoE, {"experts": 4, "hidden": (6, 5), "tower": (4,)}, by_hand_mmoe),
    "mmoe_without_towers": (MMoE, {"experts": 2, "hidden": (6,), "tower": ()}, by_hand_mmoe),
}


@pytest.mark.parametrize("per_task", [False, True], ids=["one vector", "a vector per task"])
@pytest.mark.parametrize("case", HEAD_CASES)
def test_logits_are_those_of_numpy(case, per_task):
    cls, settings, by_hand = HEAD_CASES[case]
    inputs = normal(B, N, K, D) if per_task else normal(B, N, D)
    head = made(cls, inputs, **settings)
    expected = np.stack([by_hand(head, inputs_of(k, inputs), k) for k in range(K)], axis=-1)
    np.testing.assert_allclose(numpy(head(inputs)), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def learns_from(head, inputs, task):
    """By the place in a stack [S]: whether the loss of a task reaches the place, by variable."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(head(inputs)[..., task]))
    variables = [variable.value for variable in head.trainable_variables]
    gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    return {
        variable.path: np.any(numpy(gradient) != 0, axis=tuple(range(1, len(gradient.shape))))
        for variable, gradient in zip(head.trainable_variables, gradients, strict=True)
    }


def test_networks_of_single_tasks_share_nothing():
    inputs = normal(B, N, D)
    head = made(SingleTask, inputs, hidden=(32, 16))
    for task in range(K):
        for path, places in learns_from(head, inputs, task).items():
            assert places.tolist() == [k == task for k in range(K)], path


def test_every_task_teaches_all_experts_and_its_own_gate_and_tower():
    inputs = normal(B, N, D)
    head = made(MMoE, inputs, experts=4, hidden=(32, 16), tower=(8,))
    shared = {variable.path for layer in head.expert_layers for variable in layer.trainable_variables}
    for task in range(K):
        for path, places in learns_from(head, inputs, task).items():
            expected = [True] * 4 if path in shared else [k == task for k in range(K)]
            assert places.tolist() == expected, path
    assert len(shared) == 4, "one kernel and one bias per layer, whatever the number of experts"


def test_weights_of_a_stack_start_independent_and_within_the_limits_of_one_matrix():
    head = SharedBottom(TASKS, hidden=(16,))
    head.build((None, None, 8))
    towers, logits = numpy(head.towers.kernel), numpy(head.logits.kernel)
    assert len(np.unique(towers)) == towers.size, "towers differ from each other"
    assert not np.isin(logits, towers).any(), "logits and towers do not come from one stream of numbers"
    limit = (6 / (16 + 16)) ** 0.5
    assert 0.9 * limit < np.abs(towers).max() <= limit


@pytest.mark.parametrize("case", HEAD_CASES)
def test_dropout_acts_in_training_only(case):
    cls, settings, _ = HEAD_CASES[case]
    x = normal(B, N, D)
    head = made(cls, x, **{**settings, "dropout": 0.5})
    plain = numpy(head(x))
    np.testing.assert_array_equal(numpy(head(x, training=False)), plain)
    assert np.abs(numpy(head(x, training=True)) - plain).max() > 1e-3
    without = made(cls, x, **settings)
    np.testing.assert_array_equal(numpy(without(x, training=True)), numpy(without(x)))


@pytest.mark.parametrize("name", HEADS.classes())
def test_the_initial_bias_is_that_of_the_logits(name):
    x = normal(B, N, D)
    head = made(HEADS.classes()[name], x)
    before, bias = numpy(head(x)), head.initial_bias()
    bias.assign(bias + [0.0, 1.0, -2.0])
    np.testing.assert_allclose(numpy(head(x)) - before, np.broadcast_to([0, 1, -2], (B, N, K)), atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (SharedBottom, {"tasks": ()}, "`tasks` should hold at least one task. Received: none"),
        (SharedBottom, {"hidden": ()}, r"`hidden` should be a list of widths.*`hidden=\[\]`.*Use"),
        (SharedBottom, {"hidden": (8, 0)}, r"`hidden` should be a list of widths.*`hidden=\[8, 0\]`.*Use"),
        (SharedBottom, {"dropout": 1.0}, r"`dropout` should be in \[0, 1\).*`dropout=1.0`"),
        (SingleTask, {"hidden": (0,)}, r"`hidden` should be a list of widths.*`hidden=\[0\]`.*Use"),
        (SingleTask, {"dropout": -0.1}, r"`dropout` should be in \[0, 1\).*`dropout=-0.1`"),
        (MMoE, {"experts": 0}, "`experts` should be at least 1.*`experts=0`"),
        (MMoE, {"hidden": ()}, r"`hidden` should be a list of widths"),
        (MMoE, {"tower": (0,)}, r"`tower` should be a list of widths.*`tower=\[0\]`"),
        (MMoE, {"dropout": 2.0}, r"`dropout` should be in \[0, 1\)"),
    ],
)
def test_heads_refuse_bad_arguments(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(**{"tasks": TASKS, **settings})


def test_a_head_without_logits_says_so():
    class Unfinished(Head):
        pass

    with pytest.raises(NotImplementedError, match="`Unfinished` should define `call`"):
        Unfinished(TASKS)(normal(B, N, D))
