import gzip
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.testing.trainings import (
    MODELS,
    STEEP,
    rewritten,
    run,
    same_weights,
    weights_of,
    with_din,
    with_model,
    with_training,
)
from trainer.losses.pointwise import LOWEST_TEMPERATURE
from trainer.models.base import RankingModel
from trainer.models.din.model import DIN
from trainer.models.registry import build_loss, build_model
from trainer.training import trainer
from trainer.training.trainer import EPOCH_METRICS, build_optimizer, evaluate, predict, train
from transform.errors import PipelineError
from transform.features import request_example
from transform.features.batching import request_batches
from transform.features.model_inputs import ModelInputs
from transform.spec.model_sections import EarlyStopping, Loss, Model, Optimizer

EPOCHS = {"din": 4, "onerank": 8}  # until `buy` is learned
STILL = Optimizer(name="sgd", learning_rate=1e-30, schedule="constant")  # moves nothing that float32 can tell
NAN = float("nan")


def scalars(run_dir):
    """The logged values by tag."""
    values = {}
    for path in Path(run_dir, "logs").glob("events.out.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                values.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    return values


@pytest.fixture(scope="module", params=MODELS)
def run_dir(tmp_path_factory, request):
    """A folder named after the model that was trained into it."""
    return tmp_path_factory.mktemp("run") / request.param


@pytest.fixture(scope="module")
def trained(small, run_dir):
    spec = with_model(small.spec, MODELS[run_dir.name])
    spec = with_training(spec, epochs=EPOCHS[run_dir.name], early_stopping=None, gradients_every=10)
    return run(small, run_dir, spec)


@pytest.fixture(scope="module")
def few(small, tmp_path_factory):
    """The first requests of the training split."""
    return rewritten(small.transformed["train"], tmp_path_factory.mktemp("few") / "few.gz", limit=40)


@pytest.fixture
def started(monkeypatch):
    """The models that `train` builds, and their weights before it begins."""
    made = []

    def build(*arguments):
        model = build_model(*arguments)
        made.append((model, weights_of(model)))
        return model

    monkeypatch.setattr(trainer, "build_model", build)
    return made


# === Learning ===


def test_the_loss_falls_and_what_can_be_learned_is_learned(trained):
    losses = [epoch["loss"] for epoch in trained.epochs]
    assert losses[-1] < 0.9 * losses[0] and losses == sorted(losses, reverse=True)
    last = trained.epochs[-1]["eval"]
    assert last["save"]["auc"] > 0.88, "`save` follows from one feature"
    assert last["buy"]["auc"] > 0.6, "`buy` follows from the item and the user's taste"
    assert last["save"]["normalized_entropy"] < 0.8 and 0.8 < last["save"]["calibration"] < 1.2


def test_it_trains_into_folders_that_only_tensorflow_s_file_systems_know(small, few):
    folder = "ram://a-bucket/run"
    spec = with_din(small.spec, epochs=2, early_stopping=EarlyStopping(task="buy", patience=2))
    train(spec, small.inputs(), [few], small.transformed["eval"], folder, "ram://a-bucket/checkpoints")
    for name in ("checkpoints/best.weights.h5", "checkpoints/last.weights.h5", "training.json", "gradients.json"):
        assert tf.io.gfile.exists(f"{folder}/{name}"), name
    assert not tf.io.gfile.glob(f"{folder}/checkpoints/.*")


def test_a_watched_task_of_one_class_is_refused_before_the_first_step(small, few, tmp_path, started):
    def no_positives(values):
        values["label_buy"] = [0.0] * len(values["label_buy"])

    files = [rewritten(small.transformed["eval"], tmp_path / "eval.gz", no_positives)]
    spec = with_training(small.spec, epochs=1, early_stopping=EarlyStopping(task="buy", patience=1))
    with pytest.raises(
        PipelineError, match="early_stopping.task: a task with positives .* Received: `buy`, 0 positives"
    ):
        run(small, tmp_path / "run", spec, [few], files)
    assert not started


def test_without_early_stopping_the_last_epoch_is_the_best(trained, run_dir):
    assert trained.best_epoch == len(trained.epochs) - 1 == EPOCHS[run_dir.name] - 1


def test_the_run_leaves_logs_checkpoints_and_its_course(small, trained, run_dir):
    assert sorted(os.listdir(run_dir)) == ["checkpoints", "gradients.json", "logs", "training.json"]
    assert sorted(os.listdir(run_dir / "checkpoints")) == ["best.weights.h5", "last.weights.h5"]
    training_state = json.loads((run_dir / "training.json").read_text())
    assert training_state == {"best_epoch": trained.best_epoch, "epochs": trained.epochs}
    assert [epoch["epoch"] for epoch in training_state["epochs"]] == list(range(EPOCHS[run_dir.name]))
    for epoch in training_state["epochs"]:
        assert {task: set(values) for task, values in epoch["eval"].items()} == {
            task: set(EPOCH_METRICS) for task in small.spec.task_names
        }


def test_logs_hold_loss_and_metrics(small, trained, run_dir):
    logged = scalars(run_dir)
    for task in small.spec.task_names:
        assert np.isfinite(logged[f"train/loss/{task}"]).all()
        for metric in EPOCH_METRICS:
            of_epochs = [epoch["eval"][task][metric] for epoch in trained.epochs]
            np.testing.assert_allclose(logged[f"eval/{task}/{metric}"], of_epochs, rtol=1e-6)
    assert logged["train/loss"][-1] < logged["train/loss"][0]
    for measured in json.loads((run_dir / "gradients.json").read_text()):
        assert measured["step"] % 10 == 0
    assert logged["gradients/network/norm/buy"][-1] == pytest.approx(measured["network"]["norm"]["buy"], rel=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("name", ["adamw", "lazy_adamw", "adam", "adagrad", "sgd"])
def test_the_optimizer_is_the_specs(name, schedule):
    settings = Optimizer(name=name, learning_rate=0.5, schedule=schedule, weight_decay=0.25)
    optimizer = build_optimizer(settings, steps=20)
    assert type(optimizer).__name__.lower() == name.replace("_", "") and optimizer.weight_decay == 0.25
    optimizer.build([keras.Variable(np.zeros(2))])
    assert float(optimizer.learning_rate) == pytest.approx(0.5)
    optimizer.iterations.assign(20)
    assert float(optimizer.learning_rate) == pytest.approx(0.05 if schedule == "cosine" else 0.5)


# === Where it starts ===


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_features_predicts_the_base_rates(small, few, tmp_path, monkeypatch, name):
    def without_features(*arguments):
        model = build_model(*arguments)
        for variable in model.trainable_variables:
            variable.assign(np.zeros(variable.shape))
        return model

    monkeypatch.setattr(trainer, "build_model", without_features)
    spec = with_training(
        with_model(small.spec, MODELS[name]), epochs=1, batch_requests=40, optimizer=STILL, early_stopping=None
    )
    trained = run(small, tmp_path, spec, few)
    lists = [request_example.decode(record.numpy()) for record in tf.data.TFRecordDataset(few, "GZIP")]
    loss = 0.0
    for task, rows in predict(spec, trained.model, small.transformed["eval"]).items():
        labels, masks = (
            np.concatenate([values[key(task)] for values in lists])
            for key in (request_example.label_key, request_example.weight_key)
        )
        positives, observed = (labels * masks).sum(), masks.sum()
        rate = (positives + 1) / (observed + 2)
        assert 0 < positives < observed < len(masks) + 1
        np.testing.assert_allclose(rows.scores, rate, rtol=1e-5)
        loss -= (positives * np.log(rate) + (observed - positives) * np.log(1 - rate)) / observed
    assert trained.epochs[0]["loss"] == pytest.approx(loss, rel=1e-5)


# === Embedding tables ===


@pytest.mark.parametrize(
    ("settings", "tables_move", "rest_moves"),
    [
        ({"optimizer": STEEP}, True, True),
        ({"optimizer": STEEP, "embedding_optimizer": STILL}, False, True),
        ({"optimizer": STILL, "embedding_optimizer": STEEP}, True, False),
    ],
)
def test_tables_may_have_an_optimizer_of_their_own(small, few, tmp_path, started, settings, tables_move, rest_moves):
    run(small, tmp_path, with_din(small.spec, epochs=1, early_stopping=None, **settings), few)
    ((model, before),) = started
    tables = {id(variable) for variable in model.embedding.trainable_variables}
    assert len(tables) == len(small.inputs().rows)
    moved = {True: [], False: []}
    for variable, weight in zip(model.weights, before, strict=True):
        if variable is not model.initial_bias():  # it was moved to the base rates
            moved[id(variable) in tables].append(bool(np.abs(variable.numpy() - weight).max() > 1e-6))
    assert set(moved[True]) == {tables_move} and set(moved[False]) == {rest_moves}


def test_the_penalty_shrinks_the_rows_that_are_looked_up_and_no_other(small, few, tmp_path, started):
    """One step of plain descent with and without the penalty: they differ by its gradient."""
    rate, l2 = 0.5, 0.1
    descent = Optimizer(name="sgd", learning_rate=rate, schedule="constant")
    spec = with_din(small.spec, epochs=1, batch_requests=40, optimizer=descent, early_stopping=None)
    for penalty in (0.0, l2):
        run(small, tmp_path / str(penalty), with_training(spec, embedding_l2=penalty), few)
    (plain, start), (penalised, again) = started
    assert same_weights(start, again)
    ((batch, _),) = request_batches(small.inputs(), few, 40)
    inputs, untouched = small.inputs(), 0
    lookups = {name: np.zeros(rows) for name, rows in inputs.rows.items()}
    for column in inputs.columns:
        if column.table:
            group = (
                batch["candidates" if column.group == "candidate" else column.group]
                if (column.group in ("user", "context", "candidate"))
                else batch["sequences"][column.group]
            )
            lookups[column.table] += np.bincount(np.ravel(group[column.name]), minlength=len(lookups[column.table]))
    at_start = dict(zip([variable.path for variable in penalised.weights], again, strict=True))
    for name, times in lookups.items():
        table = penalised.embedding.tables[name].embeddings
        rows = at_start[table.path]
        times[0] = 0  # padding and missing values
        difference = table.numpy() - plain.embedding.tables[name].embeddings.numpy()
        np.testing.assert_allclose(difference, -rate * l2 * times[:, None] * rows / 40, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(table.numpy()[1:][times[1:] == 0], rows[1:][times[1:] == 0])
        untouched += (times[1:] == 0).sum()
    assert untouched > 10


# === Some of the tasks ===


def test_some_of_the_tasks_are_learned_in_the_order_that_is_asked_for(small, tmp_path):
    tasks = ("share", "save")
    spec = with_training(small.spec, epochs=2, early_stopping=EarlyStopping(task="save", patience=2), gradients_every=9)
    trained = run(small, tmp_path, spec, inputs=small.inputs().for_tasks(tasks))
    ((batch, targets),) = request_batches(small.inputs().for_tasks(tasks), small.transformed["eval"], 1000)
    assert trained.model(batch).shape[-1] == targets["labels"].shape[-1] == 2
    rows = predict(spec, trained.model, small.transformed["eval"])
    assert tuple(rows) == tuple(trained.epochs[-1]["eval"]) == tasks
    assert len(rows["share"]) < len(rows["save"]), "`share` is observed where `buy` is positive"
    assert trained.epochs[-1]["eval"]["save"]["auc"] > 0.85
    (measured, *_) = json.loads((tmp_path / "gradients.json").read_text())
    assert list(measured["network"]["norm"]) == list(tasks) and list(measured["network"]["cosine"]) == ["share-save"]


# === Loss ===


def test_the_loss_is_the_specs(small):
    tasks = [
        task.model_copy(update={"weight": weight}) for task, weight in zip(small.spec.tasks, (1, 2, 3), strict=True)
    ]
    spec = small.spec.model_copy(update={"tasks": tuple(tasks)})
    inputs = ModelInputs.from_spec(spec, lambda _: 5)
    plain = build_loss(build_model(Model(name="din"), inputs), Loss())
    assert ([task.weight for task in plain.tasks], plain.infonce) == ([1, 2, 3], 0) and not plain.trainable_variables
    some = build_model(Model(name="din"), inputs.for_tasks(("share", "buy")))
    listwise = build_loss(some, Loss(infonce=0.3, temperature=0.2))
    assert ([task.weight for task in listwise.tasks], listwise.infonce, listwise.temperature) == ([3, 1], 0.3, 0.2)
    assert len(listwise.trainable_variables) == 1, "made before a graph is traced"


def test_what_layers_add_to_the_loss_is_minimised(small, few, tmp_path, monkeypatch):
    """An auxiliary objective by Keras's `add_loss`: here, that the user's vector has the length 2."""
    lengths = []

    class WithObjective(DIN):
        def candidate_vectors(self, user_state, context, candidates, training=None):
            length = keras.ops.sqrt(keras.ops.sum(keras.ops.square(user_state["user"]), axis=-1))
            self.add_loss(100 * keras.ops.mean(keras.ops.square(length - 2)))
            return super().candidate_vectors(user_state, context, candidates, training=training)

    monkeypatch.setattr("tests.trainer.training.test_trainer.DIN", WithObjective)
    spec = with_din(small.spec, epochs=6, early_stopping=None, optimizer=STEEP)
    model = spec.model.model_copy(update={"name": "tests.trainer.training.test_trainer:DIN"})
    trained = run(small, tmp_path, with_model(spec, model), few)
    for batch, _ in request_batches(small.inputs(), few, 20):
        lengths.extend(np.linalg.norm(trained.model.encode_user(batch["user"], batch["sequences"])["user"], axis=-1))
    assert trained.epochs[-1]["loss"] < 0.5 * trained.epochs[0]["loss"], "it is a part of the loss"
    assert np.mean(np.abs(np.array(lengths) - 2)) < 0.5


def test_temperatures_are_learned(small, few, tmp_path, monkeypatch):
    made = []

    def build(self, settings):
        made.append(make_loss(self, settings))
        return made[-1]

    make_loss = RankingModel.make_loss
    monkeypatch.setattr(RankingModel, "make_loss", build)
    spec = with_model(
        small.spec,
        Model(name="din", d=8, head={"name": "shared_bottom", "hidden": [8]}, loss=Loss(infonce=1.0, temperature=0.5)),
    )
    run(small, tmp_path, with_training(spec, epochs=1, early_stopping=None), few)
    temperatures = LOWEST_TEMPERATURE + np.exp(made[0].log_temperature.numpy())
    assert np.isfinite(temperatures).all() and np.all(np.abs(temperatures - 0.5) > 1e-4)


# === Gradients ===


def test_measuring_gradients_changes_nothing_in_training(small, few, tmp_path):
    spec = with_model(
        small.spec, Model(name="din", d=8, head={"name": "shared_bottom", "hidden": [32, 16], "dropout": 0.3})
    )
    spec = with_training(spec, epochs=2, early_stopping=None)
    never, always, without_dropout = (
        run(small, tmp_path / str(i), changed, few)
        for i, changed in enumerate(
            [
                with_training(spec, gradients_every=0),
                with_training(spec, gradients_every=1),
                with_training(with_model(spec, MODELS["din"]), gradients_every=3),
            ]
        )
    )
    assert same_weights(weights_of(never.model), weights_of(always.model))
    assert not same_weights(weights_of(never.model), weights_of(without_dropout.model)), "dropout should be on"
    measured = [json.loads((tmp_path / name / "gradients.json").read_text()) for name in "012"]
    assert [[row["step"] for row in rows] for rows in measured] == [[], [0, 1, 2, 3], [0, 3]]


# === Seeds ===


def test_one_seed_gives_bit_equal_weights_and_another_does_not(small, tmp_path):
    spec = with_training(small.spec, epochs=1)
    first, again, other = (
        weights_of(run(small, tmp_path / str(i), seeded).model)
        for i, seeded in enumerate([spec, spec, spec.with_seed(2)])
    )
    assert same_weights(first, again)
    assert not same_weights(first, other)


@pytest.mark.parametrize("deterministic", [True, False])
def test_operations_are_deterministic_where_the_spec_says_so(small, tmp_path, monkeypatch, deterministic):
    """The call is for the whole process, and can't be taken back: here it is only counted."""
    calls = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: calls.append("enabled"))
    with pytest.raises(PipelineError, match="requests to learn from"):  # found after the call, before the model is made
        run(small, tmp_path, with_training(small.spec, deterministic=deterministic), train_files=[])
    assert calls == ["enabled"] * deterministic


def test_the_default_is_deterministic(small):
    assert small.spec.training.deterministic


# === What can't be learned from ===


@pytest.mark.parametrize("files", [0, 1], ids=["no file", "an empty file"])
def test_without_requests_there_is_nothing_to_learn_from(small, tmp_path, files):
    paths = [str(tmp_path / f"{i}.gz") for i in range(files)]
    for path in paths:
        gzip.open(path, "w").close()
    with pytest.raises(PipelineError, match=r"^split\.train: requests .* are expected\. Received: none\."):
        run(small, tmp_path / "run", train_files=paths)


def test_a_loss_that_is_not_finite_names_its_cure(small, tmp_path):
    spec = with_din(small.spec, optimizer=Optimizer(name="sgd", learning_rate=1e30))
    with pytest.raises(PipelineError, match=r"finite loss.*Lower `training\.optimizer\.learning_rate`"):
        run(small, tmp_path, spec)


# === Metrics of one's own ===


def test_early_stopping_may_watch_a_metric_of_ones_own(small, few, tmp_path):
    watched, other = "tests.testing.own_metrics:brier", "tests.testing.own_metrics:precision"
    stopping = EarlyStopping(task="save", metric=watched, patience=5)
    spec = with_din(small.spec, epochs=3, early_stopping=stopping)
    spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"metrics": ("ndcg@5", other)})})
    trained = run(small, tmp_path, spec, few)
    values = [epoch["eval"]["save"] for epoch in trained.epochs]
    assert list(values[0]) == [*EPOCH_METRICS, watched, other]
    assert trained.best_epoch == int(np.argmin([of_epoch[watched] for of_epoch in values])), "lower is better"
    rows = predict(spec, trained.model, small.transformed["eval"])["save"]
    brier = np.mean((rows.labels - rows.scores) ** 2)
    assert values[trained.best_epoch][watched] == pytest.approx(brier, rel=1e-5)
    np.testing.assert_allclose(scalars(tmp_path)[f"eval/save/{watched}"], [v[watched] for v in values], rtol=1e-6)


