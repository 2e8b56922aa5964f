"""The type `categorical_set`: several values in one, for candidates alone.

In a request example all candidates' members stand one behind the other, with their numbers in `<name>_length`. A served
model takes them as [B, N, S], S members of a set, with "" for no member.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from transform.feature_types.base import length_key, register_feature_type
from transform.feature_types.categorical import CategoricalFeature
from transform.list_text import split_list

if TYPE_CHECKING:
    import tensorflow as tf


@register_feature_type("categorical_set")
class CategoricalSetFeature(CategoricalFeature):
    """Several values in one, such as tags, for candidates alone: a set of ids, whose embeddings are averaged."""

    single_valued: ClassVar[bool] = False
    sliceable: ClassVar[bool] = False
    aggregate_key: ClassVar[bool] = False
    candidate_axes: ClassVar[int] = 3
    column_kind: ClassVar[str] = "ids"

    separator: str = Field(",", examples=["|"])
    """What stands between the values of a set. Lists in Parquet files need none."""

    def parse(self, text: str, origin: str) -> Any:
        """A list of str: the members."""
        return [member for member in split_list(text, self.separator) if member]

    def example_dtypes(self) -> dict[str, str]:
        """The members, and how many of them each candidate has."""
        return {self.name: self.dtype, length_key(self.name): "int64"}

    def encode(self, values: list[Any]) -> dict[str, list[Any]]:
        """All members one behind the other, and the lengths."""
        return {
            length_key(self.name): [len(members) for members in values],
            self.name: [member for members in values for member in members],
        }

    def decode(self, request: Mapping[str, list[Any]]) -> list[Any]:
        """The members of each candidate."""
        members = request.get(self.name, [])
        ends = accumulate(request.get(length_key(self.name), ()), initial=0)
        return [members[start:end] for start, end in pairwise(ends)]

    def padded(self, values: list[Any]) -> list[Any]:
        """Sets of one size that begin with "": a server that batches requests pads them with the first value."""
        widest = max(map(len, values), default=0)
        return [["", *members, *[""] * (widest - len(members))] for members in values or [[]]]

    def to_sparse(self, values: tf.Tensor, present: tf.Tensor) -> dict[str, tf.SparseTensor]:
        """The members leave gaps where there is none: nobody reads their places."""
        import tensorflow as tf

        from transform.feature_types.tensors.sparse import masked

        given = tf.logical_and(values != "", present[..., None])
        b, n, s = tf.unstack(tf.shape(values))
        members, there = (tf.reshape(tensor, (b, n * s)) for tensor in (values, given))
        lengths = tf.reduce_sum(tf.cast(given, tf.int64), axis=-1)
        return {self.name: masked(members, there), length_key(self.name): masked(lengths, present)}
