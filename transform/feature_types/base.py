"""The base of all feature types, and the types by name.

A feature type is a subclass of `Feature` under `@register_feature_type("name")`: its fields are the options that a spec
may give, its methods say what becomes of a value on its way from a raw file to a model and from a client to a server.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import Field, ModelWrapValidatorHandler, PositiveInt, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails

from transform.feature_types.column import Column
from transform.section import Name, Section

if TYPE_CHECKING:
    import tensorflow as tf

ValueFunction: TypeAlias = Callable[[Any], Any]
"""A function of raw values [n], a tensor without gaps, to the values [n] of a model's column."""

_TYPES: dict[str, type[Feature]] = {}


def length_key(name: str) -> str:
    """The key of a request's lengths: how many values each candidate has, or how many events a sequence has."""
    return f"{name}_length"


class Feature(Section):
    """One input. Options that have no meaning for its type are rejected. An empty value is missing."""

    name: Name = Field(examples=["duration"])
    """The feature's name: that of an input of the served model."""
    type: str = Field(examples=["numeric"], json_schema_extra=lambda schema: schema.update(enum=[*feature_types()]))
    """What the column holds. A set is several values in one, for candidates alone; a time is in epoch milliseconds."""
    column: str | None = Field(None, examples=["duration_ms"])
    """The column that holds it. The feature's name by default."""
    dim: PositiveInt = Field(16, examples=[8])
    """The width of the embedding of ids or of quantile buckets."""
    pick: Literal["first"] | None = Field(None, examples=["first"])
    """For user and context features from the log that change within a request: take the first impression's value.
    By default such a feature stops the run."""

    # === What a type says of itself ===

    dtype: ClassVar[str] = "string"
    """Of the values in a request example: `string` ("" is missing), `float32` (NaN is missing), or `int64`, which is
    epoch milliseconds for the client (-1 is missing)."""
    single_valued: ClassVar[bool] = True
    """Whether a row holds one value. Others are for candidates alone, and no part of a sequence."""
    sliceable: ClassVar[bool] = False
    """Whether metrics may be reported by the feature's values."""
    aggregate_key: ClassVar[bool] = False
    """Whether aggregate features may count by the feature's values, which are texts as the column has them."""
    candidate_axes: ClassVar[int] = 2
    """The rank of the served model's input for candidates, [B, N] or more."""

    # === In the spec ===

    @property
    def source_column(self) -> str:
        """The column that holds the feature."""
        return self.column or self.name

    def derived_names(self) -> list[str]:
        """The names beside its own that exist because of the feature: other features may not have them."""
        names = [*self.example_dtypes(), *(column.name for column in self.columns(""))]
        return [name for name in names if name != self.name]

    def shared_settings(self) -> dict[tuple[str, str], Any]:
        """By table and key, the settings that all features of one embedding table have to agree on."""
        return {}

    # === In raw files and request examples ===

    def parse(self, text: str, origin: str) -> Any:
        """The value of a row.

        Args:
            text: str. What the file holds; "" is missing.
            origin: str. Where it stands, for the message.

        Returns:
            A value of the Python type that `dtype` stands for; a list of them where a row has several.

        Raises:
            DataError: when the text is no value of this type.
        """
        raise NotImplementedError(f"{type(self).__name__} should define `parse`.")

    def example_dtypes(self) -> dict[str, str]:
        """The keys of a request example that hold the feature, with their dtypes."""
        return {self.name: self.dtype}

    def encode(self, values: list[Any]) -> dict[str, list[Any]]:
        """The lists of a request example by key, from the value of each candidate."""
        return {self.name: values}

    def decode(self, request: Mapping[str, list[Any]]) -> list[Any]:
        """The opposite of `encode`, from all lists of a request example; [] when it does not hold the feature."""
        return list(request.get(self.name, ()))

    # === In preprocessing and in the model ===

    def columns(self, group: str) -> list[Column]:
        """The columns that a model gets of the feature.

        Args:
            group: str. The group that they are in: the feature's own, or a sequence's name.
        """
        raise NotImplementedError(f"{type(self).__name__} should define `columns`.")

    def analysis_key(self, group: str) -> Hashable:
        """Features of an equal key are analysed together, by the class of the first one. By default each is alone."""
        return self.name

    @classmethod
    def table_rows(cls, features: Sequence[Any], vocabulary_size: Callable[[str], int]) -> dict[str, int]:
        """The embedding tables of features that are analysed together, with the number of their rows.

        Args:
            features: sequence of Feature. Of one `analysis_key`.
            vocabulary_size: callable. The number of values in a vocabulary that TensorFlow Transform has learned.

        Returns:
            Rows by table, row 0 for padding and missing included. By default there is no table.

        Raises:
            DataError: when a learned vocabulary is too large to be trained.
        """
        return {}

    @classmethod
    def preprocess(
        cls, features: Sequence[Any], values: Mapping[str, tf.Tensor], events: Sequence[tf.Tensor]
    ) -> dict[str, list[ValueFunction]]:
        """Analyses features together; called while TensorFlow Transform traces the `preprocessing_fn`.

        Args:
            features: sequence of Feature. Of one `analysis_key`.
            values: mapping. The raw values [n] of each feature, by name.
            events: sequence of tensors. The raw values of these features in the sequences that hold them.

        Returns:
            By the feature's name, a function for each of its `columns`, in their order. It gives int64 for ids, 0 where
            missing, and float32 for dense values.
        """
        raise NotImplementedError(f"{cls.__name__} should define `preprocess`.")

    # === In the served model ===

    def padded(self, values: list[Any]) -> list[Any]:
        """The values of one request's candidates as its raw input has them: N at least 1, one length on each axis."""
        return values or ["" if self.dtype == "string" else 0]

    def to_sparse(self, values: tf.Tensor, present: tf.Tensor) -> dict[str, tf.SparseTensor]:
        """A raw input as parsing request examples would give it, by key.

        Args:
            values: Tensor [B, N], of `candidate_axes` axes. Padded behind.
            present: boolean Tensor [B, N]. Whether there is a candidate.
        """
        from transform.feature_types.tensors.sparse import masked

        return {self.name: masked(values, present)}

    # === Reading a spec ===

    @classmethod
    def known_fields(cls) -> dict[str, FieldInfo]:
        """The keys of a feature of any type: what is foreign to its own has a message of its own."""
        types = _TYPES.values() if cls is Feature else (cls,)
        return {key: field for known in types for key, field in known.model_fields.items()}

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_type(cls, value: Any, handler: ModelWrapValidatorHandler[Feature]) -> Feature:
        """A mapping becomes an object of the class that its key `type` names."""
        if cls is not Feature or not isinstance(value, Mapping):
            return handler(value)
        if "type" not in value:
            raise _wrong_type({"type": "missing", "loc": ("type",), "input": value})
        name = value["type"]
        if not isinstance(name, str) or name not in _TYPES:
            expected = {"expected": one_of(f"'{known}'" for known in feature_types())}
            raise _wrong_type({"type": "literal_error", "loc": ("type",), "input": name, "ctx": expected})
        found = _TYPES[name]
        foreign = sorted(value.keys() & (cls.known_fields().keys() - found.model_fields.keys()))
        if foreign:
            raise ValueError(f"`{foreign[0]}` has no meaning for type `{name}`. Remove it, or change the type")
        return found.model_validate(value)


def _wrong_type(problem: InitErrorDetails) -> ValidationError:
    return ValidationError.from_exception_data("Feature", [problem])


# === The types by name ===

_Type = TypeVar("_Type", bound=type[Feature])


def register_feature_type(name: str) -> Callable[[_Type], _Type]:
    """Class decorator that makes a feature type known under a name."""

    def register(cls: _Type) -> _Type:
        _TYPES[name] = cls
        return cls

    return register


def one_of(names: Iterable[str]) -> str:
    """Names as a message lists them: a, b or c."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def feature_types() -> dict[str, type[Feature]]:
    """All types by name."""
    return dict(sorted(_TYPES.items()))
