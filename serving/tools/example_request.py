"""A request to try a served model with, made of an example: `onerank example --help`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from serving.export.model_files import ASSETS_EXTRA, WARMUP_FILE
from transform.environment import prepare_environment
from transform.extras import require_extra

prepare_environment()
require_extra("train", "serving.tools.example_request", "keras", "tensorflow", "tensorflow_serving")

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.export.exporter import load_exported_spec, newest_version
from serving.export.raw_inputs import raw_values
from serving.export.signatures import RANK, SERVING_DEFAULT
from transform.errors import DataError, reports_user_errors
from transform.features import request_example
from transform.spec.ranking_spec import RankingSpec

LOOKED_AT = 100  # examples among which the one with the most candidates is chosen


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Writes a request for the client, and the same one for TF Serving's REST API.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the user has something to correct.
    """
    parser = argparse.ArgumentParser(
        prog="onerank example",
        description="Writes a request as `onerank rank --request` takes it, and as the body of a POST to "
        "TF Serving's REST API, beside it as NAME.rest.json.",
    )
    parser.add_argument("--model", required=True, help="a version folder, or the folder that holds the versions")
    parser.add_argument(
        "--examples",
        nargs="+",
        default=[],
        help="files of request examples, as the pipeline's ImpressionExampleGen writes them (default: the model's "
        "warm-up requests, which may be made up)",
    )
    parser.add_argument("--output", required=True, help="the .json file to write")
    arguments = parser.parse_args(argv)
    for path in write_requests(arguments.model, arguments.examples, arguments.output):
        print(path)
    return 0


def write_requests(model: str, files: Sequence[str], path: str) -> tuple[str, str]:
    """Writes a request for the client, and the same one as REST takes it.

    Args:
        model: str. A version folder, or the folder that holds the versions.
        files: sequence of str. Gzipped TFRecords of request examples; none for the model's warm-up requests.
        path: str. The .json file to write.

    Returns:
        Both paths.

    Raises:
        DataError: when there is no model or no example, or the files can't be written.
    """
    version = newest_version(model)
    spec = load_exported_spec(version)
    found = _examples(files) if files else _of_warmup(os.path.join(version, ASSETS_EXTRA, WARMUP_FILE))
    request = max(
        islice(found, LOOKED_AT), key=lambda request: request[request_example.CANDIDATE_COUNT][0], default=None
    )
    if request is None:
        raise DataError(f"{', '.join(files) or version}: request examples are expected. Received: none. Give others.")
    inputs = {name: values.tolist() for name, values in raw_values(spec, request).items()}
    contents = {
        path: json.dumps(client_request(spec, request), indent=1),
        f"{path.removesuffix('.json')}.rest.json": json.dumps({"signature_name": RANK, "inputs": inputs}),
    }
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        for name, text in contents.items():
            with open(f"{name}.unfinished", "w", encoding="utf-8") as file:
                file.write(text + "\n")
            os.replace(f"{name}.unfinished", name)
    except OSError as error:
        raise DataError(f"--output: a file that can be written is expected. Received: {error}.") from error
    one, other = contents
    return one, other


def client_request(spec: RankingSpec, request: Mapping[str, list[Any]]) -> dict[str, Any]:
    """A request example as what `serving.client.Ranker.rank` takes, and JSON carries; missing values are None.

    Args:
        spec: RankingSpec.
        request: mapping. The example's lists by key, as `examples.decode` gives them.

    Returns:
        `user` and `context` by feature, `sequences` by name and `candidates` as rows.
    """
    n = request[request_example.CANDIDATE_COUNT][0]
    single: dict[str, dict[str, Any]] = {"user": {}, "context": {}}
    columns: dict[str, list[Any]] = {}
    for group, feature in spec.feature_groups():
        values = feature.decode(request)
        if group == "candidate":
            columns[feature.name] = values
        else:
            single[group][feature.name] = _plain(values[0]) if values else None
    sequences = {}
    for sequence in spec.sequences:
        parts = (*sequence.features, *sequence.feedback)
        events = {part: request.get(request_example.sequence_key(sequence.name, part), []) for part in parts}
        sequences[sequence.name] = _rows(events, len(events[parts[0]]))
    return {**single, "sequences": sequences, "candidates": _rows(columns, n)}


def _rows(columns: Mapping[str, list[Any]], count: int) -> list[dict[str, Any]]:
    return [{name: _plain(values[row]) for name, values in columns.items()} for row in range(count)]


def _plain(value: Any) -> Any:
    """None for what is missing; a float as the shortest number that is the same in float32."""
    if isinstance(value, float):
        return float(str(np.float32(value))) if math.isfinite(value) else None
    if isinstance(value, int):
        return value if value >= 0 else None
    return value if value != "" else None


def _examples(files: Sequence[str]) -> Iterable[dict[str, list[Any]]]:
    for record in tf.data.TFRecordDataset(list(files), "GZIP"):
        yield request_example.decode(record.numpy())


def _of_warmup(path: str) -> Iterable[dict[str, list[Any]]]:
    for record in tf.data.TFRecordDataset(path) if tf.io.gfile.exists(path) else ():
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        if request.model_spec.signature_name == SERVING_DEFAULT:
            yield from map(request_example.decode, request.inputs["examples"].string_val)


if __name__ == "__main__":
    sys.exit(main())
