"""`create_pipeline`: the components from impressions to a pushed model, the same for every runner."""

from __future__ import annotations

from google.protobuf import text_format
from tfx.dsl.components.common import resolver
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import LatestBlessedModelStrategy
from tfx.orchestration import metadata, pipeline
from tfx.proto import pusher_pb2, trainer_pb2, transform_pb2
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.v1.components import Evaluator, ExampleValidator, StatisticsGen, Trainer, Transform

from tfx_pipeline.components.anomaly_gate import AnomalyGate
from tfx_pipeline.components.atomic_pusher import AtomicPusher
from tfx_pipeline.components.blessed_baseline import BlessedBaselineStrategy
from tfx_pipeline.components.impression_example_gen import ImpressionExampleGen
from tfx_pipeline.components.label_statistics import LabelStatistics
from tfx_pipeline.components.serving_validator import ServingValidator
from tfx_pipeline.components.spec_schema import SpecSchema
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.custom_config import CHECKPOINTS_KEY, CODE_KEY, SPEC_KEY
from tfx_pipeline.evaluation.eval_config import eval_config
from tfx_pipeline.metadata import cached_code
from tfx_pipeline.metadata.code_version import code_version
from tfx_pipeline.topology import RESOLVER_ID
from trainer.models.registry import find_model
from trainer.training.training_code import chosen_names, component_names
from transform.features.request_example import raw_schema
from transform.import_path import imported_packages
from transform.spec.ranking_spec import RankingSpec


def create_pipeline(config: PipelineConfig) -> pipeline.Pipeline:
    """Puts the components together.

    ImpressionExampleGen -> StatisticsGen -> SpecSchema -> ExampleValidator -> AnomalyGate -> Transform -> Trainer
    -> latest blessed model -> Evaluator and ServingValidator -> Pusher, and LabelStatistics beside them.

    A component that is added or removed here is added or removed in `topology` as well.

    Every component that runs this project's code gets the part of the spec that it depends on and a hash of that code,
    so that its cache is right: equal inputs are not run again, an edit always is.

    Args:
        config: PipelineConfig.

    Returns:
        A TFX pipeline.

    Raises:
        UserError: when there is no model of that name, or it has no such setting, or one of another type. What only the
            model itself finds, runners ask `check_settings` about before.
    """
    spec = config.spec
    find_model(spec.model)
    data_json = spec.data_part().to_json()
    example_gen = ImpressionExampleGen(spec, config.data_dir, code_version(*cached_code.EXAMPLE_GEN))
    examples = example_gen.outputs["examples"]
    statistics = StatisticsGen(examples=examples)
    schema_gen = SpecSchema(text=text_format.MessageToString(raw_schema(spec)))
    schema = schema_gen.outputs["schema"]
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema)
    gate = AnomalyGate(anomalies=validator.outputs["anomalies"], allow_anomalies=int(config.allow_anomalies))
    transform = Transform(
        examples=examples,
        schema=schema,
        preprocessing_fn="tfx_pipeline.tfx_functions.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "eval"]),
        custom_config={SPEC_KEY: data_json, CODE_KEY: code_version(*cached_code.TRANSFORM)},
    )
    transform.add_upstream_node(gate)
    trainer = Trainer(
        run_fn="tfx_pipeline.tfx_functions.run_fn",
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema,
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config={
            SPEC_KEY: _training_part(spec).to_json(),
            CODE_KEY: code_version(*cached_code.trainer(*chosen_names(spec))),
            CHECKPOINTS_KEY: config.checkpoints_dir,
        },
    )
    baseline = _baseline(config.target, trainer.outputs["model"])
    evaluator = Evaluator(
        examples=examples,
        model=trainer.outputs["model"],
        baseline_model=baseline.outputs["model"] if baseline else None,
        schema=schema,
        eval_config=eval_config(
            spec, code_version(*cached_code.EVALUATOR, *imported_packages(spec.evaluation.named_metrics))
        ),
        example_splits=["test"],
        module_path="tfx_pipeline.evaluation.extractors",
    )
    label_statistics = LabelStatistics(
        examples=examples,
        spec=data_json,
        code=code_version(*cached_code.LABEL_STATISTICS),
    )
    serving_validator = None
    if spec.evaluation.served_requests:
        serving_validator = ServingValidator(
            model=trainer.outputs["model"],
            model_run=trainer.outputs["model_run"],
            transform_graph=transform.outputs["transform_graph"],
            examples=examples,
            **({"baseline": baseline.outputs["model"]} if baseline else {}),
            code=code_version(*cached_code.serving_validator(*component_names(spec.model))),
            requests=spec.evaluation.served_requests,
            max_latency_ratio=spec.evaluation.max_latency_ratio or 0.0,
        )
    pusher = AtomicPusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=serving_validator.outputs["blessing"] if serving_validator else None,
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=config.serving_dir)
        ),
    )
    return pipeline.Pipeline(
        pipeline_name=config.pipeline_name,
        pipeline_root=config.pipeline_root,
        components=[
            *(example_gen, statistics, schema_gen, validator, gate),
            *(transform, trainer, *([baseline] if baseline else []), evaluator, label_statistics),
            *([serving_validator] if serving_validator else []),
            pusher,
        ],
        enable_cache=True,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(config.metadata_path)
        if config.target == "tfx"
        else None,
        beam_pipeline_args=list(config.beam_args),
    )


def _baseline(target: str, candidate: BaseChannel) -> resolver.Resolver | None:
    """Finds the model that the candidate is compared with, by what the target knows."""
    if target == "kubeflow":
        return None
    known: dict[str, BaseChannel] = {
        "model": Channel(type=standard_artifacts.Model),
        "model_blessing": Channel(type=standard_artifacts.ModelBlessing),
    }
    strategy = LatestBlessedModelStrategy
    if target == "tfx":
        strategy, known["candidate"] = BlessedBaselineStrategy, candidate
        known["infra_blessing"] = Channel(type=standard_artifacts.InfraBlessing)
    return resolver.Resolver(strategy_class=strategy, **known).with_id(RESOLVER_ID)


def _training_part(spec: RankingSpec) -> RankingSpec:
    """The spec without what judges the model: new gates or slices must not train again."""
    default = type(spec.evaluation)()
    return spec.model_copy(update={"evaluation": default})
