"""How a TFX component runs inside an Airflow task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from airflow.exceptions import AirflowFailException
from tfx import types
from tfx.orchestration import data_types, metadata, pipeline
from tfx.orchestration.launcher.in_process_component_launcher import InProcessComponentLauncher
from tfx.orchestration.portable import data_types as portable_data_types

from tfx_pipeline.metadata.runs import EARLIER_TRY
from transform.errors import find_user_error

COMPONENT_ID = "component_id"  # the property by which TFX finds the execution of a component in a run


def launch(built: pipeline.Pipeline, component: str, run_id: str) -> None:
    """Runs one component of a pipeline.

    Args:
        built: Pipeline. As `create_pipeline` makes it for the target `tfx`.
        component: str. The component's id.
        run_id: str. What the run is called in ML Metadata: the name that Airflow gives it.

    Raises:
        AirflowFailException: when the user has something to correct, with the message; the task is not tried again.
    """
    info = built.pipeline_info
    AirflowComponentLauncher.create(
        component=next(node for node in built.components if node.id == component),
        pipeline_info=data_types.PipelineInfo(info.pipeline_name, info.pipeline_root, run_id),
        driver_args=data_types.DriverArgs(enable_cache=built.enable_cache),
        metadata_connection=metadata.Metadata(built.metadata_connection_config),
        beam_pipeline_args=built.beam_pipeline_args,
        additional_pipeline_args=built.additional_pipeline_args,
    ).launch()


class AirflowComponentLauncher(InProcessComponentLauncher):
    """TFX's in-process launcher, fit for tasks that are tried again.

    TFX registers the outputs of a try under the run's name before it runs, and can't do so again: a second try fails,
    whatever it would do. Here every try is an execution of its own, with folders of its own. A mistake in the spec or
    in the data fails at once, with its message and no further try.
    """

    _driver_class: type

    def launch(self) -> portable_data_types.ExecutionInfo:
        """Runs driver, executor and publisher."""
        self._driver_class = _naming_outputs_by_execution(self._driver_class)
        with no_further_try_after_a_mistake():
            with self._metadata_connection as handle:
                set_earlier_try_aside(handle, self._component_info)
            return super().launch()


@contextmanager
def no_further_try_after_a_mistake() -> Iterator[None]:
    """Fails the task at once when the user has something to correct, with the message."""
    try:
        yield
    except Exception as error:
        message = find_user_error(error)
        if message is None:
            raise
        raise AirflowFailException(message) from error


def _naming_outputs_by_execution(driver: type) -> type:
    """A driver whose output artifacts have names that no other try's have; MLMD lets nobody rename an artifact."""

    class Driver(driver):  # type: ignore[misc, valid-type]
        def _prepare_output_artifacts(self, *, execution_id: int, **kwargs: Any) -> dict[str, list[types.Artifact]]:
            outputs = super()._prepare_output_artifacts(execution_id=execution_id, **kwargs)
            for artifact in chain.from_iterable(outputs.values()):
                artifact.name = f"{artifact.name}:{execution_id}"
            return outputs

    return Driver


def set_earlier_try_aside(handle: metadata.Metadata, component: data_types.ComponentInfo) -> None:
    """Renames what an earlier try of a component in this run has registered, so that nothing takes it for this one's.

    Args:
        handle: Metadata. An open connection.
        component: ComponentInfo. The component, and the run that it belongs to.
    """
    context = handle.get_component_run_context(component)
    if context is None:
        return
    store = handle.store
    (execution,) = store.get_executions_by_context(context.id)
    suffix = f"{EARLIER_TRY}{execution.id}"
    context.name += suffix
    execution.properties[COMPONENT_ID].string_value += suffix
    store.put_executions([execution])
    store.put_contexts([context])
