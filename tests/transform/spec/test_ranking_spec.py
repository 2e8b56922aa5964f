"""The ranking spec: what is read, what is refused and how, and what its parts depend on."""

from pathlib import Path

import pytest
import yaml

from tests.testing.toy_requests import PAST, REMOVE, SPEC, edited, toy_spec
from transform.errors import SpecError
from transform.spec.loading import load_spec, parse_spec
from transform.spec.score_formula import parse_score

SHIPPED = Path(__file__).parents[3] / "data" / "kuairand_mini.yaml"
AGGREGATE = {"keys": [["item"]], "tasks": ["click"], "windows": ["1d"]}
RICH = {
    "aggregates": [{**AGGREGATE, "timezone": "Asia/Shanghai", "smoothing": 1e-05, "dim": 2}],
    "data.past": PAST,
    "model": {"name": "onerank", "d": 64, "rates": [0.1, 1e-05], "nested": {"x": None}, "flag": True},
    "training": {"epochs": 3, "optimizer": {"learning_rate": 1e-05}, "early_stopping": {"task": "like"}},
    "evaluation": {"slices": [[], ["country", "genre"]], "gates": {"like": {"metric": "ndcg@3", "minimum": 0.1}}},
    "score": "click^0.5 * like",
    "features.candidate.0.vocabulary": "things",
    "split": {"by": "day", "train": ["1", "2"], "eval": ["3", "3"], "test": ["4", "4"]},
}
RELATIVE = {"by": "day", "date_format": "YYYYMMDD", "train": [-9, -3], "eval": [-2, -2], "test": [-1, 0]}


# === Reading and writing ===


def test_shipped_spec_loads():
    spec = load_spec(SHIPPED)
    assert spec.task_names == ("click", "long_view", "like", "profile_enter")
    assert spec.request.key_columns == ("user_id", "date")
    assert (spec.user_key, spec.item_key, spec.item_feature) == ("user_id", "video_id", "video_id")
    by_name = {feature.name: feature for _, feature in spec.feature_groups()}
    assert by_name["duration"].source_column == "duration_ms"
    assert by_name["video_id"].vocabulary_name == "item"
    assert by_name["user_id"].vocabulary.top_k == 200000
    assert spec.score_powers == {"click": 0.2, "long_view": 1.0, "like": 0.5}
    assert spec.evaluation.gate("like") == spec.evaluation.gates["default"]


@pytest.mark.parametrize("changes", [{}, RICH])
def test_canonical_json_reads_back_as_the_same_spec(changes):
    spec = toy_spec(changes)
    again = parse_spec(spec.to_json())
    assert again == spec
    assert again.model.settings == spec.model.settings
    assert again.to_json() == spec.to_json()
    assert again.to_json() == spec.to_json()


def test_shipped_spec_survives_canonical_json():
    spec = load_spec(SHIPPED)
    assert parse_spec(spec.to_json()) == spec


def test_canonical_json_does_not_depend_on_order_and_defaults():
    content = edited(SPEC, {"request.max_candidates": 64, "tasks.0.weight": 1.0, "training": {"seed": 1}})
    backwards = {key: content[key] for key in reversed(content)}
    text = yaml.safe_dump(backwards, sort_keys=False)
    assert parse_spec(text).to_json() == toy_spec().to_json()
    assert parse_spec(text).to_json() != toy_spec({"tasks.0.weight": 2}).to_json()


@pytest.mark.parametrize("text", ["1e-5", "1E-05", "1.0e-5", "0.00001", "+1e-5"])
def test_numbers_with_an_exponent_are_numbers(text):
    """YAML 1.1 takes `1e-5` for a text, and canonical JSON writes small numbers so."""
    content = yaml.safe_dump(edited(SPEC, {"model": {"l2": "NUMBER"}})).replace("NUMBER", text)
    spec = parse_spec(content)
    assert spec.model.settings == {"l2": 1e-5}
    assert parse_spec(spec.to_json()).model.settings == {"l2": 1e-5}


