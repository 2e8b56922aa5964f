"""The benchmark of attention measures on tiny shapes what it says it measures."""

import json
import sys

import pytest

from benchmarks.attention import compare_kernels, kernels
from benchmarks.attention.shapes import Shape, candidates, visible
from tests.testing.repository import repository
from trainer.ops import fused

NOT_BUILT = fused.unavailable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NOT_BUILT is not None, reason=str(NOT_BUILT))]

SHAPES = (Shape("A", 2, 2, 7, 8, backward=True), Shape("B", 1, 2, 9, 8, backward=True))
FEW = {"torch_python": None, "threads": 1, "rounds": 2, "seconds": 0}


def measured(build=kernels.build, **changes):
    options = {"shapes": [*SHAPES, candidates("C", 4, 6)], "sweep": [candidates("N = 2", 2, 3)], **FEW, **changes}
    options = {"kernels": kernels.KERNELS, "memory_kernels": ["fused"], **options}
    return compare_kernels.measure_all(build=build, **options)


def test_every_kernel_is_measured_and_equal(tmp_path, capsys):
    results = measured()
    assert json.loads(json.dumps(results)) == results
    assert set(results) == {"machine", "versions", "threads", "commit", "rows", "figures", "missing"}
    found = {(row["shape"], row["pass"], row["kernel"]) for row in results["rows"]}
    assert len(found) == 5 * len(kernels.KERNELS) + 4
    for row in results["rows"]:
        assert row["error"] < 1e-5 and row["cpu_ms"] > 0 and row["over_fused"]["median"] > 0, row
    assert {row["kernel"] for row in results["rows"] if "extra_mb" in row} == {"fused"}
    assert set(results["figures"]) == {
        "attention.A.fwdbwd.over_tf",
        "attention.B.fwdbwd.over_tf",
        "attention.C.fwd.over_tf",
        "attention.C.extra_mb",
        "attention.portable.C.over_dense",
        "attention.max_abs_error",
    }
    assert {line.split(":")[0] for line in results["missing"]} == {
        "attention.B.fwd.over_torch",
        "attention.B.fwdbwd.over_torch",
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    capsys.readouterr()
    assert compare_kernels.main(["--tables", str(tmp_path / "results.json")]) == 0
    printed = capsys.readouterr().out
    assert "| attention.C.extra_mb |" in printed and "**N = 2**" in printed


def test_the_readme_shows_the_results_that_are_kept():
    folder = repository() / "benchmarks"
    results = json.loads((folder / "attention/compare_kernels.json").read_text())
    assert compare_kernels.tables(results) in (folder / "README.md").read_text()


@pytest.mark.parametrize("broken", [0, 2], ids=["result", "gradient"])
def test_a_broken_kernel_has_a_large_error(broken):
    def build(kernel, shape, backward):
        call = kernels.build(kernel, shape, backward)
        if kernel != "fused":
            return call
        return lambda: [tensor + (0.5 if n == broken else 0) for n, tensor in enumerate(call())]

    rows = measured(build, shapes=SHAPES[:1], sweep=[], kernels=["fused", "portable"], memory_kernels=[])["rows"]
    errors = {row["kernel"]: row["error"] for row in rows if row["pass"] == "forward + backward"}
    assert errors["fused"] == pytest.approx(0.5, abs=1e-4) and errors["portable"] < 1e-5


def test_what_does_not_fit_in_memory_is_left_out_and_said():
    shape = Shape("A", 1, 8, 10**6)
    rows = compare_kernels.compare(shape._replace(tokens=10), False, ["tf"], None, 2, 0)
    assert "skipped" not in rows[0]
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(compare_kernels, "_free_memory", lambda: 1000)
        rows = compare_kernels.compare(shape._replace(tokens=10), False, ["tf", "fused"], None, 2, 0)
    assert "needs" in rows[0]["skipped"] and "cpu_ms" not in rows[0] and "cpu_ms" in rows[1]


def test_the_pairs_that_are_counted_are_those_that_are_visible():
    for shape in [SHAPES[0], candidates("", 4, 6), Shape("", 1, 1, 5, 8, prefix=3)]:
        assert shape.pairs == shape.batch * shape.heads * visible(shape).sum()
    assert Shape("", 1, 1, 1, 2).flops(False) == 8 and Shape("", 1, 1, 1, 2).flops(True) == 28


def test_without_pytorch_one_line_says_so(capsys, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "No module named torch" >&2\nexit 1\n')
    python.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        assert compare_kernels._torch_python(None) is None
    assert "--torch-python" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="No module named torch"):
        compare_kernels._torch_python(str(python))
    with pytest.raises(SystemExit, match="No such file"):
        compare_kernels._torch_python(str(tmp_path / "nothing"))
