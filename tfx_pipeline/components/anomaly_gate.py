"""AnomalyGate: stops a run whose data break the schema."""

import tensorflow as tf
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.dsl.component.experimental.annotations import InputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils, standard_artifacts

from transform.errors import DataError

ANOMALIES_FILE = "SchemaDiff.pb"


@component
def AnomalyGate(  # noqa: N802
    anomalies: InputArtifact[standard_artifacts.ExampleAnomalies], allow_anomalies: Parameter[int]
) -> None:
    """Raises a DataError when the ExampleValidator found anomalies and they are not allowed.

    Args:
        anomalies: what the ExampleValidator wrote.
        allow_anomalies: 1 to go on all the same.
    """
    found = read_anomalies(anomalies)
    if found and not allow_anomalies:
        lines = "\n".join(f"  {line}" for line in found)
        raise DataError(
            f"data: examples that fit the schema are expected. Received anomalies:\n{lines}\n"
            "Correct the data, or run with --allow_anomalies to go on all the same."
        )


def read_anomalies(artifact: standard_artifacts.ExampleAnomalies) -> list[str]:
    """One line an anomaly: split, feature and what is wrong."""
    lines = []
    for split in artifact_utils.decode_split_names(artifact.split_names):
        uri = artifact_utils.get_split_uri([artifact], split)
        with tf.io.gfile.GFile(f"{uri}/{ANOMALIES_FILE}", "rb") as file:
            anomalies = anomalies_pb2.Anomalies.FromString(file.read())
        for name, info in sorted(anomalies.anomaly_info.items()):
            lines.append(f"{split}: {name}: {info.description}")
        if anomalies.HasField("dataset_anomaly_info"):
            lines.append(f"{split}: {anomalies.dataset_anomaly_info.description}")
    return lines
