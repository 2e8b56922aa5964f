"""One version of a model, loaded and warm."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from serving.server.errors import RequestError, of_tensorflow
from serving.server.options import ServerOptions
from serving.server.signature import Arrays, Signature

SAVED_MODEL = "saved_model.pb"
_MOST_SHAPES = 10_000


class LoadedVersion:
    """One version of a model, loaded as TF Serving does it: a session on the graph, no function that could be traced.

    Args:
        path: str. The version's folder.
        number: int. The version.
        options: ServerOptions.

    Raises:
        Exception: of many kinds, when the SavedModel is not whole.
    """

    def __init__(self, path: str, number: int, options: ServerOptions):
        _check_files(path)
        self.number = number
        config = tf.compat.v1.ConfigProto(
            allow_soft_placement=True,
            intra_op_parallelism_threads=options.tensorflow_intra_op_parallelism,
            inter_op_parallelism_threads=options.tensorflow_inter_op_parallelism,
        )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with self._session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], path)
        except Exception:
            self._session.close()
            raise
        self.signature_defs: Mapping[str, Any] = dict(meta_graph.signature_def)
        described = {name: Signature.of(name, definition) for name, definition in self.signature_defs.items()}
        self._signatures = {name: signature for name, signature in described.items() if signature is not None}
        self._fetches = {
            name: {key: spec.tensor for key, spec in signature.outputs.items()}
            for name, signature in self._signatures.items()
        }
        self._lock = threading.Lock()
        self._shapes: set[tuple] = set()
        self._shapes_at_warm_up: int | None = None
        self.in_flight = 0  # kept by ModelVersions, under its lock

    def signature(self, name: str) -> Signature:
        """The signature of a name; "" for the default.

        Raises:
            RequestError: FAILED_PRECONDITION when there is none of that name.
        """
        name = name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
        if name not in self._signatures:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{name:.100}" not found. The model has {", ".join(sorted(self._signatures))}.',
            )
        return self._signatures[name]

    def run(self, signature: Signature, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs of a signature. All of them: each other choice would be another graph to prepare.

        Args:
            signature: Signature. Of this version.
            inputs: mapping of str to array. Checked.

        Raises:
            RequestError: what TensorFlow says, with its code.
        """
        self._note((signature.name, *(inputs[name].shape for name in signature.inputs)))
        feeds = {spec.tensor: inputs[name] for name, spec in signature.inputs.items()}
        try:
            return self._session.run(self._fetches[signature.name], feeds)
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            raise of_tensorflow(error) from error

    def warm(self) -> None:
        """Says that warm-up is over: shapes count as new from here on."""
        self._shapes_at_warm_up = len(self._shapes)

    @property
    def shapes_after_warm_up(self) -> int:
        """The shapes of inputs that came first after warm-up; XLA compiles each of them."""
        return len(self._shapes) - (self._shapes_at_warm_up or 0)

    def close(self) -> None:
        """Frees the memory. No request may be under way."""
        self._session.close()

    def _note(self, shapes: tuple) -> None:
        if shapes not in self._shapes and len(self._shapes) < _MOST_SHAPES:
            with self._lock:
                self._shapes.add(shapes)


def _check_files(path: str) -> None:
    """Raises ValueError when files are missing that the graph names: the loader's own errors don't say which."""
    with open(os.path.join(path, SAVED_MODEL), "rb") as file:
        saved_model = saved_model_pb2.SavedModel.FromString(file.read())
    needed = []
    for graph in saved_model.meta_graphs:
        needed += [os.path.join("assets", asset.filename) for asset in graph.asset_file_def]
        if graph.HasField("saver_def"):
            needed.append(os.path.join("variables", "variables.index"))
    missing = [name for name in needed if not os.path.isfile(os.path.join(path, name))]
    if missing or not saved_model.meta_graphs:
        raise ValueError(f"{path}: {', '.join(missing) or 'a graph in saved_model.pb'} is missing.")
