"""A server that can be started from Python, and is by `onerank server`."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from types import TracebackType

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serving.server.authorization import Authorization
from serving.server.batcher import Batcher
from serving.server.batching_parameters import BatchingParameters
from serving.server.errors import RequestError, ServerError
from serving.server.grpc_services import MODEL_SERVICE, PREDICTION_SERVICE, GrpcServices
from serving.server.metrics import Metrics
from serving.server.model_config import model_configs
from serving.server.model_versions import ModelVersions
from serving.server.options import ServerOptions
from serving.server.predictor import Predictor
from serving.server.rest_app import RestApp
from serving.server.work_queue import WorkQueue

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, so that none is closed while it is taken up again


class ModelServer:
    """Serves models over gRPC and REST from a thread of this process.

    Example:
    ```python
    options = ServerOptions(model_name="mail", model_base_path="out/serving/mail", port=0, rest_api_port=0)
    with ModelServer(options) as server:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    ```

    Args:
        options: ServerOptions.

    Raises:
        ServerError: when the options can't be met.
    """

    def __init__(self, options: ServerOptions):
        self._options = options
        self.models = [ModelVersions(config, options) for config in model_configs(options)]
        self._work = WorkQueue(options.threads, options.max_queue)
        self._metrics = Metrics(self.models, lambda: self._work.waiting)
        batcher = None
        if options.enable_batching:
            file = options.batching_parameters_file
            parameters = BatchingParameters.read(file) if file else BatchingParameters()
            batcher = Batcher(self._work, parameters, self._metrics, options.max_queue, options.max_request_bytes)
        self._predictor = Predictor(self.models, self._work, batcher)
        self._authorization = Authorization.of(options)
        self._credentials = _credentials(options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="serving-loop", daemon=True)
        self._poller = threading.Thread(target=self._poll, name="serving-versions", daemon=True)
        self._stopping = threading.Event()
        self._health = health.aio.HealthServicer()
        self._grpc: grpc.aio.Server | None = None
        self._rest: uvicorn.Server | None = None
        self.grpc_port = 0
        self.rest_port = 0

    def start(self) -> None:
        """Listens, loads the models and returns when they answer. A model without versions is waited for meanwhile.

        Raises:
            ServerError: when a port is taken, or none of a model's versions can be loaded.
        """
        self._thread.start()
        try:
            self._run(self._listen())
            for model in self.models:
                model.poll()
                _check_loaded(model)
            self._tell_health()
        except BaseException:
            self.stop()
            raise
        self._poller.start()

    def stop(self) -> bool:
        """Takes no more requests, answers those under way, at most for the time that the options give, and unloads.

        Returns:
            Whether all were answered in time.
        """
        end = time.monotonic() + self._options.shutdown_grace_seconds
        self._stopping.set()
        self._run(self._drain())
        if self._poller.ident is not None:
            self._poller.join(max(0.0, end - time.monotonic()))  # it may be loading a version
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        idle = self._work.close() and not self._poller.is_alive()
        if idle:
            for model in self.models:
                model.close()
        return idle

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __str__(self) -> str:
        """Where it listens and what it serves, on one line."""
        versions = [
            f"{model.config.name} ({', '.join(str(version.number) for version in model.available) or 'no version yet'})"
            for model in self.models
        ]
        scheme = "https" if self._options.ssl_cert_file else "http"
        on_grpc, on_rest = (_address(self._options.host, port) for port in (self.grpc_port, self.rest_port))
        with_token = ", with a token" if self._authorization else ""
        return f"Serving {', '.join(versions)}: gRPC on {on_grpc}, REST on {scheme}://{on_rest}{with_token}."

    # === In the loop's thread ===

    async def _listen(self) -> None:
        """Opens both ports."""
        guard = self._authorization
        self._grpc = grpc.aio.server(
            interceptors=[guard.interceptor()] if guard else [],
            options=[
                ("grpc.max_receive_message_length", self._options.max_request_bytes),
                ("grpc.so_reuseport", 0),  # or a taken port would be shared
            ],
        )
        self._grpc.add_generic_rpc_handlers(GrpcServices(self._predictor, self._metrics, self._options).handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        await self._set_health(False)
        self.grpc_port = self._add_port(self._grpc)
        rest_socket = _bound(self._options.host, self._options.rest_api_port)
        self.rest_port = rest_socket.getsockname()[1]
        application = RestApp(
            self._predictor, self._metrics, self._options, lambda: not self._stopping.is_set()
        ).application()
        self._rest = uvicorn.Server(
            uvicorn.Config(
                guard.middleware(application) if guard else application,
                log_config=None,
                log_level=logging.ERROR,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, round(self._options.shutdown_grace_seconds)),
                ssl_certfile=self._options.ssl_cert_file or None,
                ssl_keyfile=self._options.ssl_key_file or None,
            )
        )
        await self._grpc.start()
        self._rest_task = asyncio.create_task(self._rest.serve(sockets=[rest_socket]))

    def _add_port(self, server: grpc.aio.Server) -> int:
        address = _address(self._options.host, self._options.port)
        try:
            if self._credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._credentials)
        except RuntimeError:
            port = 0
        if not port:
            raise ServerError(f"--port: a free port of this machine is expected. Received: {address}. Give another.")
        return port

    async def _drain(self) -> None:
        await self._set_health(False)
        if self._rest is not None:
            self._rest.should_exit = True
        if self._grpc is not None:
            await self._grpc.stop(self._options.shutdown_grace_seconds)
            self._grpc = None  # at the interpreter's end its destructor would miss the loop
        if self._rest is not None:
            await self._rest_task

    async def _set_health(self, ready: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", PREDICTION_SERVICE, MODEL_SERVICE):
            await self._health.set(service, state)

    # === In other threads ===

    def _run(self, coroutine) -> None:
        future: Future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.result()

    def _poll(self) -> None:
        while not self._stopping.wait(self._options.file_system_poll_wait_seconds):
            for model in self.models:
                try:
                    model.poll()
                except Exception:  # one bad look at the disk must not be the last
                    logger.exception("model %s: looking for versions failed", model.config.name)
            if not self._stopping.is_set():  # or the loop may be gone, if loading took longer than the grace
                self._tell_health()

    def _tell_health(self) -> None:
        self._run(self._set_health(self._predictor.ready and not self._stopping.is_set()))


def _check_loaded(model: ModelVersions) -> None:
    """Refuses to start when there are versions and none of them loads."""
    if model.available:
        return
    try:
        newest = model.statuses()[0]
    except RequestError:
        logger.warning("model %s: no version in %s yet", model.config.name, model.config.base_path)
        return
    raise ServerError(
        f"model {model.config.name}: a version that can be loaded is expected in {model.config.base_path}. "
        f"Received: version {newest.version}: {newest.status.error_message}"
    )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # The protocol is named, or asyncio leaves Nagle's delay on.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        return bound
    except (OSError, OverflowError) as error:
        raise ServerError(
            "--rest_api_port: a free port of this machine is expected. "
            f"Received: {_address(host, port)}, {error}. Give another."
        ) from error


def _credentials(options: ServerOptions) -> grpc.ServerCredentials | None:
    if not options.ssl_cert_file and not options.ssl_key_file:
        return None
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(options.ssl_cert_file, options.ssl_key_file)
        with open(options.ssl_cert_file, "rb") as certificate, open(options.ssl_key_file, "rb") as key:
            return grpc.ssl_server_credentials([(key.read(), certificate.read())])
    except OSError as error:  # ssl's own errors are among them
        raise ServerError(
            "--ssl_cert_file, --ssl_key_file: a PEM certificate and its key are expected. "
            f"Received: {options.ssl_cert_file!r}, {options.ssl_key_file!r}: {error}. Give both."
        ) from error
