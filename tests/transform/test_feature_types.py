"""A new feature type from the raw files to a served model's inputs, without an edit of the product."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
import yaml

from serving.export.raw_inputs import input_specs, raw_values, to_sparse
from serving.export.warmup_requests import with_candidates
from serving.tools.example_request import client_request
from tests.testing.toy_requests import edited, impression, plain_requests, toy_spec, write_files
from transform.errors import DataError, SpecError
from transform.feature_types import base
from transform.features import request_example
from transform.features.dataset import to_batch
from transform.features.model_inputs import Column, ModelInputs, columns, table_rows
from transform.features.preprocessing import make_preprocessing_fn
from transform.spec.loading import parse_spec

SPEC = yaml.safe_load("""
name: flags
data:
  impressions: {files: [log*.csv]}
  tables: {user: {files: [users.csv], key: user}, item: {files: [items.csv], key: item}}
request: {group_by: [user, day], time: time}
split: {by: day, train: [1, 2], eval: [3, 3], test: [4, 4]}
tasks: [{name: click, label: clicked}]
features:
  user: [{name: member, type: flag, truth: "yes", dim: 3}]
  context: [{name: device, type: categorical, vocabulary: {hash_buckets: 5}}]
  candidate: [{name: live, type: flag}, {name: genre, type: categorical, vocabulary: {hash_buckets: 5}}]
