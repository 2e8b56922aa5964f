"""What ML Metadata knows of a pipeline's runs: each component's state and outputs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata
from tfx.orchestration.portable.mlmd import event_lib
from tfx.types import Artifact, artifact_utils

from transform.errors import PipelineError

_States = metadata_store_pb2.Execution
FINISHED = (_States.COMPLETE, _States.CACHED)

_SHOWN_RUNS = 10  # in a message


class Layout(NamedTuple):
    """The types of the contexts in which TFX registers what belongs to a run and to a node of the pipeline."""

    run: str
    node: str


LAYOUT = Layout("pipeline_run", "node")
AIRFLOW_LAYOUT = Layout("run", "component_run")
"""The older launcher's: names begin with the pipeline's, and a node's with the run's as well."""

EARLIER_TRY = ".try-"
"""What the name of a component holds that Airflow has tried again since; the number of its execution follows."""


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


@dataclass(frozen=True)
class Run:
    """One run of the pipeline.

    Attributes:
        id: str. What TFX or Airflow calls it: the time of its start, or `manual__` or `scheduled__` and a time.
        pipeline: str. The pipeline's name.
        started, ended: float. Seconds since the epoch; the end is that of the last component.
        components: dict. The components by id.
    """

    id: str
    pipeline: str
    started: float
    ended: float
    components: dict[str, ComponentRun]

    def uri(self, node: str, key: str) -> str:
        """Where the one artifact of a component's output lies."""
        return self.components[node].output(key).uri


class RunReader:
    """Reads runs from an ML Metadata file, of the local runner and of Airflow.

    Args:
        metadata_path: str. The SQLite file.
        pipeline: str. The pipeline's name.
    """

    def __init__(self, metadata_path: str, pipeline: str):
        self._pipeline = pipeline
        self._path = metadata_path
        self._store: metadata_store.MetadataStore | None = None
        if os.path.exists(metadata_path):  # asking for the connection would create the folder
            self._store = metadata_store.MetadataStore(metadata.sqlite_metadata_connection_config(metadata_path))

    def newest(self) -> dict[str, ComponentRun]:
        """The components of the newest run by id; empty when there was none."""
        contexts = self._contexts()
        return self._read(contexts[-1]).components if contexts else {}

    def find(self, run_id: str | None = None) -> Run:
        """Reads one run.

        Args:
            run_id: str, optional. Defaults to the newest.

        Returns:
            The run.

        Raises:
            PipelineError: when there is no such run.
        """
        contexts = {self._run_id(context): context for context in self._contexts()}
        if not contexts:
            raise PipelineError(
                f"{self._path}: runs of `{self._pipeline}` are expected. Received: none. Run the pipeline first, or "
                "give the --output that it was run with."
            )
        run_id = run_id or list(contexts)[-1]
        if run_id not in contexts:
            known = "\n".join(f"  {name}" for name in list(contexts)[: -_SHOWN_RUNS - 1 : -1])
            raise PipelineError(
                f"--run: a run of `{self._pipeline}` is expected. Received: `{run_id}`. Newest first:\n{known}"
            )
        return self._read(contexts[run_id])

    def _contexts(self) -> list[metadata_store_pb2.Context]:
        """All runs, the oldest first."""
        if self._store is None:
            return []
        contexts = chain.from_iterable(self._store.get_contexts_by_type(of.run) for of in (LAYOUT, AIRFLOW_LAYOUT))
        return sorted(contexts, key=lambda context: context.id)

    def _run_id(self, context: metadata_store_pb2.Context) -> str:
        return context.name.removeprefix(f"{self._pipeline}.")

    def _read(self, context: metadata_store_pb2.Context) -> Run:
        assert self._store is not None
        run_id = self._run_id(context)
        executions = {self._node(e, run_id): e for e in self._store.get_executions_by_context(context.id)}
        executions = {node: execution for node, execution in executions.items() if EARLIER_TRY not in node}
        components = {node: self._component(node, execution) for node, execution in executions.items()}
        times = [execution.last_update_time_since_epoch for execution in executions.values()]
        ended = max(times, default=context.create_time_since_epoch)
        return Run(run_id, self._pipeline, context.create_time_since_epoch / 1000, ended / 1000, components)

    def _node(self, execution: metadata_store_pb2.Execution, run_id: str) -> str:
        assert self._store is not None
        contexts = self._store.get_contexts_by_execution(execution.id)
        name = next(context.name for context in contexts if context.type in (LAYOUT.node, AIRFLOW_LAYOUT.node))
        return name.removeprefix(f"{self._pipeline}.").removeprefix(f"{run_id}.")

    def _component(self, node: str, execution: metadata_store_pb2.Execution) -> ComponentRun:
        assert self._store is not None
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
