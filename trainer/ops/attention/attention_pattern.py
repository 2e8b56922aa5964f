"""`AttentionPattern`: which tokens attend to which in structured attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from keras import ops

READS = ("first", "before", "all")


@dataclass(frozen=True)
class AttentionPattern:
    """Which tokens attend to which, in a list of M tokens that is cut into groups of equal size.

    Token i of the group [s, e) attends to the whole prefix (tokens beside the list, see `Prefix`), and to these
    intervals of the list:

    | `reads` | intervals | such as |
    |---|---|---|
    | `"first"` | [s, s + 1) and [i, i + 1) | OneRank's groups: a candidate's token, then its task tokens |
    | `"before"` | [s, i + 1) | a causal list; OneTrans's tokens of a candidate behind its user's sequence |
    | `"all"` | [s, e) | tokens without an order |

    No token attends to a masked token, and masked tokens get zeros.

    Args:
        reads: str. `"first"`, `"before"` or `"all"`. Defaults to `"before"`.
        group_size: int. The tokens of a group. Defaults to None: the list is one group, and queries may be those of its
            last tokens alone.
        query_offset: int. The place of a group's first query: the tokens before it are keys and values, but are
            left out of the result. Defaults to 0: all tokens are queries.
    """

    reads: str = "before"
    group_size: int | None = None
    query_offset: int = 0

    def __post_init__(self) -> None:
        if self.reads not in READS:
            raise ValueError(
                f"`reads` should be one of {', '.join(READS)}. Received: `reads={self.reads}`. Use before."
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(
                f"`group_size` should be at least 1. Received: `group_size={self.group_size}`. Use None for one group."
            )
        if not 0 <= self.query_offset < (self.group_size or 1):
            raise ValueError(
                "`query_offset` should be a place in a group. "
                f"Received: `query_offset={self.query_offset}`, `group_size={self.group_size}`. Use 0 for all tokens."
            )

    @property
    def queries_per_group(self) -> int:
        """The number of queries in a group."""
        if self.group_size is None:
            raise TypeError("A list without groups has no queries_per_group of a group.")
        return self.group_size - self.query_offset

    def select_queries(self, tokens: Any) -> Any:
        """Of all tokens [B, H, M, D] those that are queries, [B, H, Q, D]."""
        if not self.query_offset:
            return tokens
        b, h, m, d = ops.shape(tokens)
        n = m // self.group_size
        queries_per_group = ops.reshape(tokens, (b, h, n, self.group_size, d))[:, :, :, self.query_offset :]
        return ops.reshape(queries_per_group, (b, h, n * self.queries_per_group, d))


CAUSAL = AttentionPattern("before")


class Prefix(NamedTuple):
    """The tokens that all tokens of a list attend to: keys and values [B, H, U, D], mask bool [B, U]; U may be 0."""

    keys: Any
    values: Any
    mask: Any
