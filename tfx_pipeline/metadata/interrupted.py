"""What a run that was killed leaves behind."""

from __future__ import annotations

import os

import tensorflow as tf
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata

from tfx_pipeline.metadata.runs import AIRFLOW_LAYOUT, LAYOUT
from transform.errors import PipelineError


def clear_interrupted(metadata_path: str, pipeline_root: str) -> list[str]:
    """Marks executions that nobody runs any more as failed, and deletes what they wrote.

    A component that is killed stays `RUNNING` in ML Metadata for ever, and its folders stay too. Nothing takes them for
    results, as TFX reads only what was published when a component had come to its end; but they would pile up. Folders
    go first: if this is killed in turn, the next run finds the execution again.

    Only for a caller that holds the output folder's lock: a run that goes on would lose its work.

    Args:
        metadata_path: str. The SQLite file of ML Metadata.
        pipeline_root: str. Where the pipeline's artifacts are.

    Returns:
        The components that had been interrupted.

    Raises:
        PipelineError: when Airflow runs the pipeline there: whether its tasks still run can't be told.
    """
    if not os.path.exists(metadata_path):
        return []
    store = metadata_store.MetadataStore(metadata.sqlite_metadata_connection_config(metadata_path))
    if store.get_contexts_by_type(AIRFLOW_LAYOUT.run):
        raise PipelineError(
            f"--output: a folder for runs on this machine is expected. Received: one that Airflow runs a pipeline in, "
            f"by {metadata_path}. Name another folder, or start the run in Airflow."
        )
    nodes = []
    for execution in store.get_executions():  # all, and then filtered: ML Metadata 1.21 has no filter queries any more
        if execution.last_known_state != metadata_store_pb2.Execution.RUNNING:
            continue
        contexts = store.get_contexts_by_execution(execution.id)
        node = next(context.name for context in contexts if context.type == LAYOUT.node).rpartition(".")[2]
        folder = os.path.join(pipeline_root, node)
        for pattern in (
            f"*/{execution.id}",
            f".system/executor_execution/{execution.id}",
            ".system/stateful_working_dir/*",
        ):
            for path in tf.io.gfile.glob(os.path.join(folder, pattern)):
                tf.io.gfile.rmtree(path)
        execution.last_known_state = metadata_store_pb2.Execution.FAILED
        store.put_executions([execution])
        nodes.append(node)
    return nodes
