import importlib
import inspect
import pkgutil
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer.heads
import trainer.layers
import trainer.losses
import trainer.models
from tests.testing.layer_cases import (
    CASES,
    EVENTS,
    EVENTS_MASK,
    HEADS,
    INPUTS,
    B,
    D,
    K,
    N,
    U,
    ids,
    normal,
    prefix_mask,
    tasks_of_weights,
)
from tests.testing.layer_checks import numpy, outputs_of, run_layer_test, run_saving_test, spread_weights
from trainer.layers.feature_embedding import FeatureEmbedding
from trainer.layers.field_projection import FieldProjection
from trainer.layers.stacked_dense import StackedDense
from trainer.losses.pointwise import PointwiseLoss
from trainer.models.onerank.candidate_attention import CandidateAttention
from trainer.models.onerank.candidate_tokenizer import CandidateTokenizer
from trainer.models.onerank.cross_task_attention import CrossTaskAttention
from trainer.models.onerank.history_tokenizer import HistoryTokenizer
from trainer.models.onerank.matching_scorer import START_FACTOR, MatchingScorer
from trainer.models.onerank.private_channel_block import PrivateChannelBlock
from trainer.models.onerank.situational_descriptor import SituationalDescriptor
from trainer.models.onerank.summary_merge import SummaryMerge

# === What holds for every layer ===

