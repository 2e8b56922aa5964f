"""The Evaluator on request examples, against scikit-learn on the same candidates written out one by one."""

import json
import math
import os

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from sklearn import metrics as reference
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.api import types as tfma_types
from tensorflow_model_analysis.proto import config_pb2
from tfx.components.evaluator import executor as evaluator_executor
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import io_utils

from tests.testing import own_metrics
from tests.testing.tiers import costly
from tfx_pipeline.evaluation import eval_config, extractors, tfma_metrics
from trainer.metrics import ranking_metrics
from trainer.metrics.ranking_metrics import Rows
from trainer.training.trainer import evaluate as evaluate_in_training
from trainer.training.trainer import predict
from transform.errors import DataError
from transform.features.request_example import (
    CANDIDATE_COUNT,
    REQUEST_ID,
    decode,
    encode,
    label_key,
    raw_schema,
    weight_key,
)
from transform.spec.loading import parse_spec
from transform.spec.model_sections import Gate

SPEC = parse_spec("""
name: toy
data: {impressions: {files: [log.csv]}, tables: {user: {key: user}, item: {key: item}}}
request: {id: request, time: time}
split: {by: day, train: [1, 2], eval: [3, 3], test: [4, 4]}
tasks: [{name: open, label: opened}, {name: buy, label: bought}, {name: share, label: shared}]
features:
  user: [{name: country, type: categorical}]
  candidate:
    - {name: item, type: categorical}
    - {name: category, type: categorical}
    - {name: price, type: numeric}
    - {name: p_open, type: numeric}
    - {name: p_buy, type: numeric}
    - {name: p_share, type: numeric}
sequences: [{name: seen, length: 12, features: [item, price]}]
evaluation:
  slices: [[country], [category], [price], [country, category]]
  metrics: [auc, gauc, ndcg@3, normalized_entropy, calibration]
  gates:
    default: {metric: auc, tolerance: 0.01, minimum: 0.4, min_positives: 50}
    open: {metric: normalized_entropy, tolerance: 0.01, maximum: 1.5, min_positives: 50}
""")
TASKS = ("open", "buy", "share")
PRICES = {
    0.0: "0",
    7.0: "[5, 10)",
    10_000.0: "[10000, 20000)",
    0.01: "[0.01, 0.02)",
    -3.0: "(-5, -2]",
    math.nan: "missing",
}
IDENTITY, INVERTED, NOISY = (1.0, 0.0), (-1.0, 1.0), (0.0, 0.5)
NOT_A_NUMBER = (math.nan, 0.0)


class ToyModel(tf.Module):
    """Predicts a * p_<task> + b: what it says of each candidate is known from the data."""

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(self, examples):
        parsed = tf.io.parse_example(examples, {f"p_{task}": tf.io.VarLenFeature(tf.float32) for task in self.lines})
        probability = {task: tf.sparse.to_dense(parsed[f"p_{task}"]) for task in self.lines}
        ones = tf.sparse.map_values(tf.ones_like, next(iter(parsed.values())))
        mask = tf.sparse.to_dense(ones)
        outputs = {task: (a * probability[task] + b) * mask for task, (a, b) in self.lines.items()}
        return {**outputs, "score": tf.add_n(list(outputs.values())), "candidate_mask": mask}