@pytest.mark.parametrize("text", ["e5", "1e", "abc", "1-e5"])
def test_texts_that_resemble_numbers_stay_texts(text):
    content = yaml.safe_dump(edited(SPEC, {"model": {"note": "NOTE"}})).replace("NOTE", text)
    assert parse_spec(content).model.settings == {"note": text}


def test_a_spec_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        toy_spec().name = "other"


# === Parts ===


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "onerank", "d": 8}},
        {"training": {"epochs": 9, "seed": 7, "optimizer": {"name": "sgd"}}},
        {"evaluation": {"metrics": ["auc"], "gates": {"click": {"tolerance": 0.1}}}},
        {"tasks.1.weight": 3.0},
        {"score": "click^0.2 * like"},
        {"serving": {"max_candidates": 100}},
    ],
)
def test_data_part_does_not_depend_on_model_training_evaluation_and_serving(changes):
    assert toy_spec(changes) != toy_spec()
    assert toy_spec(changes).data_part().to_json() == toy_spec().data_part().to_json()


@pytest.mark.parametrize(
    "changes",
    [
        {"features.candidate.4.transform": "log_z"},
        {"features.candidate.0.vocabulary": {"min_frequency": 2}},
        {"features.user": SPEC["features"]["user"][:1]},
        {"tasks.0.label": "liked", "tasks.1.label": "clicked"},
        {"tasks.1.observed_when": "click"},
        {"tasks": SPEC["tasks"][::-1]},
        {"sequences.0.length": 9},
        {"sequences.0.feedback": ["click"]},
        {"sequences.1.where": "click"},
        {"split.test": [4, 5]},
        {"request.max_candidates": 9},
        {"data.drop_duplicates": False},
        {"data.past": PAST},
        {"aggregates": [AGGREGATE]},
    ],
)
def test_data_part_depends_on_data_features_labels_and_sequences(changes):
    assert toy_spec(changes).data_part().to_json() != toy_spec().data_part().to_json()


def test_data_part_is_a_spec_that_reads_back():
    part = toy_spec(RICH).data_part()
    assert parse_spec(part.to_json()) == part
    assert part.data_part() == part


def test_warm_up_requests_stay_below_the_most_candidates():
    assert toy_spec().serving.warmup_sizes == (1, 64, 512)
    assert toy_spec({"serving": {"max_candidates": 64}}).serving.warmup_sizes == (1, 64)
    assert toy_spec({"serving": {"warmup_candidates": [200, 10, 10]}}).serving.warmup_sizes == (10, 200)


def test_with_seed_changes_the_seed_alone():
    spec = toy_spec({"training": {"seed": 3, "epochs": 9}})
    assert spec.with_seed(None) == spec
    other = spec.with_seed(5)
    assert (other.training.seed, other.training.epochs) == (5, 9)
    assert spec.training.seed == 3
    assert other.with_seed(3) == spec
    assert other.to_json() != spec.to_json()


def test_a_seed_below_zero_is_refused_at_once():
    with pytest.raises(SpecError, match="seed: a whole number from 0 on is expected. Received: -1"):
        toy_spec().with_seed(-1)


@pytest.mark.parametrize(
    ("changes", "user_key", "item_key", "item_feature"),
    [
        ({}, "user", "item", "item"),
        ({"features.candidate.0.name": "thing", "features.candidate.0.column": "item"}, "user", "item", "thing"),
        ({"data.tables.item": REMOVE}, "user", None, None),
        ({"data.tables": REMOVE, "data.past": {**PAST, "sequences": {}, "feedback": {}}}, "user", None, None),
        ({"data.tables": REMOVE}, None, None, None),
    ],
)
def test_keys_of_user_and_item(changes, user_key, item_key, item_feature):
    sequences = [{"name": "seen", "features": ["genre"]}] if user_key else []
    spec = toy_spec({**changes, "sequences": sequences})
    assert (spec.user_key, spec.item_key, spec.item_feature) == (user_key, item_key, item_feature)


