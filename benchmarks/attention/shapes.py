"""The shapes of attention that are measured, their inputs and masks. NumPy alone: PyTorch's process needs them too."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Shape(NamedTuple):
    """A list of tokens beside a prefix; see `trainer.ops.attention.attention_pattern.AttentionPattern`.

    `backward` says whether training on it makes sense, so that gradients are measured.
    """

    name: str
    batch: int
    heads: int
    tokens: int
    depth: int = 32
    prefix: int = 0
    reads: str = "before"
    group_size: int | None = None
    backward: bool = False

    @property
    def pairs(self) -> int:
        """The pairs of a query and a key that it reads, of all heads and requests."""
        own = self.tokens * (self.tokens + 1) // 2
        if self.reads == "first":
            own = 2 * self.tokens - self.tokens // (self.group_size or self.tokens)
        return self.batch * self.heads * (self.tokens * self.prefix + own)

    def flops(self, backward: bool) -> int:
        """2 products of `depth` multiplications and additions a pair; backward 5 more, one being the scores again."""
        return 2 * self.depth * self.pairs * (7 if backward else 2)

    @property
    def dense_bytes(self) -> int:
        """The size of a float32 tensor of all queries by all keys."""
        return 4 * self.batch * self.heads * self.tokens * (self.prefix + self.tokens)


def candidates(name: str, number: int, history: int) -> Shape:
    """One request as OneRank sees it: a prefix, and groups of a candidate's token and four task tokens."""
    return Shape(name, 1, 8, 5 * number, prefix=history, reads="first", group_size=5)


SHAPES = (
    Shape("A", 32, 4, 160, backward=True),
    Shape("B", 8, 8, 528, backward=True),
    candidates("C", 1000, 512 + 12),
)
SWEEP = tuple(
    candidates(f"N = {number}, history {history}", number, history)
    for history in (128, 512, 2048)
    for number in (64, 256, 1024, 4096)
)


def visible(shape: Shape, rows: Any = None) -> np.ndarray:
    """Bool [Q, prefix + tokens]: which token attends to which; of all queries or of some rows."""
    query = np.arange(shape.tokens)[slice(None) if rows is None else rows, None]
    key = np.arange(shape.tokens)
    own = key <= query
    if shape.reads == "first":
        assert shape.group_size
        own = (key == query // shape.group_size * shape.group_size) | (key == query)
    return np.concatenate([np.ones((len(query), shape.prefix), bool), own], axis=1)


def attention_inputs(shape: Shape) -> dict[str, np.ndarray]:
    """Queries, keys and values, and a gradient of the result: standard normal, float32, always the same."""
    draw = np.random.default_rng(0).standard_normal
    sizes = dict.fromkeys(("queries", "keys", "values", "grad_out"), shape.tokens)
    sizes |= dict.fromkeys(("prefix_keys", "prefix_values"), shape.prefix)
    return {name: draw((shape.batch, shape.heads, size, shape.depth), dtype=np.float32) for name, size in sizes.items()}


def layer_inputs(shape: Shape) -> dict[str, np.ndarray]:
    """Tokens [B, M, H D] and prefix, the four projections of a multi-head attention without biases, and a gradient."""
    draw, width = np.random.default_rng(0).standard_normal, shape.heads * shape.depth
    arrays = {
        name: draw((shape.batch, size, width), dtype=np.float32)
        for name, size in {"tokens": shape.tokens, "prefix": shape.prefix, "grad_out": shape.tokens}.items()
    }
    projection, scale = (width, shape.heads, shape.depth), np.float32(width**-0.5)
    arrays |= {f"{name}_kernel": scale * draw(projection, dtype=np.float32) for name in ("query", "key", "value")}
    return arrays | {"output_kernel": scale * draw((shape.heads, shape.depth, width), dtype=np.float32)}