@pytest.fixture(scope="module")
def requests():
    """Requests of 1 to 12 candidates as lists by key; some ids come twice, as those of long requests do."""
    random = np.random.default_rng(7)
    result = []
    for number in range(300):
        count = int(random.integers(1, 13))
        events = count if number % 3 == 0 else int(random.integers(0, 13))  # as many events as candidates, by chance
        appeal = random.normal(random.normal(), 1.0, count)
        request = {
            REQUEST_ID: [f"request {number - number % 10 if number % 10 == 9 else number}"],
            "country": [str(random.choice(["de", "fr", "", "jp"]))],
            "item": [f"item {item}" for item in random.integers(0, 50, count)],
            "category": [str(category) for category in random.integers(1, 4, count)],
            "price": [float(price) for price in random.choice(list(PRICES), count)],
            "seen_item": [f"item {item}" for item in random.integers(0, 50, events)],
            "seen_price": [1.0] * events,
            CANDIDATE_COUNT: [count],
        }
        for task, offset, observed in (("open", 0.0, 1.0), ("buy", -1.0, 0.7), ("share", -8.5, 0.9)):
            truth = 1 / (1 + np.exp(-(2 * appeal + offset)))
            guess = np.clip(
                np.round(1 / (1 + np.exp(-(2 * appeal + offset + random.normal(0, 1, count)))), 2), 0.01, 0.99
            )
            mask = (random.random(count) < observed).astype(float)
            request[label_key(task)] = [float(label) for label in (random.random(count) < truth) * mask]
            request[weight_key(task)] = [float(weight) for weight in mask]
            request[f"p_{task}"] = [float(p) for p in np.float32(guess)]
        result.append(request)
    return result


def write_examples(folder, requests):
    """The artifact of request examples in two files, as ExampleGen leaves it."""
    examples = standard_artifacts.Examples()
    examples.uri, examples.split_names = str(folder), artifact_utils.encode_split_names(["test"])
    os.makedirs(folder / "Split-test")
    for shard in range(2):
        path = str(folder / "Split-test" / f"data-{shard:05d}-of-00002.gz")
        with tf.io.TFRecordWriter(path, "GZIP") as writer:
            for request in requests[shard::2]:
                writer.write(encode(request).SerializeToString())
    return examples


def write_schema(folder, spec):
    schema = standard_artifacts.Schema()
    schema.uri = str(folder)
    io_utils.write_pbtxt_file(os.path.join(schema.uri, "schema.pbtxt"), raw_schema(spec))
    return schema


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, requests):
    examples = write_examples(tmp_path_factory.mktemp("examples"), requests)
    return {"examples": [examples], "schema": [write_schema(tmp_path_factory.mktemp("schema"), SPEC)]}


@pytest.fixture(scope="module")
@costly("pipeline")
def evaluate(tmp_path_factory, inputs):
    """Runs TFX's Evaluator on a toy model, and against another one if there is."""

    def model_artifact(lines):
        model, artifact = ToyModel(lines), standard_artifacts.Model()
        artifact.uri = str(tmp_path_factory.mktemp("model"))
        tf.saved_model.save(model, f"{artifact.uri}/Format-Serving", signatures={"serving_default": model.serve})
        return artifact

    def run(lines, baseline=None, spec=SPEC, **other_inputs):
        models = {"model": [model_artifact(lines)]} | (
            {"baseline_model": [model_artifact(baseline)]} if baseline else {}
        )
        return run_evaluator(spec, tmp_path_factory.mktemp("evaluation"), {**inputs, **models, **other_inputs})

    return run


def run_evaluator(spec, folder, inputs):
    """Runs TFX's Evaluator; returns the folder of what it measured, and whether the model is blessed."""
    outputs = {"evaluation": standard_artifacts.ModelEvaluation(), "blessing": standard_artifacts.ModelBlessing()}
    for name, artifact in outputs.items():
        artifact.uri = str(folder / name)
    context = base_beam_executor.BaseBeamExecutor.Context(
        beam_pipeline_args=[],
        tmp_dir=str(folder / "tmp"),
        unique_id="1",
    )
    evaluator_executor.Executor(context).Do(
        inputs,
        {name: [artifact] for name, artifact in outputs.items()},
        {
            "eval_config": json_format.MessageToJson(
                eval_config.eval_config(spec, "hash of the code"), preserving_proto_field_name=True
            ),
            "example_splits": json.dumps(["test"]),
            "module_path": "tfx_pipeline.evaluation.extractors",
        },
    )
    blessed = os.path.exists(os.path.join(outputs["blessing"].uri, "BLESSED"))
    assert blessed != os.path.exists(os.path.join(outputs["blessing"].uri, "NOT_BLESSED"))
    return outputs["evaluation"].uri, blessed


GOOD = dict.fromkeys(TASKS, IDENTITY)


