"""ServingValidator: whether the new model serves as it was trained, and how fast."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import path_utils

from serving.export.exporter import load_exported_spec
from serving.export.signatures import SCORE
from tfx_pipeline.evaluation.serving_validation import BATCH_REQUESTS, Limits, Scores, validate_serving
from trainer.models.registry import build_model
from trainer.training.gradient_probe import write_json
from transform.features import request_example as request_examples
from transform.features.dataset import to_batch
from transform.features.model_inputs import ModelInputs
from transform.spec.ranking_spec import RankingSpec

REPORT_FILE = "serving.json"
BLESSED_FILE, NOT_BLESSED_FILE = "INFRA_BLESSED", "INFRA_NOT_BLESSED"  # as TFX's InfraValidator writes them
BLESSED_KEY, MODEL_KEY = "blessed", "current_model_id"


@component
def ServingValidator(  # noqa: N802
    model: InputArtifact[standard_artifacts.Model],
    model_run: InputArtifact[standard_artifacts.ModelRun],
    transform_graph: InputArtifact[standard_artifacts.TransformGraph],
    examples: InputArtifact[standard_artifacts.Examples],
    blessing: OutputArtifact[standard_artifacts.InfraBlessing],
    code: Parameter[str],
    requests: Parameter[int],
    baseline: InputArtifact[standard_artifacts.Model] = None,
    start_seconds: Parameter[int] = 600,
    max_latency_ratio: Parameter[float] = 0.0,
) -> None:
    """Serves the model in a process of its own, replays requests of the eval split, and blesses it if all is well.

    It takes the place of TFX's InfraValidator, which needs Docker, and puts out the same kind of blessing. The scores
    of every signature have to equal those of the Trainer's own model: its weights, in Keras, behind Transform's graph.

    Args:
        model: what the Trainer exported.
        model_run: where the Trainer left its weights.
        transform_graph: what Transform made.
        examples: request examples with the split eval.
        blessing: the folder of `serving.json`, a `serving_validation.ServingReport` with `blessed`.
        code: a hash of this code, for the cache.
        requests: the most requests to replay.
        baseline: the blessed model, whose latency is measured beside.
        start_seconds: how long the server may take until it answers.
        max_latency_ratio: how many times the baseline's the median latency of `rank` may be; 0 for any.
    """
    del code
    path = path_utils.serving_model_path(model.uri)
    shards = tf.io.gfile.glob(os.path.join(artifact_utils.get_split_uri([examples], "eval"), "*.gz"))
    # Beside the output, where the next run deletes it if this one is killed; a bucket holds no links.
    with tempfile.TemporaryDirectory(dir=blessing.uri if os.path.isdir(blessing.uri) else None) as folder:
        report = validate_serving(
            path,
            path_utils.serving_model_path(baseline.uri) if baseline else None,
            [record.numpy() for record in tf.data.TFRecordDataset(sorted(shards), "GZIP").take(requests)],
            lambda found: trainer_scores(load_exported_spec(path), transform_graph.uri, model_run.uri, found, folder),
            Limits(start_seconds, max_latency_ratio or None),
            folder,
        )
    blessed = not report.problems
    write_json(os.path.join(blessing.uri, REPORT_FILE), {"blessed": blessed, **asdict(report)})
    with tf.io.gfile.GFile(os.path.join(blessing.uri, BLESSED_FILE if blessed else NOT_BLESSED_FILE), "w") as file:
        file.write("")
    blessing.set_int_custom_property(BLESSED_KEY, int(blessed))
    blessing.set_int_custom_property(MODEL_KEY, model.id)


def load_serving_report(uri: str) -> dict[str, Any]:
    """The fields of a ServingReport and `blessed`, from the blessing's folder."""
    with tf.io.gfile.GFile(os.path.join(uri, REPORT_FILE)) as file:
        return json.loads(file.read())


def trainer_scores(
    spec: RankingSpec, transform_graph: str, model_run: str, requests: Sequence[bytes], folder: str
) -> list[Scores]:
    """What the Trainer's model gives to requests: no export is between them and Keras.

    Args:
        spec: RankingSpec.
        transform_graph: str. Transform's output.
        model_run: str. The folder of the Trainer's `checkpoints`.
        requests: sequence of bytes. Serialized request examples.
        folder: str. A local one, for a copy of the weights.

    Returns:
        Scores a request.
    """
    transform_output = tft.TFTransformOutput(transform_graph)
    preprocess = transform_output.transform_features_layer()
    model = build_model(spec.model, ModelInputs.from_spec(spec, transform_output.vocabulary_size_by_name))
    _load_best(model, os.path.join(model_run, "checkpoints"), folder)
    powers = np.array([spec.score_powers.get(task, 0.0) for task in spec.task_names])
    found = []
    for start in range(0, len(requests), BATCH_REQUESTS):
        some = requests[start : start + BATCH_REQUESTS]
        raw = tf.io.parse_example(some, request_examples.raw_feature_spec(spec, targets=False))
        batch = to_batch(model.inputs_spec, preprocess(raw))
        logits = model(batch, training=False).numpy().astype("float64")
        for per_request, present in zip(logits, batch["candidates"]["mask"].numpy(), strict=True):
            logarithms = -np.logaddexp(0, -per_request[present])
            scores = dict(zip(spec.task_names, np.exp(logarithms).T, strict=True))
            found.append({**scores, SCORE: np.exp(logarithms @ powers)})
    return found


def _load_best(model, checkpoints: str, folder: str) -> None:
    """The weights that were exported: the best ones, or the last where nothing was watched."""
    paths = [os.path.join(checkpoints, f"{name}.weights.h5") for name in ("best", "last")]
    path = next(path for path in paths if tf.io.gfile.exists(path))
    here = os.path.join(folder, "model.weights.h5")
    tf.io.gfile.copy(path, here)
    model.load_weights(here)
