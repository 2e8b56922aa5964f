"""What can be wrong with what a user brings, each kind once: one message with its cure, exit 1, nothing half written.

A request without candidates can't be in a log, whose requests are made of its rows; that a served one gets no scores
is tested in `test_signatures.py`.
"""

import contextlib
import copy
import csv
import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

from tests.testing import small_problem
from tests.testing.repository import repository
from tfx_pipeline.metadata.run_lock import run_lock
from tfx_pipeline.runners import local

FEW_USERS = {f"u{number}" for number in range(0, 40)}


class Workplace:
    """A spec and data that are right, to be broken."""

    def __init__(self, folder):
        self.folder = folder
        self.data, self.output = folder / "data", str(folder / "out")
        self.spec = copy.deepcopy(small_problem.SPEC)
        self.options = []

    def change(self, name, function):
        """Replaces the rows of a csv file by what a function makes of them; their columns are those of the first."""
        with open(self.data / name, newline="") as file:
            rows = function(list(csv.DictReader(file)))
        with open(self.data / name, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    def run(self):
        return local.main(self.arguments())

    def arguments(self):
        path = self.folder / "small.yaml"
        path.write_text(yaml.safe_dump(self.spec, sort_keys=False))
        return ["--spec", str(path), "--data", str(self.data), "--output", self.output, *self.options]


@pytest.fixture(scope="module")
def whole_data(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("whole"))
    small_problem.write_data(place.data)
    for name in ("log_a.csv", "log_b.csv"):
        place.change(name, lambda rows: [row for row in rows if row["uid"] in FEW_USERS])
    return place.data


def each_row(**values):
    return lambda rows: [{**row, **values} for row in rows]


def first_row(**values):
    return lambda rows: [{**rows[0], **values}, *rows[1:]]


def renamed(old, new):
    return lambda rows: [{new if key == old else key: value for key, value in row.items()} for row in rows]


# === Files ===


def no_log(place):
    for path in place.data.glob("log*"):
        path.unlink()


def unreadable_log(place):
    (place.data / "log_a.csv").unlink()
    (place.data / "log_a.csv").mkdir()


def empty_log(place):
    (place.data / "log_b.csv").write_bytes(b"")


def log_without_rows(place):
    for path in place.data.glob("log*"):
        path.write_text(path.read_text().splitlines()[0] + "\n")


def truncated_log(place):
    packed = gzip.compress((place.data / "log_b.csv").read_bytes())
    (place.data / "log_b.csv").unlink()
    (place.data / "log_b.csv.gz").write_bytes(packed[: len(packed) // 2])
    place.spec["data"]["impressions"]["files"] = ["log*"]


def row_cut_off(place):
    text = (place.data / "log_b.csv").read_text().rstrip("\n")
    (place.data / "log_b.csv").write_text(text[: text.rindex(",")])


def wrong_encoding(place):
    place.change("items.csv", first_row(brand="größe"))
    text = (place.data / "items.csv").read_text(encoding="utf-8")
    (place.data / "items.csv").write_bytes(text.encode("latin-1"))


def truncated_parquet(place):
    (place.data / "users.csv").rename(place.data / "users.parquet")
    place.spec["data"]["tables"]["user"]["files"] = ["users.parquet"]


def renamed_column(place):
    place.change("log_b.csv", renamed("bought", "is_bought"))


def table_of_other_keys(place):
    place.change("items.csv", lambda rows: [{**row, "iid": f"x{row['iid']}"} for row in rows])


# === Values ===


def label_of_two(place):
    place.change("log_a.csv", first_row(saved="2"))


def infinite_number(place):
    place.change("log_a.csv", first_row(signal="inf"))


def time_in_seconds(place):
    place.change("log_a.csv", first_row(time_ms="1650813567"))


def split_that_is_no_number(place):
    place.change("log_a.csv", first_row(day="Monday"))


def two_rows_of_an_item(place):
    place.change("items.csv", lambda rows: [*rows, {**rows[3], "price": "1"}])


def two_values_in_a_request(place):
    place.spec["features"]["context"][0].pop("pick")


def robot(place):
    place.change("log_a.csv", lambda rows: [{**row, "uid": "u1"} for row in rows * 3])
    place.spec["data"]["max_user_rows"] = 100


def without_positives(days, label):
    return lambda rows: [{**row, label: "0"} if int(row["day"]) in days else row for row in rows]


def train_split_without_positives(place):
    for name in ("log_a.csv", "log_b.csv"):
        place.change(name, without_positives(range(1, 6), "saved"))


def eval_split_without_positives(place):
    few_inputs(place)
    for name in ("log_a.csv", "log_b.csv"):
        place.change(name, without_positives([6], "bought"))


def few_inputs(place):
    """For mistakes that are found after Transform, which takes its time for each input."""
    features = place.spec["features"]
    features |= {"user": features["user"][:1], "context": [], "candidate": features["candidate"][:1]}
    place.spec |= {"sequences": [], "evaluation": {}}
    del place.spec["data"]["past"]


def vocabulary_above_its_limit(place):
    few_inputs(place)
    place.stack.enter_context(mock.patch("transform.feature_types.categorical.LARGEST_VOCABULARY", 30))


def negative_weight(place):
    place.change("log_a.csv", each_row(weight="1"))
    place.change("log_b.csv", each_row(weight="-1"))
    place.spec["request"]["weight"] = "weight"


# === Spec ===


def unknown_key(place):
    place.spec["trainig"] = {"epochs": 1}


def unknown_type(place):
    place.spec["features"]["user"][1]["type"] = "number"


def unknown_vocabulary_key(place):
    place.spec["features"]["user"][0]["vocabulary"] = {"topk": 5}


def unknown_task_in_the_score(place):
    place.spec["score"] = "buy * click"


def request_without_candidates(place):
    place.spec["request"]["max_candidates"] = 0


def cycle(place):
    place.spec["tasks"][0]["observed_when"] = "share"


def unknown_model(place):
    place.spec["model"] = {"name": "onerang"}


def dropout_out_of_range(place):
    """What the model's layers alone can find."""
    place.spec["model"] = {"name": "din", "head": {"name": "shared_bottom", "dropout": 1.5}}


def recompute_without_blocks(place):
    place.spec["model"] = {"name": "din"}
    place.spec["training"]["gradient_checkpointing"] = True


def label_as_feature(place):
    place.spec["features"]["candidate"].append({"name": "bought_now", "column": "bought", "type": "numeric"})


# === Options ===


def output_is_a_file(place):
    place.output = str(place.folder / "file")
    open(place.output, "w").close()


def output_below_a_file(place):
    open(place.folder / "file", "w").close()
    place.output = str(place.folder / "file" / "out")


def negative_seed(place):
    place.options = ["--seed", "-1"]


def folder_in_use(place):
    os.makedirs(place.output)
    place.stack.enter_context(run_lock(place.output))


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=1500k tmpfs "$0" || exit 77
"$@"
code=$?
cp -r "$0" "$0-copied"
exit $code
"""


def full_disk(place):
    """It has room for the examples, and none for what Transform makes of them."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", place.folder]).returncode:
        pytest.skip("no file system can be mounted here")
    os.makedirs(place.output)
    command = [sys.executable, "-m", "tfx_pipeline.runners.local", *place.arguments()]
    in_namespace = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, place.output, *command]
    place.run = lambda: subprocess.run(in_namespace, cwd=repository()).returncode
    place.output += "-copied"