@pytest.fixture(scope="module")
def first(evaluate):
    return evaluate(GOOD)


# === The reference: candidates one by one ===


def candidates(requests):
    for request in requests:
        for place in range(len(request["item"])):
            row = {"request": request[REQUEST_ID][0], "country": request["country"][0] or "missing"}
            row["category"] = request["category"][place]
            price = request["price"][place]
            row["price"] = PRICES[price] if price == price else "missing"
            for task in TASKS:
                for key in (label_key(task), weight_key(task), f"p_{task}"):
                    row[key] = request[key][place]
            yield row


def reference_metrics(rows, task, line=IDENTITY):
    rows = [row for row in rows if row[weight_key(task)]]
    groups = {}
    for row in rows:
        groups.setdefault(row["request"], []).append((row[label_key(task)], line[0] * row[f"p_{task}"] + line[1]))
    columns = [np.array(group).T for group in groups.values()]
    labels, scores = np.concatenate(columns, axis=1) if columns else np.zeros((2, 0))
    mixed = [(y, s) for y, s in columns if 0 < y.sum() < len(y)]
    found = [(y, s) for y, s in columns if y.sum()]
    both = 0 < labels.sum() < len(labels)
    loss = reference.log_loss(labels, scores, labels=[0, 1]) if len(labels) else math.nan
    return {
        "example_count": len(rows),
        "positive_count": labels.sum(),
        "group_count": len(columns),
        "one_class_groups": len(columns) - len(mixed),
        "auc": reference.roc_auc_score(labels, scores) if both else math.nan,
        "log_loss": loss,
        "normalized_entropy": loss / reference.log_loss(labels, np.full(len(labels), labels.mean()))
        if both
        else math.nan,
        "calibration": scores.mean() / labels.mean() if labels.sum() else math.nan,
        "gauc": np.average([reference.roc_auc_score(y, s) for y, s in mixed], weights=[len(y) for y, _ in mixed])
        if mixed
        else math.nan,
        "ndcg@3": np.mean([reference.ndcg_score([y], [s], k=3) if len(y) > 1 else 1.0 for y, s in found])
        if found
        else math.nan,
    }


def reference_slices(requests):
    slices = {}
    for row in candidates(requests):
        for names in ((), ("country",), ("category",), ("price",), ("category", "country")):
            slices.setdefault(tuple((name, row[name]) for name in names), []).append(row)
    return slices


# === Tests ===


def test_every_metric_of_every_task_and_slice_equals_the_reference(first, requests):
    measured = eval_config.load_metrics(first[0])
    slices = reference_slices(requests)
    assert set(measured.candidate) == set(slices)
    assert len(slices) == 1 + 4 + 3 + 6 + 12
    for place, rows in slices.items():
        assert set(measured.candidate[place]) == set(TASKS)
        for task in TASKS:
            assert measured.candidate[place][task] == pytest.approx(
                reference_metrics(rows, task), abs=1e-6, nan_ok=True
            ), (place, task)
    assert measured.baseline == measured.change == {}


def test_weights_count_in_metrics_and_not_in_counts(evaluate, first, requests, tmp_path):
    random = np.random.default_rng(3)
    weighted = []
    for request in requests:
        weights = random.choice([0.5, 1.0, 4.0], len(request["item"]))
        masks = {weight_key(task): list(np.array(request[weight_key(task)]) * weights) for task in TASKS}
        weighted.append({**request, **masks})
    path, _ = evaluate(GOOD, examples=[write_examples(tmp_path / "examples", weighted)])
    measured, plain = (eval_config.load_metrics(folder).candidate[()] for folder in (path, first[0]))
    rows = list(candidates(weighted))
    for task in TASKS:
        columns = ([row[key] for row in rows] for key in (label_key(task), f"p_{task}", "request", weight_key(task)))
        expected = Rows.observed(*map(np.array, columns))
        for metric in ("auc", "gauc", "ndcg@3", "normalized_entropy", "calibration", "log_loss"):
            assert measured[task][metric] == pytest.approx(ranking_metrics.compute(metric, expected), abs=1e-6), (
                task,
                metric,
            )
            assert abs(measured[task][metric] - plain[task][metric]) > 1e-5
        for count in ("example_count", "positive_count", "group_count"):
            assert measured[task][count] == plain[task][count]


