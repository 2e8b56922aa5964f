"""Ranks a user's candidates with a model that a server of TF Serving's API offers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from serving.client.current_model import CurrentModel
from serving.client.deadline import Deadline
from serving.client.errors import RankingUnavailable, RequestError, VersionGone
from serving.client.lru_user_state_cache import LruUserStateCache
from serving.client.model_interface import (
    CANDIDATE_COUNT,
    ENCODE_USER,
    RANK,
    RANK_WITH_USER_STATE,
    SCORE,
    SCORE_SUMMARY,
    SUMMARIZE_CANDIDATES,
    SUMMARY_PREFIX,
    ModelInterface,
)
from serving.client.ranking import Ranking
from serving.client.rest_transport import RestTransport
from serving.client.transport import Tensors, Transport
from serving.client.user_state_cache import UserStateCache, UserStateKey
from transform.extras import MissingExtra

_log = logging.getLogger(__name__)

VERSION_CHANGES = 2  # that one request follows before it gives up

Predict = Callable[[str, Tensors], Tensors]


class Ranker:
    """Ranks candidates over gRPC or REST.

    The user is encoded once for each history, and the user state is kept; candidates are scored against it. A request
    is computed by one version of the model: when that goes while it is under way, it starts again with the one that
    came. Failures that may pass are tried again until the deadline. All methods may be called from many threads at
    once. A process that forks makes its rankers after it has forked.

    Args:
        address: str. `grpc://host:port` or `http://host:port`; `grpcs://` and `https://` for TLS. gRPC imports
            TensorFlow for the protos, REST does not. Proxies of the environment are not used for this machine.
        model: str. The model's name on the server.
        version: int, optional. The only version to use. Defaults to the newest that is served.
        label: str, optional. A version's label on the server, as `canary`.
        deadline: float. Seconds that a request may take, all attempts together. Defaults to 5.
        token: str, optional. Sent with each call as `Authorization: Bearer`.
        ca: str, optional. The file with the certificates to trust (PEM). Defaults to the system's.
        cache: UserStateCache, optional. Where user states are kept. Defaults to 64 MiB of memory, for ten minutes.
        max_candidates: int. The most that are sent in one call; longer lists are scored in parts, with equal results.
            Defaults to 4096.
        parallel: int. The most parts that are under way at once, of all requests together. Defaults to 4.
        refresh: float. Seconds after which the server is asked again which version is the newest. Defaults to 10.

    Raises:
        RequestError: when an argument is wrong.

    Attributes:
        cache: UserStateCache.
        max_candidates: int.

    Example:
    ```python
    with Ranker("grpc://localhost:8500", "mail") as ranker:
        ranking = ranker.rank(
            user={"person": "p12"},
            sequences={"opened_before": [{"letter": "w3"}, {"letter": "w9"}]},
            candidates=[{"letter": "w1", "strength": 0.3}, {"letter": "w2", "strength": None}],
            user_key="p12",
            history_version=17,
        )
    ranking.order  # [1, 0]
    ```
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        deadline: float = 5.0,
        token: str | None = None,
        ca: str | None = None,
        cache: UserStateCache | None = None,
        max_candidates: int = 4096,
        parallel: int = 4,
        refresh: float = 10.0,
    ):
        if version is not None and label is not None:
            raise RequestError("version: a version or a label is expected. Received: both. Leave one out.")
        for name, number in {"deadline": deadline, "max_candidates": max_candidates, "parallel": parallel}.items():
            if not number > 0:
                raise RequestError(f"{name}: a number above 0 is expected. Received: {number!r}.")
        self.max_candidates = max_candidates
        self._deadline = deadline
        self.cache = cache if cache is not None else LruUserStateCache()
        self._transport = _connect(address, token, ca)
        self._current = CurrentModel(self._transport, model, version, label, refresh)
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="ranker")
        self._told = False
        self._closed = False

    def rank(
        self,
        user: Mapping[str, Any] | None,
        candidates: Any,
        *,
        context: Mapping[str, Any] | None = None,
        sequences: Mapping[str, Any] | None = None,
        user_key: str | None = None,
        history_version: str | int | None = None,
    ) -> Ranking:
        """Scores and orders the candidates of one request.

        All features of the model are given, and no others; None is a missing value. Numbers are float or int,
        categories str, times int epoch milliseconds, sets lists of str.

        Args:
            user: dict. The user's feature values.
            candidates: list of dicts, one per candidate, or a dict of columns.
            context: dict, optional. The request's feature values. Defaults to none, for models that take none.
            sequences: dict, optional. By sequence the user's events, newest last: a list of dicts, or a dict of
                columns. Defaults to none, for models that take none.
            user_key: str, optional. Who it is. With `history_version` it names the user state in the cache: what the
                cache has of them is used, whatever `user` and `sequences` say. Defaults to no caching.
            history_version: str or int, optional. Changes whenever `user` or `sequences` do.

        Returns:
            Ranking.

        Raises:
            RequestError: when the request doesn't fit the model. Nothing was computed.
            RankingUnavailable: when the server didn't answer in time.
        """
        if self._closed:
            raise RequestError("ranker: one that is open is expected. Received: one after `close`. Make another.")
        if (user_key is None) != (history_version is None):
            raise RequestError("user_key: it is expected with `history_version`. Received: one of the two. Give both.")
        who = None if user_key is None else (str(user_key), str(history_version))
        deadline = Deadline(self._deadline)
        model, reason = None, None
        for _ in range(1 + VERSION_CHANGES):
            model = self._current.get(deadline, gone=model)
            try:
                return self._rank_with(model, deadline, user, candidates, context, sequences, who)
            except VersionGone as error:
                reason = error
        raise RankingUnavailable(
            f"a version that stays while a request is ranked is expected. Received: {1 + VERSION_CHANGES} times one "
            f"that is gone ({reason}). Give all servers behind the address the same versions."
        ) from reason

    def close(self) -> None:
        """Closes the connections; requests that are under way may fail."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._transport.close()

    def __enter__(self) -> Ranker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # === Steps, all with one version ===

    def _rank_with(
        self,
        model: ModelInterface,
        deadline: Deadline,
        user: Mapping[str, Any] | None,
        candidates: Any,
        context: Mapping[str, Any] | None,
        sequences: Mapping[str, Any] | None,
        who: tuple[str, str] | None,
    ) -> Ranking:
        def predict(name: str, inputs: Tensors) -> Tensors:
            signature = model.signature(name)
            chosen = {key: inputs[key] for key in signature.inputs}
            return deadline.keep_trying(
                lambda timeout: self._transport.predict(model.model, model.version, name, signature, chosen, timeout)
            )

        inputs, count = model.candidate_inputs(context, candidates)
        if not count:
            return _ranking(model, {name: np.zeros((1, 0), np.float32) for name in (*model.tasks, SCORE)}, 0, False)
        in_parts = count > self.max_candidates
        carried = self._carries_user_states(model, who is not None, in_parts)
        if in_parts:
            model.signature(SUMMARIZE_CANDIDATES)  # before anything is sent
        elif who is None or not carried:
            return _ranking(model, predict(RANK, {**model.user_inputs(user, sequences), **inputs}), count, False)
        key = None if who is None else UserStateKey(model.model, model.version, *who)
        known = self.cache.get(key) if key else None
        if known is not None and not model.fits(known):
            _log.warning("The user state kept under %s is not one of the model's: the user is encoded again.", key)
            known = None
        encoded = known if known is not None else predict(ENCODE_USER, model.user_inputs(user, sequences))
        if key and known is None:
            self.cache.put(key, encoded)
        if in_parts:
            outputs = self._rank_in_parts(model, predict, {**encoded, **inputs})
        else:
            outputs = predict(RANK_WITH_USER_STATE, {**encoded, **inputs})
        return _ranking(model, outputs, count, known is not None)

    def _rank_in_parts(self, model: ModelInterface, predict: Predict, inputs: Tensors) -> Tensors:
        """Two passes: each part is summarized alone, then scored beside the summaries of all."""
        parts = list(model.in_parts(inputs, self.max_candidates))
        states = list(self._pool.map(lambda part: predict(SUMMARIZE_CANDIDATES, part), parts))
        summary = {
            name: np.concatenate([state[name] for state in states], axis=1)
            for name in states[0]
            if name.startswith(SUMMARY_PREFIX)
        }
        outputs = list(self._pool.map(lambda state: predict(SCORE_SUMMARY, {**inputs, **state, **summary}), states))
        sizes = [int(part[CANDIDATE_COUNT][0]) for part in parts]
        return {
            name: np.concatenate([o[name][:, :size] for o, size in zip(outputs, sizes, strict=True)], axis=1)
            for name in outputs[0]
        }

    def _carries_user_states(self, model: ModelInterface, wanted: bool, needed: bool) -> bool:
        """Whether user states can be sent. If not, the log says so once if they are wanted; needed, it is an error."""
        dtypes = ", ".join(dtype for dtype in sorted(model.cache_dtypes) if not self._transport.carries(dtype))
        if dtypes and needed:
            raise RequestError(
                f"candidates: at most {self.max_candidates} are expected, as REST carries no {dtypes} and user states "
                f"of model `{model.model}` are that. Received: more. Use gRPC."
            )
        if dtypes and wanted and not self._told:
            self._told = True
            _log.warning("REST carries no %s: user states of model `%s` are not kept. Use gRPC.", dtypes, model.model)
        return not dtypes


def _ranking(model: ModelInterface, outputs: Tensors, count: int, cached: bool) -> Ranking:
    """Cut to the candidates: a server that joins requests answers each in the length of the longest."""
    score = outputs[SCORE][0, :count]
    return Ranking(
        tasks={task: outputs[task][0, :count] for task in model.tasks},
        score=score,
        order=np.argsort(-score, kind="stable"),
        version=model.version,
        user_state_cached=cached,
    )


def _connect(address: str, token: str | None, ca: str | None) -> Transport:
    no_address = RequestError(
        f"address: grpc://host:port, grpcs://, http:// or https:// is expected. Received: {address!r}. "
        "TF Serving's ports are 8500 for gRPC and 8501 for REST."
    )
    scheme = re.match(r"(grpcs?(?=://[^/]+:\d+$)|https?(?=://[^/]))", address)
    if not scheme:
        raise no_address
    if token and not (token.isascii() and token.isprintable()):
        raise RequestError("token: printable ASCII is expected. Received: other characters. Give the token alone.")
    if ca and not scheme[0].endswith("s"):
        raise RequestError(f"ca: an address with TLS is expected. Received: {address}. Write {scheme[0]}s://.")
    try:
        if scheme[0].startswith("http"):
            return RestTransport(address, token, ca)
        from serving.client.grpc_transport import GrpcTransport  # brings TensorFlow

        return GrpcTransport(address, token, ca)
    except MissingExtra as error:
        raise RequestError(
            f"address: http:// or https:// is expected, as gRPC is not installed. Received: {address}. {error}"
        ) from error
    except OSError as error:  # ssl.SSLError is one
        raise RequestError(
            f"ca: a readable file of certificates (PEM) is expected. Received: {ca}: {error}."
        ) from error
    except (ValueError, httpx.InvalidURL) as error:  # the port, or brackets
        raise no_address from error
