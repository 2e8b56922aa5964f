"""What a request costs: the floating-point operations of a model's contractions, counted from its graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.models.base import RankingModel, empty_batch
from trainer.ops.structured_attention import attention_kernel


def request_flops(model: RankingModel, candidates: int, events: int) -> int:
    """Floating-point operations to score one request, context encoded anew.

    Counted are matrix products and einsums, 2 for a multiplication and its addition, from the static shapes of the
    traced graph, as far as the logits depend on them; what is element-wise is left out. Attention is counted as the
    portable kernel computes it.

    Args:
        model: RankingModel. With its variables created.
        candidates: int. N.
        events: int. The events in each sequence, at most its length.

    Returns:
        The operations.
    """
    batch = empty_batch(model.inputs_spec, candidates, events)
    signature = keras.tree.map_structure(lambda array: tf.TensorSpec(array.shape, array.dtype), batch)
    with attention_kernel("portable"):
        traced = tf.function(lambda b: model(b, training=False)).get_concrete_function(signature)
    return sum(_flops(operation) for operation in _needed(traced.graph.outputs))


def _needed(outputs: Sequence[Any]) -> list[Any]:
    """The operations that outputs depend on: what a graph holds besides is not run."""
    found: dict[str, Any] = {}
    waiting = [tensor.op for tensor in outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name not in found:
            found[operation.name] = operation
            waiting += [tensor.op for tensor in operation.inputs]
    return list(found.values())


def _flops(operation: Any) -> int:
    if operation.type in ("MatMul", "BatchMatMul", "BatchMatMulV2"):
        transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
        inner = operation.inputs[0].shape[-2 if transposed else -1]
        return 2 * inner * operation.outputs[0].shape.num_elements()
    if operation.type == "Einsum":
        terms = operation.get_attr("equation").decode().split("->")[0].split(",")
        if len(terms) < 2:
            return 0
        sizes = {
            label: size
            for term, tensor in zip(terms, operation.inputs, strict=True)
            for label, size in zip(term, tensor.shape, strict=True)
        }
        return 2 * math.prod(sizes.values())
    return 0
