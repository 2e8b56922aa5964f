"""OneRank's mechanisms, and for each the bugs that a programmer would make: the same check must fail under them.

A check is a test without arguments; `fails_under` names its bugs. A bug plants itself in place of a method, a function
or a module's operations. A bug that no longer reaches the code lets its check pass, and so fails its own test.
"""

import copy
import functools
import inspect
import itertools
import types
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tests.testing.layer_cases import tasks_of_weights
from tests.testing.layer_checks import numpy, spread_weights
from tests.testing.random_batches import INPUTS, random_batch
from trainer.losses import masked, pointwise
from trainer.losses.pointwise import LOWEST_TEMPERATURE, PointwiseLoss
from trainer.models.base import empty_batch
from trainer.models.onerank import (
    candidate_attention,
    cross_task_attention,
    history_tokenizer,
    private_channel_block,
)
from trainer.models.onerank import model as onerank_model
from trainer.models.onerank.candidate_attention import CandidateAttention
from trainer.models.onerank.candidate_tokenizer import CandidateTokenizer
from trainer.models.onerank.cross_task_attention import CrossTaskAttention
from trainer.models.onerank.history_tokenizer import HistoryTokenizer
from trainer.models.onerank.matching_scorer import MatchingScorer
from trainer.models.onerank.model import OneRank
from trainer.models.onerank.private_channel_block import PrivateChannelBlock
from trainer.models.onerank.situational_descriptor import SituationalDescriptor
from trainer.models.onerank.summary_merge import SummaryMerge
from trainer.ops.attention import first_block_attention, portable_attention, structured_attention
from trainer.ops.attention.attention_pattern import AttentionPattern
from trainer.ops.kernels import use_kernels
from trainer.testing.model_contract import score_in_parts

