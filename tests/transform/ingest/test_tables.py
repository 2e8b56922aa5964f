"""Parquet files give the requests that the same tables give as csv."""

import datetime

import pandas as pd
import pytest

from tests.testing.toy_requests import ITEMS, PAST, beam_requests, impression, plain_requests, toy_spec, write_files
from transform.errors import DataError
from transform.ingest.tables import read_header, read_rows

PARQUET = {
    "data.impressions.files": ["log.parquet"],
    "data.tables.user.files": ["users.parquet"],
    "data.tables.item.files": ["items.parquet"],
}
PAST_ROWS = [{"user": "u1", "until": 6, "items": "a b c", "loved": "b"}]
LOG = [
    impression("a", 1650813567259, clicked="1"),
    impression("b", 1650813567260, shared=""),
    impression("b", 1650813567260, shared=""),  # a duplicate
    impression("c", 1650913567260, day=2, bid="", seconds="2.5"),
    impression("d", 1651013567260, day=3, user="u2", liked="1"),
]


def read_texts(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def as_parquet(folder):
    """The csv files of a folder as Parquet with the types that a warehouse would have given them."""
    log = read_texts(folder / "log.csv")
    log["time"] = pd.to_datetime(log["time"].astype("int64"), unit="ms")
    log["day"], log["clicked"] = log["day"].astype("int32"), log["clicked"] == "1"
    for column in ("bid", "shared", "seconds"):  # gaps make floats of them
        log[column] = pd.to_numeric(log[column])
    log["device"] = log["device"].astype("category")
    log.to_parquet(folder / "log.parquet", row_group_size=2)
    read_texts(folder / "users.csv").to_parquet(folder / "users.parquet")
    items = read_texts(folder / "items.csv")
    items["tags"] = items["tags"].str.split(",")
    items.to_parquet(folder / "items.parquet")
    past = read_texts(folder / "past.csv")
    past["items"], past["loved"] = past["items"].str.split(" "), past["loved"].str.split(" ")
    past.to_parquet(folder / "past.parquet")
    return folder


def test_parquet_and_csv_give_equal_requests(tmp_path):
    write_files(tmp_path, LOG, PAST_ROWS)
    plain, counts = plain_requests(toy_spec({"data.past": PAST}), tmp_path)
    assert counts["duplicates_dropped"] == 1 and len(plain) == 3
    changes = {**PARQUET, "data.past": {**PAST, "files": ["past.parquet"]}}
    found, found_counts = plain_requests(toy_spec(changes), as_parquet(tmp_path))
    assert found == plain and found_counts == counts
    assert any(values["tags"] for _, values in found) and any(values["seen_item"] for _, values in found)


def test_beam_reads_parquet(tmp_path):
    write_files(tmp_path, LOG, PAST_ROWS)
    expected, _ = beam_requests(toy_spec(), tmp_path)
    assert beam_requests(toy_spec(PARQUET), as_parquet(tmp_path))[0] == expected


def test_values_become_texts(tmp_path):
    moment = datetime.datetime(2022, 4, 24, 15, 19, 27, 259000, tzinfo=datetime.timezone.utc)
    rows = {
        "whole": [1, 2**60],
        "gaps": [12.0, None],
        "fraction": [0.25, float("inf")],
        "flag": [True, False],
        "moment": [moment, None],
        "nanoseconds": [pd.Timestamp("2022-04-24 15:19:27.259000001"), None],
        "date": [moment.date(), None],
        "bytes": ["ä".encode(), None],
        "members": [["a,b", "", "c"], None],
        "numbers": [[1, 2], []],
    }
    pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet", version="2.6")  # keeps nanoseconds
    first, second = read_rows(str(tmp_path / "t.parquet"), list(rows))
    time = "1650813567259"
    assert first.values == ("1", "12", "0.25", "1", time, time, "2022-04-24", "ä", "\x1fa,b\x1f\x1fc", "\x1f1\x1f2")
    assert second.values == (str(2**60), "", "inf", "0", "", "", "", "", "", "")
    assert (first.origin, second.origin) == ("t.parquet:1", "t.parquet:2")
    assert read_header(str(tmp_path / "t.parquet")) == list(rows)


def test_columns_that_nobody_asked_for_are_not_read_unless_for_the_digest(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": ["x", "y"], "big": ["ä" * 999, "ö" * 999], "b": [1, 2]}).to_parquet(path, compression=None)
    content = path.read_bytes()
    path.write_bytes(content.replace("ä".encode() * 99, b"\xff" * 198))
    rows = list(read_rows(str(path), ["b", "a"]))
    assert [row.values for row in rows] == [("1", "x"), ("2", "y")] and {row.digest for row in rows} == {b""}
    with pytest.raises(DataError, match="t.parquet: a readable Parquet file is expected"):
        list(read_rows(str(path), ["b", "a"], with_digest=True))
    path.write_bytes(content)
    first, second = read_rows(str(path), ["b"], with_digest=True)
    assert first.digest != second.digest


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_file_is_a_data_error(tmp_path, damage):
    write_files(tmp_path, LOG, PAST_ROWS)
    whole = (as_parquet(tmp_path) / "log.parquet").read_bytes()
    broken = {"truncated": whole[: len(whole) // 2], "garbage": b"PAR1" + b"\xff" * 99 + b"PAR1", "empty": b""}
    (tmp_path / "log.parquet").write_bytes(broken[damage])
    with pytest.raises(DataError, match=r"log.parquet: a readable Parquet file is expected.*Check that it is whole"):
        plain_requests(toy_spec(PARQUET), tmp_path)


def test_a_damaged_page_is_a_data_error(tmp_path):
    write_files(tmp_path, LOG, PAST_ROWS)
    path = as_parquet(tmp_path) / "log.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196  # the footer, and so the header, is whole
    path.write_bytes(content)
    assert read_header(str(path))
    with pytest.raises(DataError, match=r"log.parquet: a readable Parquet file is expected"):
        plain_requests(toy_spec(PARQUET), tmp_path)


def test_a_bad_value_is_told_with_its_row(tmp_path):
    write_files(tmp_path, LOG, PAST_ROWS, items=[*ITEMS[:-1], {**ITEMS[-1], "price": "free"}])
    log = pd.read_parquet(as_parquet(tmp_path) / "log.parquet")
    log["clicked"] = [1, 0, 0, 7, 1]
    log.to_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"log.parquet:4: 0, 1 or nothing is expected in label column `clicked`"):
        plain_requests(toy_spec(PARQUET), tmp_path)
