"""Writing a ranking model as a SavedModel that stock TensorFlow serves."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence

import tensorflow as tf

from serving.export.model_files import ASSETS_EXTRA, SPEC_FILE, WARMUP_FILE
from serving.export.signatures import RankingSignatures
from serving.export.warmup_requests import warmup_requests
from trainer.models.base import RankingModel
from trainer.ops.kernels import use_kernels
from transform.errors import DataError
from transform.features.transform_graph import TransformGraph
from transform.spec.loading import parse_spec
from transform.spec.ranking_spec import RankingSpec


def export_model(
    spec: RankingSpec, model: RankingModel, preprocess: TransformGraph, path: str, requests: Sequence[bytes] = ()
) -> None:
    """Writes the SavedModel, its spec and warm-up requests in `assets.extra` beside it.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Args:
        spec: RankingSpec.
        model: RankingModel. With its variables created.
        preprocess: TransformGraph. Of the data that the model was trained on.
        path: str. The folder to write.
        requests: sequence of bytes. Serialized request examples that warm-up requests are made of. Defaults to one that
            is made up.
    """
    module = RankingSignatures(spec, model, preprocess)
    unfinished = f"{path.rstrip('/')}.unfinished-{uuid.uuid4().hex[:8]}"
    extra = os.path.join(unfinished, ASSETS_EXTRA)
    with use_kernels("portable"):  # which stock TensorFlow runs
        signatures = module.all()
        tf.saved_model.save(module, unfinished, signatures=signatures)
    tf.io.gfile.makedirs(extra)
    with tf.io.TFRecordWriter(os.path.join(extra, WARMUP_FILE)) as file:
        for record in warmup_requests(spec, signatures, requests):
            file.write(record)
    with tf.io.gfile.GFile(os.path.join(extra, SPEC_FILE), "w") as file:
        file.write(spec.to_json())
    tf.io.gfile.rename(unfinished, path)


def load_exported_spec(path: str) -> RankingSpec:
    """The spec of an exported model.

    Args:
        path: str. The folder of a SavedModel.

    Raises:
        DataError: when the folder holds no ranking model.
    """
    spec_path = os.path.join(path, ASSETS_EXTRA, SPEC_FILE)
    if not tf.io.gfile.exists(os.path.join(path, "saved_model.pb")) or not tf.io.gfile.exists(spec_path):
        raise DataError(
            f"{path}: an exported ranking model (saved_model.pb and {ASSETS_EXTRA}/{SPEC_FILE}) is expected. "
            "Received: a folder without it. Give the version folder that the pipeline pushed."
        )
    with tf.io.gfile.GFile(spec_path) as file:
        return parse_spec(file.read(), origin=spec_path)


def version_folders(base: str) -> list[str]:
    """The names of a model's versions below its folder, from old to new: numbers."""
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(base)]
    return sorted((name for name in names if name.isdigit()), key=int)


def newest_version(base: str) -> str:
    """The newest version folder below a model's folder, or the folder itself if it is a SavedModel."""
    if tf.io.gfile.exists(os.path.join(base, "saved_model.pb")) or not tf.io.gfile.isdir(base):
        return base
    versions = version_folders(base)
    return os.path.join(base, versions[-1]) if versions else base
