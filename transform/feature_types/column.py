"""What a model gets of a feature: columns of transformed values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One transformed feature.

    Attributes:
        group: str. `user`, `context`, `candidate`, or a sequence's name.
        name: str. Its name within the group.
        kind: str. `id`, `ids` (a set of ids) or `dense`.
        table: str or None. The embedding table of ids.
        dim: int. The width of the embedding; 1 for dense values.
    """

    group: str
    name: str
    kind: str
    table: str | None
    dim: int
