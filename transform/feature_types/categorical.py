"""The type `categorical`: a text that becomes an id, and the id an embedding."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveInt, field_validator, model_validator

from transform.errors import DataError
from transform.feature_types.base import Feature, ValueFunction, register_feature_type
from transform.feature_types.column import Column
from transform.section import Name, Section

if TYPE_CHECKING:
    import tensorflow as tf

LARGEST_VOCABULARY = 20_000_000  # values; at 16 floats each, and two more an optimizer keeps, 4 GB
_LEARNED = ("top_k", "min_frequency", "oov")


class Vocabulary(Section):
    """How the values of a categorical feature become ids: a list learned from the train split, or hashes."""

    name: Name | None = Field(None, examples=["item"])
    """Features that name one vocabulary share it, and the embeddings. The feature's own name by default."""
    top_k: PositiveInt | None = Field(None, examples=[200_000])
    """Only the most frequent values are kept, so many. All by default."""
    min_frequency: PositiveInt | None = Field(None, examples=[5])
    """Only values that occur at least so often are kept. All by default."""
    oov: int = Field(1, ge=0, examples=[4])
    """The number of ids that all other values share by their hash. With 0 they are as if missing."""
    hash_buckets: int | None = Field(None, ge=2, examples=[1_000_000])
    """Instead of a list: a value's id is its hash, and values may share one. It is for ids so many, or so new, that a
    list of them would be too long or too old. Excludes `top_k`, `min_frequency` and `oov`."""

    @model_validator(mode="after")
    def _hashed_or_learned(self) -> Vocabulary:
        if self.hash_buckets and self.model_fields_set & {*_LEARNED}:
            raise ValueError(
                "either `hash_buckets`, or a learned vocabulary with `top_k`, `min_frequency` and `oov`, is expected, "
                "not both. Remove one"
            )
        return self


@register_feature_type("categorical")
class CategoricalFeature(Feature):
    """One value of many, such as an id or a country: a text that becomes an id, and the id an embedding."""

    dtype: ClassVar[str] = "string"
    sliceable: ClassVar[bool] = True
    aggregate_key: ClassVar[bool] = True
    column_kind: ClassVar[str] = "id"

    vocabulary: Vocabulary | None = Field(None, examples=["item", {"min_frequency": 5}])
    """How values become ids; a name alone is short for `{name: ...}`."""

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def vocabulary_name(self) -> str:
        """The name of the vocabulary, and of the embedding table: the feature's own unless it shares one."""
        return (self.vocabulary and self.vocabulary.name) or self.name

    def shared_settings(self) -> dict[tuple[str, str], Any]:
        """The width, and what the feature says of its vocabulary."""
        settings = {"dim": self.dim}
        for key in (*_LEARNED, "hash_buckets"):
            if self.vocabulary and key in self.vocabulary.model_fields_set:
                settings[key] = getattr(self.vocabulary, key)
        return {(self.vocabulary_name, key): value for key, value in settings.items()}

    def parse(self, text: str, origin: str) -> Any:
        """The text itself."""
        return text

    def columns(self, group: str) -> list[Column]:
        """The ids."""
        return [Column(group, self.name, self.column_kind, self.vocabulary_name, self.dim)]

    def analysis_key(self, group: str) -> Hashable:
        """A vocabulary is learned from all features that share it."""
        return "vocabulary", self.vocabulary_name

    @classmethod
    def table_rows(
        cls, features: Sequence[CategoricalFeature], vocabulary_size: Callable[[str], int]
    ) -> dict[str, int]:
        """A row for each id of the vocabulary."""
        name, buckets = features[0].vocabulary_name, _hash_buckets(features)
        if buckets:
            return {name: 1 + buckets}
        size = vocabulary_size(name)
        if size > LARGEST_VOCABULARY:
            raise DataError(
                f"features `{'`, `'.join(feature.name for feature in features)}`: a vocabulary of at most "
                f"{LARGEST_VOCABULARY:,} values is expected. Received: {size:,}. Set "
                "`vocabulary: {top_k: ...}` or `{min_frequency: ...}`, or hash the ids: `{hash_buckets: ...}`."
            )
        return {name: 1 + size + _oov_buckets(features)}

    @classmethod
    def preprocess(
        cls, features: Sequence[CategoricalFeature], values: Mapping[str, tf.Tensor], events: Sequence[tf.Tensor]
    ) -> dict[str, list[ValueFunction]]:
        """One function from values to ids for all features that share the vocabulary."""
        import tensorflow as tf
        import tensorflow_transform as tft

        if buckets := _hash_buckets(features):

            def look_up(texts: tf.Tensor) -> tf.Tensor:
                return tf.strings.to_hash_bucket_fast(texts, buckets)

        else:
            asked = [feature.vocabulary for feature in features if feature.vocabulary]
            vocabulary = tft.vocabulary(
                tf.concat([*values.values(), *events], axis=0),
                top_k=next((one.top_k for one in asked if one.top_k), None),
                frequency_threshold=next((one.min_frequency for one in asked if one.min_frequency), None),
                vocab_filename=features[0].vocabulary_name,
            )
            oov = _oov_buckets(features)

            def look_up(texts: tf.Tensor) -> tf.Tensor:
                return tft.apply_vocabulary(texts, vocabulary, default_value=-1, num_oov_buckets=oov)

        def ids(texts: tf.Tensor) -> tf.Tensor:
            found = look_up(texts)
            return tf.where(texts == "", tf.zeros_like(found), found + 1)

        return {feature.name: [ids] for feature in features}


def _hash_buckets(features: Sequence[CategoricalFeature]) -> int | None:
    """The number of ids of a vocabulary that is not learned, or None."""
    return next((f.vocabulary.hash_buckets for f in features if f.vocabulary and f.vocabulary.hash_buckets), None)


def _oov_buckets(features: Sequence[CategoricalFeature]) -> int:
    """The number of ids for values outside a vocabulary: what its features ask for, 1 unless they say."""
    asked = [f.vocabulary.oov for f in features if f.vocabulary and "oov" in f.vocabulary.model_fields_set]
    return asked[0] if asked else 1
