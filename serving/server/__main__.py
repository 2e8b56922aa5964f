"""The command line of the embedded server: `onerank server --help`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

from transform.environment import prepare_environment

prepare_environment()

from serving.server.options import ServerOptions
from transform.errors import UserError

_STOP = {signal.SIGTERM, signal.SIGINT}
_LOOK_SECONDS = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the operator has something to correct.
    """
    # Blocked before there are other threads, then waited for: a handler runs in the main thread alone, which a signal
    # that another thread gets does not wake.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    try:
        return _serve(_parse(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(options: ServerOptions) -> int:
    if options.exit_with_stdin:
        threading.Thread(target=_exit_with_stdin, name="stdin", daemon=True).start()
    from serving.server.model_server import ModelServer  # TensorFlow: seconds, which --help need not take

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("serving").setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it advises another loader than TF Serving's
    server = ModelServer(options)
    with ThreadPoolExecutor(1, thread_name_prefix="start") as starter:
        starting = starter.submit(server.start)
        while not starting.done():
            if signal.sigtimedwait(_STOP, _LOOK_SECONDS):
                os._exit(0)  # loading can't be interrupted, and nobody was told of a server yet
        starting.result()
    print(server, flush=True)
    signal.sigwait(_STOP)
    if not server.stop():
        logging.getLogger("serving").warning("requests under way were not answered in time")
        sys.stdout.flush()
        os._exit(0)  # a thread that TensorFlow holds can't be joined
    return 0


def _exit_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)  # nobody is left to wait for an orderly end


def _parse(argv: Sequence[str] | None) -> ServerOptions:
    parser = argparse.ArgumentParser(
        prog="onerank server",
        description="Serves exported models with TF Serving's gRPC and REST API.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option in fields(ServerOptions):
        kind = type(option.default)
        extra = {"nargs": "?", "const": True, "type": _truth} if kind is bool else {"type": kind}
        parser.add_argument(f"--{option.name}", default=option.default, help=option.metadata["help"], **extra)
    return ServerOptions(**vars(parser.parse_args(argv)))


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError("true or false is expected")
    return text.lower() == "true"


if __name__ == "__main__":
    sys.exit(main())
