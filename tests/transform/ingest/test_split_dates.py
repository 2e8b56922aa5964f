"""Split bounds relative to a date: what they become, and where the date comes from."""

import pytest
import yaml

from tests.testing.toy_requests import edited, impression, plain_requests, toy_spec, write_files
from transform.errors import DataError, SpecError
from transform.ingest.beam_requests import RequestExamples
from transform.ingest.split_dates import resolve_splits
from transform.spec.loading import load_spec, parse_spec

RELATIVE = {"by": "day", "date_format": "YYYYMMDD", "train": [-3, -2], "eval": [-1, -1], "test": [0, 0]}
LITERAL = {"by": "day", "train": [20220227, 20220228], "eval": [20220301, 20220301], "test": [20220302, 20220302]}
DASHED = {
    "by": "day",
    "train": ["2022-02-27", "2022-02-28"],
    "eval": ["2022-03-01", "2022-03-01"],
    "test": ["2022-03-02", "2022-03-02"],
}
DAYS = {20220226: None, 20220227: "train", 20220228: "train", 20220301: "eval", 20220302: "test", 20220303: None}


def log(days):
    return [impression("a", 1000 + n, day=day) for n, day in enumerate(days)]


@pytest.mark.parametrize(("date_format", "expected"), [("YYYYMMDD", LITERAL), ("YYYY-MM-DD", DASHED)])
def test_relative_bounds_become_the_literal_spec(date_format, expected):
    """The same JSON as a spec with literals: caches, hashes and stored specs know no other form."""
    relative = toy_spec({"split": {**RELATIVE, "date_format": date_format}})
    assert relative.with_as_of("2022-03-02").to_json() == toy_spec({"split": expected}).to_json()


def test_a_date_in_the_file_is_resolved_on_reading():
    """This is how the date travels to a task of a scheduler, which fills it into the spec's text."""
    waiting = toy_spec({"split": RELATIVE})
    split = waiting.split.model_copy(update={"as_of": "{{ ds }}"})
    text = waiting.model_copy(update={"split": split}).data_part().to_json()
    rendered = parse_spec(text.replace("{{ ds }}", "2022-03-02"))
    assert rendered.split == toy_spec({"split": LITERAL}).split
    with pytest.raises(SpecError, match="a date written as YYYY-MM-DD is expected"):
        parse_spec(text)


def test_an_unresolved_spec_reads_back_as_itself():
    spec = toy_spec({"split": RELATIVE})
    assert parse_spec(spec.to_json()) == spec


def test_requests_fall_into_the_splits_of_the_date(tmp_path):
    write_files(tmp_path, log(DAYS))
    spec = resolve_splits(toy_spec({"split": RELATIVE}), str(tmp_path), "2022-03-02")
    found = {values["request_id"][0]: split for split, values in plain_requests(spec, tmp_path)[0]}
    assert found == {f"u1|{day}": split for day, split in DAYS.items() if split}


@pytest.mark.parametrize("dashed", [False, True])
def test_the_last_day_of_all_files_is_the_default(tmp_path, dashed):
    days = ["2022-02-28", "2022-12-01", "2022-03-02"] if dashed else [20220228, 20221201, 20220302]
    write_files(tmp_path, log(days[:2]))
    (tmp_path / "log.csv").rename(tmp_path / "log_1.csv")
    write_files(tmp_path, log(days[2:]))
    spec = toy_spec({"split": {**RELATIVE, "date_format": "YYYY-MM-DD" if dashed else "YYYYMMDD"}})
    assert resolve_splits(spec, str(tmp_path)) == spec.with_as_of("2022-12-01")


def test_literal_bounds_need_no_date_and_take_none(tmp_path):
    spec = toy_spec()
    assert resolve_splits(spec, str(tmp_path / "nothing is read")) is spec
    with pytest.raises(SpecError, match="as_of: .* Received: `2022-03-02`, but the bounds are literals"):
        resolve_splits(spec, str(tmp_path), "2022-03-02")


@pytest.mark.parametrize("as_of", ["yesterday", "20220302", "2022-3-2", "2022-02-30", ""])
def test_a_date_that_is_none_is_refused(as_of):
    with pytest.raises(SpecError, match="as_of: a date written as YYYY-MM-DD is expected. Received"):
        toy_spec({"split": RELATIVE}).with_as_of(as_of)


def test_a_column_without_dates_is_refused_with_its_row(tmp_path):
    write_files(tmp_path, log([20220302, "2022-03-03"]))
    with pytest.raises(DataError, match=r"log.csv:3: a date written as YYYYMMDD is expected in `day`.*2022-03-03"):
        resolve_splits(toy_spec({"split": RELATIVE}), str(tmp_path))
    write_files(tmp_path, log([20220302]))
    with pytest.raises(DataError, match="column `date` is expected"):
        resolve_splits(toy_spec({"split": {**RELATIVE, "by": "date"}}), str(tmp_path))


def test_bounds_without_their_date_are_told_before_anything_runs(tmp_path):
    write_files(tmp_path, log(DAYS))
    with pytest.raises(SpecError, match="split: an as-of date for the bounds is expected"):
        RequestExamples(toy_spec({"split": RELATIVE}), str(tmp_path))
    RequestExamples(toy_spec({"split": RELATIVE}), str(tmp_path), for_scoring=True)


def test_the_shipped_spec_has_a_relative_form_that_means_the_same(request):
    path = request.config.rootpath / "data" / "kuairand_mini.yaml"
    content = yaml.safe_load(path.read_text())
    relative = {"by": "date", "date_format": "YYYYMMDD", "train": [-10, -3], "eval": [-2, -2], "test": [-1, 0]}
    spec = parse_spec(yaml.safe_dump(edited(content, {"split": relative})))
    assert resolve_splits(spec, str(path.parent / "kuairand_pure_mini")) == load_spec(path)