K, D, HEADS = len(INPUTS.tasks), 12, 2
SUMMARY = {"read": (3, 1, K, HEADS, D // HEADS), "log_weight": (3, 1, K, HEADS)}
OTHERS = ~np.eye(K, dtype=bool)
CANDIDATES, EVENTS = [4, 2, 1], [5, 0, 3]


@pytest.fixture(autouse=True)
def portable():
    """The kernel that bugs can be planted in; `test_structured_attention.py` holds the others to it."""
    with use_kernels("portable"):
        yield


# === Bugs: functions that plant themselves ===

TWINS = []


def fails_under(**bugs):
    """Names the bugs under which a check must fail."""

    def register(check):
        TWINS.extend(pytest.param(check, bug, id=f"{check.__name__[5:]}-{name}") for name, bug in bugs.items())
        return check

    return register


def replaced(owner, name, bug):
    """The bug of a function or method that is another one: `bug` takes the right one, then its arguments."""

    def plant(monkeypatch):
        right = getattr(owner, name)

        @functools.wraps(right)  # Keras reads the signatures of methods
        def wrong(*args, **kwargs):
            return bug(right, *args, **kwargs)

        monkeypatch.setattr(owner, name, wrong)

    return plant


def operations(module, **bugs):
    """The bug of a module in which operations of `keras.ops` are others: each takes the right one, then arguments."""

    def plant(monkeypatch):
        wrong = {name: functools.partial(bug, getattr(ops, name)) for name, bug in bugs.items()}
        monkeypatch.setattr(module, "ops", types.SimpleNamespace(**{**vars(ops), **wrong}))

    return plant


def during(owner, name, bug):
    """The bug that is there while a function or method runs: `bug` makes it of the arguments."""

    def call(right, *args, **kwargs):
        with pytest.MonkeyPatch.context() as monkeypatch:
            bug(*args, **kwargs)(monkeypatch)
            return right(*args, **kwargs)

    return replaced(owner, name, call)


def attributes(target, **values):
    """The bug of an object whose attributes hold other values."""

    def plant(monkeypatch):
        for name, value in values.items():
            monkeypatch.setattr(target, name, value)

    return plant


def both(*bugs):
    return lambda monkeypatch: [bug(monkeypatch) for bug in bugs]


def setting(**forced):
    """The bug of a OneRank that ignores settings."""
    return replaced(OneRank, "__init__", lambda init, *args, **kwargs: init(*args, **{**kwargs, **forced}))


def after(owner, name, change):
    """The bug of a method after which its object is changed."""

    def call(right, self, *args, **kwargs):
        right(self, *args, **kwargs)
        change(self)

    return replaced(owner, name, call)


def group_attention_where(reads):
    """The bug of group attention in which token a of group i reads token c of group j where `reads(i, a, j, c)`."""

    def attend(queries, keys, values, pattern, mask=None, prefix=None, bias=None):
        if prefix is None:
            return structured_attention.structured_attention(queries, keys, values, pattern, mask)
        (b, _, m, e), g = queries.shape, pattern.group_size
        places = list(np.ndindex(m // g, g))
        table = np.array([[reads(*query, *key) for key in places] for query in places])
        to_prefix = np.broadcast_to(prefix.mask[:, None], (b, m, prefix.mask.shape[1]))
        visible = np.concatenate([to_prefix, np.broadcast_to(table, (b, m, m))], axis=-1)[:, None]
        keys, values = ops.concatenate([prefix.keys, keys], 2), ops.concatenate([prefix.values, values], 2)
        is_item = np.array([0] * prefix.mask.shape[1] + [c == 0 for _, c in places], "float32")
        scores = ops.einsum("bhqe,bhke->bhqk", queries, keys) * e**-0.5 + bias[:, None, None] * is_item
        return pattern.select_queries(ops.matmul(ops.softmax(ops.where(visible, scores, -1e9)), values))

    return lambda monkeypatch: monkeypatch.setattr(private_channel_block, "structured_attention", attend)


def right_rule(i, a, j, c):
    return i == j and (a == c or c == 0)


TASKS_TALK = group_attention_where(lambda i, a, j, c: i == j and (c == 0 or a > 0))
ITEM_READS_TASKS = group_attention_where(lambda i, a, j, c: i == j and (a == c or 0 in (a, c)))


def unmasked(prefix):
    return prefix._replace(mask=ops.ones_like(prefix.mask))


NOT_CAUSAL = replaced(
    portable_attention,
    "_list_attention",
    lambda attend, queries, keys, values, _, *masks: attend(queries, keys, values, AttentionPattern("all"), *masks),
)
CONTEXT_MASK_DROPPED = replaced(
    portable_attention,
    "_list_attention",
    lambda attend, queries, keys, values, pattern, mask, prefix: attend(
        queries, keys, values, pattern, ops.ones_like(mask), unmasked(prefix)
    ),
)
ANCHORS_FIRST = after(
    HistoryTokenizer,
    "build",
    lambda self: setattr(
        self, "ordered", sorted(self.inputs.sequences, key=lambda sequence: sequence.role != "anchor")
    ),
)
MARKS_AROUND_NOTHING = operations(
    history_tokenizer, any=lambda any_, mask, **options: any_(ops.ones_like(mask), **options)
)
CUT_IGNORED = operations(cross_task_attention, stop_gradient=lambda _, tensor: tensor)
TRANSPOSED = replaced(cross_task_attention, "visibility_matrix", lambda matrix, *arguments: matrix(*arguments).T)


def masked_after_the_softmax(self, _):
    shares = np.exp(self.log_shares)[..., None]
    return both(
        attributes(self, log_shares=0 * self.log_shares),
        operations(cross_task_attention, exp=lambda exp, scores: exp(scores) * shares),
    )


MASK_AFTER_SOFTMAX = during(CrossTaskAttention, "_attend", masked_after_the_softmax)

# === Helpers ===


def made(inputs=INPUTS, **settings):
    model = OneRank(inputs, **{"d": D, "layers": 2, "heads": HEADS, "ffn_ratio": 2, **settings})
    model.call(empty_batch(inputs))  # not through Keras, which would trace a graph first
    spread_weights(model)
    return model


def refilled(batch, group, where):
    """The batch with other values of a group at some places, padded ones too."""
    result, random = copy.deepcopy(batch), np.random.default_rng(9)
    for target in result["sequences"].values() if group == "sequences" else [result[group]]:
        for name, values in target.items():
            if name != "mask":
                fresh = random.normal(size=values.shape) if values.dtype == "float32" else (values + 1) % 3
                place = where.reshape(where.shape + (1,) * (values.ndim - where.ndim))
                target[name] = np.where(place, fresh, values).astype(values.dtype)
    return result


def other_situation(batch):
    """The batch of other users in other contexts."""
    return refilled(refilled(batch, "user", np.ones(3, bool)), "context", np.ones(3, bool))


def each(function, batch, *groups):
    """The batch with a function of all arrays of some groups."""
    return {**batch, **{group: keras.tree.map_structure(function, batch[group]) for group in groups}}


def run(model, batch):
    """r [B, N, K, d], z [B, K, d] and the logits [B, N, K]."""
    cache = model.encode_user(batch["user"], batch["sequences"])
    r = model._candidate_states(cache, batch["candidates"], False)
    queries = model._queries(cache, batch["context"])
    z = model._task_vectors(queries, model._summary(queries, r, batch["candidates"]["mask"]))
    return numpy(r), numpy(z), numpy(model.call(batch))


def logits_of(model, batch):
    return numpy(model.call(batch))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def of_task(j, *shape, seed=0):
    """Changes [.., K, d] of one task."""
    return normal(*shape, K, D, seed=seed) * (np.arange(K) == j)[:, None]


def built(layer, *shapes):
    layer.build(*shapes)
    spread_weights(layer)
    return layer


def same(actual, expected, what, atol=1e-5):
    np.testing.assert_allclose(numpy(actual), numpy(expected), rtol=0, atol=atol, err_msg=what)


def differs(actual, expected, what):
    assert np.abs(numpy(actual) - numpy(expected)).max(initial=0) > 1e-4, what


def gradients(function, sources):
    """Gradients of the sum of a result, as arrays."""
    with tf.GradientTape() as tape:
        tape.watch(sources)
        result = function()
    found = tape.gradient(result, sources, unconnected_gradients="zero")
    return [numpy(tf.convert_to_tensor(gradient)) for gradient in found]


# === Private channels; candidates apart from each other until they are scored ===


@fails_under(
    tasks_read_each_other=TASKS_TALK,
    item_reads_its_tasks=ITEM_READS_TASKS,
    first_tasks_read_each_other=replaced(
        private_channel_block,
        "read_before_candidates",
        lambda read, tasks, prefix: read([tasks[0], ops.roll(tasks[1], 1, axis=2), tasks[2]], prefix),
    ),
)
def test_a_task_token_moves_its_own_channel_alone():
    # deep: through the item's token, a task would reach the others from the second block on
    model, batch = made(layers=3), random_batch(CANDIDATES, EVENTS)
    (before, _, _), tokens = run(model, batch), model.candidate_tokenizer.task_tokens
    start = numpy(tokens)
    for j in range(K):
        tokens.assign(start + of_task(j))
        after = run(model, batch)[0]
        same(after[:, :, OTHERS[j]], before[:, :, OTHERS[j]], f"task {j} leaks", 1e-6)
        differs(after[:, :, j], before[:, :, j], f"task {j} should move its own channel")


def scored_one_by_one(self, cache, context, candidates, training=None):
    def score(n):
        one = {name: values[:, n : n + 1] for name, values in candidates.items()}
        states, summary = self.summarize_candidates(cache, context, one, training)
        return self.score_summary(cache, context, summary, states)

    return ops.concatenate([score(n) for n in range(candidates["mask"].shape[1])], axis=1)


@fails_under(
    groups_read_each_other=group_attention_where(lambda i, a, j, c: c == 0 or right_rule(i, a, j, c)),
    no_candidate_attention=replaced(SummaryMerge, "call", lambda merge, self, summary: 0 * merge(self, summary)),
    chunks_of_one=attributes(OneRank, score_candidates=scored_one_by_one),
)
def test_candidates_meet_in_the_scores_not_in_the_states():
    model, batch = made(), random_batch([4, 4, 4], EVENTS)
    rows, kept = np.arange(3), np.array([1, 0, 2])  # a candidate of each request is kept
    other = refilled(batch, "candidates", np.arange(4) != kept[:, None])
    (r, _, logits), (other_r, _, other_logits) = run(model, batch), run(model, other)
    same(other_r[rows, kept], r[rows, kept], "a state depends on other candidates", 1e-6)
    differs(other_r, r, "the others did change")
    for b in rows:
        differs(other_logits[b, kept[b]], logits[b, kept[b]], "a score depends on the other candidates")


def with_positions(tokenize, self, candidates):
    groups = tokenize(self, candidates)
    is_item = np.arange(groups.shape[2])[:, None] == 0
    return groups + is_item * ops.eye(groups.shape[1], self.d)[:, None]


@fails_under(
    candidates_have_positions=replaced(CandidateTokenizer, "call", with_positions),
    groups_read_those_before=group_attention_where(lambda i, a, j, c: (c == 0 and j < i) or right_rule(i, a, j, c)),
)
def test_the_order_of_candidates_is_the_order_of_scores():
    model, batch, order = made(), random_batch([4, 4, 4], EVENTS), [2, 0, 3, 1]
    turned = each(lambda values: values[:, order], batch, "candidates")
    same(logits_of(model, turned), logits_of(model, batch)[:, order], "order")


# === Padding ===


@fails_under(
    mask_dropped=operations(candidate_attention, where=lambda _, mask, scores, hidden: scores),
    mask_times_scores=operations(
        candidate_attention, where=lambda _, mask, scores, hidden: scores * ops.cast(mask, "float32")
    ),
)
def test_padded_candidates_are_inert():
    model, batch = made(), random_batch(CANDIDATES, EVENTS)
    there = batch["candidates"]["mask"]
    wider = each(lambda values: np.pad(values, [(0, 0), (0, 3)] + [(0, 0)] * (values.ndim - 2)), batch, "candidates")
    for other in (batch, wider):
        other = refilled(other, "candidates", ~other["candidates"]["mask"])
        same(logits_of(model, other)[:, :4][there], logits_of(model, batch)[there], "padding")


@fails_under(
    mask_dropped_in_context=CONTEXT_MASK_DROPPED,
    mask_dropped_in_groups=replaced(
        portable_attention,
        "_group_attention",
        lambda attend, *tensors: attend(*tensors[:-2], unmasked(tensors[-2]), tensors[-1]),
    ),
    positions_count_padding=replaced(
        history_tokenizer, "_age", lambda age, mask, length: age(ops.ones_like(mask), length)
    ),
    marks_around_nothing=MARKS_AROUND_NOTHING,
)
def test_padded_events_are_inert():
    model, batch = made(), random_batch(CANDIDATES, EVENTS)
    expected, padding = logits_of(model, batch), ~batch["sequences"]["seen"]["mask"]
    same(logits_of(model, refilled(batch, "sequences", padding)), expected, "values of padding")
    for pad in [(0, 4), (4, 0)]:  # behind, in front
        longer = each(lambda values, pad=pad: np.pad(values, [(0, 0), pad]), batch, "sequences")
        same(logits_of(model, longer), expected, "more padding")
    alone = each(lambda values: values[1:2], batch, *batch)
    empty = each(lambda values: values[:, :0], alone, "sequences")
    same(logits_of(model, empty), expected[1:2], "no events at all")


# === The user state ===


@fails_under(
    the_descriptor_is_cached=replaced(
        OneRank,
        "_queries",
        lambda queries, self, cache, context: cache.setdefault("queries", queries(self, cache, context)),
    ),
)
def test_one_cache_serves_all_requests_of_a_user():
    assert list(inspect.signature(OneRank.encode_user).parameters) == ["self", "user", "sequences", "training"]
    model, batch = made(), random_batch(CANDIDATES, EVENTS)
    other = refilled(refilled(batch, "context", np.ones(3, bool)), "candidates", batch["candidates"]["mask"])
    cache = model.encode_user(batch["user"], batch["sequences"])
    before = {name: numpy(tensor) for name, tensor in cache.items()}
    for request in (batch, other, batch):
        scored = model.score_candidates(cache, request["context"], request["candidates"])
        same(scored, logits_of(model, request), "from the cache as in a whole call")
    assert cache.keys() == before.keys() and all((numpy(cache[name]) == before[name]).all() for name in cache)
    differs(logits_of(model, other), logits_of(model, batch), "the requests differ")


# === The structured attention against one mask over all tokens ===


def reads(query, key):
    """The table of the mask. Tokens are ("history", place), ("item", i) and ("task", i, k)."""
    if key[0] == "history":
        return query[0] != "history" or key[1] <= query[1]
    return query == key or (query[0] == "task" and key == ("item", query[1]))


def norm(x, layer):
    x = x - ops.mean(x, axis=-1, keepdims=True)
    return x / ops.sqrt(ops.mean(x * x, axis=-1, keepdims=True) + 1e-6) * layer.gamma + layer.beta


def ffn(x, layer):
    hidden = ops.gelu(x @ layer.ffn_in.kernel + layer.ffn_in.bias, approximate=False)
    return hidden @ layer.ffn_out.kernel + layer.ffn_out.bias


def attention(query, key, value, weigh):
    """Heads of width d/H, one after the other; `weigh` makes weights of a head's scaled scores."""
    read = []
    for head, (q, k, v) in enumerate(zip(*(ops.split(p, HEADS, axis=-1) for p in (query, key, value)), strict=True)):
        read.append(ops.matmul(weigh(ops.einsum("bqe,bke->bqk", q, k) / np.sqrt(D / HEADS), head), v))
    return ops.concatenate(read, axis=-1)


def dense_transformer(blocks, history, history_mask, groups, _):
    """A plain pre-norm Transformer over X0 = [history, groups]."""
    (b, n, g, _), u = groups.shape, history.shape[1]
    tokens = [("history", place) for place in range(u)]
    tokens += [("task", i, a - 1) if a else ("item", i) for i, a in np.ndindex(n, g)]
    table = np.array([[reads(query, key) for key in tokens] for query in tokens])
    visible = table & np.concatenate([history_mask, np.ones((b, n * g), bool)], axis=1)[:, None]
    is_item = np.array([token[0] == "item" for token in tokens], "float32")
    x = ops.concatenate([history, ops.reshape(groups, (b, n * g, D))], axis=1)
    for block in blocks:
        query_key_value = ops.split(norm(x, block.attention_norm) @ block.project.kernel, 3, axis=-1)

        def weigh(scores, head, bias=block.candidate_bias):
            return ops.softmax(ops.where(visible, scores + bias[head] * is_item, -1e9))

        read = attention(*query_key_value, weigh)
        x = x + read @ block.merge.kernel
        x = x + ffn(norm(x, block.ffn_norm), block)
    return x[:, :u], ops.reshape(x[:, u:], (b, n, g, D))


def structured_transformer(blocks, history, history_mask, groups, tasks):
    for index, block in enumerate(blocks):
        first = index == 0 and len(tasks) > 0
        history, state = block(history, history_mask, task_tokens=tasks if first else None)
        groups = block(groups, history_mask, state)
    return history, groups


def states_and_gradients(transformer, blocks, history, mask, items, tasks):
    weights = [variable.value for block in blocks for variable in block.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch([history, items, tasks])
        groups = [items, ops.broadcast_to(tasks, (*items.shape[:2], *tasks.shape))]
        read, states = transformer(blocks, history, mask, ops.concatenate(groups, axis=2), tasks)
        read = ops.where(mask[..., None], read, 0)  # what padded tokens read means nothing
        loss = ops.sum(read * normal(*read.shape)) + ops.sum(states * normal(*states.shape))
    return read, states, *tape.gradient(loss, [history, items, tasks, *weights], unconnected_gradients="zero")


OF_NO_SEQUENCE = tuple(column for column in INPUTS.columns if column.group not in INPUTS.sequence_names)
NO_SEQUENCES = replace(INPUTS, columns=OF_NO_SEQUENCE, sequences=())


def counted_twice(scores, queries, keys, pattern, bias):
    """A candidate reads itself as the group's first token and as itself."""
    to_itself = ops.sum(queries * keys[:, :, :, pattern.query_offset :], axis=-1)
    return ops.stack([scores(queries, keys, pattern, bias)[..., 0], to_itself], axis=-1)


def states_of_the_first(unpack, *arguments):
    states = unpack(*arguments)
    return [{**state, "keys": states[0]["keys"], "values": states[0]["values"]} for state in states]


def from_a_stopped_cache(update, self, groups, history_mask, state, *options):
    stopped = {name: ops.stop_gradient(state[name]) for name in ("keys", "values")}
    return update(self, groups, history_mask, {**state, **stopped}, *options)


def without_bias(attend, candidates, task_read, prefix, bias, *options):
    """Task tokens get no bias, candidates' tokens do: added to the other scores too, it cancels out."""
    others = task_read[..., -1:] + bias[:, None, None]
    return attend(candidates, ops.concatenate([task_read[..., :-1], others], axis=-1), prefix, bias, *options)


def first_stopped():
    """A matrix product that in its first call, that of queries and keys, stops the gradient of its first factor."""
    changes = iter([ops.stop_gradient])
    return lambda matmul, a, b: matmul(next(changes, ops.convert_to_tensor)(a), b)


@pytest.mark.slow
@fails_under(
    context_is_not_causal=NOT_CAUSAL,
    context_mask_dropped=CONTEXT_MASK_DROPPED,
    candidate_counts_twice=replaced(portable_attention, "_own_scores", counted_twice),
    no_candidate_bias=replaced(
        portable_attention,
        "_own_scores",
        lambda scores, queries, keys, pattern, bias: scores(queries, keys, pattern, 0 * bias),
    ),
    no_scaling=replaced(
        structured_attention,
        "portable_attention",
        lambda attend, queries, *rest: attend(queries * queries.shape[-1] ** 0.5, *rest),
    ),
    caches_of_one_block=replaced(onerank_model, "unpack_states", states_of_the_first),
    task_tokens_in_spite_of_the_flag=setting(task_tokens=True),
    no_gradient_into_the_cache=replaced(PrivateChannelBlock, "update_candidates", from_a_stopped_cache),
    first_tasks_read_padding=replaced(
        private_channel_block, "read_before_candidates", lambda read, tasks, prefix: read(tasks, unmasked(prefix))
    ),
    first_tasks_do_not_read_themselves=operations(
        first_block_attention, sum=lambda sum_, *arguments, **options: sum_(*arguments, **options) - 1e9
    ),
    first_tasks_without_candidate_bias=replaced(private_channel_block, "first_block_attention", without_bias),
    first_tasks_count_the_context_half=operations(first_block_attention, sigmoid=lambda sigmoid, x: sigmoid(x + 0.69)),
    no_gradient_into_the_first_tasks=during(
        private_channel_block,
        "read_before_candidates",
        lambda *_: operations(first_block_attention, matmul=first_stopped()),
    ),
)
def test_states_and_gradients_are_those_of_one_dense_mask():
    for inputs, candidates, events, settings in [
        (INPUTS, CANDIDATES, EVENTS, {}),
        (INPUTS, [1, 1], [0, 4], {}),
        (INPUTS, [2, 1], [0, 0], {"task_tokens": False}),
        (NO_SEQUENCES, [3, 1], [0, 0], {}),
        (NO_SEQUENCES, [1], [0], {}),
    ]:
        # a first block, a last one, and one between them
        model, batch = made(inputs, layers=3, **settings), random_batch(candidates, events, inputs=inputs)
        history, mask = model._history_tokens(batch["sequences"], model.embedding(batch["user"], group="user"))
        features = {name: values for name, values in batch["candidates"].items() if name != "mask"}
        groups = model.candidate_tokenizer(model.embedding(features, group="candidate"))
        items, tasks = groups[:, :, :1], groups[0, 0, 1:]
        arguments = model.blocks, ops.convert_to_tensor(history), numpy(mask), items, tasks
        expected = states_and_gradients(dense_transformer, *arguments)
        for n, actual in enumerate(states_and_gradients(structured_transformer, *arguments)):
            size = max(1, np.abs(expected[n]).max(initial=0))
            same(actual, expected[n], ["history", "groups", "gradient"][min(n, 2)], 1e-5 * size)
        r, _, logits = run(model, batch)
        states = numpy(norm(expected[1], model.final_norm))
        same(r, states[:, :, :1].repeat(K, axis=2) if settings else states[:, :, 1:], "the model runs these blocks")
        assert np.isfinite(logits).all() and logits.shape == r.shape[:3]


@fails_under(
    variables_as_arguments=operations(onerank_model, copy=lambda _, variable: ops.convert_to_tensor(variable)),
)
def test_recomputed_blocks_change_no_gradient_outside_a_graph():
    model, batch = made(layers=2), random_batch(CANDIDATES, EVENTS)

    def gradients(gradient_checkpointing):
        model.gradient_checkpointing = gradient_checkpointing
        with tf.GradientTape() as tape:
            logits = model(batch, training=True)
            loss = ops.sum(logits * normal(*logits.shape))
        return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    for variable, kept, recomputed in zip(model.trainable_variables, gradients(False), gradients(True), strict=True):
        same(tf.convert_to_tensor(recomputed), tf.convert_to_tensor(kept), variable.path, 1e-5)


def test_bugs_of_the_groups_attention_differ_from_it_in_the_rule_alone(monkeypatch):
    model, batch = made(), random_batch(CANDIDATES, EVENTS)
    expected = logits_of(model, batch)
    group_attention_where(right_rule)(monkeypatch)
    same(logits_of(model, batch), expected, "the right rule")


# === The tokenizer ===


def running_on():
    """Positions of the second sequence behind those of the first one."""
    starts = itertools.count(0, 3)
    return lambda age, mask, length: ops.minimum(age(mask, 5) + next(starts), 4)


@fails_under(
    a_projection_a_sequence=replaced(
        HistoryTokenizer,
        "_project",
        lambda project, self, name, events: project(self, name, events) * (1 + (name == "seen")),
    ),
    anchors_first=ANCHORS_FIRST,
    order_of_the_file=after(HistoryTokenizer, "build", lambda self: setattr(self, "ordered", self.inputs.sequences)),
    marks_around_nothing=MARKS_AROUND_NOTHING,
    no_marks=during(
        HistoryTokenizer,
        "call",
        lambda self, _: attributes(self, ordered=[replace(sequence, role="history") for sequence in self.ordered]),
    ),
    positions_from_the_oldest=replaced(
        history_tokenizer,
        "_age",
        lambda age, mask, length: ops.cumsum(ops.cast(mask, "int32"), 1) - ops.cast(mask, "int32"),
    ),
    positions_run_on=during(HistoryTokenizer, "call", lambda *_: replaced(history_tokenizer, "_age", running_on())),
)
def test_the_context_is_histories_then_anchors_in_their_marks():
    layer = built(HistoryTokenizer(replace(INPUTS, sequences=INPUTS.sequences[::-1]), D))  # the anchor is named first
    there = np.arange(5) < np.array(EVENTS)[:, None]
    columns_of = {name: [column.name for column in INPUTS.group(name)] for name in ("seen", "bought")}
    width = {name: sum(column.dim for column in INPUTS.group(name)) for name in columns_of}
    events = {
        "seen": {"events": normal(3, 5, width["seen"]), "mask": there},
        "bought": {"events": normal(3, 5, width["bought"]), "mask": there[[2, 1, 0]]},
    }
    tokens, mask = (numpy(tensor) for tensor in layer(events))
    kernel, (bos, eos) = layer.kernels, numpy(layer.marks["bought"])
    for b in range(3):
        expected = []
        for name, columns in columns_of.items():
            rows = events[name]["events"][b][events[name]["mask"][b]]
            read = rows @ np.concatenate([numpy(kernel[column]) for column in columns])
            read = list(read + numpy(layer.positions[name])[: len(rows)][::-1])
            expected += [bos, *read, eos] if name == "bought" and read else read
        assert mask[b].sum() == len(expected), "events, and two marks for an anchor that has some"
        same(tokens[b][mask[b]].reshape(-1, D), np.reshape(expected, (-1, D)), "tokens")


@fails_under(context_is_not_causal=NOT_CAUSAL, anchors_first=ANCHORS_FIRST)
def test_anchors_read_histories_not_vice_versa():
    model, batch = made(), random_batch(CANDIDATES, [5, 5, 5])
    other = refilled(batch, "sequences", np.ones((3, 5), bool))["sequences"]

    def cached(*changed):  # keys and values after two blocks: of the history, and of the anchor
        sequences = {**batch["sequences"], **{name: other[name] for name in changed}}
        cache = model.encode_user(batch["user"], sequences)
        return np.split(np.stack([numpy(cache[name]) for name in ("keys_1", "values_1")]), [5], axis=3)

    (history, anchor), (history_kept, _), (_, anchor_moved) = cached(), cached("bought"), cached("seen")
    same(history_kept, history, "a history reads an anchor")
    differs(anchor_moved, anchor, "an anchor should read the history")


# === The candidates' attention ===


@fails_under(
    scaled_by_the_whole_width=replaced(
        CandidateAttention, "call", lambda attend, self, queries, *rest: attend(self, queries * HEADS**-0.5, *rest)
    ),
    mean_instead_of_attention=replaced(
        CandidateAttention, "call", lambda attend, self, queries, *rest: attend(self, 0 * queries, *rest)
    ),
    tasks_share_weights=during(
        CandidateAttention,
        "call",
        lambda self, *_: attributes(self, value_kernel=0 * self.value_kernel + self.value_kernel[:1]),
    ),
)
def test_each_task_attends_to_all_candidates_with_weights_of_its_own():
    layer, merge = built(CandidateAttention(HEADS), (3, K, D), (3, 4, K, D)), built(SummaryMerge(), SUMMARY)
    queries, states, there = normal(3, K, D), normal(3, 4, K, D, seed=1), np.arange(4) < np.array(CANDIDATES)[:, None]
    wq, wk, wv = (numpy(getattr(layer, f"{name}_kernel")) for name in ("query", "key", "value"))
    wo = numpy(merge.kernel)
    expected = np.zeros((3, K, D))
    for b, k, h in np.ndindex(3, K, HEADS):
        r = states[b, there[b], k]
        weights = np.exp((r @ wk[k, h]) @ (queries[b, k] @ wq[k, h]) / np.sqrt(D / HEADS))
        expected[b, k] += weights / weights.sum() @ (r @ wv[k, h]) @ wo[k, h]
    same(merge(layer(queries, states, there)), expected, "attention")


PARTS_WEIGH_ALIKE = replaced(
    SummaryMerge,
    "call",
    lambda merge, self, summary: merge(self, {**summary, "log_weight": 0 * summary["log_weight"]}),
)


def scored_in_chunks(model, batch, chunk):
    return score_in_parts(model, batch, chunk)


@pytest.mark.slow
@fails_under(
    parts_weigh_alike=PARTS_WEIGH_ALIKE,
    the_first_part_alone=replaced(
        SummaryMerge,
        "call",
        lambda merge, self, summary: merge(self, {name: tensor[:, :1] for name, tensor in summary.items()}),
    ),
    maxima_not_rescaled=operations(
        candidate_attention,
        logsumexp=lambda logsumexp, scores, **axis: logsumexp(scores - ops.sort(scores)[..., -1:], **axis),
    ),
    maxima_alone=operations(candidate_attention, logsumexp=lambda _, scores, **axis: ops.sort(scores)[..., -1]),
    padding_weighs=operations(
        candidate_attention,
        logsumexp=lambda logsumexp, scores, **axis: logsumexp(ops.where(scores < -1e8, 0.0, scores), **axis),
    ),
)
def test_parts_of_a_list_are_scored_as_the_whole():
    model, batch = made(), random_batch([7, 2, 3], EVENTS)
    for kernel in (model.attend_candidates.key_kernel, model.attend_candidates.query_kernel):
        kernel.assign(numpy(kernel) * 2)  # some candidates take most of the weight
    there, expected = batch["candidates"]["mask"], logits_of(model, batch)
    for chunk in (1, 2, 3, 6, 7, 100):  # the second request has parts of padding alone
        same(scored_in_chunks(model, batch, chunk)[there], expected[there], f"parts of {chunk}")


@fails_under(parts_weigh_alike=PARTS_WEIGH_ALIKE)
def test_a_client_merges_by_concatenation():
    """Parts of different sizes, their summaries in another order; each part scored beside all."""
    model, batch = made(), random_batch([5, 5, 2], EVENTS)
    cache = model.encode_user(batch["user"], batch["sequences"])
    expected, there = logits_of(model, batch), batch["candidates"]["mask"]
    parts = [
        each(lambda values, p=p: values[:, p], batch, "candidates") for p in (slice(0, 3), slice(3, 4), slice(4, 5))
    ]
    passed = [model.summarize_candidates(cache, part["context"], part["candidates"]) for part in parts]
    summary = {name: np.concatenate([numpy(of[name]) for _, of in passed[::-1]], axis=1) for name in passed[0][1]}
    assert {tensor.shape[:2] for tensor in summary.values()} == {(3, 3)}, "batch first, then the parts"
    scored = [numpy(model.score_summary(cache, batch["context"], summary, states)) for states, _ in passed]
    same(np.concatenate(scored, axis=1)[there], expected[there], "two passes")


# === Tasks read each other under a mask and without gradient ===


def cross_task(visibility="cascade", tasks=K, **settings):
    return built(CrossTaskAttention(visibility, HEADS, 2, **settings), (None, tasks, D))


def where_detached(**bugs):
    """The bug of operations in a `CrossTaskAttention` that is detached."""
    return during(
        CrossTaskAttention, "_attend", lambda self, _: operations(cross_task_attention, **(bugs if self.detach else {}))
    )


def split_then_cut(split, tensor, *options, **axis):
    """Keys and values of which the second half, by which tasks read each other, carries no gradient."""
    k = tensor.shape[1] // 2
    return [
        ops.concatenate([part[:, :k], ops.stop_gradient(part[:, k:])], axis=1)
        for part in split(tensor, *options, **axis)
    ]


@fails_under(
    cut_ignored=CUT_IGNORED,
    cut_after_the_projection=where_detached(stop_gradient=lambda _, tensor: tensor, split=split_then_cut),
    own_input_cut_too=where_detached(
        concatenate=lambda concatenate, parts, **axis: concatenate([ops.stop_gradient(part) for part in parts], **axis)
    ),
)
def test_tasks_are_read_without_gradient_and_the_projections_learn_from_it():
    detached, plain, h = cross_task("full"), cross_task("full", detach=False), tf.constant(normal(2, K, D))
    same(detached(h), plain(h), "the cut changes no output")

    def slopes(layer, k):
        sources = [h, *(variable.value for variable in layer.trainable_variables)]
        return gradients(lambda: layer(h)[:, k] * normal(2, D, seed=1), sources)

    for k in range(K):
        (of_h, *of_weights), (plain_of_h, *plain_of_weights) = slopes(detached, k), slopes(plain, k)
        assert not of_h[:, OTHERS[k]].any(), f"task {k} sends gradient to others"
        assert (np.abs(plain_of_h).max(axis=(0, 2)) > 1e-4).all(), "without the cut, there is some to all"
        same(of_h[:, k], plain_of_h[:, k], "its own gradient is whole")
        for variable, slope, expected in zip(detached.trainable_variables, of_weights, plain_of_weights, strict=True):
            same(slope, expected, f"{variable.path} learns as if nothing were cut")


@pytest.mark.slow
@fails_under(cut_ignored=CUT_IGNORED, item_reads_its_tasks=ITEM_READS_TASKS, tasks_read_each_other=TASKS_TALK)
def test_no_task_trains_the_channel_of_another():
    batch = random_batch([4, 4, 4], EVENTS)

    def slopes(model):  # [K, K]: of task k's logits with respect to the token of task j
        tokens = [model.candidate_tokenizer.task_tokens.value]
        per_task = [gradients(lambda k=k: model.call(batch)[..., k] * normal(3, 4), tokens)[0] for k in range(K)]
        return np.abs(per_task).max(axis=-1)

    for visibility in ("cascade", "full"):
        found = slopes(made(cross_task=visibility, layers=3))  # through an item's token, from the second block on
        assert (found[OTHERS] == 0).all(), f"{visibility}: gradient between tasks"
        assert (found.diagonal() > 1e-5).all(), "a task's own token learns"
    assert (slopes(made(detach=False))[np.tri(K, k=-1) > 0] > 1e-6).all(), "without the cut, there is some"


@fails_under(
    transposed=TRANSPOSED,
    mask_after_the_softmax=MASK_AFTER_SOFTMAX,
    mask_forgotten=after(CrossTaskAttention, "build", lambda self: setattr(self, "log_shares", 0 * self.log_shares)),
)
def test_a_task_reads_exactly_the_tasks_it_may():
    given, h = [[1, 0, 0.5], [0, 1, 0], [1, 1, 1]], normal(2, K, D)
    matrices = {"parallel": np.eye(K), "full": np.ones((K, K)), "cascade": np.tri(K), "given": np.array(given)}
    for name, matrix in matrices.items():
        layer = cross_task(given if name == "given" else name)
        for j in range(K):
            before, after = numpy(layer(h)), numpy(layer(h + of_task(j, 2, seed=1)))
            # to the bit: a hidden task has no share
            same((after != before).any(axis=(0, 2)), matrix[:, j] > 0, f"{name}: who reads task {j}")


@fails_under(transposed=TRANSPOSED)
def test_the_first_task_of_a_cascade_ignores_later_ones():
    batch = random_batch([4, 4, 4], EVENTS)
    for visibility, expected in {"cascade": False, "parallel": False, "full": True}.items():
        model = made(cross_task=visibility)
        before, tokens = logits_of(model, batch), model.candidate_tokenizer.task_tokens
        tokens.assign(numpy(tokens) + of_task(1) + of_task(2))
        after = logits_of(model, batch)
        assert (after[..., 0] != before[..., 0]).any() == expected, visibility
        differs(after[..., 1:], before[..., 1:], "later tasks did change")


def without_logarithm(layer):
    layer.log_shares = np.where(layer.log_shares > -1e8, np.exp(layer.log_shares), layer.log_shares)


def itself_twice(layer):
    k = len(layer.log_shares)
    layer.log_shares = np.where(np.eye(k, 2 * k, k) > 0, np.float32(0), layer.log_shares)


def normed_after_the_residual(_, self, tasks):
    read = self.attention_norm(self.merge(self._attend(tasks)) + tasks)
    return self.ffn_norm(self.ffn_out(self.ffn_in(read))) + read


@fails_under(
    mask_after_the_softmax=MASK_AFTER_SOFTMAX,
    transposed=TRANSPOSED,
    weights_without_logarithm=after(CrossTaskAttention, "build", without_logarithm),
    itself_read_twice=after(CrossTaskAttention, "build", itself_twice),
    norm_after_the_residual=replaced(CrossTaskAttention, "call", normed_after_the_residual),
)
def test_weights_of_the_matrix_are_shares_before_the_softmax():
    matrix, h = np.array([[1, 0.5], [0, 1]]), normal(3, 2, D)
    layer = cross_task(matrix.tolist(), tasks=2)

    def weigh(scores, _):
        shares = matrix * np.exp(numpy(scores))
        return (shares / shares.sum(axis=-1, keepdims=True)).astype("float32")

    key_value = ops.split(h @ layer.project_key_value.kernel, 2, axis=-1)
    read = attention(h @ layer.project_query.kernel, *key_value, weigh) @ layer.merge.kernel
    read = norm(read, layer.attention_norm) + h
    same(layer(h), norm(ffn(read, layer), layer.ffn_norm) + read, "the paper's equations")


# === The descriptor, and the ablations ===


def user_in_candidates(cache):
    def tokens(tokenize, self, candidates):
        return tokenize(self, candidates * cache["user"][0, 0])

    return replaced(CandidateTokenizer, "call", tokens)


@fails_under(
    context_left_out=replaced(
        SituationalDescriptor, "call", lambda describe, self, user, context: describe(self, user, 0 * context)
    ),
    user_in_the_tokens=during(OneRank, "_candidate_states", lambda self, cache, *_: user_in_candidates(cache)),
)
def test_the_situation_moves_what_is_looked_for_not_the_candidates():
    model, batch = made(), random_batch(CANDIDATES, EVENTS)
    r, z, _ = run(model, batch)
    for group in ("user", "context"):
        other_r, other_z, _ = run(model, refilled(batch, group, np.ones(3, bool)))
        differs(other_z, z, f"{group} should matter")
        np.testing.assert_array_equal(other_r, r, f"{group} is no token")


def of_context_alone(_, self, cache, context):
    return self.descriptor(ops.zeros_like(cache["user"]), self.embedding(context, group="context"))


@fails_under(context_still_there=replaced(OneRank, "_queries", of_context_alone))
def test_a_constant_descriptor_knows_neither_user_nor_context():
    model, batch = made(descriptor="constant"), random_batch(CANDIDATES, EVENTS)
    np.testing.assert_array_equal(logits_of(model, other_situation(batch)), logits_of(model, batch))
    differs(run(model, batch)[1][:, 1:], run(model, batch)[1][:, :1], "queries are learned, one a task")


@fails_under(flag_ignored=setting(candidate_attention=True))
def test_without_candidate_attention_scores_are_point_wise():
    model, batch = made(candidate_attention=False), random_batch([4, 4, 4], EVENTS)
    alone = each(lambda values: values[:, 1:2], batch, "candidates")
    same(logits_of(model, alone), logits_of(model, batch)[:, 1:2], "a candidate alone")


@fails_under(flag_ignored=setting(query_residual=True))
def test_without_the_querys_residual_a_single_candidate_hides_the_situation():
    for candidates, residual, matters in [([1, 1, 1], False, False), ([1, 1, 1], True, True), ([4, 4, 4], False, True)]:
        model, batch = made(query_residual=residual), random_batch(candidates, EVENTS)
        change = np.abs(logits_of(model, other_situation(batch)) - logits_of(model, batch)).max()
        assert change > 1e-4 if matters else change < 1e-6, f"{candidates}, query_residual={residual}"


# === Scores ===


def of_first_task(name):
    """The bug of a scorer in which all tasks have the weight of the first one."""
    return during(MatchingScorer, "call", lambda self, *_: attributes(self, **{name: getattr(self, name)[0]}))


def ones_as_kernel(scorer):
    if scorer.kind == "bilinear":
        scorer.kernel.assign(np.ones(scorer.kernel.shape))


@fails_under(
    no_alpha=replaced(MatchingScorer, "_match", lambda match, *arguments: match(*arguments) * D**0.5),
    one_factor=of_first_task("factor"),
    one_bias=of_first_task("bias"),
    bilinear_turned=after(MatchingScorer, "build", ones_as_kernel),
)
def test_scores_are_scaled_products_with_a_bias_a_task():
    z, r, scores = normal(2, K, D), normal(2, 4, K, D, seed=1), {}
    factor, bias = [0.2, 1.5, -0.7], [0.1, -2.0, 3.0]
    for kind in ("dot", "bilinear", "mlp"):
        scorer = MatchingScorer(kind)
        scorer.build(z.shape, r.shape)
        scorer.factor.assign(factor)
        scorer.bias.assign(bias)
        scores[kind] = numpy(scorer(z, r))
    expected = np.zeros((2, 4, K))
    for b, n, k in np.ndindex(2, 4, K):
        expected[b, n, k] = factor[k] * (z[b, k] @ r[b, n, k]) / np.sqrt(D) + bias[k]
    same(scores["dot"], expected, "dot")
    same(scores["bilinear"], expected, "bilinear starts as dot")
    differs(scores["mlp"], expected, "mlp is another function")


# === Loss ===

LABELS = np.array(  # [B, N]; -1 is missing or padded
    [[1, 0, 0, 1, -1], [0, 0, 0, -1, -1], [1, 1, 1, 1, 1], [1, -1, 0, -1, -1], [1, -1, -1, -1, -1], [-1] * 5]
)


def loss_columns():
    labels = np.stack([LABELS, LABELS[::-1, ::-1], np.full_like(LABELS, -1)], axis=-1)  # the last task has no labels
    return 3 * normal(*labels.shape), np.abs(labels).astype("float32"), (labels >= 0).astype("float32")


def naive_losses(logits, labels, mask, infonce, temperature):
    result = []
    for k in range(K):
        points, lists = [], []
        for x, y, there in zip(logits[..., k].astype("float64"), labels[..., k], mask[..., k] > 0, strict=True):
            x, y = x[there], y[there]
            points += list(np.log1p(np.exp(np.where(y == 1, -x, x))))
            if 0 < y.sum() < len(y):
                x = (x - x.max()) / temperature[k]
                lists.append(np.log(np.exp(x).sum()) - x[y == 1].mean())
        result.append(sum(points) / max(len(points), 1) + infonce * sum(lists) / max(len(lists), 1))
    return np.array(result)


@fails_under(
    bce_over_all_cells=replaced(
        pointwise,
        "masked_bce",
        lambda bce, logits, labels, mask: bce(logits, labels, mask) * ops.mean(mask, axis=(0, 1)),
    ),
    bce_of_padding=replaced(
        pointwise,
        "masked_bce",
        lambda bce, logits, labels, mask: (
            bce(logits, labels, 0 * mask + 1) / ops.maximum(ops.mean(mask, axis=(0, 1)), 1e-12)
        ),
    ),
    one_class_requests_count=operations(masked, logical_and=lambda _, positives, negatives: positives),
    mean_over_all_requests=operations(
        masked, maximum=lambda maximum, x, least: maximum(x, len(LABELS) if least == 1 else least)
    ),
    padding_in_the_denominator=operations(
        masked,
        log=lambda _, mask: 0 * mask,
        where=lambda where, there, x, other: x if isinstance(other, float) and other < 0 else where(there, x, other),
    ),
)
def test_losses_are_those_of_a_plain_loop():
    columns, weights, temperature = loss_columns(), np.array([1.0, 2.0, 0.5]), np.array([0.5, 0.7, 1.0])
    layer = PointwiseLoss(tasks_of_weights(*weights), infonce=0.3)
    layer.build()
    layer.log_temperature.assign(np.log(temperature - LOWEST_TEMPERATURE))
    same(layer(*columns), naive_losses(*columns, 0.3, temperature) * weights, "BCE and InfoNCE")
    same(PointwiseLoss(tasks_of_weights(*weights))(*columns), naive_losses(*columns, 0, temperature) * weights, "BCE")


@fails_under(
    no_bound=operations(pointwise, exp=lambda exp, x: exp(x) - LOWEST_TEMPERATURE),
    not_learned=operations(pointwise, exp=lambda exp, x: exp(ops.stop_gradient(x))),
)
def test_the_temperature_is_learned_and_bounded():
    layer, columns = PointwiseLoss(tasks_of_weights(*[1.0] * K), infonce=0.3, temperature=0.07), loss_columns()
    layer.build()
    same(numpy(layer(*columns)), naive_losses(*columns, 0.3, [0.07] * K), "start", 1e-4)
    slope = gradients(lambda: layer(*columns), [layer.log_temperature.value])[0]
    assert (slope[:2] != 0).all() and slope[2] == 0, "each task's temperature learns, from labels"
    layer.log_temperature.assign([-20.0] * K)
    coldest = naive_losses(*columns, 0.3, [LOWEST_TEMPERATURE] * K)
    np.testing.assert_allclose(numpy(layer(*columns)), coldest, rtol=1e-4)


# === Twins ===


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(("check", "bug"), TWINS)
def test_the_check_fails_under_the_bug(check, bug, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(AssertionError) as failure:
        check()
    print(failure.value)  # pytest -rP shows whether it fails for the right reason
