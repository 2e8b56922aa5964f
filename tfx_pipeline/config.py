"""What every runner gives to `create_pipeline`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from transform.spec.ranking_spec import RankingSpec


@dataclass(frozen=True)
class PipelineConfig:
    """One run's settings, the same for all runners.

    Attributes:
        spec: RankingSpec.
        data_dir: str. The folder that the spec's paths are relative to.
        output_dir: str. Artifacts, metadata and pushed models go below it.
        allow_anomalies: bool. Whether a run goes on when the data break the schema. Defaults to `False`.
        beam_args: tuple of str. Options of the Beam runner. Defaults to none: the in-memory DirectRunner. Where there
            are any, TFX packs its own code for each component that uses Beam, and leaves 50 MB in the temporary folder.
        target: str. Who keeps the metadata and finds the baseline. Defaults to `"tfx"`, for runners that launch
            components by TFX: an SQLite file below `output_dir`, and `BlessedBaselineStrategy`. `"vertex"`: Vertex AI,
            which knows TFX's own strategies alone. `"kubeflow"`: Kubeflow Pipelines, which knows none: no baseline.
    """

    spec: RankingSpec
    data_dir: str
    output_dir: str
    allow_anomalies: bool = False
    beam_args: tuple[str, ...] = ()
    target: Literal["tfx", "vertex", "kubeflow"] = "tfx"

    @property
    def pipeline_name(self) -> str:
        """The spec's name, as the orchestrator can have it: Kubeflow knows no underscores."""
        return self.spec.name if self.target == "tfx" else self.spec.name.replace("_", "-")

    @property
    def pipeline_root(self) -> str:
        """Where artifacts go."""
        return os.path.join(self.output_dir, "pipeline", self.spec.name)

    @property
    def metadata_path(self) -> str:
        """The SQLite file of ML Metadata."""
        return os.path.join(self.output_dir, "metadata", f"{self.spec.name}.db")

    @property
    def checkpoints_dir(self) -> str:
        """Where trainings that are not finished keep their state: a folder each below it."""
        return os.path.join(self.output_dir, "checkpoints", self.spec.name)

    @property
    def serving_dir(self) -> str:
        """Where blessed models are pushed: numeric versions below it."""
        return os.path.join(self.output_dir, "serving", self.spec.name)
