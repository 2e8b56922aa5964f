"""The date that relative split bounds count from."""

from __future__ import annotations

from transform.errors import DataError
from transform.ingest.tables import check_columns, match_files, read_rows
from transform.spec.data_sections import parse_date
from transform.spec.ranking_spec import RankingSpec


def resolve_splits(spec: RankingSpec, data_dir: str, as_of: str | None = None) -> RankingSpec:
    """The spec with literal split bounds; one that has them already is returned as it is.

    Args:
        spec: RankingSpec.
        data_dir: str. The folder that the spec's paths are relative to.
        as_of: str or None. The date that relative bounds count from, as YYYY-MM-DD. Defaults to the last day in the
            log, which is read for it.

    Raises:
        SpecError: when `as_of` is no date, or the bounds are literals.
        DataError: when the log can't be read or its column holds no dates.
    """
    if as_of is None and spec.split.date_format:
        as_of = last_day(spec, data_dir)
    return spec.with_as_of(as_of)


def last_day(spec: RankingSpec, data_dir: str) -> str:
    """The last day in the log of a spec with relative split bounds, as YYYY-MM-DD."""
    column, date_format = spec.split.by, spec.split.date_format or ""
    origins: dict[str, str] = {}
    for path in match_files(data_dir, spec.data.impressions.files, "data.impressions.files"):
        check_columns(path, [column], "split.by")
        for row in read_rows(path, [column]):
            origins.setdefault(row.values[0], row.origin)
    dates = []
    for text, origin in origins.items():
        try:
            dates.append(parse_date(text, date_format))
        except ValueError as error:
            raise DataError(
                f"{origin}: {error} in `{column}`. Received: `{text}`. Correct `split.date_format`, or the column."
            ) from None
    if not dates:
        raise DataError("data.impressions: rows are expected. Received: none. Bring the data.")
    return max(dates).isoformat()
