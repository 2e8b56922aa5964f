"""`create_pipeline`: the components from impressions to a pushed model, the same for every runner."""

from __future__ import annotations

import hashlib
import os

from google.protobuf import text_format
from tfx.dsl.components.common import resolver
from tfx.orchestration import metadata, pipeline
from tfx.proto import pusher_pb2, trainer_pb2, transform_pb2
from tfx.types import Channel, standard_artifacts
from tfx.v1.components import Evaluator, ExampleValidator, ImportSchemaGen, StatisticsGen, Trainer, Transform

from tfx_pipeline.code_version import code_version
from tfx_pipeline.components.anomaly_gate import AnomalyGate
from tfx_pipeline.components.atomic_pusher import AtomicPusher
from tfx_pipeline.components.baselines import Baselines
from tfx_pipeline.components.blessed_baseline import BlessedBaselineStrategy
from tfx_pipeline.components.impression_example_gen import ImpressionExampleGen
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.evaluation import eval_config
from tfx_pipeline.modules import CHECKPOINTS_KEY, CODE_KEY, SPEC_KEY
from tfx_pipeline.runs import RESOLVER_ID
from transform.examples import raw_schema
from transform.spec import RankingSpec

DATA_CODE = ("transform", "tfx_pipeline.components.impression_example_gen")
TRANSFORM_CODE = ("transform", "tfx_pipeline.modules")
TRAINER_CODE = ("transform", "trainer", "serving", "tfx_pipeline.modules")
EVALUATION_CODE = (
    "trainer.metrics",
    "tfx_pipeline.evaluation",
    "tfx_pipeline.extractors",
    "tfx_pipeline.tfma_metrics",
    "tfx_pipeline.tfma_plots",
)


def create_pipeline(config: PipelineConfig) -> pipeline.Pipeline:
    """Puts the components together.

    ImpressionExampleGen -> StatisticsGen -> ImportSchemaGen -> ExampleValidator -> AnomalyGate -> Transform -> Trainer
    -> latest blessed model -> Evaluator -> Pusher, and Baselines beside them.

    Every component that runs this project's code gets the part of the spec that it depends on and a hash of that code,
    so that its cache is right: equal inputs are not run again, an edit always is.

    Args:
        config: PipelineConfig.

    Returns:
        A TFX pipeline.
    """
    spec = config.spec
    data_json = spec.data_part().to_json()
    example_gen = ImpressionExampleGen(spec, config.data_dir, code_version(*DATA_CODE))
    examples = example_gen.outputs["examples"]
    statistics = StatisticsGen(examples=examples)
    schema_gen = ImportSchemaGen(schema_file=write_schema(spec, config.schema_dir))
    schema = schema_gen.outputs["schema"]
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema)
    gate = AnomalyGate(anomalies=validator.outputs["anomalies"], allow_anomalies=int(config.allow_anomalies))
    transform = Transform(
        examples=examples,
        schema=schema,
        preprocessing_fn="tfx_pipeline.modules.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "eval"]),
        custom_config={SPEC_KEY: data_json, CODE_KEY: code_version(*TRANSFORM_CODE)},
    )
    transform.add_upstream_node(gate)
    trainer = Trainer(
        run_fn="tfx_pipeline.modules.run_fn",
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema,
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config={
            SPEC_KEY: _training_part(spec).to_json(),
            CODE_KEY: code_version(*TRAINER_CODE),
            CHECKPOINTS_KEY: config.checkpoints_dir,
        },
    )
    baseline = resolver.Resolver(
        strategy_class=BlessedBaselineStrategy,
        model=Channel(type=standard_artifacts.Model),
        model_blessing=Channel(type=standard_artifacts.ModelBlessing),
        candidate=trainer.outputs["model"],
    ).with_id(RESOLVER_ID)
    evaluator = Evaluator(
        examples=examples,
        model=trainer.outputs["model"],
        baseline_model=baseline.outputs["model"],
        schema=schema,
        eval_config=eval_config(spec, code_version(*EVALUATION_CODE)),
        example_splits=["test"],
        module_path="tfx_pipeline.extractors",
    )
    baselines = Baselines(
        examples=examples, spec=data_json, code=code_version("tfx_pipeline.components.baselines", "trainer.metrics")
    )
    pusher = AtomicPusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=config.serving_dir)
        ),
    )
    return pipeline.Pipeline(
        pipeline_name=spec.name,
        pipeline_root=config.pipeline_root,
        components=[
            *(example_gen, statistics, schema_gen, validator, gate),
            *(transform, trainer, baseline, evaluator, baselines, pusher),
        ],
        enable_cache=True,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(config.metadata_path),
        beam_pipeline_args=list(config.beam_args),
    )


def write_schema(spec: RankingSpec, folder: str) -> str:
    """Writes the schema that follows from the spec; its name holds its hash, as TFX caches it by the path alone."""
    text = text_format.MessageToString(raw_schema(spec))
    path = os.path.join(folder, f"schema-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pbtxt")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        unfinished = f"{path}.{os.getpid()}"
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(unfinished, path)
    return path


def _training_part(spec: RankingSpec) -> RankingSpec:
    """The spec without what judges the model: new gates or slices must not train again."""
    default = type(spec.evaluation)()
    return spec.model_copy(update={"evaluation": default})
