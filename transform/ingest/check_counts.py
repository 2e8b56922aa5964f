"""Whether what was made of a log can be learned from and judged by."""

from __future__ import annotations

from transform.errors import DataError
from transform.spec.ranking_spec import RankingSpec


def check_counts(spec: RankingSpec, counts: dict[str, int]) -> None:
    """Refuses examples that nothing can be learned from or judged by.

    Args:
        spec: RankingSpec.
        counts: dict. What the transform counted.

    Raises:
        DataError: when a split is empty, a task has no positives to learn from, or a table fits no row of the log.
    """
    for split, (first, last) in spec.split.ranges().items():
        if not counts.get(f"{split}_requests"):
            raise DataError(
                f"split.{split}: requests with `{spec.split.by}` from {first} to {last} are expected. "
                f"Received: none in {counts.get('impressions_read', 0):,} rows. Correct the range, or bring the data."
            )
    for task in spec.tasks:
        if not counts.get(f"train_positives_{task.name}"):
            raise DataError(
                f"tasks `{task.name}`: positives in `{task.label}` are expected in the train split. Received: none. "
                "Correct the label, or remove the task."
            )
    unmatched = {"user": ("users_without_table_row", "users"), "item": ("impressions_without_item_row", None)}
    for table, (missing, of) in unmatched.items():
        total = counts.get(of, 0) if of else counts["impressions_read"] - counts.get("duplicates_dropped", 0)
        if total and counts.get(missing, 0) >= total:
            raise DataError(
                f"data.tables.{table}: rows for the keys in the log are expected. Received: not one key of the log is "
                "in the table. Correct `key`, or the files."
            )
