"""The table of metrics, and metrics of the user's own in a spec."""

import math

import pytest
import yaml

from tests.testing.toy_requests import SPEC, edited, toy_spec
from transform.errors import SpecError
from transform.import_path import import_object, imported_packages
from transform.spec import metric_table
from transform.spec.loading import load_spec, parse_spec
from transform.spec.metric_table import METRICS, Metric, find_metric

OWN = "tests.testing.own_metrics:precision"
LOWER = "tests.testing.own_metrics:brier"
NO_DIRECTION = "tests.testing.own_metrics:mean_score"


def load(tmp_path, changes):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(edited(SPEC, changes)))
    return load_spec(path)


# === The table ===


def test_every_row_is_found_by_its_name():
    for row in METRICS:
        name = row.name.replace("@k", "@7")
        found = find_metric(name)
        assert (found.name, found.direction, found.best, found.bound) == pytest.approx(
            (name, row.direction, row.best, row.bound), nan_ok=True
        )
    assert len({row.name for row in METRICS}) == len(METRICS)


def test_a_member_of_a_family_has_its_own_title_and_k():
    found = find_metric("ndcg@12")
    assert (found.title, found.k, found.higher_is_better, found.bound) == ("NDCG@12", 12, True, 0.0)
    assert find_metric("auc").k is None


@pytest.mark.parametrize("name", ["ndcg", "ndcg@", "ndcg@0", "ndcg@k", "ndcg@-1", "auc@5", "AUC", "xauc", ""])
def test_other_names_are_refused_with_those_that_there_are(name):
    with pytest.raises(SpecError, match=r"metric: a metric is expected: auc, gauc, ndcg@5 \(or another k\)"):
        find_metric(name)


def test_a_new_row_is_in_messages_patterns_and_checks_at_once(monkeypatch):
    row = Metric("recall@k", "higher", best=1.0, bound=0.1, title="recall@k")
    monkeypatch.setattr(metric_table, "METRICS", (*METRICS, row))
    assert "calibration or recall@5 (or another k)," in metric_table.metric_expected()
    assert metric_table.direction_expected().endswith("normalized_entropy or recall@k")
    assert (find_metric("recall@3").title, find_metric("recall@3").bound) == ("recall@3", 0.1)


@pytest.mark.parametrize(
    ("name", "value", "before", "better"),
    [
        ("auc", 0.7, 0.6, True),
        ("log_loss", 0.7, 0.6, False),
        ("normalized_entropy", 0.5, 0.6, True),
        ("calibration", 1.1, 0.8, True),
        ("calibration", 0.7, 0.8, False),
        ("example_count", 5.0, 4.0, None),
        ("auc", 0.7, 0.7, None),
        ("auc", math.nan, 0.7, None),
        (NO_DIRECTION, 0.4, 0.9, True),
        (LOWER, 0.4, 0.9, True),
        (OWN, 0.4, 0.9, False),
    ],
)
def test_better_follows_the_direction(name, value, before, better):
    assert find_metric(name).is_better(value, before) is better


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"direction": "up", "best": 1.0, "bound": 0.0},
            "one of higher, lower, target, none. Received: `direction='up'`",
        ),
        ({"direction": "higher", "bound": 0.0}, "`best` of metric `mine` should be a number"),
        ({"direction": "lower", "best": 0.0}, "`bound` of metric `mine` should be a number"),
        ({"direction": "higher", "best": math.inf, "bound": 0.0}, "Received: `best=inf`"),
        (
            {"direction": "target", "best": 1.0, "function": lambda labels, predictions: 0.0},
            "should take some of labels, scores, groups, weights. Received: one that takes predictions",
        ),
    ],
)
def test_a_metric_that_is_not_whole_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        Metric("mine", **arguments)


# === In a spec ===


def test_a_metric_of_ones_own_may_stand_wherever_a_metric_may(tmp_path):
    spec = load(
        tmp_path,
        {
            "training": {"early_stopping": {"task": "like", "metric": LOWER}},
            "evaluation": {
                "metrics": ["auc", OWN, NO_DIRECTION],
                "gates": {"default": {"metric": OWN}, "like": {"metric": LOWER, "maximum": 0.3}},
            },
        },
    )
    evaluation = spec.evaluation
    assert evaluation.named_metrics == ("auc", OWN, NO_DIRECTION, LOWER)
    assert imported_packages([*evaluation.named_metrics, "ndcg@5"]) == ("tests",)
    assert [(evaluation.gate(task).higher_is_better, evaluation.gate(task).bound) for task in ("click", "like")] == [
        (True, 0.0),
        (False, 0.3),
    ]
    assert find_metric(OWN).title == "first is right" and find_metric(OWN).name == OWN
    assert parse_spec(spec.to_json()) == spec


