"""The embedded server in a process of its own, which ends with the process that started it."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from dataclasses import fields, replace
from types import TracebackType
from typing import TypeVar

from serving.server.authorization import VARIABLE
from serving.server.errors import ServerError
from serving.server.options import ServerOptions

S = TypeVar("S", bound="ServerProcess")
_SHOWN_LINES = 5
_ADDRESSES = re.compile(r"gRPC on (\S+:\d+), REST on (https?://\S+:\d+)")


class ServerProcess:
    """Runs `onerank server` on free ports, for whoever has to live on when a model takes its server down.

    The process ends when this one does, however that ends: it watches a pipe that the kernel closes then. A token in
    this process's environment is not handed on.

    Example:
    ```python
    with ServerProcess(ServerOptions(model_name="mail", model_base_path="out/serving/mail"), "server.log") as server:
        server.wait_until_up(seconds=300)
        ranker = Ranker(server.grpc_address, "mail")
    ```

    Args:
        options: ServerOptions. The ports are picked whatever they say.
        log: str. The file for what the server says.

    Attributes:
        grpc_address, rest_address: str. As `grpc://host:port` and `http://host:port`, once it is up.
    """

    def __init__(self, options: ServerOptions, log: str):
        self._options = replace(options, port=0, rest_api_port=0, exit_with_stdin=True)
        self._log = log
        self.grpc_address = self.rest_address = ""

    def start(self) -> None:
        """Starts it. It is not up yet."""
        default = ServerOptions()
        given = {field.name: getattr(self._options, field.name) for field in fields(ServerOptions)}
        flags = [f"--{name}={value}" for name, value in given.items() if value != getattr(default, name)]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.server", *flags],
                env={name: value for name, value in os.environ.items() if name != VARIABLE},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._started = time.monotonic()

    def kill(self) -> None:
        """Ends it at once; it keeps nothing that could be lost."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self: S) -> S:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def wait_until_up(self, seconds: float) -> float:
        """Waits until the models are loaded and answer.

        Args:
            seconds: float. The longest to wait, counted from the start of the process.

        Returns:
            The seconds that it took.

        Raises:
            ServerError: when it ends before, or takes longer.
        """
        assert self._process.stdout is not None
        left = max(0.0, self._started + seconds - time.monotonic())
        ready, _, _ = select.select([self._process.stdout], [], [], left)
        found = _ADDRESSES.search(self._process.stdout.readline().decode()) if ready else None
        if not found:
            raise ServerError(
                f"server: it is expected to be up within {seconds:g} s. Received: {self.how_it_goes()}. Correct the "
                "model, or allow more time."
            )
        self.grpc_address, self.rest_address = f"grpc://{found[1]}", found[2]
        return time.monotonic() - self._started

    def how_it_goes(self) -> str:
        """Whether it runs or how it ended, and the last that it said."""
        try:
            code = self._process.wait(timeout=1)  # one whose output has just ended is about to
            state = f"it ended with exit code {code}" if code >= 0 else f"it was ended by signal {-code}"
        except subprocess.TimeoutExpired:
            state = "it still runs"
        return f"{state}; it said last: {' | '.join(self.last_lines()) or 'nothing'}"

    def last_lines(self) -> list[str]:
        """The last lines of the server's log."""
        with open(self._log, encoding="utf-8", errors="replace") as file:
            return [line.strip() for line in file.read().splitlines() if line.strip()][-_SHOWN_LINES:]
