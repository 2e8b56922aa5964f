"""The embedded server in a process of its own, as an operator starts it, whose processor time and memory are seen."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import ROOT


class ServerProcess:
    """`python -m serving.server`, from `start` to `stop` or `kill`; it may be started again, on the same ports.

    Args:
        base: Path. The folder of the model's versions.
        model: str. The model's name.
        log: Path. The file that its standard error is added to.
        **flags: further flags of the command line.

    Attributes:
        addresses: dict. By protocol, `grpc` and `http`, as `Ranker` takes them, once it was started.

    Raises:
        RuntimeError: when it doesn't start. Why stands in the log.
    """

    def __init__(self, base: Path, model: str, log: Path, **flags: object):
        self._flags = {"model_base_path": base, "model_name": model, **flags}
        self._log = log
        self._process: subprocess.Popen | None = None
        self._ports = (0, 0)

    @property
    def addresses(self) -> dict[str, str]:
        return {
            scheme: f"{scheme}://127.0.0.1:{port}" for scheme, port in zip(("grpc", "http"), self._ports, strict=True)
        }

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds since its start."""
        return time.clock_gettime(~self._pid << 3 | 2)  # as clock_getcpuclockid(3) makes the clock of a process

    @property
    def memory_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024

    def start(self) -> None:
        """Starts it and returns when it answers."""
        flags = {**self._flags, "port": self._ports[0], "rest_api_port": self._ports[1]}
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.server", *(f"--{name}={value}" for name, value in flags.items())],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
            )
        assert self._process.stdout
        line = self._process.stdout.readline()
        ports = re.findall(r":(\d+)", line)
        if len(ports) != 2:
            raise RuntimeError(f"The server ended with {self._process.wait()}; see {self._log}.")
        self._ports = (int(ports[0]), int(ports[1]))

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        assert self._process
        self._process.kill()
        self._end()

    def stop(self) -> None:
        """Ends it as an operator does."""
        assert self._process
        self._process.terminate()
        self._end()

    @property
    def _pid(self) -> int:
        assert self._process
        return self._process.pid

    def _end(self) -> None:
        assert self._process and self._process.stdout
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
