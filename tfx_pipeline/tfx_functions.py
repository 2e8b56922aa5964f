"""What TFX calls: `preprocessing_fn` and `run_fn`, thin bridges to `transform`, `trainer` and `serving`."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft
from tfx.components.trainer.fn_args_utils import FnArgs

from serving.export.exporter import export_model
from tfx_pipeline.custom_config import CHECKPOINTS_KEY, CODE_KEY, SPEC_KEY
from trainer.training.trainer import train
from transform.features.model_inputs import ModelInputs
from transform.features.preprocessing import make_preprocessing_fn
from transform.features.transform_graph import TransformGraph
from transform.spec.loading import parse_spec

OTHERS_KEPT = 2  # trainings that were interrupted and not taken up since


def preprocessing_fn(inputs: dict[str, tf.SparseTensor], custom_config: dict[str, Any]) -> dict[str, tf.SparseTensor]:
    """Transform's function: preprocesses as the spec in `custom_config` says."""
    return make_preprocessing_fn(parse_spec(custom_config[SPEC_KEY]))(inputs)


def run_fn(fn_args: FnArgs) -> None:
    """The Trainer's function: trains the spec's model and exports it with the preprocessing graph inside.

    Until the model is exported, training can go on from its checkpoints. They lie outside the component's own folder,
    which is another one after a crash, in a folder named after all that the training depends on.
    """
    spec = parse_spec(fn_args.custom_config[SPEC_KEY])
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    inputs = ModelInputs.from_spec(spec, transform_output.vocabulary_size_by_name)
    train_files, eval_files = _files(fn_args.train_files), _files(fn_args.eval_files)
    depends_on = [
        *(fn_args.custom_config[key] for key in (SPEC_KEY, CODE_KEY)),
        *(fn_args.transform_output, train_files, eval_files),
    ]
    base = fn_args.custom_config[CHECKPOINTS_KEY]
    checkpoints = os.path.join(base, hashlib.sha256(json.dumps(depends_on).encode()).hexdigest())
    _forget_old_trainings(base, but=checkpoints)
    trained = train(spec, inputs, train_files, eval_files, fn_args.model_run_dir, checkpoints)
    preprocess = TransformGraph(transform_output.transform_savedmodel_dir)
    export_model(spec, trained.model, preprocess, fn_args.serving_model_dir)
    if tf.io.gfile.exists(checkpoints):
        tf.io.gfile.rmtree(checkpoints)


def _files(patterns: list[str]) -> list[str]:
    return sorted(path for pattern in patterns for path in tf.io.gfile.glob(pattern))


def _forget_old_trainings(base: str, but: str) -> None:
    """Deletes the checkpoints of trainings that nobody took up again: all but the newest, and `but`."""
    others = [path for path in tf.io.gfile.glob(os.path.join(base, "*")) if path != but]
    for path in sorted(others, key=lambda path: tf.io.gfile.stat(path).mtime_nsec)[:-OTHERS_KEPT]:
        tf.io.gfile.rmtree(path)