@pytest.mark.parametrize(
    ("gate", "bound"),
    [
        ({}, 0.5),
        ({"metric": "gauc", "minimum": 0.6}, 0.6),
        ({"metric": "ndcg@10"}, 0.0),
        ({"metric": "normalized_entropy"}, 1.0),
        ({"metric": "normalized_entropy", "maximum": 0.9}, 0.9),
        ({"metric": "auc", "minimum": 0.0}, 0.0),
    ],
)
def test_gates_have_a_bound_in_the_metric_s_direction(gate, bound):
    found = toy_spec({"evaluation": {"gates": {"like": gate}}}).evaluation
    assert found.gate("like").bound == bound
    assert found.gate("like").higher_is_better == (gate.get("metric") != "normalized_entropy")
    assert found.gate("click").metric == "auc"  # neither its own nor a default one


# === What is refused: changes to a good spec, and what the message says: place, received, cure ===

BROKEN = {
    "unknown section": ({"taks": []}, ["taks: a known key", "Received: `taks`", "Did you mean `tasks`?"]),
    "unknown key": ({"features.user.1.transfrm": "z"}, ["features.user[1].transfrm", "Did you mean `transform`?"]),
    "unknown key of a mapping's value": (
        {"evaluation": {"gates": {"like": {"minumum": 0.5}}}},
        ["evaluation.gates.like.minumum", "Received: `minumum`", "Did you mean `minimum`?"],
    ),
    "unknown key far from all": ({"request.qq": 1}, ["request.qq", "Known keys: group_by, id, max_candidates, time"]),
    "unknown key of an optional section": ({"data.past": {**PAST, "tiem": "x"}}, ["data.past.tiem", "`time`"]),
    "missing section": ({"tasks": REMOVE}, ["tasks: a value is expected", "Received: nothing", "Add the key `tasks`"]),
    "missing key": ({"split.eval": REMOVE}, ["split.eval", "Received: nothing", "Add the key `eval`"]),
    "a request that would not be served": (
        {"serving": {"max_candidates": 63}},
        ["serving.max_candidates: at least request.max_candidates, 64,", "Received: 63. Raise it."],
    ),
    "a warm-up request that would be refused": (
        {"serving": {"max_candidates": 100, "warmup_candidates": [1, 101]}},
        ["serving: `warmup_candidates` of at most `max_candidates`, 100, are expected", "Received: "],
    ),
    "no warm-up request": ({"serving": {"warmup_candidates": []}}, ["serving.warmup_candidates", "at least 1"]),
    "unknown dtype of the cache": (
        {"serving": {"cache_dtype": "float8"}},
        ["serving.cache_dtype: 'float32', 'float16' or 'bfloat16' is expected", 'Received: "float8"'],
    ),
    "a context feature that a served call has another meaning for": (
        {"features.context.0.name": "state_of_mind"},
        ["features.context[0].name: a name that the package does not use", "Received: `state_of_mind`"],
    ),
    "no tasks": ({"tasks": []}, ["tasks: ", "at least 1", "Received: []"]),
    "wrong type": ({"features.user.0.dim": "wide"}, ["features.user[0].dim: a whole number is", 'Received: "wide"']),
    "text for a section": ({"request": "user"}, ["request: a section is expected, ", 'Received: "user"']),
    "zero for a positive number": ({"request.max_candidates": 0}, ["request.max_candidates", "greater than 0", ": 0"]),
    "unknown feature type": ({"features.user.0.type": "number"}, ["features.user[0].type", "'numeric'", '"number"']),
    "unknown transform": ({"features.user.1.transform": "zz"}, ["features.user[1].transform", "'log_z'", '"zz"']),
    "unknown metric": ({"evaluation": {"metrics": ["aucc"]}}, ["evaluation.metrics[0]", "ndcg@", '"aucc"']),
    "unknown optimizer": ({"training": {"optimizer": {"name": "x"}}}, ["training.optimizer.name", "'adamw'", '"x"']),
    "name with capitals": ({"tasks.0.name": "Click"}, ["tasks[0].name", "lower-case", '"Click"']),
    "option of another type": (
        {"features.user.0.transform": "z"},
        ["features.user[0]", "`transform` has no meaning for type `categorical`", "Remove it"],
    ),
    "transform of a time": (
        {"features.candidate.4": {"name": "bid", "type": "time", "transform": "z"}},
        ["features.candidate[4]", "`transform` has no meaning for type `time`", "Remove it"],
    ),
    "unknown period": (
        {"features.candidate.4": {"name": "bid", "type": "time", "periods": ["days"]}},
        ["features.candidate[4].periods[0]", "'hour', 'day' or 'week'", "Did you mean `day`"],
    ),
    "feature named as a part of a time": (
        {"features.candidate.4": {"name": "at", "type": "time"}, "features.user.0.name": "at_day_sin"},
        ["Received: `at_day_sin`", "also features.user[0]"],
    ),
    "slice by a time": (
        {"features.candidate.4": {"name": "at", "type": "time"}, "evaluation": {"slices": [["at"]]}},
        ["evaluation.slices[0]", "`at`", "a categorical or numeric feature"],
    ),
    "hashed and learned": (
        {"features.candidate.1.vocabulary": {"hash_buckets": 9, "top_k": 3}},
        ["features.candidate[1].vocabulary", "either `hash_buckets`, or", "Remove one"],
    ),
    "one bucket": ({"features.candidate.1.vocabulary": {"hash_buckets": 1}}, ["hash_buckets", "greater than", "1"]),
    "vocabulary of a number": (
        {"features.user.1.vocabulary": "v"},
        ["features.user[1]", "`vocabulary` has no meaning for type `numeric`", "Remove it"],
    ),
    "NaN for a bound": (
        {"evaluation": {"gates": {"like": {"minimum": float("nan")}}}},
        ["gates.like.minimum", "finite"],
    ),
    "infinite weight": ({"tasks.0.weight": float("inf")}, ["tasks[0].weight", "finite"]),
    # --- Names
    "task named as a feature": ({"tasks.0.name": "genre"}, ["Received: `genre`", "also tasks[0]", "unique"]),
    "one feature twice": (
        {"features.context.0.name": "age"},
        ["features.context[0].name", "`age`", "features.user[1]"],
    ),
    "sequence named as a task": ({"sequences.1.name": "like"}, ["sequences[1].name", "`like`", "tasks[1]"]),
    "feature named as a part of a sequence": (
        {"features.user.0.name": "seen_item"},
        ["sequences[0].name", "Received: `seen_item`", "also features.user[0]"],
    ),
    "feature named as a set's length": (
        {"features.user.0.name": "tags_length"},
        ["Received: `tags_length`", "also features.user[0]"],
    ),
    "reserved name": ({"features.user.0.name": "request_id"}, ["features.user[0].name", "`request_id`", "Rename it"]),
    "feature named as the mask of its group": (
        {"features.candidate.4.name": "mask"},
        ["features.candidate[4].name", "`mask`", "Rename it"],
    ),
    "reserved prefix": ({"features.user.0.name": "label_x"}, ["features.user[0].name", "`label_x`", "Rename it"]),
    "sequence named as a group": ({"sequences.1.name": "user"}, ["sequences[1].name", "`user`", "Rename it"]),
    # --- Requests and splits
    "both id and group_by": ({"request.id": "r"}, ["request: one of `id` and `group_by`", "not both", '"id": "r"']),
    "neither id nor group_by": ({"request.group_by": REMOVE}, ["request: one of `id` and `group_by`", "not neither"]),
    "empty group_by": ({"request.group_by": []}, ["request: one of `id` and `group_by`", "not neither"]),
    "request weight": ({"request.weight": 2}, ["request.weight: a text is expected", "Received: 2"]),
    "overlapping splits": ({"split.eval": [2, 3]}, ["split: `eval` should begin after `train` ends", '"eval": [2, 3]']),
    "unordered splits": ({"split.train": [5, 6]}, ["split: `eval` should begin after `train` ends", "[5, 6]"]),
    "range that runs backwards": ({"split.test": [9, 4]}, ["split: ", "first <= last", "`test`", "[9, 4]"]),
    "bounds of two types": ({"split.test": ["4", "5"]}, ["split: bounds of one type", '"4"']),
    "unquoted date": (
        {"split.test": [yaml.safe_load("2022-05-04"), 5]},
        ["split.test[0]: a whole number or a text is expected", "Quote", '"2022-05-04"'],
    ),
    "relative bound after the as-of date": (
        {"split": {**RELATIVE, "test": [-1, 1]}},
        ["split: with `date_format`, whole days relative to the as-of date are expected, 0 or less", '"test": [-1, 1]'],
    ),
    "literal bounds with a date format": (
        {"split": {**RELATIVE, "train": ["2022-05-01", "2022-05-02"]}},
        ["split: with `date_format`, whole days relative to the as-of date are expected"],
    ),
    "relative splits that overlap": ({"split": {**RELATIVE, "eval": [-3, -1]}}, ["`eval` should begin after `train`"]),
    "unknown date format": (
        {"split": {**RELATIVE, "date_format": "YYYY-MMDD"}},
        ["split.date_format: 'YYYYMMDD' or 'YYYY-MM-DD' is expected", "Did you mean `YYYY-MM-DD`?"],
    ),
    "as-of date that is none": (
        {"split": {**RELATIVE, "as_of": "2022-5-5"}},
        ["split.as_of: a date written as YYYY-MM-DD is expected", '"2022-5-5"'],
    ),
    "as-of date of literal bounds": (
        {"split.as_of": "2022-05-05"},
        ["split: `as_of` has no meaning without `date_format`"],
    ),
    "one bound": ({"split.test": [4]}, ["split.test", "nothing"]),
    # --- References between sections
    "unknown task in the score": ({"score": "click * clack"}, ["score: ", "`clack`", "Known: click, like, share"]),
    "unreadable score": ({"score": "click + like"}, ["score: ", "`click + like`", "click^0.2 * like"]),
    "task twice in the score": ({"score": "click * click^2"}, ["score: ", "`click` twice", "Add the powers up"]),
    "unknown task in where": ({"sequences.1.where": "lik"}, ["sequences[1].where", "`lik`", "Known: click, like"]),
    "unknown task in feedback": ({"sequences.0.feedback": ["no"]}, ["sequences[0].feedback", "`no`", "Known: click"]),
    "unknown task in observed_when": (
        {"tasks.1.observed_when": "x"},
        ["tasks[1].observed_when", "`x`", "Known: click"],
    ),
    "unknown task in gates": (
        {"evaluation": {"gates": {"clik": {}}}},
        ["evaluation.gates.clik", "Received: `clik`", "Known: click, like, share"],
    ),
    "unknown task in early stopping": (
        {"training": {"early_stopping": {"task": "x"}}},
        ["training.early_stopping.task", "Received: `x`", "Known: click, like, share"],
    ),
    "observed when itself": ({"tasks.1.observed_when": "like"}, ["tasks[1].observed_when", "cycle", "`like` again"]),
    "cyclic observed_when": (
        {"tasks.0.observed_when": "share", "tasks.1.observed_when": "click", "tasks.2.observed_when": "like"},
        ["tasks[0].observed_when", "without a cycle", "again"],
    ),
    "label as a feature": (
        {"features.candidate.4.column": "liked"},
        ["features.candidate `bid`", "column `liked`", "the label of task `like`", "Remove the feature: it would leak"],
    ),
    "label as a context feature": (
        {"features.context.0": {"name": "clicked", "type": "categorical"}},
        ["features.context `clicked`", "the label of task `click`", "it would leak"],
    ),
    "outcome as a feature": (
        {"features.candidate.4.column": "seconds"},
        ["features.candidate `bid`", "column `seconds`", "listed in data.outcomes", "it would leak"],
    ),
    "weight as a feature": (
        {"request.weight": "bid"},
        ["features.candidate `bid`", "column `bid`", "the weight of impressions", "it would leak"],
    ),
    "set of a user": (
        {"features.user.0.type": "categorical_set"},
        ["features.user `country`", "`categorical`, `numeric` or `time` is expected", "Received: `categorical_set`"],
    ),
    "pick of a candidate": (
        {"features.candidate.0.pick": "first"},
        ["features.candidate `item`", "`pick`", "Remove it"],
    ),
    "sequence over an unknown feature": (
        {"sequences.0.features": ["item", "gnre"]},
        ["sequences[0].features", "Received: `gnre`", "Known: item, genre, tags"],
    ),
    "sequence over a user feature": ({"sequences.0.features": ["age"]}, ["sequences[0].features", "Received: `age`"]),
    "sequence over a set": (
        {"sequences.0.features": ["tags"]},
        ["sequences[0].features", "single-valued", "`tags`, a set"],
    ),
    "sequence without features": ({"sequences.0.features": []}, ["sequences[0].features", "at least 1", "[]"]),
    "sequences without a user": (
        {"data.tables.user": REMOVE},
        ["sequences: a user key is expected", "Received: none", "Add `data.tables.user"],
    ),
    "shared vocabulary of two dims": (
        {"features.candidate.1.vocabulary": "item", "features.candidate.1.dim": 8},
        [
            "features.candidate `genre`",
            "need one dim",
            "share vocabulary `item`",
            "Received: 8",
            "16 in `item`",
            "Make them equal",
        ],
    ),
    "shared vocabulary of two sizes": (
        {
            "features.candidate.0.vocabulary": {"top_k": 9},
            "features.candidate.1.vocabulary": {"name": "item", "top_k": 8},
        },
        [
            "features.candidate `genre`",
            "need one top_k",
            "share vocabulary `item`",
            "Received: 8",
            "9",
            "Make them equal",
        ],
    ),
    "past of another key": ({"data.past": {**PAST, "key": "who"}}, ["data.past.key", "`user`", "Received: `who`"]),
    "past of an unknown sequence": (
        {"data.past": {**PAST, "sequences": {"sene": {"item": "items"}}}},
        ["data.past.sequences.sene", "Received: `sene`", "Known: seen, loved"],
    ),
    "past of an unknown part": (
        {"data.past": {**PAST, "sequences": {"loved": {"genre": "g"}}}},
        ["data.past.sequences.loved", "Received: `genre`", "Known: item"],
    ),
    "past of an unknown task": (
        {"data.past": {**PAST, "feedback": {"lik": "loved"}}},
        ["data.past.feedback", "Received: `lik`", "Known: click, like, share"],
    ),
    "past with feedback and without items": (
        {"data.past": PAST, "data.tables.item": REMOVE},
        ["data.past.feedback", "item table's key", "Received: none", "Add it"],
    ),
    "slice by an unknown feature": (
        {"evaluation": {"slices": [[], ["genre", "colour"]]}},
        ["evaluation.slices[1]", "Received: `colour`", "Known: country, age, device"],
    ),
    "slice by a set": (
        {"evaluation": {"slices": [["tags"]]}},
        ["evaluation.slices[0]", "Received: `tags`", "a categorical or numeric feature"],
    ),
    # --- Aggregate features
    "aggregates without tasks": (
        {"aggregates": [{"keys": [["item"]], "windows": ["1d"]}]},
        ["aggregates[0].tasks: a value is expected", "Add the key `tasks`"],
    ),
    "aggregates with an unknown key": (
        {"aggregates": [{**AGGREGATE, "smoothin": 2}]},
        ["aggregates[0].smoothin", "Did you mean `smoothing`?"],
    ),
    "aggregates of an unknown column": (
        {"aggregates": [AGGREGATE, {**AGGREGATE, "keys": [["genre"], ["item", "colour"]]}]},
        ["aggregates[1].keys[1]: ", "Received: `colour`. Known: country, device, item, genre, user."],
    ),
    "aggregates of a sequence": (
        {"aggregates": [{**AGGREGATE, "keys": [["seen"]]}]},
        ["aggregates[0].keys[0]: a single-valued categorical feature", "Received: `seen`, a sequence"],
    ),
    "aggregates of a set": (
        {"aggregates": [{**AGGREGATE, "keys": [["tags"]]}]},
        ["aggregates[0].keys[0]", "Received: `tags`, a categorical_set feature"],
    ),
    "aggregates of a number": (
        {"aggregates": [{**AGGREGATE, "keys": [["price"]]}]},
        ["aggregates[0].keys[0]", "Received: `price`, a numeric feature"],
    ),
    "aggregates of a label": ({"aggregates": [{**AGGREGATE, "keys": [["liked"]]}]}, ["keys[0]", "`liked`. Known: "]),
    "aggregates of an unknown task": (
        {"aggregates": [{**AGGREGATE, "tasks": ["clik"]}]},
        ["aggregates[0].tasks: the name of a task", "Received: `clik`. Known: click, like, share"],
    ),
    "aggregates with a window of hours": (
        {"aggregates": [{**AGGREGATE, "windows": ["all", "12h"]}]},
        ["aggregates[0].windows[1]: a window is expected", "as 7d", 'Received: "12h"'],
    ),
    "aggregates with a window of no days": (
        {"aggregates": [{**AGGREGATE, "windows": ["0d"]}]},
        ["aggregates[0].windows[0]: a window is expected", 'Received: "0d"'],
    ),
    "aggregates with a number for a window": (
        {"aggregates": [{**AGGREGATE, "windows": [7]}]},
        ["aggregates[0].windows[0]: a window is expected", "Received: 7"],
    ),
    "aggregates in an unknown time zone": (
        {"aggregates": [{**AGGREGATE, "timezone": "Asia/Shangai"}]},
        ["aggregates[0].timezone: a time zone that this machine knows", 'Received: "Asia/Shangai"'],
    ),
    "aggregates in two time zones": (
        {"aggregates": [AGGREGATE, {**AGGREGATE, "keys": [["genre"]], "timezone": "Asia/Shanghai"}]},
        ["aggregates[1].timezone: one time zone", "`Asia/Shanghai`, but `UTC` in aggregates[0]", "Make them equal"],
    ),
    "aggregates without smoothing": (
        {"aggregates": [{**AGGREGATE, "smoothing": 0}]},
        ["aggregates[0].smoothing", "greater than 0", "Received: 0"],
    ),
    "aggregates without a key": (
        {"aggregates": [{**AGGREGATE, "keys": [[]]}]},
        ["aggregates[0].keys[0]", "at least 1"],
    ),
    "aggregates with a key twice": (
        {"aggregates": [{**AGGREGATE, "keys": [["item", "country"], ["country", "item"]]}]},
        ["aggregates[0].keys: each of them once is expected"],
    ),
    "aggregates with a part twice": (
        {"aggregates": [{**AGGREGATE, "keys": [["item", "item"]]}]},
        ["aggregates[0].keys: a key of different parts is expected"],
    ),
    "aggregates with a task twice": (
        {"aggregates": [{**AGGREGATE, "tasks": ["click", "click"]}]},
        ["aggregates[0].tasks: each of them once"],
    ),
    "aggregates with a window twice": (
        {"aggregates": [{**AGGREGATE, "windows": ["1d", "1d"]}]},
        ["aggregates[0].windows: each of them once"],
    ),
    "aggregates that overlap": (
        {"aggregates": [AGGREGATE, {**AGGREGATE, "smoothing": 5}]},
        ["aggregates[1].name: names unique", "`item_click_1d_rate`, also aggregates[0]"],
    ),
    "feature named as an aggregate feature": (
        {"aggregates": [AGGREGATE], "features.user.0.name": "item_click_1d_count_bucket"},
        ["aggregates[0].name: names unique", "also features.user[0]"],
    ),
    "gate with the wrong bound": (
        {"evaluation": {"gates": {"like": {"metric": "normalized_entropy", "minimum": 0.5}}}},
        ["evaluation.gates.like", "`minimum` has no meaning for `normalized_entropy`", "Use the other bound"],
    ),
    "gate with the other wrong bound": (
        {"evaluation": {"gates": {"default": {"metric": "gauc", "maximum": 0.5}}}},
        ["evaluation.gates.default", "`maximum` has no meaning for `gauc`", "Use the other bound"],
    ),
    "gate on calibration": (
        {"evaluation": {"gates": {"default": {"metric": "calibration"}}}},
        ["evaluation.gates.default", "a metric with a direction", '"calibration"'],
    ),
}


