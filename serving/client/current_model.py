"""Which version of a model answers."""

from __future__ import annotations

import logging
import threading
import time

from serving.client.deadline import Deadline
from serving.client.errors import RankingError
from serving.client.model_interface import ModelInterface
from serving.client.transport import Transport

_log = logging.getLogger(__name__)

SHARE = 1 / 4  # of a request's time, for asking when a version is known that the request can do with


class CurrentModel:
    """The version that the server prefers, asked for from time to time.

    One thread asks; the others go on with the version that they know. Without one, they wait for the answer.

    Behind one address there may be servers that load a new version at their own pace. The version before is kept, for
    the time in which one of them names a version that another doesn't have yet.

    Args:
        transport: Transport.
        model: str. The model's name.
        version: int, optional. The only version to use. Defaults to the server's choice.
        label: str, optional. The version's label on the server.
        refresh: float. Seconds after which the server is asked again.
    """

    def __init__(self, transport: Transport, model: str, version: int | None, label: str | None, refresh: float):
        self._transport, self._model, self._version, self._label = transport, model, version, label
        self._refresh = refresh
        self._known: ModelInterface | None = None
        self._other: ModelInterface | None = None  # that was known before
        self._asked = 0.0
        self._failing = False
        self._asking = threading.Lock()

    def get(self, deadline: Deadline, gone: ModelInterface | None = None) -> ModelInterface:
        """The version to use.

        Args:
            deadline: Deadline.
            gone: ModelInterface, optional. One that turned out to be gone, after which the server has to be asked.

        Returns:
            ModelInterface.

        Raises:
            RankingUnavailable: when the server doesn't answer, or doesn't have the model, and no version is known.
        """
        known = self._known if self._known is not gone else None
        if known and self._is_fresh():
            return known
        if not self._asking.acquire(timeout=0 if known else deadline.remaining()):
            return known or self.get(deadline, gone)  # which says that there is no time left
        try:
            known = self._known if self._known is not gone else None
            if known and self._is_fresh():  # somebody has asked meanwhile
                return known
            answer = self._ask(Deadline(SHARE * deadline.remaining()) if known else deadline, known, gone)
            self._failing = False
            return answer
        except RankingError as error:
            if not known:
                raise
            if not self._failing:
                _log.warning(
                    "Model `%s`: version %d goes on, asking for a newer one failed: %s",
                    self._model,
                    known.version,
                    error,
                )
            self._failing, self._asked = True, time.monotonic()
            return known
        finally:
            self._asking.release()

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._asked < self._refresh

    def _ask(self, deadline: Deadline, known: ModelInterface | None, gone: ModelInterface | None) -> ModelInterface:
        metadata = deadline.keep_trying(
            lambda timeout: self._transport.metadata(self._model, self._version, self._label, timeout)
        )
        self._asked = time.monotonic()
        other = known or self._other
        if gone and other and metadata.version == gone.version != other.version:
            _log.warning(
                "Model `%s`: version %d is named, but not all servers have it: version %d until they are asked again.",
                self._model,
                gone.version,
                other.version,
            )
            self._other, self._known = gone, other
            return other
        if known is None or known.version != metadata.version:
            known = ModelInterface(self._model, metadata)
            self._other, self._known = self._known, known
            _log.info("Model `%s`: version %d answers.", self._model, known.version)
        return known
