"""A tiny ranking problem in csv files, and its requests with and without Beam."""

import copy
import csv
import math
from collections import Counter

import apache_beam as beam
import yaml

from transform.features import request_example
from transform.ingest.beam_requests import COUNTS, RequestExamples
from transform.ingest.request_builder import RequestBuilder
from transform.ingest.sources import resolve_sources
from transform.ingest.tables import read_rows
from transform.spec.loading import parse_spec

REMOVE = object()
SPEC = yaml.safe_load("""
name: toy
data:
  impressions: {files: [log*.csv]}
  tables: {user: {files: [users.csv], key: user}, item: {files: [items.csv], key: item}}
  outcomes: [seconds]
request: {group_by: [user, day], time: time}
split: {by: day, train: [1, 2], eval: [3, 3], test: [4, 4]}
tasks:
  - {name: click, label: clicked}
  - {name: like, label: liked}
  - {name: share, label: shared}
features:
  user: [{name: country, type: categorical}, {name: age, type: numeric}]
  context: [{name: device, type: categorical}]
  candidate:
    - {name: item, type: categorical}
    - {name: genre, type: categorical}
    - {name: tags, type: categorical_set}
    - {name: price, type: numeric}
    - {name: bid, type: numeric}
sequences:
  - {name: seen, length: 4, features: [item, genre, price], feedback: [click, like]}
  - {name: loved, role: anchor, length: 2, where: like, features: [item]}
""")
PAST = {
    "files": ["past.csv"],
    "key": "user",
    "time": "until",
    "sequences": {"seen": {"item": "items"}, "loved": {"item": "loved"}},
    "feedback": {"like": "loved"},
}
USERS = [{"user": "u1", "country": "at", "age": "30"}, {"user": "u2", "country": "nz", "age": ""}]
ITEMS = [
    {"item": name, "genre": f"g_{name}", "tags": f"{name},x", "price": str(1.5 * i)}
    for i, name in enumerate("abcdefgh")
]


def edited(content, changes):
    """A copy of nested dicts and lists with the values at dotted paths replaced."""
    content = copy.deepcopy(content)
    for path, value in changes.items():
        value = value if value is REMOVE else copy.deepcopy(value)
        *parents, last = path.split(".")
        section = content
        for part in parents:
            section = section[int(part)] if isinstance(section, list) else section.setdefault(part, {})
        if value is REMOVE:
            del section[last]
        else:
            section[int(last) if isinstance(section, list) else last] = value
    return content


def toy_spec(changes=None):
    return parse_spec(yaml.safe_dump(edited(SPEC, changes or {})))


def impression(item, time, day=1, user="u1", **values):
    """A row of the log; what is not said is no."""
    row = {"user": user, "day": day, "time": time, "item": item, "device": "tv", "bid": "0.5"}
    return {**row, "clicked": "0", "liked": "0", "shared": "0", "seconds": "1", **values}


def write_csv(path, rows, columns=None):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_files(folder, log, past=None, users=USERS, items=ITEMS):
    """Writes the files of a toy spec; returns the folder."""
    write_csv(folder / "log.csv", log)
    write_csv(folder / "users.csv", users)
    write_csv(folder / "items.csv", items)
    if past:
        write_csv(folder / "past.csv", past)
    return folder


def plain_requests(spec, folder, for_scoring=False):
    """(split, values) of all requests and the counts, by the builder alone."""
    sources = resolve_sources(spec, str(folder), for_scoring)
    tables = {
        name: {
            row.values[0]: dict(zip(sources.columns[name], row.values, strict=True))
            for path in sources.files[name]
            for row in read_rows(path, sources.columns[name])
        }
        for name in ("user", "item", "past")
    }
    keys = [spec.user_key] if spec.user_key else list(spec.request.key_columns)
    places = [sources.columns["log"].index(key) for key in keys]
    rows_of = {}
    for path in sources.files["log"]:
        for row in read_rows(path, sources.columns["log"], with_digest=True):
            rows_of.setdefault("|".join(row.values[place] for place in places), []).append(row)
    builder, counts, found = RequestBuilder(spec, sources), Counter(), []
    for key, rows in rows_of.items():
        find_item = tables["item"].get
        impressions = builder.read(rows, find_item, counts)
        found += builder.build(impressions, tables["user"].get(key), tables["past"].get(key), find_item, counts)
    return [(split, comparable(values)) for split, values in found], counts


def requests_by_id(spec, folder, for_scoring=False):
    """The requests by id; a request in parts is a list of parts."""
    found = {}
    for _, values in plain_requests(spec, folder, for_scoring)[0]:
        found.setdefault(values["request_id"][0], []).append(values)
    return {key: parts[0] if len(parts) == 1 else parts for key, parts in found.items()}


_COLLECTED = {}


def _collect(element, name):
    _COLLECTED.setdefault(name, []).append(element)


def beam_requests(spec, folder, for_scoring=False):
    """Serialized requests by split and the counts, by Beam."""
    _COLLECTED.clear()
    with beam.Pipeline("DirectRunner") as pipeline:
        built = pipeline | RequestExamples(spec, str(folder), for_scoring)
        for name, collection in built.items():
            _ = collection | f"Collect[{name}]" >> beam.Map(_collect, name)
    (counts,) = _COLLECTED.pop(COUNTS)
    return {split: sorted(found) for split, found in _COLLECTED.items()}, counts


def serialized(values):
    """What Beam writes for a request; None stands for NaN."""
    lists = {key: [math.nan if value is None else value for value in column] for key, column in values.items()}
    return request_example.encode(lists).SerializeToString(deterministic=True)


def comparable(values):
    """Lists with None for NaN, so that they can be compared."""
    return {
        key: [None if isinstance(value, float) and math.isnan(value) else value for value in column]
        for key, column in values.items()
    }
