"""A spec and its data as the Trainer sees them, made by Beam and TensorFlow Transform alone, without TFX."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder
from tfx_bsl.public import tfxio

from transform.features.model_inputs import ModelInputs
from transform.features.preprocessing import make_preprocessing_fn
from transform.features.request_example import raw_schema
from transform.ingest.beam_requests import COUNTS, SPLITS, RequestExamples, WriteCounts
from transform.ingest.check_counts import check_counts
from transform.ingest.sources import resolve_sources
from transform.spec.ranking_spec import RankingSpec

COUNTS_FILE = "counts.json"


@dataclass(frozen=True)
class Prepared:
    """Request examples and their transformed form.

    Attributes:
        spec: RankingSpec.
        folder: Path. `raw/<split>/` and `transformed/<split>/` hold gzipped TFRecords, `transform_graph/` the graph.
    """

    spec: RankingSpec
    folder: Path

    def files(self, kind: str, split: str) -> list[str]:
        """The files of a split; `kind` is raw or transformed."""
        return sorted(str(path) for path in (self.folder / kind / split).glob("*.gz"))

    @property
    def transform_output(self) -> tft.TFTransformOutput:
        """The graph and its vocabularies."""
        return tft.TFTransformOutput(str(self.folder / "transform_graph"))

    @property
    def inputs(self) -> ModelInputs:
        """What a model must know about its inputs."""
        return ModelInputs.from_spec(self.spec, self.transform_output.vocabulary_size_by_name)


def prepare(spec: RankingSpec, data_dir: str | Path, cache: str | Path) -> Prepared:
    """Builds examples and transforms them, or finds that this was done before.

    Args:
        spec: RankingSpec.
        data_dir: str or Path. Where the spec's files lie.
        cache: str or Path. A folder for the results, one sub-folder for each data part of a spec and state of
            its files.

    Returns:
        Prepared.

    Raises:
        DataError: when files are missing or wrong, a split is empty, or a task has no positives to learn from.
    """
    content = "\n".join([spec.data_part().to_json(), *_input_states(spec, str(Path(data_dir).resolve()))])
    folder = Path(cache) / f"{spec.name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        _build_examples(spec, data_dir, unfinished / "raw")
        _transform(spec, unfinished)
        os.replace(unfinished, folder)
    return Prepared(spec, folder)


def _input_states(spec: RankingSpec, data_dir: str) -> list[str]:
    """The spec's input files with their sizes and times: a file that changes is prepared again."""
    paths = [path for found in resolve_sources(spec, data_dir).files.values() for path in found]
    stats = [(path, tf.io.gfile.stat(path)) for path in paths]
    return [f"{path} {stat.length} {stat.mtime_nsec}" for path, stat in stats]


def _build_examples(spec: RankingSpec, data_dir: str | Path, folder: Path) -> None:
    counts = folder / COUNTS_FILE
    with beam.Pipeline() as pipeline:
        built = pipeline | RequestExamples(spec, str(data_dir))
        for split in SPLITS:
            path = str(folder / split / "part")
            _ = built[split] | f"Write[{split}]" >> beam.io.WriteToTFRecord(path, file_name_suffix=".gz")
        _ = built[COUNTS] | WriteCounts(str(counts))
    check_counts(spec, json.loads(counts.read_text()))


def _transform(spec: RankingSpec, folder: Path) -> None:
    with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=str(folder / "temp")):
        data = {}
        for split in SPLITS:
            records = tfxio.TFExampleRecord(str(folder / "raw" / split / "*.gz"), schema=raw_schema(spec))
            data[split] = (pipeline | f"Read[{split}]" >> records.BeamSource(), records.TensorAdapterConfig())
        function = data["train"] | tft_beam.AnalyzeDataset(make_preprocessing_fn(spec))
        for split in SPLITS:
            batches, _ = (data[split], function) | f"Transform[{split}]" >> tft_beam.TransformDataset(
                output_record_batches=True
            )
            encode = _Encoder(RecordBatchToExamplesEncoder)
            path = str(folder / "transformed" / split / "part")
            _ = (
                batches
                | f"Encode[{split}]" >> beam.FlatMapTuple(lambda batch, _, encode=encode: encode(batch))
                | f"WriteTransformed[{split}]" >> beam.io.WriteToTFRecord(path, file_name_suffix=".gz")
            )
        _ = function | tft_beam.WriteTransformFn(str(folder / "transform_graph"))
    shutil.rmtree(folder / "temp", ignore_errors=True)


class _Encoder:
    """Record batches to serialized examples; the encoder itself can't be pickled."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make

    def __call__(self, batch: Any) -> list[bytes]:
        return self._make().encode(batch)
