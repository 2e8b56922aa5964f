"""Requests as each way into a served model takes them, of any size, and models to send them to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import keras
import numpy as np

from serving.export.exporter import export_model
from serving.export.raw_inputs import sequence_keys
from serving.export.warmup_requests import with_candidates
from trainer.models.base import RankingModel
from trainer.models.registry import build_model
from transform.features import request_example
from transform.features.transform_graph import TransformGraph
from transform.ingest.prepare import Prepared
from transform.spec.ranking_spec import RankingSpec

Lists = Mapping[str, list[Any]]

# === Requests ===


def joined(spec: RankingSpec, requests: Sequence[bytes]) -> dict[str, list[Any]]:
    """One request: user and context of the first of some request examples, events and candidates of all."""
    decoded = [request_example.decode(request) for request in requests]
    keys = [key for sequence in spec.sequences for key in sequence_keys(sequence)]
    for feature in spec.candidate_features():
        keys += feature.example_dtypes()
    lists = {key: [value for values in decoded for value in values.get(key, ())] for key in keys}
    count = sum(values[request_example.CANDIDATE_COUNT][0] for values in decoded)
    return {**decoded[0], **lists, request_example.CANDIDATE_COUNT: [count]}


def sized(spec: RankingSpec, request: Lists, events: int, candidates: int) -> dict[str, list[Any]]:
    """A request with so many events in each sequence and so many candidates: its own, again and again."""
    keys = [key for sequence in spec.sequences for key in sequence_keys(sequence)]
    history = {key: list(islice(cycle(request[key]), events)) for key in keys}
    return with_candidates(spec, {**request, **history}, candidates)


# === Models ===


def random_model(prepared: Prepared, by: float, seed: int = 1) -> RankingModel:
    """A model with random weights, further from zero than where a training starts, so that scores differ.

    Args:
        prepared: Prepared. Whose spec says which model.
        by: float. The standard deviation of what is added to each weight.
        seed: int.
    """
    keras.utils.set_random_seed(seed)
    model = build_model(prepared.spec.model, prepared.inputs)
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(variable + random.normal(0, by, variable.shape))
    return model


def export(prepared: Prepared, model: RankingModel, path: Path, requests: Sequence[bytes] = ()) -> None:
    """Exports a model as the pipeline does; `requests` warm up the server."""
    path.parent.mkdir(parents=True, exist_ok=True)

    preprocess = TransformGraph(prepared.transform_output.transform_savedmodel_dir)
    export_model(prepared.spec, model, preprocess, str(path), requests)
