"""SpecSchema: the schema that follows from the spec, as an artifact."""

import os

from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts

SCHEMA_FILE = "schema.pbtxt"  # where TFX's components look for it


@component
def SpecSchema(schema: OutputArtifact[standard_artifacts.Schema], text: Parameter[str]) -> None:  # noqa: N802
    """Writes the schema that it is given.

    TFX's ImportSchemaGen wants a file, which every launcher would have to write, and caches it by its path alone.

    Args:
        schema: the folder of the result.
        text: the schema as a text proto.
    """
    with fileio.open(os.path.join(schema.uri, SCHEMA_FILE), "w") as file:
        file.write(text)
