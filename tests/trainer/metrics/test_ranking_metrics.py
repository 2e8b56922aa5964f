import math

import numpy as np
import pytest
from sklearn import metrics as reference

from tests.testing import own_metrics
from trainer.metrics import ranking_metrics
from trainer.metrics.ranking_metrics import Rows
from transform.errors import DataError, SpecError
from transform.spec.metric_table import METRICS, find_metric


def random_rows(seed, rows=400, groups=60, levels=6):
    """Rows with ties, masked rows, one-class groups and single-candidate groups, in random order."""
    random = np.random.default_rng(seed)
    group = random.permutation(np.repeat(np.arange(groups), rows // groups + 1)[:rows]) * 7919 - 5
    labels = (random.random(rows) < random.choice([0.0, 0.3, 1.0], groups, p=[0.2, 0.6, 0.2])[group % groups]).astype(
        float
    )
    scores = random.integers(1, levels, rows) / levels
    weights = (random.random(rows) < 0.8).astype(float)
    labels[weights == 0] = np.nan
    return labels, scores, group, weights


def by_group(labels, scores, groups, weights):
    kept = weights > 0
    for group in np.unique(groups[kept]):
        rows = kept & (groups == group)
        yield labels[rows], scores[rows]


def reference_gauc(*columns):
    aucs = [(reference.roc_auc_score(y, s), len(y)) for y, s in by_group(*columns) if 0 < y.sum() < len(y)]
    return np.average([auc for auc, _ in aucs], weights=[size for _, size in aucs])


def reference_ndcg(k, *columns):
    """scikit-learn averages over ties too; it has no answer for one candidate, which is always first."""
    values = [reference.ndcg_score([y], [s], k=k) if len(y) > 1 else 1.0 for y, s in by_group(*columns) if y.sum() > 0]
    return np.mean(values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_rows_equal_scikit_learn(seed, dtype):
    labels, scores, _, weights = random_rows(seed)
    kept = weights > 0
    y, s = labels[kept], scores[kept]
    labels, scores = labels.astype(dtype), scores.astype(dtype)
    loss = reference.log_loss(y, s)
    rate = np.full(len(y), y.mean())
    assert ranking_metrics.auc(labels, scores, weights) == pytest.approx(reference.roc_auc_score(y, s), abs=1e-6)
    assert ranking_metrics.log_loss(labels, scores, weights) == pytest.approx(loss, abs=1e-6)
    entropy = reference.log_loss(y, rate)
    assert ranking_metrics.normalized_entropy(labels, scores, weights) == pytest.approx(loss / entropy, abs=1e-6)
    assert ranking_metrics.calibration(labels, scores, weights) == pytest.approx(s.mean() / y.mean(), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_metrics_of_rows_equal_scikit_learn(seed):
    labels, scores, _, mask = random_rows(seed)
    weights = mask * np.random.default_rng(seed).gamma(1.0, size=len(mask))
    kept = mask > 0
    y, s, w = labels[kept], scores[kept], weights[kept]
    loss = reference.log_loss(y, s, sample_weight=w)
    rate = np.average(y, weights=w)
    entropy = reference.log_loss(y, np.full(len(y), rate), sample_weight=w)
    expected_auc = reference.roc_auc_score(y, s, sample_weight=w)
    assert ranking_metrics.auc(labels, scores, weights) == pytest.approx(expected_auc, abs=1e-9)
    assert ranking_metrics.log_loss(labels, scores, weights) == pytest.approx(loss, abs=1e-9)
    assert ranking_metrics.normalized_entropy(labels, scores, weights) == pytest.approx(loss / entropy, abs=1e-9)
    assert ranking_metrics.calibration(labels, scores, weights) == pytest.approx(
        np.average(s, weights=w) / rate, abs=1e-9
    )


@pytest.mark.parametrize("name", ["auc", "gauc", "log_loss", "normalized_entropy", "calibration"])
@pytest.mark.parametrize("seed", range(3))
def test_a_weight_is_a_number_of_equal_rows(seed, name):
    labels, scores, groups, mask = random_rows(seed)
    times = np.random.default_rng(seed).integers(1, 4, len(mask))
    repeated = Rows.observed(*(np.repeat(column, times) for column in (labels, scores, groups, mask)))
    weighted = Rows.observed(labels, scores, groups, mask * times)
    assert ranking_metrics.compute(name, weighted) == pytest.approx(ranking_metrics.compute(name, repeated), abs=1e-9)
    assert ranking_metrics.compute(name, weighted) != pytest.approx(
        ranking_metrics.compute(name, Rows.observed(labels, scores, groups, mask)), abs=1e-9
    )
    assert ranking_metrics.compute("positive_count", weighted) < ranking_metrics.compute(
        "positive_count", repeated
    )  # rows


def test_ndcg_weighs_groups_by_their_rows_mean_weight():
    labels, scores, groups = [1, 0, 1, 0, 0], [0.9, 0.1, 0.2, 0.3, 0.1], [0, 0, 1, 1, 1]
    second = 1 / np.log2(3)
    for weights, expected in [
        ([1, 1, 1, 1, 1], (1 + second) / 2),
        ([3, 3, 2, 1, 0.5], (3 + second * 3.5 / 3) * 6 / 25),
    ]:
        assert ranking_metrics.ndcg(labels, scores, groups, 5, weights) == pytest.approx(expected)


@pytest.mark.parametrize("levels", [2, 6, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_grouped_metrics_equal_scikit_learn_group_by_group(seed, levels):
    columns = random_rows(seed, levels=levels)
    labels, scores, groups, weights = columns
    assert ranking_metrics.gauc(labels, scores, groups, weights) == pytest.approx(reference_gauc(*columns), abs=1e-12)
    for k in (1, 3, 5, 100):
        expected = reference_ndcg(k, *columns)
        assert ranking_metrics.ndcg(labels, scores, groups, k, weights) == pytest.approx(expected, abs=1e-12)


def test_order_of_rows_and_kind_of_group_names_do_not_matter():
    labels, scores, groups, weights = random_rows(1)
    names = np.array([f"request {group}" for group in groups])
    order = np.random.default_rng(2).permutation(len(labels))
    for name in ("gauc", "ndcg@3", "auc"):
        expected = ranking_metrics.compute(name, Rows.observed(labels, scores, groups, weights))
        shuffled = Rows.observed(labels[order], scores[order], names[order], weights[order])
        assert ranking_metrics.compute(name, shuffled) == pytest.approx(expected, abs=1e-12)


def test_scores_that_are_all_equal_get_the_expected_gain():
    labels, groups = np.array([1, 0, 0, 0, 0, 0]), np.zeros(6)
    expected = np.mean([1 / math.log2(place + 2) if place < 3 else 0 for place in range(6)])
    assert ranking_metrics.ndcg(labels, np.full(6, 0.5), groups, 3) == pytest.approx(expected)
    assert ranking_metrics.auc(labels, np.full(6, 0.5)) == ranking_metrics.gauc(labels, np.full(6, 0.5), groups) == 0.5


def test_counts_and_skipped_groups():
    labels = np.array([1, 0, 1, 1, 0, 0, 1])
    groups = np.array(["mixed", "mixed", "all", "all", "none", "masked", "masked"])
    weights = np.array([1, 1, 1, 1, 1, 1, 0])
    rows = Rows.observed(labels, np.linspace(0.1, 0.9, 7), groups, weights)
    counts = {name: ranking_metrics.compute(name, rows) for name in ("example_count", "positive_count", "group_count")}
    assert counts == {"example_count": 6, "positive_count": 3, "group_count": 4}
    assert ranking_metrics.compute("one_class_groups", rows) == 3
    assert ranking_metrics.compute("gauc", rows) == 0.0


@pytest.mark.parametrize("name", ["auc", "gauc", "ndcg@5", "log_loss", "normalized_entropy", "calibration"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_makes_everything_nan_unless_it_is_masked(name, bad):
    labels, scores, groups, weights = random_rows(3)
    scores[np.flatnonzero(weights == 0)[0]] = bad
    assert math.isfinite(ranking_metrics.compute(name, Rows.observed(labels, scores, groups, weights)))
    scores[np.flatnonzero(weights)[0]] = bad
    assert math.isnan(ranking_metrics.compute(name, Rows.observed(labels, scores, groups, weights)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_weight_that_is_no_weight_is_rejected_with_its_row(bad):
    """Dropped, its row would be missing from the metrics, and nobody would know."""
    labels, scores, groups, weights = random_rows(3)
    weights[17] = bad
    weighted = {
        "rows": lambda: Rows.observed(labels, scores, groups, weights),
        "auc": lambda: ranking_metrics.auc(labels, scores, weights),
        "ndcg": lambda: ranking_metrics.ndcg(labels, scores, groups, 3, weights),
        "group_count": lambda: ranking_metrics.group_count(groups, weights),
    }
    for name, compute in weighted.items():
        with pytest.raises(DataError, match=rf"from 0 on are expected. Received: {bad} in row 17. Give") as error:
            compute()
        assert "\n" not in str(error.value), name


@pytest.mark.parametrize("labels", [[], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
def test_undefined_metrics_are_nan(labels):
    rows = Rows.observed(labels, np.linspace(0.2, 0.8, len(labels)), np.zeros(len(labels)), None)
    undefined = {"auc", "gauc", "normalized_entropy"}
    undefined |= {"log_loss"} if not labels else set()
    undefined |= {"ndcg@3", "calibration"} if not sum(labels) else set()
    for name in ("auc", "gauc", "normalized_entropy", "ndcg@3", "calibration", "log_loss"):
        assert math.isnan(ranking_metrics.compute(name, rows)) == (name in undefined), name
    assert ranking_metrics.compute("positive_count", rows) == sum(labels)


def test_probabilities_of_zero_and_one_have_a_finite_loss():
    assert ranking_metrics.log_loss([1, 0], np.float32([0, 1])) == pytest.approx(
        -math.log(ranking_metrics.PROBABILITY_FLOOR), rel=1e-6
    )
    assert ranking_metrics.log_loss([True, False], [1.0, 0.0]) == pytest.approx(0, abs=1e-6)


def test_concatenated_rows_are_all_rows():
    labels, scores, groups, weights = random_rows(4)
    whole = Rows.observed(labels, scores, groups, weights)
    halves = [
        Rows.observed(*(column[part] for column in (labels, scores, groups, weights)))
        for part in (slice(150), slice(150, None))
    ]
    for name in ("auc", "gauc", "ndcg@5", "log_loss"):
        assert ranking_metrics.compute(name, Rows.concatenate(halves)) == ranking_metrics.compute(name, whole)


# === By name ===


def test_every_row_of_the_table_has_a_function_and_every_function_a_row():
    assert sorted(ranking_metrics._FUNCTIONS) == sorted(row.name for row in METRICS)
    rows = Rows.observed(*random_rows(2))
    for row in METRICS:
        value = ranking_metrics.compute(row.name.replace("@k", "@3"), rows)
        assert isinstance(value, float) and math.isfinite(value)
    with pytest.raises(SpecError, match="metric: a metric is expected: auc, gauc"):
        ranking_metrics.compute("ndcg@0", rows)


def test_the_best_value_of_a_row_is_that_of_a_perfect_model():
    labels, _, groups, weights = random_rows(1)
    perfect = Rows.observed(labels, labels, groups, weights)
    for row in METRICS:
        if row.has_direction:
            name = row.name.replace("@k", "@3")
            assert ranking_metrics.compute(name, perfect) == pytest.approx(find_metric(name).best, abs=1e-5), name


def test_a_metric_of_ones_own_gets_the_columns_that_it_asks_for():
    labels, scores, groups, weights = random_rows(5)
    rows = Rows.observed(labels, scores, groups, weights * 2.5)
    brier = reference.brier_score_loss(rows.labels, rows.scores, sample_weight=rows.weights)
    assert ranking_metrics.compute("tests.testing.own_metrics:brier", rows) == pytest.approx(brier)
    assert ranking_metrics.compute("tests.testing.own_metrics:precision", rows) == own_metrics.precision_of_first(
        rows.labels, rows.scores, rows.groups
    )
    assert type(ranking_metrics.compute("tests.testing.own_metrics:mean_score", rows)) is float


def test_a_metric_of_ones_own_is_not_asked_what_has_no_answer():
    for rows in (Rows.observed([], [], [], None), Rows.observed([1, 0], [np.nan, 0.5], [0, 0], None)):
        assert math.isnan(ranking_metrics.compute("tests.testing.own_metrics:brier", rows))


def test_a_metric_that_returns_no_number_says_so():
    with pytest.raises(
        SpecError, match="metric `tests.testing.own_metrics:talkative`: a number is expected of its function. .* str"
    ):
        ranking_metrics.compute("tests.testing.own_metrics:talkative", Rows.observed([1], [0.5], [0], None))
