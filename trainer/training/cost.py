"""What a model costs: parameters, floating-point operations and bytes, counted from its graph."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from trainer.models.base import RankingModel, empty_batch
from trainer.ops.attention.attention_pattern import AttentionPattern, Prefix
from trainer.ops.kernels import use_kernels


@dataclass(frozen=True)
class Cost:
    """What a batch of requests costs at the least: operations and bytes that no kernel can save.

    Operations are those of contractions (matrix products, einsums, sums of products), 2 for a multiplication and its
    addition.
    Structured attention counts the pairs of tokens that see each other, U (U + 1) / 2 in a causal prefix, whatever its
    kernel computes besides.

    Bytes are those of each contraction's inputs and outputs, read or written once, and of the rows of embedding tables
    and positions that are looked up. Structured attention is one contraction, whose scores stay inside.

    Training is the forward pass and, for each contraction, one more for each input that a gradient goes to: about three
    times the forward pass, less what is fixed or stopped. A row that is looked up gets a gradient of its size.

    Left out are element-wise work (norms, activations, softmax, biases), moves from one layout to another, what no
    logit depends on, what loops and nested functions hold, the loss, the optimizer's step, and what a backward pass
    computes again.

    Attributes:
        requests: int. B, the requests of the batch.
        dense_parameters: int. Parameters outside the embedding tables.
        table_parameters: int. Parameters of the embedding tables.
        forward_flops: int. To score the batch, encoding its users included.
        training_flops: int. To score it and to make all gradients.
        forward_bytes: int. Moved to score the batch.
        training_bytes: int. Moved to score it and to make all gradients.
    """

    requests: int
    dense_parameters: int
    table_parameters: int
    forward_flops: int
    training_flops: int
    forward_bytes: int
    training_bytes: int

    def __str__(self) -> str:
        """One line for people."""
        forward, training = (flops / self.requests / 1e6 for flops in (self.forward_flops, self.training_flops))
        return (
            f"{self.parameters:,} parameters, {self.table_parameters:,} of them in tables; "
            f"{forward:.1f} MFLOPs a request, {training:.1f} in training, {self.training_intensity:.0f} FLOPs a byte"
        )

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.dense_parameters + self.table_parameters

    @property
    def training_intensity(self) -> float:
        """FLOPs a byte of training."""
        return self.training_flops / self.training_bytes


def batch_cost(model: RankingModel, requests: int, candidates: int, events: int) -> Cost:
    """The cost of a batch without padding.

    Args:
        model: RankingModel. With its variables created.
        requests: int. B.
        candidates: int. N of each request.
        events: int. U, the events in each sequence, at most its length.

    Returns:
        The cost.
    """
    attention = _CountedAttention()
    graph = trace_forward(model, requests, candidates, events, attention)
    tables = sum(math.prod(variable.shape) for variable in model.embedding.trainable_variables)
    needed, learns = needed_operations(graph.outputs), _with_gradient(graph, model)
    differentiated = needed_operations(graph.outputs, through_stops=False)
    forward_flops = training_flops = forward_bytes = training_bytes = 0
    for name, operation in needed.items():
        flops, moved = attention.work.get(name) or contraction_cost(operation)
        factors = operation.inputs if name in attention.work else _factors(operation)
        again = sum(tensor.ref() in learns for tensor in factors) if name in differentiated else 0
        if name in attention.work:
            again = 2 * min(again, 1)  # queries, keys and values: two contractions forward, four backward
        rows = _looked_up(operation)
        forward_flops += flops
        training_flops += flops * (1 + again)
        forward_bytes += moved + rows
        training_bytes += moved * (1 + again) + rows * (2 if operation.outputs[0].ref() in learns else 1)
    dense = model.count_params() - tables
    return Cost(requests, dense, tables, forward_flops, training_flops, forward_bytes, training_bytes)


# === The graph ===


def trace_forward(model: RankingModel, requests: int, candidates: int, events: int, kernel: Any) -> Any:
    """The graph of a model's forward pass over a batch without padding, with a kernel of `use_kernels`."""

    def describe(array: Any) -> tf.TensorSpec:
        return tf.TensorSpec((requests, *array.shape[1:]), array.dtype)

    signature = keras.tree.map_structure(describe, empty_batch(model.inputs_spec, candidates, events))
    with use_kernels(kernel):
        forward = tf.function(lambda batch: model(batch, training=False), autograph=False)
        return forward.get_concrete_function(signature).graph


