"""A training that is killed again and again ends as one that was left alone."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.testing.repository import repository
from tests.testing.trainings import rewritten, same_weights, weights_of, with_model, with_training
from trainer.training import trainer
from trainer.training.checkpoints import TrainingCheckpoints
from trainer.training.trainer import Trained, train
from trainer.training.training_state import TrainingState
from transform.errors import PipelineError
from transform.spec.model_sections import EarlyStopping, Loss, Model, Optimizer

pytestmark = pytest.mark.once

MODEL = Model(name="din", d=8, head={"name": "shared_bottom", "hidden": [16], "dropout": 0.3}, loss=Loss(infonce=0.3))
CONSTANT = "tests.testing.own_metrics:constant"  # no epoch is better than the first, on any machine
STEPS = 16  # an epoch
KILLS = [  # moment, and which one since the process began; checkpoints are written every 3 steps and after an epoch
    ("step", 9),  # in the first epoch, 2 steps after a checkpoint
    ("evaluation", 2),  # of the first epoch, after its last step
    ("save", 4),  # in the second epoch
]


@pytest.fixture(scope="module")
def job(small, tmp_path_factory):
    """What `train` is called with: four short epochs of which the first is the best."""
    spec = with_training(
        with_model(small.spec, MODEL),
        epochs=4,
        batch_requests=4,
        optimizer=Optimizer(name="adam", learning_rate=0.03),
        embedding_optimizer=Optimizer(name="adagrad", learning_rate=0.3),
        early_stopping=EarlyStopping(task="share", metric=CONSTANT, patience=2),
        gradients_every=5,
        checkpoint_every=3,
    )
    folder = tmp_path_factory.mktemp("job")
    files = {
        split: rewritten(small.transformed[split], folder / f"{split}.gz", limit=4 * STEPS)
        for split in ("train", "eval")
    }
    return {
        "spec": spec,
        "inputs": small.inputs(),
        "train_files": files["train"],
        "eval_files": files["eval"],
    }


@dataclass(frozen=True)
class Ended:
    """What is left of a training that came to its end."""

    trained: Trained
    weights: list[np.ndarray]
    run_dir: Path

    @classmethod
    def of(cls, run_dir, **job):
        trained = train(**job, run_dir=str(run_dir))
        return cls(trained, weights_of(trained.model), run_dir)

    def saved(self, name):
        """The weights in a file."""
        self.trained.model.load_weights(self.run_dir / "checkpoints" / f"{name}.weights.h5")
        return weights_of(self.trained.model)


@pytest.fixture(scope="module")
def left_alone(job, tmp_path_factory):
    """The training without checkpoints."""
    folder = tmp_path_factory.mktemp("alone")
    never = {**job, "spec": with_training(job["spec"], gradients_every=5, checkpoint_every=0)}
    ended = Ended.of(folder / "run", **never, checkpoint_dir=str(folder / "checkpoints"))
    assert not (folder / "checkpoints").exists()
    return ended


@pytest.fixture(scope="module")
def killed(job, tmp_path_factory):
    """The checkpoints that are there after all kills."""
    folder = tmp_path_factory.mktemp("killed")
    checkpoints = folder / "checkpoints"
    for place, (moment, count) in enumerate(KILLS):
        run_dir = folder / str(place)
        content = {**job, "spec": job["spec"].to_json(), "inputs": job["inputs"].to_config()}
        content |= {"run_dir": str(run_dir), "checkpoint_dir": str(checkpoints)}
        (folder / "job.json").write_text(json.dumps(content))
        command = [sys.executable, "-m", "tests.testing.resume_worker", str(folder / "job.json")]
        process = subprocess.run(
            [*command, moment, str(count)],
            env={**os.environ, "PYTHONPATH": str(repository())},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert process.returncode < 0, f"{moment}: it should have been killed\n{process.stdout}{process.stderr[-4000:]}"
        assert ("Training goes on" in process.stderr) == (place > 0), process.stderr[-4000:]
        assert not (run_dir / "training.json").exists()
    return checkpoints


def scalars(run_dir):
    """All that was logged: tag, step and value."""
    logged = []
    for path in (run_dir / "logs").glob("events.out.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            logged += [(v.tag, event.step, np.float32(tf.make_ndarray(v.tensor))) for v in event.summary.value]
    return sorted(logged, key=lambda entry: entry[:2])


def test_it_ends_as_if_it_had_been_left_alone(job, left_alone, killed, tmp_path, caplog, capsys):
    checkpoints = shutil.copytree(killed, tmp_path / "checkpoints")
    ended = Ended.of(tmp_path / "run", **job, checkpoint_dir=str(checkpoints))
    assert f"Training goes on after 1 epochs and {21 - STEPS} steps" in caplog.text, "not that which was half written"
    assert same_weights(ended.weights, left_alone.weights)
    assert ended.trained.epochs == left_alone.trained.epochs
    assert ended.trained.best_epoch == left_alone.trained.best_epoch == 0
    assert len(ended.trained.epochs) == 3, "two epochs without progress, before and after kills"
    for name in ("training.json", "gradients.json"):
        assert (ended.run_dir / name).read_bytes() == (left_alone.run_dir / name).read_bytes()
    logged = scalars(left_alone.run_dir)
    np.testing.assert_equal(scalars(ended.run_dir), logged)
    assert {tag.split("/")[0] for tag, *_ in logged} == {"train", "eval", "gradients"}
    for name in ("best", "last"):
        assert same_weights(ended.saved(name), left_alone.saved(name)), name
    for pattern in ("best-*", "*.index"):
        assert len(list(checkpoints.glob(pattern))) == 1, "the newest alone is kept"

    # and once more, as after a kill during the export: nothing is left to do
    capsys.readouterr()
    again = Ended.of(tmp_path / "again", **job, checkpoint_dir=str(checkpoints))
    assert "epoch" not in capsys.readouterr().out
    assert same_weights(again.weights, left_alone.weights)
    assert (again.run_dir / "training.json").read_bytes() == (left_alone.run_dir / "training.json").read_bytes()
    np.testing.assert_equal(scalars(again.run_dir), logged)


def lose_optimizers(model, variables, best):
    for variable in variables[len(model.variables) + 1 :]:  # the one is the temperatures'
        variable.assign(tf.zeros_like(variable))


def lose_randomness(model, variables, best):
    for variable in variables:
        if variable.dtype.is_integer and variable.shape == [2]:  # a SeedGenerator's state
            variable.assign(tf.zeros_like(variable))


def lose_best_weights(model, variables, best):
    trainer._save_weights(model, best)


@pytest.mark.parametrize("lose", [lose_optimizers, lose_randomness, lose_best_weights])
def test_what_a_checkpoint_holds_is_needed(job, left_alone, killed, tmp_path, monkeypatch, lose):
    made, restore = [], TrainingCheckpoints.restore

    def build(*arguments, build=trainer.build_model):
        made.append(build(*arguments))
        return made[-1]

    def restore_but_one(checkpoints):
        found = restore(checkpoints)
        before = [variable.numpy() for variable in checkpoints._state.variables]
        lose(made[-1], checkpoints._state.variables, checkpoints._best_weights)
        after = [variable.numpy() for variable in checkpoints._state.variables]
        assert same_weights(before, after) == (lose is lose_best_weights)
        return found

    monkeypatch.setattr(trainer, "build_model", build)
    monkeypatch.setattr(TrainingCheckpoints, "restore", restore_but_one)
    shutil.copytree(killed, tmp_path / "checkpoints")
    ended = Ended.of(tmp_path / "run", **job, checkpoint_dir=str(tmp_path / "checkpoints"))
    assert same_weights(ended.saved("last"), left_alone.saved("last")) == (lose is lose_best_weights)
    if lose is lose_best_weights:
        assert not same_weights(ended.weights, left_alone.weights), "the best came before"


def test_best_weights_without_a_checkpoint_are_forgotten(tmp_path):
    """The training was killed between the two, and begins anew."""
    training_state, best = TrainingState(["share"], None), tmp_path / "run" / "best.weights.h5"
    checkpoints = TrainingCheckpoints(str(tmp_path / "checkpoints"), [], training_state, str(best))
    for path in (best, tmp_path / "checkpoints" / "best-0.weights.h5"):
        path.parent.mkdir()
        path.write_text("stale")
    assert not checkpoints.restore()
    best.write_text("new")
    training_state.best_epoch = 0
    checkpoints.save()
    assert (tmp_path / "checkpoints" / "best-0.weights.h5").read_text() == "new"


def test_a_checkpoint_that_cannot_be_read_names_its_cure(job, killed, tmp_path):
    shutil.copytree(killed, tmp_path / "checkpoints")
    (data,) = (tmp_path / "checkpoints").glob("ckpt-*.data-*")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(PipelineError, match=r"a checkpoint of this training is expected.*Delete the folder"):
        train(**job, run_dir=str(tmp_path / "run"), checkpoint_dir=str(tmp_path / "checkpoints"))