def test_a_spec_that_is_handed_on_needs_no_code_of_the_users():
    """A server reads the spec of its model."""
    spec = toy_spec(
        {"evaluation": {"metrics": ["not_here:recall"], "gates": {"default": {"metric": "not_here:recall"}}}}
    )
    assert spec.evaluation.metrics == ("not_here:recall",)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"evaluation": {"metrics": ["auc", "not_here.metrics:recall"]}},
            ["evaluation.metrics[1]: a module that can be imported", "`not_here.metrics`", "PYTHONPATH"],
        ),
        (
            {"evaluation": {"gates": {"like": {"metric": "tests.testing.own_metrics:precisoin"}}}},
            [
                "evaluation.gates.like.metric: a name in the module `tests.testing.own_metrics`",
                "`precisoin`",
                "Define it in ",
            ],
        ),
        (
            {"training": {"early_stopping": {"task": "like", "metric": "tests.testing.own_metrics:brier_score"}}},
            [
                "training.early_stopping.metric: the import path of a `Metric`",
                "of type function",
                "from onerank import",
            ],
        ),
        (
            {"evaluation": {"metrics": ["tests.testing.own_metrics:unfinished"]}},
            ["a `Metric` with a function", "one without"],
        ),
        (
            {"training": {"early_stopping": {"task": "like", "metric": NO_DIRECTION}}},
            ["training.early_stopping.metric: a metric with a direction is expected: auc, gauc, ndcg@k or"],
        ),
        (
            {"evaluation": {"gates": {"like": {"metric": NO_DIRECTION}}}},
            ["evaluation.gates.like: a metric with a direction", f"Received: `{NO_DIRECTION}`"],
        ),
        (
            {"evaluation": {"gates": {"like": {"metric": LOWER, "minimum": 0.5}}}},
            [f"evaluation.gates.like: `minimum` has no meaning for `{LOWER}`. Use the other bound"],
        ),
        (
            {"training": {"early_stopping": {"task": "like", "metric": "calibration"}}},
            ["training.early_stopping.metric: a metric with a direction", '"calibration"'],
        ),
        ({"evaluation": {"metrics": ["own_metrics.precision"]}}, ["evaluation.metrics[0]", "as `package.module:name`"]),
        ({"evaluation": {"metrics": ["log_loss"]}}, ["evaluation.metrics[0]: a metric is expected: auc, gauc, ndcg@5"]),
    ],
)
def test_a_wrong_metric_is_one_clear_line(tmp_path, changes, parts):
    with pytest.raises(SpecError) as caught:
        load(tmp_path, changes)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path}/toy.yaml: ")
    assert all(part in line for part in parts), line


# === Import paths ===


def test_an_import_path_may_lead_into_an_object():
    assert import_object("tests.testing.own_metrics:precision.title", "here") == "first is right"
    assert import_object("transform.spec.metric_table:Metric", "here") is Metric


@pytest.mark.parametrize(
    "path",
    [
        "own_metrics",
        "tests.testing.own_metrics:",
        ":precision",
        "own metrics:x",
        "tests.testing.own_metrics:1",
        "a.b.c",
        "../x:y",
    ],
)
def test_what_is_no_import_path_is_refused(path):
    with pytest.raises(SpecError, match=r"^here: an import path is expected, as `package.module:Name`. Received: `"):
        import_object(path, "here")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise ValueError('at\\nhome')", r"ValueError: at home\. Correct the module\."),
        ("def x(:", r"SyntaxError: .*\. Correct the module\."),
        ("import not_here", r"ModuleNotFoundError: No module named 'not_here'\. Correct the module\."),
    ],
)
def test_a_module_that_fails_is_told_in_one_line(tmp_path, monkeypatch, text, told):
    (tmp_path / "failing_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match=rf"^here: a module that can be imported is expected\. .*{told}$") as caught:
        import_object("failing_module:x", "here")
    assert "\n" not in str(caught.value)