@pytest.mark.parametrize(("changes", "parts"), BROKEN.values(), ids=BROKEN)
def test_broken_specs_are_refused_with_place_and_cure(changes, parts):
    text = yaml.safe_dump(edited(SPEC, changes))
    with pytest.raises(SpecError) as caught:
        parse_spec(text, origin="toy.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("toy.yaml: ") for line in lines)
    assert any(all(part in line for part in parts) for line in lines), lines


def test_all_mistakes_are_told_at_once():
    changes = {"features.user.0.dim": "wide", "taks": [], "split.eval": REMOVE}
    with pytest.raises(SpecError) as caught:
        toy_spec(changes)
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(SpecError) as caught:
        toy_spec({"sequences.1.where": "x", "score": "y", "training": {"early_stopping": {"task": "z"}}})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: [", ["YAML is expected", "Received: ", "in line 1", "Correct the line."]),
        ("", ["a mapping with `name`", "None"]),
        ("- 1", ["a mapping with `name`", "[1]"]),
    ],
)
def test_files_that_are_no_mapping_are_refused(tmp_path, text, parts):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert all(part in str(caught.value) for part in [str(path), *parts])


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(SpecError, match="a readable YAML file in UTF-8 is expected") as caught:
            load_spec(path)
        assert str(path) in str(caught.value)


