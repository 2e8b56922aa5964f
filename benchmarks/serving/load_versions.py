"""Versions of a model that come one after another, each with scores that tell it apart."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.serving.sized_requests import export, random_model
from serving.export.raw_inputs import raw_values
from serving.export.signatures import RANK
from transform.ingest.prepare import Prepared
from transform.spec.ranking_spec import RankingSpec

MODELS = 3
FAR = 0.1  # the standard deviation of their weights
DIFFERENT = 1e-2  # at least, between two models' scores of a request
KEPT_VERSIONS = 3


class LoadVersions:
    """The model's folder, into which versions come: some models in turn.

    Args:
        prepared: Prepared.
        requests: list of dict. Whose scores are known.
        folder: Path.

    Attributes:
        spec: RankingSpec.
        base: Path. What the server watches.
        pushed: int. The newest version.
    """

    def __init__(self, prepared: Prepared, requests: Sequence[dict[str, Any]], folder: Path):
        self.spec = prepared.spec
        self._models = folder / "models"
        self.base = folder / "versions"
        self.base.mkdir()
        self.pushed = 0
        self._known = []
        for seed in range(MODELS):
            path = self._models / str(seed)
            export(prepared, random_model(prepared, FAR, seed), path)
            self._known.append(_scores(prepared.spec, path, requests))
            print(f"model {seed}: exported", flush=True)
        for number in range(len(requests)):
            scores = [known[number] for known in self._known]
            differences = [np.abs(a - b).max() for i, a in enumerate(scores) for b in scores[:i]]
            assert min(differences) > DIFFERENT, "models whose scores tell them apart are expected"

    def push(self, spoil: Callable[[Path], None] | None = None) -> None:
        """The next version appears, whole; spoilt before if asked."""
        unfinished = self.base / ".unfinished"
        shutil.copytree(self._models / str(self.pushed % MODELS), unfinished)
        if spoil:
            spoil(unfinished)
        self.pushed += 1
        os.rename(unfinished, self.base / str(self.pushed))
        shutil.rmtree(self.base / str(self.pushed - KEPT_VERSIONS), ignore_errors=True)

    def scores(self, version: int, request: int) -> np.ndarray:
        """What a version has to answer."""
        return self._known[(version - 1) % MODELS][request]


def _scores(spec: RankingSpec, path: Path, requests: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures[RANK]
    found = []
    for request in requests:
        raw = raw_values(spec, request)
        outputs = function(**{key: tf.constant(raw[key]) for key in function.structured_input_signature[1]})
        found.append(np.stack([outputs[task].numpy()[0] for task in sorted(spec.task_names)]))
    return found
