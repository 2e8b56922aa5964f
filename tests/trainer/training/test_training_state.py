"""When a training stops, and which epoch's weights it leaves: the same whatever the model is."""

import json

import numpy as np
import pytest

from tests.testing.trainings import STEEP, rewritten, run, same_weights, weights_of, with_din
from trainer.models.registry import build_model
from trainer.training import trainer
from trainer.training.trainer import EPOCH_METRICS, evaluate
from trainer.training.training_state import TrainingState
from transform.features import request_example
from transform.spec.model_sections import EarlyStopping

pytestmark = pytest.mark.once

NAN = float("nan")


@pytest.fixture(scope="module")
def few(small, tmp_path_factory):
    """The first requests of the training split."""
    return rewritten(small.transformed["train"], tmp_path_factory.mktemp("few") / "few.gz", limit=40)


@pytest.fixture(scope="module")
def stopped(small, tmp_path_factory):
    """A run that overfits until it is stopped, long before its last epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    spec = with_din(small.spec, epochs=50, optimizer=STEEP, early_stopping=EarlyStopping(task="buy", patience=1))
    return spec, folder, run(small, folder, spec)


def test_training_stops_when_the_metric_no_longer_rises(stopped):
    spec, _, trained = stopped
    values = [epoch["eval"]["buy"]["auc"] for epoch in trained.epochs]
    assert trained.best_epoch == int(np.argmax(values))
    assert len(values) == trained.best_epoch + 2 < spec.training.epochs


def test_the_model_has_the_best_epochs_weights(small, stopped):
    spec, folder, trained = stopped
    saved = build_model(spec.model, small.inputs())
    for name, is_the_models in [("best", True), ("last", False)]:
        saved.load_weights(folder / "checkpoints" / f"{name}.weights.h5")
        assert same_weights(weights_of(trained.model), weights_of(saved)) == is_the_models
    again = evaluate(spec, trained.model, small.transformed["eval"])
    recorded = trained.epochs[trained.best_epoch]["eval"]
    for task in spec.task_names:
        assert again[task] == pytest.approx(recorded[task], rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("auc", [0.6, NAN, 0.7, 0.7, 0.65, 0.9], 2),
        ("normalized_entropy", [1.0, 0.9, 0.9, 0.95, 0.8], 1),
        ("gauc", [NAN, NAN, 0.5, NAN, 0.5, 0.6], 2),
    ],
)
def test_patience_is_counted_from_the_best_epoch(metric, values, best):
    """Of a training_state alone; the next test shows that a training ends with its training_state."""
    training_state = TrainingState(["buy", "save"], EarlyStopping(task="buy", metric=metric, patience=2))
    other, script = dict.fromkeys(EPOCH_METRICS, 0.5), iter(values)
    while not training_state.is_over:
        training_state.add_epoch(0.5, {"buy": {**other, metric: next(script)}, "save": other})
    assert training_state.best_epoch == best and len(training_state.epochs) == best + 3


def test_a_training_ends_with_its_course_by_the_metric_that_is_watched(small, few, tmp_path, monkeypatch):
    def scripted(*_):
        other = dict.fromkeys(EPOCH_METRICS, 0.5)
        return {"buy": {**other, "normalized_entropy": next(script)}, "save": other, "share": other}

    script = iter([NAN, 1.0, 0.9, 0.9, 0.95])
    monkeypatch.setattr(trainer, "evaluate", scripted)
    stopping = EarlyStopping(task="buy", metric="normalized_entropy", patience=2)
    trained = run(small, tmp_path / "run", with_din(small.spec, epochs=9, early_stopping=stopping), few)
    assert trained.best_epoch == 2 and len(trained.epochs) == 5, "less is better, and undefined is not the best"


def test_an_undefined_metric_does_not_end_the_run(small, few, tmp_path):
    def hide_shares(values):
        values[request_example.weight_key("share")] = [0.0] * len(values[request_example.weight_key("share")])

    eval_files = rewritten(small.transformed["eval"], tmp_path / "eval.gz", hide_shares)
    trained = run(small, tmp_path / "run", with_din(small.spec, epochs=2), few, eval_files)
    assert all(np.isnan(epoch["eval"]["share"]["auc"]) for epoch in trained.epochs)
    assert all(np.isfinite(epoch["eval"]["save"]["auc"]) for epoch in trained.epochs)
    assert len(json.loads((tmp_path / "run" / "training.json").read_text())["epochs"]) == len(trained.epochs)