FOUND_IN_THE_DATA = {
    no_log: ["data.impressions.files", "`log*.csv`", "Received: none", "Correct the pattern"],
    unreadable_log: ["log_a.csv", "a readable csv file", "Check that it is whole"],
    empty_log: ["log_b.csv", "a header line is expected", "an empty file", "write it again"],
    log_without_rows: ["split.train", "`day` from 1 to 5", "none in 0 rows", "bring the data"],
    truncated_log: ["log_b.csv.gz", "a readable csv file", "Check that it is whole"],
    row_cut_off: ["log_b.csv:", "11 values", "Received: 10", "check that the file is whole"],
    wrong_encoding: ["items.csv", "UTF-8"],
    truncated_parquet: ["users.parquet", "a readable Parquet file", "Check that it is whole"],
    renamed_column: ["log_b.csv", "column `bought`", "Did you mean `is_bought`?"],
    table_of_other_keys: ["data.tables.item", "not one key of the log", "Correct `key`"],
    label_of_two: ["log_a.csv:2", "label column `saved`", "Received: `2`", "binary"],
    infinite_number: ["log_a.csv:2", "feature `signal`", "Received: `inf`", "Leave missing values empty"],
    time_in_seconds: ["log_a.csv:2", "epoch milliseconds", "`1650813567`", "looks like seconds", "Convert"],
    split_that_is_no_number: ["log_a.csv:2", "`day`", "Received: `Monday`", "Quote the bounds"],
    two_rows_of_an_item: ["items.csv:", "one row a key", "key `i3` again", "Keep the row that is right"],
    two_values_in_a_request: ["log_", "feature `device`", "constant within a request", "`pick: first`"],
    robot: ["user `u1`", "at most 100 rows", "data.max_user_rows", "raise the limit"],
    train_split_without_positives: ["tasks `save`", "positives in `saved`", "Received: none", "remove the task"],
    eval_split_without_positives: ["training.early_stopping.task", "`buy`, 0 positives of", "widen `split.eval`"],
    vocabulary_above_its_limit: ["features `user`", "at most 30 values", "Received: 39", "top_k"],
    negative_weight: ["log_b.csv:2", "`weight`", "Received: `-1`", "Write 1"],
    full_disk: ["disk: room for what is written is expected", "Received: No space left on device"],
}
FOUND_AT_ONCE = {
    unknown_key: ["small.yaml", "trainig", "Did you mean `training`?"],
    unknown_type: ["features.user[1].type", "'numeric'", '"number"', "Did you mean `numeric`?"],
    unknown_vocabulary_key: ["features.user[0].vocabulary", "`topk`", "Did you mean `top_k`?"],
    unknown_task_in_the_score: ["score", "`click`", "Known: buy, save, share"],
    request_without_candidates: ["request.max_candidates", "greater than 0", "Received: 0"],
    cycle: ["tasks[0].observed_when", "without a cycle"],
    unknown_model: ["model.name", "onerang", "Did you mean `onerank`?"],
    dropout_out_of_range: ["model.head: ", "`dropout`", "1.5"],
    recompute_without_blocks: [
        "training.gradient_checkpointing",
        "a model whose blocks can be computed again",
        "Received: `din`",
    ],
    label_as_feature: ["`bought_now`", "the label of task `buy`", "it would leak"],
    output_is_a_file: ["--output", "a folder that can be written"],
    output_below_a_file: ["--output", "a folder that can be written"],
    negative_seed: ["seed", "from 0 on", "-1"],
    folder_in_use: ["--output", "no other run uses", f"used by process {os.getpid()} on", "Wait for it"],
}
CASES = [
    pytest.param(broken, told, id=broken.__name__, marks=[pytest.mark.pipeline] * (broken in FOUND_IN_THE_DATA))
    for broken, told in (FOUND_IN_THE_DATA | FOUND_AT_ONCE).items()
]

# What is found late: the component that fails. It leaves nothing, those before it all.
FAILS_IN = {eval_split_without_positives: "Trainer", vocabulary_above_its_limit: "Trainer", full_disk: "Transform"}


@pytest.mark.parametrize(("broken", "told"), CASES)
def test_a_mistake_gets_one_message_and_leaves_nothing(broken, told, whole_data, tmp_path, capfd):
    place = Workplace(tmp_path)
    shutil.copytree(whole_data, place.data)
    with contextlib.ExitStack() as place.stack:
        broken(place)
        assert place.run() == 1
    printed = capfd.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("error: ") == 1, printed.err
    for part in told:
        assert part in printed.err
    assert "Traceback" not in printed.out + printed.err
    written = {path for path in Path(place.output).glob("pipeline/**/*") if path.is_file()}
    if broken in FAILS_IN:
        left = {path.relative_to(place.output).parts[2] for path in written}
        assert "ImpressionExampleGen" in left and FAILS_IN[broken] not in left
        assert not [path for path in written if "unfinished" in str(path)]
    else:
        assert {path.name for path in written} <= {"schema.pbtxt"}, "it follows from the spec, before any data are read"
    assert not os.path.exists(os.path.join(place.output, "serving"))