def test_first_model_is_blessed_by_its_values_and_rare_tasks_are_not_gated(first):
    path, blessed = first
    assert blessed
    assert eval_config.load_failures(path) == []
    (task,) = eval_config.load_not_gated(path)
    assert (task.task, task.metric, task.min_positives) == ("share", "auc", 50)
    assert 0 < task.positives < 50
    assert str(task) == f"share: auc not gated, {task.positives} < 50 positives"


def test_a_task_that_gets_worse_than_the_baseline_is_not_blessed(evaluate, requests):
    path, blessed = evaluate({"open": NOISY, "buy": NOISY, "share": INVERTED}, GOOD)
    assert not blessed
    failures = {failure.task: failure for failure in eval_config.load_failures(path)}
    # both keep to the bound of the value, and `share` has too few positives to be judged by
    assert {task: (f.kind, f.metric, f.slice) for task, f in failures.items()} == {
        "open": ("change", "normalized_entropy", ()),
        "buy": ("change", "auc", ()),
    }
    rows = list(candidates(requests))
    good, noisy = reference_metrics(rows, "buy"), reference_metrics(rows, "buy", NOISY)
    assert failures["buy"].received == pytest.approx(noisy["auc"] - good["auc"], abs=1e-6)
    assert failures["buy"].bound == -0.01
    assert str(failures["buy"]) == f"buy: auc change {failures['buy'].received:.4g}, bound -0.01"
    measured = eval_config.load_metrics(path)
    assert measured.candidate[()]["buy"] == pytest.approx(noisy, abs=1e-6)
    assert measured.baseline[()]["buy"] == pytest.approx(good, abs=1e-6)
    assert measured.change[()]["buy"]["auc"] == pytest.approx(noisy["auc"] - good["auc"], abs=1e-6)
    assert measured.change[()]["buy"]["positive_count"] == 0
    assert [task.task for task in eval_config.load_not_gated(path)] == ["share"]


def test_a_model_as_good_as_the_baseline_is_blessed(evaluate):
    assert evaluate(GOOD, GOOD)[1]


def test_values_below_their_bound_fail_and_so_does_nan_even_of_few_positives(evaluate):
    path, blessed = evaluate({**GOOD, "buy": INVERTED, "share": NOT_A_NUMBER}, GOOD)
    assert not blessed
    failures = {(failure.task, failure.kind): failure for failure in eval_config.load_failures(path)}
    assert set(failures) == {(task, kind) for task in ("buy", "share") for kind in ("value", "change")}
    assert failures["buy", "value"].received < failures["buy", "value"].bound == 0.4
    assert math.isnan(failures["share", "value"].received)
    assert math.isnan(failures["share", "change"].received)


def test_nothing_to_evaluate_is_not_blessed(evaluate, tmp_path):
    path, blessed = evaluate(GOOD, examples=[write_examples(tmp_path, [])])
    assert not blessed
    assert [str(failure) for failure in eval_config.load_failures(path)] == [f"{t}: nothing to evaluate" for t in TASKS]
    assert eval_config.load_not_gated(path) == []


