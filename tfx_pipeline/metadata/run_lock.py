"""One run at a time on an output folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from transform.errors import PipelineError

LOCK_FILE = "run.lock"


@contextmanager
def run_lock(folder: str) -> Iterator[None]:
    """Holds a folder while a run goes on.

    The operating system keeps the lock with the process and ends it with the process, however that ends; what stands in
    the file only tells others who holds it.

    Args:
        folder: str. A folder that is there.

    Raises:
        PipelineError: when another process holds it, or it can't be locked.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(os.path.join(folder, LOCK_FILE), "a+", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
            print(f"process {os.getpid()} on {socket.gethostname()} since {since}", file=file, flush=True)
        except BlockingIOError as error:
            file.seek(0)
            raise PipelineError(
                f"--output: a folder that no other run uses is expected. Received: {folder}, used by "
                f"{file.read().strip() or 'another process'}. Wait for it, end it, or name another folder."
            ) from error
        except OSError as error:
            raise PipelineError(
                f"--output: a folder with a {LOCK_FILE} that can be written and locked is expected. Received: {folder} "
                f"({error}). Correct the file's rights, or name a folder on a file system with locks."
            ) from error
        yield
