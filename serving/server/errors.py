"""What goes wrong in a server: the operator's mistakes, and the requests that are rejected."""

from __future__ import annotations

from typing import Any

import grpc

from transform.errors import UserError

LONGEST_MESSAGE = 600  # characters: details of a gRPC status travel in a header of 8 KiB, up to 12 bytes a character


class ServerError(UserError):
    """The server was started with something that it can't serve."""


class RequestError(Exception):
    """A request is rejected, with the status that TF Serving gives.

    Args:
        code: grpc.StatusCode.
        message: str. Which field, what is expected, what was received. Cut where it is long.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} ...")
        self.code = code


def invalid(message: str) -> RequestError:
    """The error of a request that is malformed.

    Args:
        message: str. Which field, what is expected, what was received.
    """
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def of_tensorflow(error: Any) -> RequestError:
    """The error of a request that TensorFlow rejected or could not compute.

    Args:
        error: tf.errors.OpError, or UnicodeDecodeError: the session's, when a message quotes bytes of the request that
            are no text. Its code is lost then; that it quotes the request says whose fault it is.

    Returns:
        RequestError. With TensorFlow's code and its message, without the names of nodes, and without the bytes that
        could not be parsed.
    """
    if isinstance(error, UnicodeDecodeError):
        text, code = error.object.decode(errors="replace"), grpc.StatusCode.INVALID_ARGUMENT
    else:
        text, code = error.message, _BY_NUMBER.get(error.error_code, grpc.StatusCode.UNKNOWN)
    cause = text.removeprefix("Graph execution error:").split("\n\t [[")[0]
    if _UNPARSED in cause:  # it quotes the bytes, up to the first NUL
        return invalid("inputs: serialized tf.train.Example messages are expected. Received: other bytes.")
    return RequestError(code, " ".join(cause.split()))


_UNPARSED = "Could not parse example input"
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}  # TensorFlow's codes are gRPC's