def needed_operations(outputs: Iterable[Any], through_stops: bool = True) -> dict[str, Any]:
    """By name the operations that outputs depend on: what a graph holds besides is not run."""
    found: dict[str, Any] = {}
    waiting = [tensor.op for tensor in outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name not in found and (through_stops or operation.type != "StopGradient"):
            found[operation.name] = operation
            waiting += [tensor.op for tensor in operation.inputs]
    return found


def _with_gradient(graph: Any, model: RankingModel) -> set[Any]:
    """References of the tensors that gradients reach: they depend on what is trained."""
    trained = {id(variable.value.handle) for variable in model.trainable_variables}
    found = {inside.ref() for outside, inside in graph.captures if id(outside) in trained}
    for operation in graph.get_operations():  # in the order in which they were made: inputs first
        if operation.type != "StopGradient" and any(tensor.ref() in found for tensor in operation.inputs):
            found |= {tensor.ref() for tensor in operation.outputs if tensor.dtype.is_floating}
    return found


# === What operations cost ===


def _factors(operation: Any) -> list[Any]:
    """What a contraction multiplies; nothing of all else."""
    if operation.type == "Sum":
        summed = operation.inputs[0].op
        return list(summed.inputs) if summed.type == "Mul" else []
    is_product = operation.type in ("MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum")
    return list(operation.inputs) if is_product and len(operation.inputs) > 1 else []


def contraction_cost(operation: Any) -> tuple[int, int]:
    """FLOPs and bytes of a contraction; zeros of all else."""
    factors = _factors(operation)
    if not factors:
        return 0, 0
    if operation.type == "Sum":
        multiplications = operation.inputs[0].shape.num_elements()
    elif operation.type == "Einsum":
        terms = operation.get_attr("equation").decode().split("->")[0].split(",")
        sizes = {
            label: size
            for term, tensor in zip(terms, factors, strict=True)
            for label, size in zip(term, tensor.shape, strict=True)
        }
        multiplications = math.prod(sizes.values())
    else:
        transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
        multiplications = factors[0].shape[-2 if transposed else -1] * operation.outputs[0].shape.num_elements()
    return 2 * multiplications, _bytes(*factors, *operation.outputs)


def _looked_up(operation: Any) -> int:
    """Bytes of the rows of an embedding table that an operation reads."""
    is_lookup = operation.type in ("ResourceGather", "GatherV2") and operation.outputs[0].dtype.is_floating
    return _bytes(*operation.outputs) if is_lookup else 0


def _bytes(*tensors: Any) -> int:
    return sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors)


class _CountedAttention:
    """A kernel of structured attention that computes nothing and remembers what the others would have to."""

    def __init__(self) -> None:
        self.work: dict[str, tuple[int, int]] = {}  # FLOPs and bytes by the name of an operation

    def __call__(
        self, queries: Any, keys: Any, values: Any, pattern: AttentionPattern, mask: Any, prefix: Prefix, bias: Any
    ) -> Any:
        """Queries in place of what is read; see `structured_attention`."""
        tensors = [tf.convert_to_tensor(tensor) for tensor in (queries, keys, values, prefix.keys, prefix.values)]
        b, h, q, d = queries.shape
        pairs = _visible_pairs(pattern, q, keys.shape[2], prefix.keys.shape[2])
        out, *_ = tf.identity_n([pattern.select_queries(tensors[0]), *tensors[1:], tf.convert_to_tensor(bias)])
        self.work[out.op.name] = 4 * b * h * d * pairs, _bytes(*tensors, out)
        return out


def _visible_pairs(pattern: AttentionPattern, q: int, m: int, u: int) -> int:
    """The pairs of a query and a token that it reads: q queries, m tokens in the list, u in the prefix."""
    size = pattern.group_size or m
    reads = {"first": lambda place: min(place, 1) + 1, "before": lambda place: place + 1, "all": lambda place: size}
    places = [place % size for place in range(m - q, m) if place % size >= pattern.query_offset]
    return len(places) * u + sum(reads[pattern.reads](place) for place in places)
