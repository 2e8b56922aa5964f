"""What ML Metadata knows of a pipeline's newest run: each component's state and outputs."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata
from tfx.orchestration.portable.mlmd import event_lib
from tfx.types import Artifact, artifact_utils

RESOLVER_ID = "latest_blessed_model"

_States = metadata_store_pb2.Execution
FINISHED = (_States.COMPLETE, _States.CACHED)


@dataclass(frozen=True)
class ComponentRun:
    """One component in one run.

    Attributes:
        node: str. The component's id.
        cached: bool. Whether its outputs are those of an earlier run.
        finished: bool. Whether it came to its end, now or in the earlier run.
        outputs: dict. Artifacts by output key.
    """

    node: str
    cached: bool
    finished: bool
    outputs: dict[str, list[Artifact]]

    def output(self, key: str) -> Artifact:
        """The one artifact of an output."""
        return artifact_utils.get_single_instance(self.outputs[key])


class RunReader:
    """Reads runs from an ML Metadata file.

    Args:
        metadata_path: str. The SQLite file.
        pipeline: str. The pipeline's name.
    """

    def __init__(self, metadata_path: str, pipeline: str):
        self._pipeline = pipeline
        self._store: metadata_store.MetadataStore | None = None
        if os.path.exists(metadata_path):  # asking for the connection would create the folder
            self._store = metadata_store.MetadataStore(metadata.sqlite_metadata_connection_config(metadata_path))

    def newest(self) -> dict[str, ComponentRun]:
        """The components of the newest run by id; empty when there was none."""
        if self._store is None:
            return {}
        runs = self._store.get_contexts_by_type("pipeline_run")
        if not runs:
            return {}
        newest = max(runs, key=lambda context: context.id)
        found = (self._component(execution) for execution in self._store.get_executions_by_context(newest.id))
        return {component.node: component for component in found}

    def _component(self, execution: metadata_store_pb2.Execution) -> ComponentRun:
        assert self._store is not None
        contexts = self._store.get_contexts_by_execution(execution.id)
        node = next(c.name for c in contexts if c.type == "node").removeprefix(f"{self._pipeline}.")
        events = self._store.get_events_by_execution_ids([execution.id])
        artifacts = {a.id: a for a in self._store.get_artifacts_by_id([event.artifact_id for event in events])}
        types = {t.id: t for t in self._store.get_artifact_types()}
        outputs: dict[str, list[Artifact]] = {}
        for event in events:
            if event_lib.is_valid_output_event(event):
                artifact = artifacts[event.artifact_id]
                typed = artifact_utils.deserialize_artifact(types[artifact.type_id], artifact)
                outputs.setdefault(event.path.steps[0].key, []).append(typed)
        state = execution.last_known_state
        return ComponentRun(node, state == _States.CACHED, state in FINISHED, outputs)
