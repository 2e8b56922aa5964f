"""The options of a server, which are the flags of its command line."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

from serving.server.errors import ServerError


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ServerOptions:
    """The options of a server. Names are `tensorflow_model_server`'s where it has them; each field's text is the help.

    Args: see `onerank server --help`.
    """

    model_name: str = _flag("default", "the model's name in requests")
    model_base_path: str = _flag("", "the folder with the model's versions, numbered folders")
    model_config_file: str = _flag(
        "", "a ModelServerConfig in text form: several models, policies, labels; instead of the two above"
    )
    version_policy: str = _flag("latest", "latest, latest:2, all or specific:3,5 (with --model_base_path)")
    file_system_poll_wait_seconds: float = _flag(1.0, "seconds between two looks for new versions")
    host: str = _flag("127.0.0.1", "the address to listen on; 0.0.0.0 for every one")
    port: int = _flag(8500, "the port of gRPC; 0 picks a free one")
    rest_api_port: int = _flag(8501, "the port of REST; 0 picks a free one")
    num_threads: int = _flag(0, "threads that run TensorFlow; 0 for one a core")
    max_queue: int = _flag(256, "requests that may wait for a thread; further ones are rejected")
    max_request_bytes: int = _flag(16 * 2**20, "the largest request, and the largest tensor in it")
    max_string_bytes: int = _flag(2**20, "the longest string in a tensor")
    rest_api_timeout_in_ms: int = _flag(30_000, "the longest that a REST request takes")
    shutdown_grace_seconds: float = _flag(30.0, "on SIGTERM: how long requests in flight may take")
    enable_batching: bool = _flag(False, "join requests into one call")
    batching_parameters_file: str = _flag(
        "", "BatchingParameters in text form: max_batch_size, batch_timeout_micros, pad_variable_length_inputs"
    )
    ssl_cert_file: str = _flag("", "a PEM certificate chain: TLS on both ports")
    ssl_key_file: str = _flag("", "the certificate's PEM key")
    auth_token_file: str = _flag(
        "", "a file with a token that requests must bear (default: ONERANK_SERVER_TOKEN of the environment, if set)"
    )
    exit_with_stdin: bool = _flag(False, "exit when standard input ends: a child that does not outlive its parent")
    tensorflow_intra_op_parallelism: int = _flag(0, "threads within an operation; 0 leaves it to TensorFlow")
    tensorflow_inter_op_parallelism: int = _flag(
        0, "operations at a time; 0 leaves it to TensorFlow, -1 runs each request in its own thread"
    )

    def __post_init__(self):
        for option in fields(self):
            value = getattr(self, option.name)
            may_be_negative = option.name.endswith("_parallelism")
            if isinstance(value, (int, float)) and not may_be_negative and not 0 <= value < math.inf:
                raise ServerError(f"--{option.name}: a number of at least 0 is expected. Received: {value}.")

    @property
    def threads(self) -> int:
        """How many threads run TensorFlow."""
        return self.num_threads or os.cpu_count() or 1
