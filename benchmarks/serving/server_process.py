"""The embedded server in a process of its own, whose processor time and memory are seen."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.server import server_process
from serving.server.options import ServerOptions

SECONDS = 600  # the longest that it may take to be up


class ServerProcess(server_process.ServerProcess):
    """`onerank server`, up when it is entered; after `kill` it may be started again, on the same ports.

    Args:
        base: Path. The folder of the model's versions.
        model: str. The model's name.
        log: Path. The file that its standard error is added to.
        **flags: further flags of the command line.

    Raises:
        ServerError: when it doesn't start.
    """

    def __init__(self, base: Path, model: str, log: Path, **flags: Any):
        super().__init__(ServerOptions(model_base_path=str(base), model_name=model, **flags), str(log))

    @property
    def addresses(self) -> dict[str, str]:
        """By protocol, `grpc` and `http`, as `Ranker` takes them, once it was started."""
        return {"grpc": self.grpc_address, "http": self.rest_address}

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds since its start."""
        return time.clock_gettime(~self._process.pid << 3 | 2)  # as clock_getcpuclockid(3) makes a process's clock

    @property
    def memory_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024

    def start(self) -> None:
        """Starts it and returns when it answers."""
        super().start()
        self.wait_until_up(SECONDS)
        port, rest_port = (int(address.rpartition(":")[2]) for address in self.addresses.values())
        self._options = replace(self._options, port=port, rest_api_port=rest_port)
