"""Components that Airflow tries again, in a process and a home of its own.

python -m tests.testing.airflow_tries FOLDER
"""

import json
import sys
from pathlib import Path

from transform.environment import prepare_environment

prepare_environment()

from airflow.exceptions import AirflowFailException
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.orchestration import data_types, metadata
from tfx.types import standard_artifacts

from tfx_pipeline.metadata.runs import RunReader
from tfx_pipeline.runners.airflow.launcher import AirflowComponentLauncher
from transform.errors import DataError


@component
def Fickle(examples: OutputArtifact[standard_artifacts.Examples], folder: Parameter[str]) -> None:  # noqa: N802
    """Leaves half its work and dies, at the first try; at the second, does other work."""
    tries = Path(folder) / "tries"
    count = len(tries.read_text()) + 1 if tries.exists() else 1
    tries.write_text("x" * count)
    (Path(examples.uri) / f"part-{count}").write_text("")
    if count == 1:
        raise OSError("the disk was away")


@component
def Reader(examples: InputArtifact[standard_artifacts.Examples], folder: Parameter[str]) -> None:  # noqa: N802
    """Tells what it was given."""
    (Path(folder) / "read").write_text(json.dumps(sorted(path.name for path in Path(examples.uri).iterdir())))


@component
def Mistaken(model: OutputArtifact[standard_artifacts.Model]) -> None:  # noqa: N802
    """Meets a mistake of the user."""
    raise DataError("split.test: requests are expected. Received: none. Bring the data.")


def try_again(folder: str) -> dict[str, object]:
    """A component that fails, is tried again and at last cleared, one that reads its output, and a user's mistake."""
    fickle = Fickle(folder=folder)
    reader = Reader(examples=fickle.outputs["examples"], folder=folder)
    order = {"first": fickle, "second": fickle, "reader": reader, "cleared": fickle, "reader again": reader}
    answer: dict[str, object] = {"read": []}
    for name, node in {**order, "mistake": Mistaken()}.items():
        answer[name] = _launch(node, folder)
        if node is reader:
            answer["read"] += [json.loads((Path(folder) / "read").read_text())]
    run = RunReader(f"{folder}/metadata.db", "tries").find("run 1")
    answer["components"] = {node: component.finished for node, component in run.components.items()}
    answer["output"] = run.uri("Fickle", "examples")
    return answer


def _launch(node, folder: str) -> str:
    run = data_types.PipelineInfo("tries", f"{folder}/root", "run 1")
    store = metadata.Metadata(metadata.sqlite_metadata_connection_config(f"{folder}/metadata.db"))
    launcher = AirflowComponentLauncher.create(node, run, data_types.DriverArgs(), store, [], {})
    try:
        launcher.launch()
    except AirflowFailException as error:
        return f"no further try: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


if __name__ == "__main__":
    print("\n" + json.dumps(try_again(*sys.argv[1:])))
