"""Serves the model that the pipeline pushed: `onerank serve --help`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from glob import glob

from transform.environment import prepare_environment

prepare_environment()

from tfx_pipeline.config import PipelineConfig
from transform.errors import PipelineError, reports_user_errors
from transform.spec.loading import load_spec

GRPC_PORT, REST_PORT = 8500, 8501


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Writes an example request, says how to send it, and becomes the server.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        1 when the user has something to correct; else it serves until SIGTERM or SIGINT.
    """
    parser = argparse.ArgumentParser(
        prog="onerank serve",
        description="Serves the newest model that the pipeline pushed, with the embedded server. Other arguments are "
        "the server's own, see `onerank server --help`.",
    )
    parser.add_argument("--spec", required=True, help="the YAML file that the pipeline was run with")
    parser.add_argument("--output", required=True, help="the folder that the pipeline was run with as --output")
    parser.add_argument("--port", type=int, default=GRPC_PORT, help="the port of gRPC (default: %(default)s)")
    parser.add_argument("--rest_api_port", type=int, default=REST_PORT, help="the port of REST (default: %(default)s)")
    arguments, of_server = parser.parse_known_args(argv)
    config = PipelineConfig(load_spec(arguments.spec), "", arguments.output)
    for option, port in {"--port": arguments.port, "--rest_api_port": arguments.rest_api_port}.items():
        _check_free(option, port)
    kind, request, body = _write_requests(config)
    name = config.spec.name
    url = f"http://127.0.0.1:{arguments.rest_api_port}/v1/models/{name}:predict"
    address = f"grpc://127.0.0.1:{arguments.port}"
    print(f"{kind} From another terminal, once the server says that it serves:")
    print(f"  curl -d @{body} {url}")
    print(f"  {_onerank()} rank --model {name} --address {address} --request {request}", flush=True)
    server = [sys.executable, "-m", "serving.server", f"--model_name={name}", f"--model_base_path={config.serving_dir}"]
    ports = [f"--port={arguments.port}", f"--rest_api_port={arguments.rest_api_port}"]
    os.execv(sys.executable, [*server, *ports, *of_server])


def _write_requests(config: PipelineConfig) -> tuple[str, str, str]:
    """What they are, and the paths of the client's request and of REST's."""
    if not os.path.isdir(config.serving_dir) or not any(name.isdigit() for name in os.listdir(config.serving_dir)):
        raise PipelineError(
            f"{config.serving_dir}: a model that the pipeline pushed is expected. Received: none. Run the pipeline "
            "first (`make demo`), or give the --spec and --output that it was run with."
        )
    from serving.tools.example_request import write_requests  # TensorFlow: seconds, which a mistake need not take

    shards = glob(os.path.join(config.pipeline_root, "ImpressionExampleGen/examples/*/Split-eval/*.gz"))
    newest = max(map(os.path.dirname, shards), key=os.path.getmtime, default="")
    files = sorted(path for path in shards if os.path.dirname(path) == newest)
    kind = "A request of the eval split." if files else "A warm-up request, as the eval split's examples are gone."
    path = os.path.join(config.output_dir, "requests", f"{config.spec.name}.json")
    return kind, *write_requests(config.serving_dir, files, path)


def _check_free(option: str, port: int) -> None:
    """Before anything is told of the server: it would find out some seconds later."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            variable = option.removeprefix("--").replace("rest_api_port", "rest_port").upper()
            raise PipelineError(
                f"{option}: a free port is expected. Received: {port} ({error}). "
                f"Give another, `make serve {variable}=...`."
            ) from error


def _onerank() -> str:
    """The command beside this interpreter, relative to the folder where it was typed if it lies below."""
    command = os.path.join(os.path.dirname(sys.executable), "onerank")
    return os.path.relpath(command) if command.startswith(os.getcwd() + os.sep) else command


if __name__ == "__main__":
    sys.exit(main())
