"""Counts of examples that nothing can be learned from."""

from pathlib import Path

import pytest

from tests.testing import small_problem
from transform.errors import DataError
from transform.ingest.check_counts import check_counts
from transform.spec.loading import load_spec
from transform.spec.ranking_spec import RankingSpec

pytestmark = pytest.mark.once


@pytest.fixture
def spec(tmp_path: Path) -> RankingSpec:
    return load_spec(small_problem.write_spec(tmp_path / "small.yaml"))


GOOD_COUNTS = {
    "impressions_read": 10,
    "users": 3,
    **{f"{split}_requests": 1 for split in ("train", "eval", "test")},
    **{f"train_positives_{task}": 1 for task in ("buy", "save", "share")},
}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"test_requests": 0}, "split.test: requests with `day` from 7 to 8"),
        ({"eval_requests": 0}, "split.eval"),
        ({"train_positives_save": 0}, "tasks `save`: positives in `saved`"),
        ({"users_without_table_row": 3}, "data.tables.user"),
        ({"duplicates_dropped": 2, "impressions_without_item_row": 8}, "data.tables.item"),
    ],
)
def test_examples_that_nothing_can_be_learned_from_are_refused(spec, counts, said):
    check_counts(spec, {**GOOD_COUNTS, "users_without_table_row": 2, "impressions_without_item_row": 7})
    with pytest.raises(DataError, match=said):
        check_counts(spec, {**GOOD_COUNTS, **counts})