ONE_TASK = tasks_of_weights(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_layer_is_sound(case):
    cls, settings, arguments, shape, options = CASES[case]
    run_layer_test(cls, settings, arguments, shape, **options)


@pytest.mark.slow
def test_all_layers_are_saved_and_exported():
    run_saving_test({name: (case.cls, case.settings, case.arguments) for name, case in CASES.items()})


def test_every_public_layer_has_a_case():
    modules = [
        importlib.import_module(module.name)
        for package in (trainer.layers, trainer.heads, trainer.losses, trainer.models)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    public = {
        cls
        for module in modules
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, keras.layers.Layer)
        and not issubclass(cls, keras.Model)
        and cls.__module__ == module.__name__
        and not name.startswith("_")
        and not module.__name__.endswith(".base")  # what heads and losses are made from
    }
    assert public == {case.cls for case in CASES.values()}


# === FeatureEmbedding ===


@pytest.fixture(scope="module")
def embedding():
    layer = FeatureEmbedding(INPUTS)
    layer.build()
    spread_weights(layer)
    return layer


def table(layer, name):
    return numpy(layer.tables[name].embeddings)


def test_embedding_concatenates_the_columns_in_their_order(embedding):
    features = {"price": normal(B, N), "tags": ids(5, B, N, 2), "item": ids(10, B, N)}
    actual = numpy(embedding(features, group="candidate"))
    np.testing.assert_array_equal(actual[..., :4], table(embedding, "item")[features["item"]])
    np.testing.assert_array_equal(actual[..., 4], features["price"])
    assert embedding.width("candidate") == actual.shape[-1] == 7
    user = ids(6, B)
    np.testing.assert_array_equal(numpy(embedding({"user": user}, group="user")), table(embedding, "user")[user])


def test_candidate_and_event_of_one_item_have_one_vector(embedding):
    item = ids(10, B, N)
    candidate = embedding({"item": item}, group="candidate", names=("item",))
    event = embedding({"item": item, "buy": ids(3, B, N)}, group="seen")
    np.testing.assert_array_equal(numpy(candidate), numpy(event)[..., :4])
    assert len(embedding.trainable_variables) == len(INPUTS.rows)


def test_sets_are_averaged_over_the_ids_that_are_there(embedding):
    tags = np.array([[[1, 2, 0], [3, 0, 0], [0, 0, 0], [0, 4, 4]]])
    rows = table(embedding, "tag")
    expected = [(rows[1] + rows[2]) / 2, rows[3], np.zeros(2), rows[4]]
    actual = numpy(embedding({"tags": tags}, group="candidate", names=("tags",)))[0]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_sets_that_hold_no_id_at_all_are_zero(embedding):
    actual = numpy(embedding({"tags": np.zeros((B, N, 0), "int64")}, group="candidate", names=("tags",)))
    np.testing.assert_array_equal(actual, np.zeros((B, N, 2)))


def test_a_missing_id_has_a_vector_of_its_own(embedding):
    actual = numpy(embedding({"item": np.zeros((1, 1), "int64")}, group="candidate", names=("item",)))[0, 0]
    np.testing.assert_array_equal(actual, table(embedding, "item")[0])
    assert np.any(actual) and not np.any(np.all(table(embedding, "item")[1:] == actual, axis=1))


def whole_batch():
    """A batch of INPUTS; ids are 0 where padded."""
    tags = ids(5, B, N, 3)
    events = {name: {"item": ids(10, B, 3 if name == "liked" else U, seed=2)} for name in ("seen", "liked")}
    events["seen"]["buy"] = ids(3, B, U)
    masks = {name: EVENTS[name]["mask"] for name in events}
    candidates = {"item": ids(10, B, N), "price": normal(B, N), "tags": tags, "mask": prefix_mask([N, 2, 1], N)}
    candidates["item"] = candidates["item"] * candidates["mask"]
    sequences = {
        name: {**{key: values * masks[name] for key, values in group.items()}, "mask": masks[name]}
        for name, group in events.items()
    }
    return {"user": {"user": ids(6, B)}, "context": {}, "sequences": sequences, "candidates": candidates}


def test_penalty_is_half_the_squares_of_what_is_looked_up_over_the_requests(embedding):
    batch = whole_batch()
    sequences, candidates = batch["sequences"], batch["candidates"]
    lookups = {
        "user": [batch["user"]["user"]],
        "item": [candidates["item"], sequences["seen"]["item"], sequences["liked"]["item"]],
        "tag": [candidates["tags"]],
        "feedback.buy": [sequences["seen"]["buy"]],
    }
    variables = [embedding.tables[name].embeddings for name in lookups]
    with tf.GradientTape() as tape:
        penalty = embedding.penalty(batch)
    gradients = tape.gradient(penalty, [variable.value for variable in variables])
    expected = 0.0
    for (name, values), gradient in zip(lookups.items(), gradients, strict=True):
        rows = table(embedding, name)
        looked_up = np.concatenate([array.ravel() for array in values])
        times = np.bincount(looked_up, minlength=len(rows))
        times[0] = 0  # padding and missing values
        expected += 0.5 * (times * np.square(rows).sum(axis=1)).sum() / B
        np.testing.assert_allclose(numpy(gradient), times[:, None] * rows / B, rtol=1e-5, atol=1e-6)
    assert penalty.shape == () and float(penalty) == pytest.approx(expected, rel=1e-5)


def test_penalty_of_padding_alone_is_zero(embedding):
    nothing = keras.tree.map_structure(np.zeros_like, whole_batch())
    assert float(embedding.penalty(nothing)) == 0


def test_a_field_projection_is_a_matrix_per_feature():
    layer, x = FieldProjection([4, 1, 2, 1], d=6), normal(B, D)
    layer.build(x.shape)
    spread_weights(layer)
    kernels = {int(width): list(numpy(kernel)) for width, kernel in layer.kernels.items()}
    start, expected = 0, []
    for width in (4, 1, 2, 1):
        expected.append(x[:, start : start + width] @ kernels[width].pop(0))
        start += width
    np.testing.assert_allclose(numpy(layer(x)), np.stack(expected, axis=1) + numpy(layer.bias), atol=1e-5)


def test_a_stack_of_dense_layers_starts_as_each_of_them_would():
    for width, units in [(30, 10), (10, 50)]:
        stacked = StackedDense(7, units)
        stacked.build((None, width))
        limit, kernel = (6 / (width + units)) ** 0.5, numpy(stacked.kernel)
        assert 0.95 * limit < np.abs(kernel).max() <= limit, "keras.layers.Dense's limits"
        assert all(np.abs(kernel[n] - kernel[0]).max() > limit for n in range(1, 7)), "no two are alike"


def test_layers_follow_the_global_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = CandidateTokenizer(tasks=2, d=8)
        assert keras.backend.standardize_dtype(layer(normal(B, N, D)).dtype) == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


# === OneRank's layers ===


def test_a_block_without_history_keeps_its_shape():
    block = PrivateChannelBlock(HEADS)
    tokens, state = block(np.zeros((B, 0, D), "float32"), np.zeros((B, 0), bool))
    assert tokens.shape == (B, 0, D)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == dict.fromkeys(
        ("keys", "values"), (B, HEADS, 0, D // HEADS)
    )


@pytest.mark.parametrize("u", [0, 1, U])
@pytest.mark.parametrize("tasks_only", [False, True])
def test_a_first_and_a_last_block_do_less_for_the_same(u, tasks_only):
    block, tasks, mask = PrivateChannelBlock(HEADS), normal(K, D, seed=3), EVENTS_MASK[:, :u]
    groups = np.concatenate([normal(B, N, 1, D, seed=4), np.broadcast_to(tasks, (B, N, K, D))], axis=2)
    block.build((B, u, D))
    spread_weights(block)
    _, first = block(normal(B, u, D), mask, task_tokens=tasks)
    other = {name: first[name] for name in ("keys", "values")}
    expected = numpy(block(groups, mask, other))
    for state in (first, other):
        actual = numpy(block(groups, mask, state, tasks_only=tasks_only))
        np.testing.assert_allclose(actual, expected[:, :, 1:] if tasks_only else expected, atol=1e-5)


def test_dropout_of_a_block_acts_in_training_only():
    block, tokens = PrivateChannelBlock(HEADS, dropout=0.5), normal(B, U, D)
    plain = outputs_of(block(tokens, EVENTS_MASK))[0]
    np.testing.assert_array_equal(outputs_of(block(tokens, EVENTS_MASK, training=False))[0], plain)
    assert np.abs(outputs_of(block(tokens, EVENTS_MASK, training=True))[0] - plain).max() > 1e-3


def test_context_mask_says_where_events_and_their_marks_are():
    mask = outputs_of(HistoryTokenizer(INPUTS, d=D)(EVENTS))[1]
    # the history before the anchor, whatever their order in the spec; BOS and EOS where the anchor holds events
    anchor = [[True, True, True, True, True], [False] * 5, [True, True, False, False, True]]
    np.testing.assert_array_equal(mask, np.concatenate([EVENTS_MASK, anchor], axis=1))


def test_history_tokens_are_projections_positions_and_marks():
    layer = HistoryTokenizer(INPUTS, d=D)
    layer(EVENTS)
    spread_weights(layer)
    tokens = outputs_of(layer(EVENTS))[0]
    weight = {variable.name: numpy(variable) for variable in layer.trainable_variables}
    seen = np.concatenate([weight["item_kernel"], weight["buy_kernel"]])
    for b in range(B):
        history, anchor = (EVENTS[name]["mask"][b].sum() for name in ("seen", "liked"))
        for u in range(history):  # positions count from the newest event
            expected = EVENTS["seen"]["events"][b, u] @ seen + weight["seen_positions"][history - 1 - u]
            np.testing.assert_allclose(tokens[b, u], expected, atol=1e-5)
        for u in range(anchor):
            expected = EVENTS["liked"]["events"][b, u] @ weight["item_kernel"]
            expected = expected + weight["liked_positions"][anchor - 1 - u]
            np.testing.assert_allclose(tokens[b, U + 1 + u], expected, atol=1e-5)
        np.testing.assert_allclose(tokens[b, [U, -1]], weight["liked_bos_eos"], atol=1e-6)


def test_events_beyond_a_sequences_length_share_the_last_position():
    layer = HistoryTokenizer(INPUTS, d=D)
    longer = {**EVENTS, "seen": {"events": np.zeros((B, U + 3, 6), "float32"), "mask": np.ones((B, U + 3), bool)}}
    tokens = outputs_of(layer(longer))[0]
    last = numpy(layer.positions["seen"])[U - 1]
    np.testing.assert_array_equal(tokens[:, :4], np.broadcast_to(last, (B, 4, D)))


def test_a_parallel_task_reads_itself_alone():
    layer, tasks = CrossTaskAttention("parallel", HEADS), normal(B, K, D)
    together = numpy(layer(tasks))
    other = normal(B, K, D, seed=5)
    other[:, 1] = tasks[:, 1]
    np.testing.assert_allclose(numpy(layer(other))[:, 1], together[:, 1], atol=1e-6)


def test_bilinear_matching_starts_as_the_dot_product():
    arguments = CASES["matching_scorer_dot"].arguments
    dot, bilinear = (numpy(MatchingScorer(kind)(**arguments)) for kind in ("dot", "bilinear"))
    expected = np.einsum("bkd,bnkd->bnk", arguments["tasks"], arguments["candidates"]) / D**0.5
    np.testing.assert_allclose(dot, START_FACTOR * expected, atol=1e-5)
    np.testing.assert_allclose(bilinear, dot, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "shapes"),
    [
        (CandidateAttention, [(None, K, D), (None, None, K, D)]),
        (MatchingScorer, [(None, K, D), (None, None, K, D)]),
        (SituationalDescriptor, [(None, 6), (None, 3)]),
        (SummaryMerge, [{"read": (None, None, K, HEADS, D // HEADS), "log_weight": (None, None, K, HEADS)}]),
    ],
)
def test_weights_of_tasks_start_independent_and_of_one_tasks_scale(cls, shapes):
    """Glorot's limits of one task's matrix, not of the stack; no two weights draw the same numbers."""
    kwargs = {"tasks": K, "d": D} if cls is SituationalDescriptor else {"kind": "mlp"} if cls is MatchingScorer else {}
    keras.utils.set_random_seed(1)
    layer = cls(**kwargs)
    layer.build(*shapes)
    drawn = [numpy(v) for v in layer.trainable_variables if v.name.endswith("kernel") and v.shape[0] == K and np.any(v)]
    flat = np.concatenate([weight.ravel() for weight in drawn])
    assert len(np.unique(flat)) == flat.size
    for weight in drawn:
        fans = 4 if cls is MatchingScorer else 2
        limit = (6 / (fans * D)) ** 0.5
        assert 0.8 * limit < np.abs(weight).max() <= limit


# Where the message says what is allowed, that is the cure.
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CandidateAttention(heads=0), "`heads` should be at least 1.*`heads=0`"),
        (
            lambda: CandidateAttention(3).build((B, K, D), (B, N, K, D)),
            "`heads` should divide d, since .*`heads=3`, d = 8",
        ),
        (lambda: CandidateTokenizer(-1, D), "`tasks` should not be negative.*`tasks=-1`"),
        (lambda: CandidateTokenizer(K, 0), "`d` should be at least 1.*`d=0`"),
        (lambda: HistoryTokenizer(INPUTS, d=0), "`d` should be at least 1.*`d=0`"),
        (lambda: CrossTaskAttention(heads=0), "`heads` and `ffn_ratio` should be at least 1.*`heads=0`"),
        (lambda: CrossTaskAttention(ffn_ratio=0), "at least 1.*`ffn_ratio=0`"),
        (lambda: CrossTaskAttention(heads=3).build((B, K, D)), "`heads` should divide d, since .*`heads=3`, d = 8"),
        (
            lambda: CrossTaskAttention("all"),
            r"one of \('parallel', 'full', 'cascade'\) or a matrix.*`all`",
        ),
        (lambda: MatchingScorer("cosine"), "`kind` should be one of dot, bilinear, mlp.*`kind=cosine`"),
        (lambda: PrivateChannelBlock(heads=0), "`heads` and `ffn_ratio` should be at least 1.*`heads=0`"),
        (lambda: PrivateChannelBlock(ffn_ratio=-1), "at least 1.*`ffn_ratio=-1`"),
        (lambda: PrivateChannelBlock(dropout=1.0), r"`dropout` should be in \[0, 1\), since .*`dropout=1.0`"),
        (lambda: PrivateChannelBlock(3).build((B, U, D)), "`heads` should divide d, since .*`heads=3`, d = 8"),
        (lambda: PointwiseLoss([]), "`tasks` should hold at least one task. Received: none"),
        (
            lambda: PointwiseLoss(tasks_of_weights(1.0), infonce=-0.1),
            "`infonce` should be at least 0.*Received: `infonce=-0.1`",
        ),
        (
            lambda: PointwiseLoss(tasks_of_weights(1.0), 0.1, 0.01),
            "`temperature` above 0.01.*Received.*`temperature=0.01`",
        ),
        (lambda: SituationalDescriptor(0, D), "`tasks` and `d` should be at least 1.*`tasks=0`"),
        (lambda: SituationalDescriptor(K, -8), "`tasks` and `d` should be at least 1.*`d=-8`"),
    ],
)
def test_layers_refuse_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 0], [0, 1]], "a matrix of 4 by 4, one row per task"),
        ([[1, 0], [0, 1, 1]], "a matrix of 4 by 4, one row per task"),
        ([], "a matrix of 4 by 4, one row per task"),
        (np.eye(4) * 0.5, "1 on the diagonal"),
        (np.eye(4) * 2, "weights from 0 to 1"),
        (np.eye(4) - np.eye(4, k=1), "weights from 0 to 1"),
        (np.where(np.eye(4, k=1), np.nan, np.eye(4)), "weights from 0 to 1"),
    ],
)
def test_a_matrix_of_visibility_is_checked(matrix, message):
    matrix = [[float(weight) for weight in row] for row in matrix]
    with pytest.raises(ValueError, match=rf"{message}.*Received: `{re.escape(str(matrix))}`"):
        CrossTaskAttention(matrix, HEADS).build((B, K, D))