def test_a_metric_of_ones_own_is_measured_and_gated(evaluate, requests):
    """Named by its import path: nothing of the project knows it."""
    precision, brier = "tests.testing.own_metrics:precision", "tests.testing.own_metrics:brier"
    gate = Gate(metric=brier, maximum=0.25, tolerance=0.001, min_positives=50)
    evaluation = SPEC.evaluation.model_copy(update={"metrics": ("auc", precision, brier), "gates": {"default": gate}})
    spec = SPEC.model_copy(update={"evaluation": evaluation})
    path, blessed = evaluate({**GOOD, "buy": INVERTED}, GOOD, spec=spec)
    measured, rows = eval_config.load_metrics(path), list(candidates(requests))
    for task, (slope, start) in {"open": IDENTITY, "buy": INVERTED, "share": IDENTITY}.items():
        there = [row for row in rows if row[weight_key(task)]]
        labels, scores, groups = (
            np.array([row[key] for row in there]) for key in (label_key(task), f"p_{task}", "request")
        )
        scores = slope * scores + start
        values = measured.candidate[()][task]
        assert values[brier] == pytest.approx(reference.brier_score_loss(labels, scores), abs=1e-6)
        assert values[precision] == pytest.approx(own_metrics.precision_of_first(labels, scores, groups), abs=0.01)
    assert not blessed
    failures = {(failure.task, failure.kind): failure for failure in eval_config.load_failures(path)}
    assert set(failures) == {("buy", "value"), ("buy", "change")}
    assert failures["buy", "value"].metric == brier and failures["buy", "value"].bound == 0.25
    assert failures["buy", "change"].received == pytest.approx(measured.change[()]["buy"][brier]) and (
        failures["buy", "change"].received > 0.001
    )
    assert [task.task for task in eval_config.load_not_gated(path)] == ["share"]
    assert [gate.metric for gate in eval_config.load_gates(path)] == [brier] * 3


# === The trainer's metrics and the Evaluator's ===


@pytest.fixture(scope="module")
@costly("pipeline")
def exported_and_measured(small_plain, served, tmp_path_factory):
    """What the Evaluator measures of an exported model, by task."""
    folder = tmp_path_factory.mktemp("exported")
    model = standard_artifacts.Model()
    model.uri = str(folder)
    (folder / "Format-Serving").symlink_to(served.path)
    requests = [decode(record.numpy()) for record in tf.data.TFRecordDataset(sorted(small_plain.raw["test"]), "GZIP")]
    inputs = {
        "model": [model],
        "examples": [write_examples(folder / "examples", requests)],
        "schema": [write_schema(folder / "schema", served.spec)],
    }
    path, _ = run_evaluator(served.spec, folder, inputs)
    return eval_config.load_metrics(path).candidate[()]


def test_the_trainer_measures_what_the_evaluator_does_where_requests_are_in_parts(
    small_plain, served, exported_and_measured
):
    """A request above `max_candidates` is several examples, and one group of GAUC and NDCG."""
    spec, files = served.spec, small_plain.transformed["test"]
    examples = sum(1 for _ in tf.data.TFRecordDataset(files, "GZIP"))
    rows = predict(spec, served.model, files)
    assert exported_and_measured["save"]["group_count"] < examples, "some requests are in parts"
    for task, measured in exported_and_measured.items():
        for name in ("group_count", "one_class_groups", "example_count", "positive_count"):
            assert ranking_metrics.compute(name, rows[task]) == measured[name], (task, name)
        for name in spec.evaluation.metrics:
            # scores differ in their last digits, and a pair that is nearly tied may swap
            assert ranking_metrics.compute(name, rows[task]) == pytest.approx(measured[name], abs=1e-4), (task, name)
    reported = evaluate_in_training(spec, served.model, files)
    assert reported["save"]["gauc"] == ranking_metrics.compute("gauc", rows["save"])


def test_configuration_follows_the_spec():
    config = eval_config.eval_config(SPEC, "abc")
    assert [list(slicing.feature_keys) for slicing in config.slicing_specs][0] == []
    assert dict(config.model_specs[0].label_keys) == {task: f"label_{task}" for task in TASKS}
    assert [list(metrics.output_names) for metrics in config.metrics_specs] == [[task] for task in TASKS]
    assert config != eval_config.eval_config(SPEC, "changed")


