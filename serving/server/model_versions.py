"""The versions of one model: found, loaded, switched to and unloaded while requests come in."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2

from serving.server.errors import RequestError, invalid
from serving.server.loaded_version import SAVED_MODEL, LoadedVersion
from serving.server.model_config import ModelConfig
from serving.server.options import ServerOptions
from serving.server.warm_up import warm_up

logger = logging.getLogger(__name__)

Status: Any = get_model_status_pb2.ModelVersionStatus
_UNKNOWN = 2  # the code of errors that have none
_MOST = 2**63 - 1

Fingerprint = tuple[tuple[str, int, int], ...]


class ModelVersions:
    """The versions of one model.

    `poll` brings what is loaded in line with the folder: a new version is loaded and warmed up, then answers; the old
    one is closed when its last request is answered. What fails to load is passed over until its folder changes, and
    what was served goes on being served. One thread polls, any number of them lease.

    Args:
        config: ModelConfig.
        options: ServerOptions.
    """

    def __init__(self, config: ModelConfig, options: ServerOptions):
        self.config = config
        self._options = options
        self._lock = threading.Lock()
        self._available: dict[int, LoadedVersion] = {}
        self._draining: list[LoadedVersion] = []
        self._statuses: dict[int, Any] = {}
        self._seen: dict[int, Fingerprint] = {}  # folders that were there at the last poll, not loaded yet
        self._failed: dict[int, Fingerprint] = {}
        self.polled = False

    # === Requests ===

    @contextmanager
    def lease(self, number: int | None = None, label: str | None = None) -> Iterator[LoadedVersion]:
        """The version that answers a request, which stays loaded meanwhile.

        Args:
            number: int, optional. Defaults to the newest.
            label: str, optional. Instead of the number.

        Raises:
            RequestError: NOT_FOUND, INVALID_ARGUMENT for an unknown label, UNAVAILABLE before the first poll's end.
        """
        if label is not None:
            number = self.number_of(label)
        with self._lock:
            wanted = max(self._available, default=None) if number is None else number
            version = self._available.get(wanted) if wanted is not None else None
            if version is None:
                raise self._not_found(number)
            version.in_flight += 1
        try:
            yield version
        finally:
            with self._lock:
                version.in_flight -= 1

    def number_of(self, label: str) -> int:
        """The version that a label stands for.

        Raises:
            RequestError: INVALID_ARGUMENT for an unknown label.
        """
        if label not in self.config.labels:
            raise invalid(f"Unrecognized servable version label: {label:.100}")
        return self.config.labels[label]

    def statuses(self, number: int | None = None) -> list[Any]:
        """What became of each version, or of one, the newest first.

        Raises:
            RequestError: NOT_FOUND.
        """
        with self._lock:
            found = [status for v, status in sorted(self._statuses.items(), reverse=True) if number in (None, v)]
        if not found:
            which = "any versions" if number is None else f"version {number}"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find {which} of model {self.config.name}")
        return found

    @property
    def available(self) -> list[LoadedVersion]:
        """The versions that answer requests, the newest first."""
        with self._lock:
            return [self._available[number] for number in sorted(self._available, reverse=True)]

    def _not_found(self, number: int | None) -> RequestError:
        if not self.polled:
            return RequestError(grpc.StatusCode.UNAVAILABLE, f"model {self.config.name} is being loaded")
        which = f"Latest({self.config.name})" if number is None else f"Specific({self.config.name}, {number})"
        return RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {which}")

    # === Versions ===

    def poll(self) -> None:
        """Loads what is new, unloads what is no longer wanted."""
        policy = self.config.policy
        kept: list[int] = []
        folders = self._folders()
        for number in policy.candidates(folders):
            if policy.latest is not None and len(kept) == policy.latest:
                break
            if number in self._available or self._load(number, folders[number]):
                kept.append(number)
        for number in set(self._available) - set(kept) if kept else ():
            self._retire(number)
        self._close_drained()
        self.polled = True

    def close(self) -> None:
        """Unloads everything. No request may be under way."""
        for number in list(self._available):
            self._retire(number)
        self._close_drained()

    def _folders(self) -> dict[int, str]:
        try:
            with os.scandir(self.config.base_path) as entries:
                numbered = {int(e.name): e.path for e in entries if e.name.isascii() and e.name.isdecimal()}
        except OSError as error:
            logger.warning("model %s: %s; what is loaded stays", self.config.name, error)
            return {}
        return {number: path for number, path in numbered.items() if number <= _MOST}

    def _load(self, number: int, path: str) -> bool:
        """Loads a version if its folder is whole and is no longer being written."""
        fingerprint = _fingerprint(path)
        at_rest = self._seen.get(number) == fingerprint or not self.polled
        self._seen[number] = fingerprint
        if not fingerprint or not at_rest or self._failed.get(number) == fingerprint:
            return False
        self._tell(number, Status.LOADING)
        started = time.monotonic()
        version = None
        try:
            version = LoadedVersion(path, number, self._options)
            replayed = warm_up(version, path, self._options)
        except Exception as error:  # whatever is wrong with a new version, the old one goes on
            if version is not None:
                version.close()
            self._failed[number] = fingerprint
            code = error.error_code if isinstance(error, tf.errors.OpError) else _UNKNOWN
            message = " ".join(str(error).split())[:500] or type(error).__name__
            self._tell(number, Status.END, code, message)
            logger.error("model %s: version %d is not served: %s", self.config.name, number, message)
            return False
        self._seen.pop(number)
        with self._lock:
            self._available[number] = version
        self._tell(number, Status.AVAILABLE)
        seconds = time.monotonic() - started
        logger.info(
            "model %s: version %d is served; %d warm-up requests, %.1f s", self.config.name, number, replayed, seconds
        )
        return True

    def _retire(self, number: int) -> None:
        with self._lock:
            self._draining.append(self._available.pop(number))
        self._tell(number, Status.UNLOADING)

    def _close_drained(self) -> None:
        for version in [version for version in self._draining if not version.in_flight]:
            self._draining.remove(version)
            version.close()
            if version.number not in self._available:  # its folder may have come back meanwhile
                self._tell(version.number, Status.END)
            logger.info("model %s: version %d is unloaded", self.config.name, version.number)

    def _tell(self, number: int, state: int, code: int = 0, message: str = "") -> None:
        status = Status(version=number, state=state)
        status.status.error_code, status.status.error_message = code, message
        with self._lock:
            self._statuses[number] = status


def _fingerprint(path: str) -> Fingerprint:
    """The files of a version, their sizes and times; nothing while there is no graph."""
    files = []
    try:
        for folder, _, names in os.walk(path):
            for name in names:
                stat = os.stat(os.path.join(folder, name))
                files.append((os.path.relpath(os.path.join(folder, name), path), stat.st_size, stat.st_mtime_ns))
    except OSError:  # removed meanwhile
        return ()
    return tuple(sorted(files)) if any(name == SAVED_MODEL for name, _, _ in files) else ()
