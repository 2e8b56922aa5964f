"""A token that requests must bear."""

from __future__ import annotations

import hmac
import os
from typing import Any

import grpc
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.server.errors import ServerError
from serving.server.options import ServerOptions

VARIABLE = "ONERANK_SERVER_TOKEN"
_OPEN_PATHS = ("/healthz", "/readyz")  # for probes, as gRPC's health service is
_OPEN_METHODS = "/grpc.health.v1."
_REFUSAL = "authorization: `Bearer` and the server's token are expected."


class Authorization:
    """A token that requests must bear, compared in constant time.

    Args:
        token: str.
    """

    def __init__(self, token: str):
        self._expected = f"Bearer {token}".encode()

    @classmethod
    def of(cls, options: ServerOptions) -> Authorization | None:
        """The one that the options or the environment ask for, if any.

        Raises:
            ServerError: when the file can't be read or is empty.
        """
        if not options.auth_token_file:
            token = os.environ.get(VARIABLE, "").strip()
            return cls(token) if token else None
        try:
            with open(options.auth_token_file, encoding="utf-8") as file:
                token = file.read().strip()
        except (OSError, ValueError) as error:
            raise ServerError(f"--auth_token_file: a readable file is expected. Received: {error}.") from error
        if not token:
            raise ServerError(f"{options.auth_token_file}: a token is expected. Received: an empty file. Write one.")
        return cls(token)

    def accepts(self, header: bytes) -> bool:
        """Whether an `authorization` header bears the token."""
        return hmac.compare_digest(header, self._expected)

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """What a gRPC server asks before each call."""
        return _Interceptor(self)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """A REST application that asks before each request."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            header = dict(scope.get("headers", ())).get(b"authorization", b"")
            if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS and not self.accepts(header):
                await JSONResponse({"error": _REFUSAL}, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
            else:
                await app(scope, receive, send)

        return guarded


class _Interceptor(grpc.aio.ServerInterceptor):
    def __init__(self, authorization: Authorization):
        self._authorization = authorization

        async def refuse(_: bytes, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)

        self._refusal = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        header = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        is_open = handler_call_details.method.startswith(_OPEN_METHODS)
        if is_open or self._authorization.accepts(header.encode()):
            return await continuation(handler_call_details)
        return self._refusal
