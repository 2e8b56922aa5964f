"""Runs that meet another run or a full disk. One that is killed is in `test_pipeline.py`."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from tests.testing import small_problem
from tests.testing.repository import repository
from tests.testing.schedule import run_from_shell
from tfx_pipeline.metadata.run_lock import LOCK_FILE, run_lock
from transform.errors import PipelineError, find_user_error

HOLDER = """
import sys, time
from tfx_pipeline.metadata.run_lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    environment = {**os.environ, "PYTHONPATH": str(repository())}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_told_who_holds_the_folder(tmp_path, holder):
    spec = small_problem.write_spec(tmp_path / "small.yaml")
    refused = run_from_shell(spec, tmp_path, tmp_path)
    assert refused.code == 1 and refused.stdout == ""
    assert f"used by process {holder.pid} on {os.uname().nodename} since 2" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "pipeline").exists()


def test_a_holder_that_is_killed_holds_nothing(tmp_path, holder):
    with pytest.raises(PipelineError, match=f"process {holder.pid} "), run_lock(str(tmp_path)):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_lock(str(tmp_path)):
        assert f"process {os.getpid()} " in (tmp_path / LOCK_FILE).read_text()
        with pytest.raises(PipelineError, match=f"process {os.getpid()} "), run_lock(str(tmp_path)):
            pass
    with run_lock(str(tmp_path)):
        pass


def test_a_lock_file_that_cannot_be_opened_is_told(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(PipelineError, match=r"--output: .* be written and locked .* Received: .* Is a directory"):
        with run_lock(str(tmp_path)):
            pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(PipelineError, match="--output: .* No locks available.*on a file system with locks"):
        with run_lock(str(tmp_path)):
            pass


def test_a_full_disk_is_told_as_such():
    inner = OSError(28, "No space left on device")
    outer = RuntimeError("TFX failed")
    outer.__context__ = inner
    assert find_user_error(outer).startswith("disk: room for what is written is expected. Received: No space left")
    assert find_user_error(RuntimeError("RESOURCE_EXHAUSTED: x/y; No space left on device [while running 'Write']"))
