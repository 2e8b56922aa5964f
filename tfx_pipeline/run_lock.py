"""One run at a time on an output folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from transform.errors import PipelineError

LOCK_FILE = "run.lock"


@contextmanager
def run_lock(folder: str) -> Iterator[None]:
    """Holds a folder while a run goes on.

    The operating system keeps the lock with the process and ends it with the process, however that ends; what stands in
    the file only tells others who holds it.

    Args:
        folder: str. A folder that is there, on a file system with locks.

    Raises:
        PipelineError: when another process holds it.
    """
    with open(os.path.join(folder, LOCK_FILE), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise PipelineError(
                f"--output: a folder that no other run uses is expected. Received: {folder}, used by "
                f"{file.read().strip() or 'another process'}. Wait for it, end it, or name another folder."
            ) from error
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        print(f"process {os.getpid()} on {socket.gethostname()} since {since}", file=file, flush=True)
        yield
