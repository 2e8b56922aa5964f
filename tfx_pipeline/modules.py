"""What TFX calls: `preprocessing_fn` and `run_fn`, thin bridges to `transform`, `trainer` and `serving`."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_transform as tft
from tfx.components.trainer.fn_args_utils import FnArgs

from serving.export import export_model
from trainer.training import train
from transform.columns import ModelInputs
from transform.preprocessing import make_preprocessing_fn
from transform.spec import RankingSpec

SPEC_KEY = "spec"
CODE_KEY = "code"  # a hash of the code that a component runs: TFX's cache sees it, nothing else reads it


def preprocessing_fn(inputs: dict[str, tf.SparseTensor], custom_config: dict[str, Any]) -> dict[str, tf.SparseTensor]:
    """Transform's function: preprocesses as the spec in `custom_config` says."""
    return make_preprocessing_fn(RankingSpec.parse(custom_config[SPEC_KEY]))(inputs)


def run_fn(fn_args: FnArgs) -> None:
    """The Trainer's function: trains the spec's model and exports it with the preprocessing graph inside."""
    spec = RankingSpec.parse(fn_args.custom_config[SPEC_KEY])
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    inputs = ModelInputs.from_spec(spec, transform_output.vocabulary_size_by_name)
    trained = train(
        spec,
        inputs,
        train_files=_files(fn_args.train_files),
        eval_files=_files(fn_args.eval_files),
        run_dir=fn_args.model_run_dir,
    )
    export_model(spec, trained.model, transform_output.transform_features_layer(), fn_args.serving_model_dir)


def _files(patterns: list[str]) -> list[str]:
    return [path for pattern in patterns for path in tf.io.gfile.glob(pattern)]
