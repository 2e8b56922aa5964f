"""Which column of which file every part of a spec comes from, checked against the files before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from transform.errors import DataError
from transform.ingest.tables import check_columns, match_files, read_header
from transform.spec.ranking_spec import RankingSpec


@dataclass(frozen=True)
class Sources:
    """Files and columns of a ranking problem.

    Attributes:
        files: dict. The input files by section: `log`, `user`, `item`, `past`.
        columns: dict. The columns to read by section.
        feature_source: dict. Section and column by feature name.
        labelled: bool. Whether the log holds the label columns.
        for_scoring: bool. Whether every request counts, whatever the splits say.
    """

    files: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    feature_source: dict[str, tuple[str, str]]
    labelled: bool
    for_scoring: bool = False


def resolve_sources(spec: RankingSpec, data_dir: str, for_scoring: bool = False) -> Sources:
    """Finds the files and columns that a spec speaks of.

    A user feature is looked for in the user table and then in the log, a candidate feature in the log and then in the
    item table, a context feature in the log alone.

    Args:
        spec: RankingSpec.
        data_dir: str. The folder that the spec's paths are relative to.
        for_scoring: bool. Whether the log is only to be scored: it needs no labels and no splits. Defaults to `False`.

    Returns:
        Files and columns.

    Raises:
        DataError: when a file or a column is missing.
    """
    data = spec.data
    patterns = {"log": data.impressions.files, "user": (), "item": (), "past": ()}
    places = {"log": "data.impressions.files", "past": "data.past.files"}
    for name in ("user", "item"):
        table = getattr(data.tables, name)
        patterns[name] = table.files if table else ()
        places[name] = f"data.tables.{name}.files"
    if data.past:
        patterns["past"] = data.past.files
    files = {
        name: tuple(match_files(data_dir, found, places[name])) if found else () for name, found in patterns.items()
    }
    headers = {name: read_header(paths[0]) if paths else [] for name, paths in files.items()}
    search = {"user": ("user", "log"), "context": ("log",), "candidate": ("log", "item")}
    feature_source = {
        feature.name: _find(feature.name, feature.source_column, group, search[group], headers)
        for group, feature in spec.declared_features()
    }
    label_columns = [task.label for task in spec.tasks]
    labelled = not for_scoring or all(label in headers["log"] for label in label_columns)
    extra = [] if for_scoring else [spec.split.by]
    if labelled:
        extra += [*label_columns, *([spec.request.weight] if spec.request.weight else [])]
    columns = _needed_columns(spec, feature_source, extra)
    for name, paths in files.items():
        for path in paths:
            check_columns(path, columns[name], places[name])
    return Sources(files, columns, feature_source, labelled, for_scoring)


def _find(
    feature: str, column: str, group: str, sections: Iterable[str], headers: dict[str, list[str]]
) -> tuple[str, str]:
    for section in sections:
        if column in headers[section]:
            return section, column
    searched = " and the ".join({"log": "log", "user": "user table", "item": "item table"}[s] for s in sections)
    raise DataError(
        f"features.{group} `{feature}`: a column `{column}` in the {searched} is expected. Received: none. "
        "Correct `column`, or add the table that holds it."
    )


def _needed_columns(
    spec: RankingSpec, feature_source: dict[str, tuple[str, str]], extra: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    log = [*spec.request.key_columns, spec.request.time, *extra]
    log += [key for key in (spec.user_key, spec.item_key) if key]
    tables = {"user": [spec.user_key or ""], "item": [spec.item_key or ""], "log": log}
    for section, column in feature_source.values():
        tables[section].append(column)
    past = spec.data.past
    tables["past"] = []
    if past:
        tables["past"] = [past.key, *([past.time] if past.time else []), *past.feedback.values()]
        tables["past"] += [column for columns in past.sequences.values() for column in columns.values()]
    return {name: tuple(dict.fromkeys(columns)) for name, columns in tables.items()}