def test_gate_value_is_the_metric_once_there_are_enough_positives():
    rows = Rows.observed([1, 0, 0, 1], [0.1, 0.9, 0.2, 0.3], [0, 0, 0, 0], None)
    assert tfma_metrics.gate_value("auc", 2, rows) == 0.25
    assert tfma_metrics.gate_value("auc", 3, rows) == 1.0
    assert tfma_metrics.gate_value("normalized_entropy", 3, rows) == 0.0
    broken = Rows.observed([1, 0], [math.nan, 0.9], [0, 0], None)
    assert math.isnan(tfma_metrics.gate_value("auc", 3, broken))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_become_readable_ranges_with_fixed_bounds(dtype):
    values = {
        **PRICES,
        1.0: "[1, 2)",
        1.999: "[1, 2)",
        2.0: "[2, 5)",
        1e-9: "(0, 1e-06)",
        -1e-9: "(-1e-06, 0)",
        -10.0: "(-20, -10]",
        7e15: "[5000000000000000, inf)",
    }
    assert list(extractors.slice_texts(np.array(list(values), dtype))) == list(values.values())
    assert list(extractors.slice_texts(np.array([3, -1]))) == ["3", "-1"]
    assert list(extractors.slice_texts(np.array([b"b", b"", "é".encode()], object))) == ["b", "missing", "é"]


def test_lists_that_do_not_fit_together_are_named():
    def column(*rows):
        return tfma_types.VarLenTensorValue.from_dense_rows([np.array(row) for row in rows])

    config = config_pb2.EvalConfig(
        model_specs=[config_pb2.ModelSpec(label_keys={"buy": "label_buy"}, example_weight_keys={"buy": "weight_buy"})],
        slicing_specs=[config_pb2.SlicingSpec(feature_keys=["country"])],
    )
    features = {
        REQUEST_ID: column([b"a"], [b"b"]),
        "label_buy": column([0.0, 1.0], [1.0]),
        "weight_buy": column([1.0, 1.0], [1.0]),
        "country": column([b"de"], [b"fr"]),
    }
    predictions = {"buy": np.array([[0.1, 0.2], [0.3, 0.0]])}

    def explode(predictions=predictions, **changed):
        extracts = {constants.FEATURES_KEY: {**features, **changed}, constants.PREDICTIONS_KEY: predictions}
        return extractors.explode_candidates(extracts, config)

    rows = explode()
    assert list(rows[constants.PREDICTIONS_KEY]["buy"]) == [0.1, 0.2, 0.3]
    assert list(rows[constants.FEATURES_KEY]["country"]) == ["de", "de", "fr"]
    with pytest.raises(DataError, match="`weight_buy`: a value for each of the 2 candidates"):
        explode(weight_buy=column([1.0], [1.0]))
    with pytest.raises(DataError, match="`country`: one value, or one for each of the 1 candidates"):
        explode(country=column([b"de"], [b"fr", b"jp"]))
    with pytest.raises(DataError, match="`country`: a list of values in each request"):
        explode(country=None)
    with pytest.raises(DataError, match=f"`{REQUEST_ID}`: one value"):
        explode(**{REQUEST_ID: column([b"a", b"c"], [b"b"])})
    with pytest.raises(DataError, match="`buy`: a prediction for each candidate"):
        explode(predictions={"sell": predictions["buy"]})
    with pytest.raises(DataError, match="Received: 1 in the batch"):
        explode(predictions={"buy": predictions["buy"][:, :1]})


def test_a_candidate_counts_once_in_a_slice_that_two_specs_lead_to():
    specs = [{"feature_keys": ["tab"]}, {"feature_values": {"tab": "home"}}, {"feature_keys": ["tab"]}, {}]
    config = config_pb2.EvalConfig(slicing_specs=[config_pb2.SlicingSpec(**spec) for spec in specs])
    features = {"tab": np.array(["home", "feed", "home"]), extractors.GROUP_KEY: np.array([4, 5, 6])}
    predictions = {"candidate": {"buy": np.array([0.1, 0.2, 0.3])}}
    parts = list(
        extractors.split_by_slice({constants.FEATURES_KEY: features, constants.PREDICTIONS_KEY: predictions}, config)
    )
    scores = {
        part[constants.SLICE_KEY_TYPES_KEY][0]: list(part[constants.PREDICTIONS_KEY]["candidate"]["buy"])
        for part in parts
    }
    assert len(parts) == 3
    assert scores == {(("tab", "feed"),): [0.2], (("tab", "home"),): [0.1, 0.3], (): [0.1, 0.2, 0.3]}
