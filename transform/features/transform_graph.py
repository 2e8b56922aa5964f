"""TensorFlow Transform's graph on some of its inputs."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Features = dict[str, tf.SparseTensor]


class TransformGraph:
    """The graph that Transform saved, cut to what follows from the inputs at hand.

    The same numbers as of `TFTransformOutput.transform_features_layer()`. That one makes up the inputs that it lacks
    and computes everything, at every call: a look-up in each vocabulary, and one after the other. Edges of control are
    left out: this is for functions of values alone, without assertions.

    Args:
        path: str. The folder of Transform's SavedModel (`TFTransformOutput.transform_savedmodel_dir`).

    Attributes:
        tables: list. The vocabularies and their files, for a SavedModel that calls this to hold them.
    """

    def __init__(self, path: str):
        loaded = tf.saved_model.load(path)
        self._function = loaded.transform_fn
        children = tf.train.TrackableView.children(loaded)
        self.tables = [children[name] for name in ("resources", "initializers", "assets")]

    def __call__(self, raw: Features) -> Features:
        """Adds the operations to the graph that is being built, in a `tf.function`.

        Args:
            raw: dict. Raw features by name, of all inputs or some.

        Returns:
            Preprocessed features by name: those that follow from the inputs.

        Raises:
            RuntimeError: when no graph is being built.
            KeyError: on a feature that Transform was not given.
        """
        if tf.executing_eagerly():
            raise RuntimeError("`TransformGraph` should be called in a `tf.function`. Received: an eager call.")
        graph = self._function.graph
        specs, captures = self._function.structured_input_signature[0][0], graph.captures
        inputs = tf.nest.pack_sequence_as(
            specs, graph.inputs[: len(graph.inputs) - len(captures)], expand_composites=True
        )
        given: dict[str, tf.Tensor] = {}
        for name, feature in raw.items():
            names = [tensor.op.name for tensor in _tensors(inputs[name])]
            given.update(zip(names, _tensors(feature), strict=True))

        outputs = tf.nest.pack_sequence_as(self._function.structured_outputs, graph.outputs, expand_composites=True)
        sources = {name: _sources(output) for name, output in outputs.items()}
        missing = {tensor.op.name for tensor in _tensors(inputs)} - given.keys()
        outputs = {name: output for name, output in outputs.items() if not sources[name] & missing}
        needed = set().union(*(sources[name] for name in outputs))
        given.update({inside.op.name: _captured(outside) for outside, inside in captures if inside.op.name in needed})
        originals = _tensors(outputs)
        tensors = tf.import_graph_def(
            _cut(graph, needed),
            input_map={f"{name}:0": tensor for name, tensor in given.items() if name in needed},
            return_elements=[tensor.name for tensor in originals],
            name="transform",
        )
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.set_shape(original.shape)  # a look-up's is not inferred again
        return tf.nest.pack_sequence_as(outputs, tensors, expand_composites=True)


def _tensors(features: Any) -> list[tf.Tensor]:
    return tf.nest.flatten(features, expand_composites=True)


def _captured(tensor: tf.Tensor) -> tf.Tensor:
    """A table or a constant that the saved function has, in the graph that is being built."""
    if tensor.dtype == tf.resource:
        return tf.compat.v1.get_default_graph().capture(tensor)
    return tf.constant(tensor.numpy(), tensor.dtype)


def _sources(output: Any) -> set[str]:
    """The names of the operations that a feature is computed by."""
    found: set[str] = set()
    waiting = [tensor.op for tensor in _tensors(output)]
    while waiting:
        operation = waiting.pop()
        if operation.name not in found:
            found.add(operation.name)
            waiting += [tensor.op for tensor in operation.inputs]
    return found


def _cut(graph: tf.Graph, needed: set[str]) -> Any:
    """The definition of some of a graph's operations, without control between them."""
    definition = graph.as_graph_def()
    nodes = [node for node in definition.node if node.name in needed]
    for node in nodes:
        data = [source for source in node.input if not source.startswith("^")]  # look-ups, one after the other
        node.ClearField("input")
        node.input.extend(data)
    definition.ClearField("node")
    definition.node.extend(nodes)
    return definition