# === Score formula ===


@pytest.mark.parametrize(
    ("formula", "powers"),
    [
        ("click", {"click": 1.0}),
        ("click^0.2 * long_view^1.0 * like^0.5", {"click": 0.2, "long_view": 1.0, "like": 0.5}),
        (" like ^ 2*click ", {"like": 2.0, "click": 1.0}),
        ("hide^-0.5 * click", {"hide": -0.5, "click": 1.0}),
        ("click^0", {"click": 0.0}),
    ],
)
def test_score_formula(formula, powers):
    assert parse_score(formula) == powers
    assert list(parse_score(formula)) == list(powers)


@pytest.mark.parametrize("formula", ["", "click *", "click^", "click^x", "2 * click", "click like", "Click", "(click)"])
def test_unreadable_score_formulas_are_refused(formula):
    with pytest.raises(ValueError, match="a product of powers of tasks"):
        parse_score(formula)


def test_without_a_formula_every_task_counts_once():
    assert toy_spec().score_powers == {"click": 1.0, "like": 1.0, "share": 1.0}


def test_a_key_that_stands_twice_is_refused():
    text = yaml.safe_dump(SPEC) + "score: click\nscore: like\n"
    with pytest.raises(SpecError, match="the key `score` stands twice"):
        parse_spec(text)


def test_a_list_whose_one_element_is_wrong_is_not_also_too_short():
    text = yaml.safe_dump(edited(SPEC, {"features.user": [{"name": "country", "type": "categorial"}]}))
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert len(str(caught.value).splitlines()) == 1
    assert "Did you mean `categorical`?" in str(caught.value)


def test_canonical_json_keeps_the_loss():
    spec = toy_spec({"model": {"name": "onerank", "d": 8, "loss": {"infonce": 0.1, "temperature": 0.5}}})
    assert parse_spec(spec.to_json()).model == spec.model
    assert spec.to_json() != toy_spec({"model": {"name": "onerank", "d": 8}}).to_json()
