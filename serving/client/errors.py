"""What a `Ranker` raises."""

from __future__ import annotations

from transform.errors import UserError


class RankingError(Exception):
    """Base of all errors of the client."""


class RequestError(RankingError, UserError):
    """The request is wrong: it doesn't fit the model, or the server rejected it. To repeat it would not help."""


class RankingUnavailable(RankingError):
    """The server gave no answer within the deadline; the same request may get one later."""


class TransientFailure(RankingUnavailable):
    """The server is away or has too much to do: worth another attempt within the deadline."""


class VersionGone(RankingUnavailable):
    """The server doesn't have this model, or no longer this version of it."""
