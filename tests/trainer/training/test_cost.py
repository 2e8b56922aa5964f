import numpy as np
import pytest

from tests.testing.random_batches import INPUTS
from trainer.models.registry import build_model
from trainer.training.cost import batch_cost
from transform.features.model_inputs import Column, EventSequence, ModelInputs, Task
from transform.spec.model_sections import Model

pytestmark = pytest.mark.slow

K, D, H, N, FFN, L, U = 2, 8, 2, 3, 2, 2, 6
ITEM = 5  # the width of an item's embedding, of which there are 7
LONGEST = 9  # of the sequence
ONE_SEQUENCE = ModelInputs(
    columns=(
        Column("user", "age", "dense", None, 1),
        Column("candidate", "item", "id", "item", ITEM),
        Column("seen", "item", "id", "item", ITEM),
    ),
    rows={"item": 7},
    sequences=(EventSequence("seen", "history", LONGEST),),
    tasks=(Task("click"), Task("buy")),
)


def onerank(inputs, layers):
    return build_model(Model(name="onerank", d=D, layers=layers, heads=H, ffn_ratio=FFN), inputs)


# === The cost of a batch, against a count by hand ===


def product(rows, inner, columns, each=1, gradients=2):
    """Products of [rows, inner] and [inner, columns]: FLOPs and bytes, forward and in training."""
    flops = 2 * each * rows * inner * columns
    moved = 4 * each * (rows * inner + inner * columns + rows * columns)
    return np.array([flops, flops * (1 + gradients), moved, moved * (1 + gradients)])


def attention(requests, tokens, context, pairs, readers=None):
    """Two products for a pair forward and four backward; reads queries, keys, values, context, writes what is read."""
    flops = requests * 4 * D * pairs
    moved = 4 * requests * D * (3 * tokens + (tokens if readers is None else readers) + 2 * context)
    return np.array([flops, 3 * flops, moved, 3 * moved])


def rows(number, width):
    """Rows that are looked up, and their gradients."""
    return np.array([0, 0, 4 * number * width, 2 * 4 * number * width])


def block(tokens):
    """All of a block but its attention."""
    return product(tokens, D, D) + product(tokens, D, FFN * D) + product(tokens, FFN * D, D)


@pytest.mark.parametrize("b", [1, 4])
def test_the_cost_of_a_batch_is_that_counted_by_hand(b):
    groups = N * (1 + K)
    by_part = {
        "events: rows, positions, projection": rows(b * U, ITEM) + rows(b * U, D) + product(b * U, ITEM, D),
        "context: queries, keys and values of all blocks": L * product(b * U, D, 3 * D),
        "context: all else, of all blocks but the last, where nobody reads it": (L - 1)
        * (attention(b, U, 0, pairs=U * (U + 1) // 2) + block(b * U)),
        "candidates: rows, projection": rows(b * N, ITEM) + product(b * N, ITEM, D),
        "task tokens in the first block: queries, keys and values": product(K, D, 3 * D),
        "task tokens in the first block: scores of the context, by queries that all requests share": product(
            K, D // H, U, each=b * H
        )
        - (b - 1) * product(K, D // H, 0, each=H),
        "task tokens in the first block: scores of themselves": product(1, D // H, 1, each=K * H),
        "task tokens in the first block: sums": product(K, U, D // H, each=b * H),
        "candidates in the first block": product(b * N, D, 3 * D) + attention(b, N, U, pairs=N * (U + 1)),
        "task tokens in the first block: scores of candidates": product(N, D // H, K, each=b * H),
        "groups in the last block: queries, keys and values": product(b * groups, D, 3 * D),
        "task tokens in the last block: attention to the context, the candidate and themselves": attention(
            b, groups, U, pairs=N * K * (U + 2), readers=N * K
        ),
        "groups: all else, in the last block of task tokens alone": block(b * groups) + block(b * N * K),
        "descriptor: nothing learns from the gradient of an age": product(b, 1, D, gradients=1) + product(b, D, K * D),
        "candidate attention: queries": product(b, D, D, each=K) + product(b, D // H, D, each=K * H),
        "candidate attention: scores and sums": product(H, D, N, each=b * K) + product(H, N, D, each=b * K),
        "candidate attention: values, merge": product(b, D, D // H, each=K * H) + product(b, D, D, each=K),
        "cross-task: query, merge, feed-forward": product(b * K, D, D) + block(b * K),
        "cross-task: keys and values, with and without gradient to the task": product(2 * b * K, D, 2 * D),
        "cross-task: scores": product(K, D // H, 2 * K, each=b * H),
        "cross-task: sums": product(K, 2 * K, D // H, each=b * H),
        "score": product(1, D, N, each=b * K),
    }
    cost = batch_cost(onerank(ONE_SEQUENCE, L), b, N, U)
    found = [cost.forward_flops, cost.training_flops, cost.forward_bytes, cost.training_bytes]
    np.testing.assert_array_equal(found, sum(by_part.values()))
    assert cost.training_intensity == cost.training_flops / cost.training_bytes


def test_parameters_of_tables_and_of_the_rest_are_told_apart():
    a_block = 3 * D * D + D * D + 2 * FFN * D * D + (FFN + 1) * D + 2 * 2 * D + H
    by_part = {
        "context: kernel and positions": ITEM * D + LONGEST * D,
        "candidates: projection and task tokens": ITEM * D + D + K * D,
        "blocks, and the norm after them": L * a_block + 2 * D,
        "descriptor: two layers and a norm": D + D + 2 * D + K * (D * D + D),
        "candidate attention and its merge": K * 4 * D * D,
        "cross-task": 4 * D * D + 2 * FFN * D * D + (FFN + 1) * D + 2 * 2 * D,
        "score: factor and bias": 2 * K,
    }
    cost = batch_cost(onerank(ONE_SEQUENCE, L), 1, N, U)
    assert (cost.dense_parameters, cost.table_parameters) == (sum(by_part.values()), 7 * ITEM)
    assert cost.parameters == cost.dense_parameters + cost.table_parameters


def test_half_as_wide_numbers_move_half_the_bytes():
    model = onerank(ONE_SEQUENCE, L)
    mixed = type(model).from_config({**model.get_config(), "dtype": "mixed_bfloat16"})
    mixed.create_variables()
    plain, half = batch_cost(model, 4, N, U), batch_cost(mixed, 4, N, U)
    assert half.training_flops == plain.training_flops
    assert 0.5 <= half.training_bytes / plain.training_bytes < 0.6, "rows and weights of attention are float32"


def test_any_model_has_a_cost():
    one, ten = (batch_cost(build_model(Model(name="din"), INPUTS), requests, 3, 5) for requests in (1, 10))
    assert ten.training_flops == 10 * one.training_flops > 20 * one.forward_flops
    assert one.training_bytes < ten.training_bytes < 10 * one.training_bytes, "parameters are read once a batch"
    assert ten.training_intensity > one.training_intensity
