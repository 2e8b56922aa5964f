"""What TFX's Evaluator does with requests: `custom_extractors`, found by its argument `module_path`.

A request example holds lists of N labels, and the model pads its predictions to the longest request of the batch. After
inference a batch of requests becomes one batch of candidates, and that one is cut by slices: an extract holds all rows
of a batch that lie in one slice, so there are far fewer extracts than candidates. The metrics of
`tfx_pipeline.evaluation.tfma_metrics` take such extracts. A TFMA metric that takes an extract for an example does not:
it would be wrong here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.api import types
from tensorflow_model_analysis.extractors import (
    extractor,
    features_extractor,
    predictions_extractor,
    slice_key_extractor,
)
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.slicer import slicer_lib

from transform.errors import DataError
from transform.features.request_example import REQUEST_ID

GROUP_KEY = "request_group"
"""The feature of candidates that names their request: a 64 bit hash of its id."""

MISSING = "missing"
"""The slice of candidates whose value is empty or NaN."""

Array = NDArray[Any]


class _Lists(NamedTuple):
    """A column that holds a list for each request: all values in a row, and the length of each list."""

    values: Array
    lengths: Array


def custom_extractors(
    eval_shared_model: types.MaybeMultipleEvalSharedModels,
    eval_config: config_pb2.EvalConfig,
    tensor_adapter_config: Any = None,
) -> list[extractor.Extractor]:
    """The extractors that evaluate requests candidate by candidate.

    Args:
        eval_shared_model: EvalSharedModel or list of them. The candidate model, and the baseline if there is one.
        eval_config: EvalConfig. Names labels, their weights (as example weights) and slices.
        tensor_adapter_config: TensorAdapterConfig or None. How examples are parsed.

    Returns:
        TFMA's extractors of features and predictions, then those that make candidates of requests and slice them.
    """
    representations = tensor_adapter_config.tensor_representations if tensor_adapter_config else None
    return [
        features_extractor.FeaturesExtractor(eval_config=eval_config, tensor_representations=representations),
        predictions_extractor.PredictionsExtractor(eval_config=eval_config, eval_shared_model=eval_shared_model),
        extractor.Extractor("ExplodeCandidates", beam.Map(explode_candidates, eval_config)),
        extractor.Extractor(
            slice_key_extractor.SLICE_KEY_EXTRACTOR_STAGE_NAME, beam.FlatMap(split_by_slice, eval_config)
        ),
    ]


# === From requests to candidates ===


def explode_candidates(extracts: types.Extracts, eval_config: config_pb2.EvalConfig) -> types.Extracts:
    """Makes a batch of candidates of a batch of requests.

    Args:
        extracts: dict. Features and padded predictions of a batch of requests.
        eval_config: EvalConfig.

    Returns:
        Labels, example weights, predictions and the features to slice by, each of shape [rows], and `GROUP_KEY`.

    Raises:
        DataError: when the lists of a request do not fit together.
    """
    features, predictions = extracts[constants.FEATURES_KEY], extracts[constants.PREDICTIONS_KEY]
    spec = eval_config.model_specs[0]
    counts = _lists(features, min(spec.label_keys.values())).lengths  # N: all labels have it
    slicing = {name for slicing_spec in eval_config.slicing_specs for name in _feature_names(slicing_spec)}
    cut: dict[str, Any]
    if len(eval_config.model_specs) > 1:
        cut = {model: _cut_padding(outputs, spec.label_keys, counts) for model, outputs in predictions.items()}
    else:
        cut = _cut_padding(predictions, spec.label_keys, counts)
    return {
        constants.LABELS_KEY: _targets(features, spec.label_keys, counts),
        constants.EXAMPLE_WEIGHTS_KEY: _targets(features, spec.example_weight_keys, counts),
        constants.PREDICTIONS_KEY: cut,
        constants.FEATURES_KEY: {
            **{name: _slice_values(features, name, counts) for name in slicing},
            GROUP_KEY: np.repeat(_request_hashes(features, len(counts)), counts),
        },
    }


def _lists(features: Mapping[str, Any], key: str) -> _Lists:
    column = features.get(key)
    if isinstance(column, types.VarLenTensorValue):
        lengths = np.bincount(column.indices[:, 0].astype(np.int64), minlength=column.dense_shape[0])
        return _Lists(column.values, lengths)
    if isinstance(column, np.ndarray) and column.ndim == 2:  # lists of one length, where no schema says otherwise
        return _Lists(column.ravel(), np.full(column.shape[0], column.shape[1]))
    raise DataError(
        f"`{key}`: a list of values in each request is expected. Received: {type(column).__name__}. "
        "Write the feature into every example, and give the Evaluator the schema."
    )


def _targets(features: Mapping[str, Any], keys: Mapping[str, str], counts: Array) -> dict[str, Array]:
    """Labels or label weights of shape [rows] by task."""
    result = {}
    for task, key in keys.items():
        values, lengths = _lists(features, key)
        if not np.array_equal(lengths, counts):
            first = np.flatnonzero(lengths != counts)[0]
            raise DataError(
                f"`{key}`: a value for each of the {counts[first]} candidates is expected. Received: {lengths[first]} "
                "values. Write a label and a weight per task for each candidate, and weight 0 where a label is missing."
            )
        result[task] = values
    return result


def _request_hashes(features: Mapping[str, Any], requests: int) -> Array:
    """A number for each request id; the parts of a long request that was split share it."""
    ids, lengths = _lists(features, REQUEST_ID)
    if len(lengths) != requests or (lengths != 1).any():
        raise DataError(f"`{REQUEST_ID}`: one value for each request is expected. Write it into every example.")
    digests = b"".join(hashlib.blake2b(request_id, digest_size=8).digest() for request_id in ids)
    return np.frombuffer(digests, np.int64)


def _cut_padding(predictions: Mapping[str, Array], tasks: Iterable[str], counts: Array) -> dict[str, Array]:
    """Predictions of shape [rows] by task, from those of shape [B, Nmax]."""
    result = {}
    for task in tasks:
        padded = predictions.get(task)
        if padded is None or padded.shape[1] < counts.max(initial=0):
            received = f"outputs {', '.join(predictions)}" if padded is None else f"{padded.shape[1]} in the batch"
            raise DataError(
                f"`{task}`: a prediction for each candidate is expected, up to {counts.max(initial=0)} of them. "
                f"Received: {received}. Evaluate models of the same tasks."
            )
        result[task] = padded[np.arange(padded.shape[1]) < counts[:, None]]
    return result


def _slice_values(features: Mapping[str, Any], name: str, counts: Array) -> Array:
    """The text of a feature for each candidate: lists of N values are per candidate, lists of one per request."""
    values, lengths = _lists(features, name)
    per_candidate = lengths == counts
    wrong = ~per_candidate & (lengths > 1)
    if wrong.any():
        first = np.flatnonzero(wrong)[0]
        raise DataError(
            f"`{name}`: one value, or one for each of the {counts[first]} candidates, is expected. Received: "
            f"{lengths[first]} values. Slice by a single-valued feature."
        )
    request_of_row = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(request_of_row)) - (np.cumsum(counts) - counts)[request_of_row]
    index = (np.cumsum(lengths) - lengths)[request_of_row] + place * per_candidate[request_of_row]
    index[lengths[request_of_row] == 0] = len(values)
    return np.append(slice_texts(values), MISSING)[index]


# === Values as slices ===

# Slices have to be the same on other days and for other models, so their bounds are fixed: 1, 2, 5 times powers of ten.
_BOUNDS = np.array([float(f"{digit}e{power}") for power in range(-6, 16) for digit in (1, 2, 5)])
_BOUND_TEXTS = ["0", *(f"{bound:.0f}" if bound >= 1 else f"{bound:g}" for bound in _BOUNDS), "inf"]
_RANGES = list(zip(_BOUND_TEXTS, _BOUND_TEXTS[1:], strict=False))
_POSITIVE = np.array([f"{'[' if low != '0' else '('}{low}, {high})" for low, high in _RANGES])
_NEGATIVE = np.array(
    [f"(-{high}, {'-' if low != '0' else ''}{low}{']' if low != '0' else ')'}" for low, high in _RANGES]
)


def slice_texts(values: Array) -> Array:
    """Names the slice of each value.

    Args:
        values: array of shape [n]. Text (bytes), whole numbers or floats.

    Returns:
        An array of str: text as it is, whole numbers in digits, floats as a range such as `[10000, 20000)`, whose
        bounds are 1, 2 and 5 times powers of ten, 0 by itself; `missing` for "" and NaN.
    """
    if values.dtype.kind == "f":
        size = np.searchsorted(_BOUNDS.astype(values.dtype), np.abs(values), side="right")
        ranges = np.where(values > 0, _POSITIVE[size], _NEGATIVE[size])
        return np.where(np.isnan(values), MISSING, np.where(values == 0, "0", ranges))
    if values.dtype.kind in "iub":
        return values.astype(str)
    known, index = np.unique(values, return_inverse=True)
    return np.array([text.decode(errors="replace") or MISSING for text in known], dtype=str)[index]


# === Slices ===


def split_by_slice(extracts: types.Extracts, eval_config: config_pb2.EvalConfig) -> Iterator[types.Extracts]:
    """Cuts a batch of candidates by slices.

    Args:
        extracts: dict. What `explode_candidates` returns.
        eval_config: EvalConfig.

    Yields:
        The rows of each slice in the batch, with the slice's key. A row comes once for each slice that it is in.
    """
    features = extracts[constants.FEATURES_KEY]
    done: set[Any] = set()
    for spec in eval_config.slicing_specs or [config_pb2.SlicingSpec()]:
        names = _feature_names(spec)
        for rows in _equal_rows([features[name] for name in names], len(features[GROUP_KEY])):
            value = {name: features[name][rows[:1]] for name in names}
            keys = slicer_lib.get_slices_for_features_dicts([], value, [slicer_lib.SingleSliceSpec(spec=spec)])
            for key in set(keys) - done:  # two specs may lead to one slice
                done.add(key)
                slice_keys = slicer_lib.slice_keys_to_numpy_array([key])
                yield {**_take(extracts, rows), constants.SLICE_KEY_TYPES_KEY: slice_keys}


def _feature_names(spec: config_pb2.SlicingSpec) -> list[str]:
    return sorted({*spec.feature_keys, *spec.feature_values})


def _equal_rows(columns: list[Array], count: int) -> list[Array]:
    """The indices of rows that are equal in all columns; without columns all rows are equal."""
    if not columns or not count:
        return [np.arange(count)]
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in columns])
    _, group, sizes = np.unique(codes, axis=1, return_inverse=True, return_counts=True)
    return np.split(np.argsort(group.ravel(), kind="stable"), np.cumsum(sizes)[:-1])


def _take(tree: Any, rows: Array) -> Any:
    return {key: _take(part, rows) for key, part in tree.items()} if isinstance(tree, dict) else tree[rows]
