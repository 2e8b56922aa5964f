"""What a version of a model takes and gives, learned from its signatures, and requests as its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from serving.client.errors import RequestError
from serving.client.transport import Metadata, Signature, Tensors, TensorSpec
from serving.client.values import Place, check_names, to_array, to_columns

# The names that the exporter gives; written again here because its module imports TensorFlow. A test compares them.
RANK = "rank"
ENCODE_USER = "encode_user"
RANK_WITH_USER_STATE = "rank_with_user_state"
SUMMARIZE_CANDIDATES = "summarize_candidates"
SCORE_SUMMARY = "score_summary"
SCORE = "score"
CANDIDATE_MASK = "candidate_mask"
CANDIDATE_COUNT = "candidate_count"
CACHE_PREFIX = "cache_"
SUMMARY_PREFIX = "summary_"
LENGTH_SUFFIX = "_length"

Specs = dict[str, TensorSpec]


class ModelInterface:
    """A version of a model as the client sees it.

    Args:
        model: str. The model's name.
        metadata: Metadata. What the server says of it.

    Raises:
        RequestError: when it is no model of this package.

    Attributes:
        model: str.
        version: int.
        signatures: Signature by name.
        tasks: tuple of str. In alphabetical order, as signatures keep none.
    """

    def __init__(self, model: str, metadata: Metadata):
        self.model, self.version, self.signatures = model, metadata.version, metadata.signatures
        needed = (RANK, ENCODE_USER, RANK_WITH_USER_STATE)
        if not all(name in self.signatures for name in needed):
            raise RequestError(
                f"model `{model}` version {self.version}: the signatures {', '.join(needed)} are expected. "
                f"Received: {', '.join(sorted(self.signatures)) or 'none'}. Give a model that this package exported."
            )
        scores = self.signatures[RANK].outputs
        self.tasks = tuple(sorted(name for name in scores if name not in (SCORE, CANDIDATE_MASK)))
        users = dict(self.signatures[ENCODE_USER].inputs)
        others = {
            name: spec
            for name, spec in self.signatures[RANK_WITH_USER_STATE].inputs.items()
            if not name.startswith(CACHE_PREFIX) and name != CANDIDATE_COUNT
        }
        self._context = {name: spec for name, spec in sorted(others.items()) if spec.rank == 1}
        self._candidates = {name: spec for name, spec in sorted(others.items()) if spec.rank > 1}
        self._sequences = _sequences(users, {*self._candidates, *self.tasks})
        lengths = {name + LENGTH_SUFFIX for name in self._sequences}
        self._user = {name: spec for name, spec in sorted(users.items()) if spec.rank == 1 and name not in lengths}

    @property
    def cache_dtypes(self) -> set[str]:
        """The dtypes of a user state."""
        return {spec.dtype for spec in self.signatures[ENCODE_USER].outputs.values()}

    def fits(self, user_state: Tensors) -> bool:
        """Whether a kept user state has the names, dtypes and ranks of what `encode_user` gives."""
        kept = {name: TensorSpec(_dtype(array), array.ndim) for name, array in user_state.items()}
        return kept == self.signatures[ENCODE_USER].outputs

    def signature(self, name: str) -> Signature:
        """A signature by name; a RequestError where the model has none of that name."""
        if name not in self.signatures:
            raise RequestError(
                f"model `{self.model}` version {self.version}: the signature `{name}`, which ranks long lists in "
                f"parts, is expected. Received: {', '.join(sorted(self.signatures))}. Export the model again, or raise "
                "`max_candidates`."
            )
        return self.signatures[name]

    def user_inputs(self, user: Mapping[str, Any] | None, sequences: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        """The inputs of `encode_user`.

        Args:
            user: dict. Feature values.
            sequences: dict. By sequence: events, newest last, as rows or columns.

        Returns:
            User features [1]; `<sequence>_<part>` [1, U] with `<sequence>_length` [1]. A sequence without events has
            one event of padding, as JSON can't tell the shapes of all empty tensors.
        """
        inputs = _single("user", self._user, user)
        sequences = {} if sequences is None else sequences
        check_names(sequences, self._sequences, "sequences")
        for sequence, parts in self._sequences.items():
            place = f"sequences.{sequence}"
            columns, events = to_columns(sequences[sequence], parts, place)
            inputs[sequence + LENGTH_SUFFIX] = np.array([events], np.int64)
            for part, spec in parts.items():
                values = columns[part] if events else [None]
                inputs[f"{sequence}_{part}"] = to_array(values, spec, _of_row(place, part))[None]
        return inputs

    def candidate_inputs(self, context: Mapping[str, Any] | None, candidates: Any) -> tuple[dict[str, np.ndarray], int]:
        """The inputs of `rank_with_user_state` beside the user state.

        Args:
            context: dict. Feature values.
            candidates: list of dicts, or a dict of columns.

        Returns:
            Context features [1], candidates [1, N] ([1, N, S] for sets) and `candidate_count` [1]; and N.
        """
        inputs = _single("context", self._context, context)
        columns, count = to_columns(candidates, self._candidates, "candidates")
        for name, spec in self._candidates.items():
            inputs[name] = to_array(columns[name], spec, _of_row("candidates", name))[None]
        return {**inputs, CANDIDATE_COUNT: np.array([count], np.int64)}, count

    def in_parts(self, inputs: Tensors, largest: int) -> Iterator[dict[str, np.ndarray]]:
        """The inputs of `candidate_inputs` for equal parts of at most `largest` candidates, in their order."""
        count = int(inputs[CANDIDATE_COUNT][0])
        for chosen in np.array_split(np.arange(count), -(-count // largest)):
            part = {name: inputs[name][:, chosen[0] : chosen[-1] + 1] for name in self._candidates}
            yield {**inputs, **part, CANDIDATE_COUNT: np.array([len(chosen)], np.int64)}


def _dtype(array: np.ndarray) -> str:
    """As TensorFlow writes it."""
    name = array.dtype.name
    return {"float16": "DT_HALF", "float32": "DT_FLOAT"}.get(name, f"DT_{name.upper()}")


def _sequences(users: Specs, known: set[str]) -> dict[str, Specs]:
    """The parts of each sequence. Names of sequences may begin alike, so a part is told by what it names."""
    names = [name.removesuffix(LENGTH_SUFFIX) for name in users if name.endswith(LENGTH_SUFFIX)]
    sequences: dict[str, Specs] = {}
    for key, spec in sorted(users.items()):
        for name in names:
            part = key.removeprefix(f"{name}_")
            if spec.rank == 2 and part != key and part in known:
                sequences.setdefault(name, {})[part] = spec
    return sequences


def _single(place: str, specs: Specs, values: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    values = {} if values is None else values
    check_names(values, specs, place)
    return {
        name: to_array([values[name]], spec, partial("{0}.{1}".format, place, name)) for name, spec in specs.items()
    }


def _of_row(place: str, name: str) -> Place:
    return partial("{0}[{2}].{1}".format, place, name)