# === Predicting ===


def test_predictions_are_of_observed_candidates_only(small, trained):
    spec, files = small.spec, small.transformed["eval"]
    rows = predict(spec, trained.model, files)
    for k, task in enumerate(spec.task_names):
        labels, scores, groups = [], [], []
        for record in tf.data.TFRecordDataset(sorted(files), "GZIP"):
            values = request_example.decode(record.numpy())
            (request,) = values[request_example.REQUEST_ID]
            observed = np.array(values[request_example.weight_key(task)]) > 0
            labels.extend(np.array(values[request_example.label_key(task)])[observed])
            groups.extend([request] * observed.sum())
        for batch, targets in request_batches(small.inputs(), files, 50):
            probabilities = tf.sigmoid(trained.model(batch, training=False)).numpy()[..., k]
            scores.extend(probabilities[targets["weights"].numpy()[..., k] > 0])
        assert 0 < len(labels) == len(rows[task])
        np.testing.assert_array_equal(rows[task].labels, labels)
        names = dict.fromkeys(groups)  # in the order in which they come
        assert len(names) < len(list(tf.data.TFRecordDataset(files, "GZIP"))), "some requests are in parts"
        numbers = [list(names).index(name) for name in groups]
        np.testing.assert_array_equal(np.unique(rows[task].groups, return_inverse=True)[1], numbers)
        np.testing.assert_allclose(rows[task].scores, scores, atol=1e-5)
    assert len(rows["share"]) == rows["buy"].labels.sum(), "`share` is observed where `buy` is positive"


def test_predictions_of_no_requests_are_no_rows(small, trained, tmp_path):
    gzip.open(tmp_path / "none.gz", "w").close()
    rows = predict(small.spec, trained.model, [str(tmp_path / "none.gz")])
    assert {task: len(of_task) for task, of_task in rows.items()} == dict.fromkeys(small.spec.task_names, 0)
    assert np.isnan(evaluate(small.spec, trained.model, [str(tmp_path / "none.gz")])["buy"]["auc"])
