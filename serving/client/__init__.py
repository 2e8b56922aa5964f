"""Ranking with a served model: `Ranker`, and what it takes and raises. Imports no TensorFlow."""

from transform.extras import require_extra

require_extra("client", "serving.client", "cachetools", "httpx", "rich", "tenacity")

from serving.client.errors import RankingError, RankingUnavailable, RequestError
from serving.client.lru_user_state_cache import LruUserStateCache
from serving.client.ranker import Ranker
from serving.client.ranking import Ranking
from serving.client.user_state_cache import UserStateCache, UserStateKey

__all__ = [
    "UserStateCache",
    "UserStateKey",
    "LruUserStateCache",
    "Ranker",
    "Ranking",
    "RankingError",
    "RankingUnavailable",
    "RequestError",
]
