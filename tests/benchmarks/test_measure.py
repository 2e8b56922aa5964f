"""What benchmarks share: rounds in turn, ratios, memory, other processes, results."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import measure
from benchmarks.measure import Ratio, Times, Worker
from tests.testing.repository import repository


def test_rounds_are_taken_in_turn_and_end_in_time():
    order = []

    def run(name):
        return lambda: order.append(name) or Times(1, 1)

    runs = {"a": run("a"), "b": run("b")}
    assert measure.interleaved(runs, 3) == {"a": [Times(1, 1)] * 3, "b": [Times(1, 1)] * 3}
    assert order == ["a", "b"] * 3
    assert len(measure.interleaved(runs, 9, seconds=0)["a"]) == 2


def test_a_ratio_is_the_rounds_median_and_min_over_min():
    one, other = [Times(2, 8), Times(9, 9), Times(8, 6)], [Times(1, 4), Times(3, 1), Times(2, 2)]
    assert Ratio.of(one, other) == Ratio(median=3, least=2, wall=3)


def test_times_are_those_of_a_call():
    times = measure.timed(lambda: sum(range(200_000)), repeats=3)
    assert 0 < times.cpu < 1 and 0 < times.wall < 10
    assert measure.repeats_for(lambda: None, 0) == 1


MEMORY = """
from benchmarks.measure import extra_memory
def call():
    held, results = b"1" * 30_000_000, b"1" * 20_000_000
    return len(results)
print(extra_memory(call))
"""


def test_memory_counts_neither_results_nor_what_an_earlier_call_left():
    environment = {**os.environ, **measure.MEMORY_ENVIRONMENT}
    printed = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=repository(), env=environment, capture_output=True, text=True, check=True
    )
    assert int(printed.stdout) == pytest.approx(30e6, rel=0.1)


SERVE = """
from benchmarks.measure import serve
def answer(n):
    print("not an answer")
    return n / 2
serve(answer, {"ready": True})
"""


def test_a_worker_answers_and_one_that_ends_is_an_error(capfd):
    with Worker([sys.executable, "-c", SERVE]) as worker:
        assert worker.facts == {"ready": True} and worker.ask(n=3) == 1.5 and worker.ask(n=4) == 2
        with pytest.raises(RuntimeError, match="ended with 1"):
            worker.ask(n="three")
    assert "not an answer" in capfd.readouterr().err


def test_facts_name_the_machine_and_what_ran_and_no_host():
    facts = measure.machine()
    assert facts["processor"] and facts["cores_used"] <= facts["cores"] and facts["memory_gib"] > 0
    assert os.uname().nodename not in json.dumps(facts)
    assert set(measure.versions("numpy")) == {"python", "numpy"}
    assert measure.commit()


def test_results_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results" / "a.json"
    measure.write_json(path, {"figure": 1})
    with pytest.raises(TypeError):
        measure.write_json(path, {"figure": object()})
    assert json.loads(path.read_text()) == {"figure": 1}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
