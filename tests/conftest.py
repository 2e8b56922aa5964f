"""Shared fixtures. The environment is set before anything imports TensorFlow."""

from __future__ import annotations

from transform.environment import prepare_environment

prepare_environment()

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_problem

from transform.spec import RankingSpec


@dataclass(frozen=True)
class Small:
    """The small problem as the Trainer sees it, made without TFX."""

    spec: RankingSpec
    data_dir: str
    raw: dict[str, list[str]]
    transformed: dict[str, list[str]]
    transform_output: Any

    def inputs(self) -> Any:
        from transform.columns import ModelInputs

        return ModelInputs.from_spec(self.spec, self.transform_output.vocabulary_size_by_name)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    import apache_beam as beam
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder
    from tfx_bsl.public import tfxio

    from transform.examples import raw_schema
    from transform.impressions import SPLITS, RequestExamples
    from transform.preprocessing import make_preprocessing_fn

    folder = tmp_path_factory.mktemp("small")
    data_dir = str(small_problem.write_data(folder / "data"))
    spec = RankingSpec.load(small_problem.write_spec(folder / "small.yaml"))
    with beam.Pipeline() as pipeline:
        built = pipeline | RequestExamples(spec, data_dir)
        for split in SPLITS:
            _ = built[split] | f"Write[{split}]" >> beam.io.WriteToTFRecord(
                str(folder / "raw" / split), file_name_suffix=".gz"
            )
    graph = folder / "transform_graph"
    with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=str(folder / "temp")):
        data = {}
        for split in SPLITS:
            records = tfxio.TFExampleRecord(str(folder / "raw" / f"{split}*.gz"), schema=raw_schema(spec))
            data[split] = (pipeline | f"Read[{split}]" >> records.BeamSource(), records.TensorAdapterConfig())
        function = data["train"] | tft_beam.AnalyzeDataset(make_preprocessing_fn(spec))
        for split in SPLITS:
            batches, metadata = (data[split], function) | f"Transform[{split}]" >> tft_beam.TransformDataset(
                output_record_batches=True
            )
            encoder = _Encoder(RecordBatchToExamplesEncoder)
            _ = (
                batches
                | f"Encode[{split}]" >> beam.FlatMapTuple(lambda batch, _, encode=encoder: encode(batch))
                | f"WriteTransformed[{split}]"
                >> beam.io.WriteToTFRecord(str(folder / "transformed" / split), file_name_suffix=".gz")
            )
            del metadata
        _ = function | tft_beam.WriteTransformFn(str(graph))
    files = {
        kind: {split: sorted(str(path) for path in (folder / kind).glob(f"{split}*")) for split in SPLITS}
        for kind in ("raw", "transformed")
    }
    return Small(spec, data_dir, files["raw"], files["transformed"], tft.TFTransformOutput(str(graph)))


class _Encoder:
    """Record batches to serialized examples; the encoder itself can't be pickled."""

    def __init__(self, make: Any):
        self._make = make

    def __call__(self, batch: Any) -> list[bytes]:
        return self._make().encode(batch)


def repository() -> Path:
    """The root of the project."""
    return Path(__file__).resolve().parent.parent
