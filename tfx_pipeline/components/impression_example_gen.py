"""ImpressionExampleGen: a TFX ExampleGen from an impression log and its tables to request examples."""

from __future__ import annotations

import json
import os
from typing import Any

import apache_beam as beam
import tensorflow as tf
from google.protobuf import json_format, struct_pb2
from tfx import types
from tfx.components.example_gen.component import FileBasedExampleGen
from tfx.dsl.components.base import base_beam_executor, executor_spec
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import proto_utils

from tfx_pipeline.custom_config import CODE_KEY, SPEC_KEY
from transform.ingest.beam_requests import COUNTS, SPLITS, RequestExamples, WriteCounts
from transform.ingest.check_counts import check_counts
from transform.spec.loading import parse_spec
from transform.spec.ranking_spec import RankingSpec

COUNTS_FILE = "counts.json"


class ImpressionExampleGenExecutor(base_beam_executor.BaseBeamExecutor):
    """Runs the Beam transform `transform.ingest.beam_requests.RequestExamples` and writes its splits and counts."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes gzipped TFRecords of request examples for train, eval and test, and `counts.json` beside them."""
        self._log_startup(input_dict, output_dict, exec_properties)
        custom_config = example_gen_pb2.CustomConfig()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY], custom_config)
        config = struct_pb2.Struct()
        custom_config.custom_config.Unpack(config)
        spec = parse_spec(config[SPEC_KEY])
        artifact = artifact_utils.get_single_instance(output_dict[standard_component_specs.EXAMPLES_KEY])
        artifact.split_names = artifact_utils.encode_split_names(list(SPLITS))
        with self._make_beam_pipeline() as pipeline:
            built = pipeline | RequestExamples(spec, exec_properties[standard_component_specs.INPUT_BASE_KEY])
            for split in SPLITS:
                path = os.path.join(artifact_utils.get_split_uri([artifact], split), "requests")
                _ = built[split] | f"Write[{split}]" >> beam.io.WriteToTFRecord(path, file_name_suffix=".gz")
            _ = built[COUNTS] | WriteCounts(os.path.join(artifact.uri, COUNTS_FILE))
        with tf.io.gfile.GFile(os.path.join(artifact.uri, COUNTS_FILE)) as file:
            check_counts(spec, json.loads(file.read()))


class ImpressionExampleGen(FileBasedExampleGen):
    """ExampleGen for impression logs.

    Every input file of the spec (log, tables, past) is an input split of TFX's file-based driver, so that its
    fingerprint covers them all: a file that changes re-runs the component. Spec and code are part of the custom config.

    Args:
        spec: RankingSpec. The data part is used.
        data_dir: str. The folder that the spec's paths are relative to.
        code: str. A hash of the code that reads the data.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(ImpressionExampleGenExecutor)

    def __init__(self, spec: RankingSpec, data_dir: str, code: str):
        data = spec.data
        patterns = {"log": data.impressions.files, "past": data.past.files if data.past else ()}
        for name, table in (("user", data.tables.user), ("item", data.tables.item)):
            patterns[name] = table.files if table else ()
        splits = [
            example_gen_pb2.Input.Split(name=f"{name}_{index}", pattern=pattern)
            for name, found in patterns.items()
            for index, pattern in enumerate(found)
        ]
        config = json_format.ParseDict({SPEC_KEY: spec.data_part().to_json(), CODE_KEY: code}, struct_pb2.Struct())
        custom_config = example_gen_pb2.CustomConfig()
        custom_config.custom_config.Pack(config)
        super().__init__(
            input_base=data_dir,
            input_config=example_gen_pb2.Input(splits=splits),
            output_config=example_gen_pb2.Output(),
            custom_config=custom_config,
        )