sequences: [{name: seen, length: 4, features: [live], feedback: [click]}]
evaluation: {slices: [[live]]}
""")
USERS = [{"user": "u1", "member": "yes"}, {"user": "u2", "member": ""}]
ITEMS = [
    {"item": "a", "genre": "x", "live": "true"},
    {"item": "b", "genre": "y", "live": "false"},
    {"item": "c", "genre": "", "live": ""},
]
LOG = [
    impression("a", 100, clicked="1"),
    impression("b", 101),
    impression("b", 200, day=2),
    impression("c", 201, day=2),
    impression("a", 202, day=2),
    impression("c", 100, user="u2"),
]


@pytest.fixture(autouse=True)
def flag(monkeypatch):
    """The type `flag`: a text that says yes, no or nothing becomes one of three ids."""
    monkeypatch.setattr(base, "_TYPES", base.feature_types())

    @base.register_feature_type("flag")
    class FlagFeature(base.Feature):
        """Yes or no."""

        dtype: ClassVar[str] = "string"
        sliceable: ClassVar[bool] = True
        truth: str = "true"

        def parse(self, text, origin):
            if text not in ("", "false", "no", self.truth):
                raise DataError(f"{origin}: a flag is expected for `{self.name}`. Received: `{text}`.")
            return text

        def columns(self, group):
            return [Column(group, f"{self.name}_id", "id", f"{self.name}.flag", self.dim)]

        @classmethod
        def table_rows(cls, features, vocabulary_size):
            return {f"{feature.name}.flag": 3 for feature in features}

        @classmethod
        def preprocess(cls, features, values, events):
            def ids(feature, texts):
                known = 1 + tf.cast(texts == feature.truth, tf.int64)
                return tf.where(texts == "", tf.zeros_like(known), known)

            return {feature.name: [lambda texts, feature=feature: ids(feature, texts)] for feature in features}

    return FlagFeature


def flag_spec(changes=None):
    return parse_spec(yaml.safe_dump(edited(SPEC, changes or {})))


@pytest.fixture
def requests(tmp_path):
    """The lists of the requests by id."""
    found, _ = plain_requests(flag_spec(), write_files(tmp_path, LOG, users=USERS, items=ITEMS))
    return {values["request_id"][0]: values for _, values in found}


def batch_of(sparse):
    """The batch of model inputs; nothing here is learned by an analysis, so preprocessing runs as it is."""
    targets = request_example.target_dtypes(flag_spec().task_names)
    passed = {request_example.REQUEST_ID: tf.string, **targets}
    missing = {key: tf.sparse.from_dense(tf.zeros([0, 0], dtype)) for key, dtype in passed.items() if key not in sparse}
    inputs = ModelInputs.from_spec(flag_spec(), lambda _: 1)
    return to_batch(inputs, make_preprocessing_fn(flag_spec())({**missing, **sparse}))


def parsed(requests):
    serialized = [request_example.encode(values).SerializeToString() for values in requests]
    parsing = request_example.raw_feature_spec(flag_spec())
    return tf.io.parse_example(serialized, {**parsing, "request_id": tf.io.VarLenFeature(tf.string)})


def test_the_spec_reads_a_new_type_with_its_options_and_writes_them():
    spec = flag_spec()
    assert [feature.truth for _, feature in spec.feature_groups() if feature.type == "flag"] == ["yes", "true"]
    assert '"truth": "yes"' in spec.to_json()
    assert parse_spec(spec.to_json()) == spec
    assert flag_spec({"features.user.0.truth": "no"}).data_part().to_json() != spec.data_part().to_json()


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"features.user.0.trth": "x"}, ["features.user[0].trth", "Did you mean `truth`?"]),
        ({"features.user.0.buckets": 3}, ["features.user[0]", "`buckets` has no meaning for type `flag`"]),
        ({"features.user.0.type": "flog"}, ["'flag', 'numeric' or 'time' is expected", "Did you mean `flag`?"]),
        ({"features.user.0.truth": 3}, ["features.user[0].truth: a text is expected", "Received: 3"]),
        ({"features.context.0.name": "live_id"}, ["Received: `live_id`", "also features.context[0]"]),
        ({"features.context.0.name": "seen_live_id"}, ["Received: `seen_live_id`", "also features.context[0]"]),
        ({"evaluation": {"slices": [["x"]]}}, ["a categorical, flag or numeric feature is", "Known: member, device"]),
    ],
)
def test_mistakes_in_a_feature_of_a_new_type_have_the_messages_of_all(changes, parts):
    changes = {"evaluation": {}, **changes}
    with pytest.raises(SpecError) as caught:
        flag_spec(changes)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_type_that_nobody_registered_is_refused():
    with pytest.raises(SpecError, match=r"features.user\[0\].type: 'categorical'.*Received: \"label\""):
        toy_spec({"features.user.0.type": "label"})


def test_request_examples_hold_a_new_type(requests, tmp_path):
    request = requests["u1|2"]
    assert request["member"] == ["yes"]
    assert request["live"] == ["false", "", "true"]
    assert request["seen_live"] == ["true", "false"]
    assert request_example.input_dtypes(flag_spec())["seen_live"] == tf.string
    described = {feature.name: feature for feature in request_example.raw_schema(flag_spec()).feature}
    assert described["member"].value_count.max == 1
    wrong = [{**ITEMS[0], "live": "perhaps"}, *ITEMS[1:]]
    with pytest.raises(DataError, match="a flag is expected for `live`. Received: `perhaps`"):
        plain_requests(flag_spec(), write_files(tmp_path, LOG, users=USERS, items=wrong))


def test_a_model_gets_the_columns_of_a_new_type(requests):
    spec = flag_spec()
    expected = [("user", "member_id", "member.flag", 3), ("candidate", "live_id", "live.flag", 16)]
    found = [(column.group, column.name, column.table, column.dim) for column in columns(spec)]
    assert [column for column in found if column[1].endswith("_id")] == [
        *expected,
        ("seen", "live_id", "live.flag", 16),
    ]
    rows = table_rows(spec, lambda name: pytest.fail("nothing is learned"))
    assert (rows["member.flag"], rows["live.flag"]) == (3, 3)

    batch = batch_of(parsed([requests["u1|2"], requests["u2|1"]]))
    np.testing.assert_array_equal(batch["user"]["member_id"], [2, 0])
    np.testing.assert_array_equal(batch["candidates"]["live_id"], [[1, 0, 2], [0, 0, 0]])
    np.testing.assert_array_equal(batch["sequences"]["seen"]["live_id"], [[2, 1], [0, 0]])
    np.testing.assert_array_equal(batch["sequences"]["seen"]["mask"], [[True, True], [False, False]])


def test_a_served_model_takes_a_new_type(requests):
    spec = flag_spec()
    specs = input_specs(spec)
    assert specs["user"]["member"] == tf.TensorSpec([None], tf.string)
    assert specs["candidates"]["live"] == tf.TensorSpec([None, None], tf.string)
    assert specs["sequences"]["seen_live"] == tf.TensorSpec([None, None], tf.string)
    both = [requests["u1|2"], requests["u2|1"]]  # of three candidates and one: the other two are padding
    raw = [raw_values(spec, request) for request in both]
    joined = {name: tf.constant(joined_behind([values[name] for values in raw])) for name in raw[0]}
    tf.nest.map_structure(np.testing.assert_array_equal, batch_of(to_sparse(spec, joined)), batch_of(parsed(both)))


def joined_behind(arrays):
    """Arrays [1, ...] as one, each padded behind with a value that is not missing: nobody may read it."""
    longest = np.max([array.shape for array in arrays], axis=0)
    filler = "true" if arrays[0].dtype.kind in "OU" else 1
    pads = [[(0, 0), *((0, to - size) for to, size in zip(longest[1:], a.shape[1:], strict=True))] for a in arrays]
    return np.concatenate([np.pad(a, pad, constant_values=filler) for a, pad in zip(arrays, pads, strict=True)])


def test_warm_up_and_example_requests_hold_a_new_type(requests):
    request = requests["u1|2"]
    assert with_candidates(flag_spec(), request, 5)["live"] == ["false", "", "true", "false", ""]
    client = client_request(flag_spec(), request)
    assert client["user"] == {"member": "yes"}
    assert [row["live"] for row in client["candidates"]] == ["false", None, "true"]


def test_reading_a_spec_needs_no_tensorflow():
    heavy = {"tensorflow", "tensorflow_transform", "apache_beam", "keras"}
    program = (
        "import sys; from transform.spec.loading import load_spec, parse_spec; "
        f"load_spec('data/kuairand_mini.yaml'); print(*({heavy} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_other_module_knows_a_type_by_its_name():
    """Neither a comparison with a type's name, nor a look at a feature's class: other modules ask the feature."""
    root = Path(__file__).resolve().parents[2]
    paths = [
        path
        for package in ("onerank", "transform", "trainer", "serving", "tfx_pipeline")
        for path in (root / package).rglob("*.py")
        if path.parent != root / "transform" / "feature_types"
    ]
    wrong = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in paths
        for line in path.read_text().splitlines()
        if "feature.type ==" in line or "f.type ==" in line or ".type in (" in line or "isinstance(feature" in line
    ]
    assert len(paths) > 100
    assert [line for line in wrong if "operation" not in line and "context.type" not in line] == []
