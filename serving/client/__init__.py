"""Ranking with a served model: `Ranker`, and what it takes and raises. Imports no TensorFlow."""

from transform.extras import require_extra

require_extra("client", "serving.client", "cachetools", "httpx", "rich", "tenacity")

from serving.client.context_cache import ContextCache, ContextKey
from serving.client.errors import RankingError, RankingUnavailable, RequestError
from serving.client.lru_context_cache import LruContextCache
from serving.client.ranker import Ranker
from serving.client.ranking import Ranking

__all__ = [
    "ContextCache",
    "ContextKey",
    "LruContextCache",
    "Ranker",
    "Ranking",
    "RankingError",
    "RankingUnavailable",
    "RequestError",
]
