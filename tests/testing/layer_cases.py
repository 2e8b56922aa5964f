"""Every layer with arguments that use all of it: what `test_layers.py` and `test_backends.py` run."""

from typing import Any, NamedTuple

import keras
import numpy as np

from trainer.heads.mmoe import MMoE
from trainer.heads.shared_bottom import SharedBottom
from trainer.heads.single_task import SingleTask
from trainer.layers.embedding_table import EmbeddingTable
from trainer.layers.feature_embedding import FeatureEmbedding
from trainer.layers.field_projection import FieldProjection
from trainer.layers.stacked_dense import StackedDense
from trainer.layers.task_logits import TaskLogits
from trainer.layers.token_dense import TokenDense
from trainer.layers.token_norm import TokenNorm
from trainer.losses.pointwise import PointwiseLoss
from trainer.models.din.target_attention import TargetAttention
from trainer.models.onerank.candidate_attention import CandidateAttention
from trainer.models.onerank.candidate_tokenizer import CandidateTokenizer
from trainer.models.onerank.cross_task_attention import CrossTaskAttention
from trainer.models.onerank.history_tokenizer import HistoryTokenizer
from trainer.models.onerank.matching_scorer import MatchingScorer
from trainer.models.onerank.private_channel_block import PrivateChannelBlock
from trainer.models.onerank.situational_descriptor import SituationalDescriptor
from trainer.models.onerank.summary_merge import SummaryMerge
from transform.features.model_inputs import Column, EventSequence, ModelInputs, Task

B, N, U, K, D = 3, 5, 7, 4, 8
HEADS = 2

INPUTS = ModelInputs(
    columns=(
        Column("user", "user", "id", "user", 3),
        Column("candidate", "item", "id", "item", 4),
        Column("candidate", "price", "dense", None, 1),
        Column("candidate", "tags", "ids", "tag", 2),
        Column("liked", "item", "id", "item", 4),
        Column("seen", "item", "id", "item", 4),
        Column("seen", "buy", "id", "feedback.buy", 2),
    ),
    rows={"user": 6, "item": 10, "tag": 5, "feedback.buy": 3},
    sequences=(EventSequence("liked", "anchor", 3), EventSequence("seen", "history", 7)),
    tasks=(Task("buy"),),
)
CANDIDATE_INPUTS = ModelInputs(INPUTS.group("candidate"), {"item": 10, "tag": 5}, (), (Task("buy"),))


class Case(NamedTuple):
    """The arguments of `run_layer_test`."""

    cls: type
    settings: dict[str, Any]
    arguments: dict[str, Any]
    shape: Any
    options: dict[str, Any] = {}


def tasks_of_weights(*weights):
    return [{"name": f"task{k}", "weight": weight, "observed_when": None} for k, weight in enumerate(weights)]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def ids(high, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape)


def coins(*shape, seed=0):
    return ids(2, *shape, seed=seed).astype("float32")


def prefix_mask(lengths, size):
    return np.arange(size) < np.array(lengths)[:, None]


EVENTS_MASK = prefix_mask([U, 3, 0], U)
CANDIDATES_MASK = prefix_mask([N, 2, 1], N)
EVENTS = {
    "liked": {"events": normal(B, 3, 4), "mask": prefix_mask([3, 0, 1], 3)},
    "seen": {"events": normal(B, U, 6, seed=1), "mask": EVENTS_MASK},
}
KEYS = (B, HEADS, U, D // HEADS)
TASK_READ = (B, HEADS, K, 2 * D // HEADS + 1)


def _history(shape, **options):
    return _block(normal(B, U, D), EVENTS_MASK, shape, idle=("candidate_bias",), **options)


def _groups(shape, state, mask=EVENTS_MASK, **options):
    state = {name: normal(*size, seed=seed) for seed, (name, size) in enumerate(state.items(), start=1)}
    return _block(normal(B, N, 1 + K, D), mask, shape, state=state, **options)


def _block(tokens, mask, shape, **options):
    arguments = {"tokens": tokens, "history_mask": mask}
    arguments |= {name: options.pop(name) for name in ("state", "task_tokens", "tasks_only") if name in options}
    return Case(PrivateChannelBlock, {"heads": HEADS, "ffn_ratio": 3, "dropout": 0.1}, arguments, shape, options)


def _cross(visibility, detach=True, **options):
    settings = {"visibility": visibility, "heads": HEADS, "ffn_ratio": 3, "detach": detach}
    return Case(CrossTaskAttention, settings, {"tasks": normal(B, K, D)}, (B, K, D), options)


def _matching(kind):
    arguments = {"tasks": normal(B, K, D), "candidates": normal(B, N, K, D, seed=1)}
    return Case(MatchingScorer, {"kind": kind}, arguments, (B, N, K), {"float32": (0,)})


def _merge(parts):
    summary = {"read": normal(B, parts, K, HEADS, D // HEADS), "log_weight": normal(B, parts, K, HEADS, seed=1)}
    return Case(SummaryMerge, {}, {"summary": summary}, (B, K, D))


def _loss(infonce):
    arguments = {"logits": normal(B, N, K), "labels": coins(B, N, K, seed=3), "weights": coins(B, N, K, seed=4)}
    settings = {"tasks": tasks_of_weights(1.0, 0.5, 2.0, 4.0), "infonce": infonce, "temperature": 0.5}
    return Case(PointwiseLoss, settings, arguments, (K,), {"reduces": True})


def _head(cls, per_task=False, **settings):
    inputs = normal(B, N, 3, D) if per_task else normal(B, N, D)
    return Case(
        cls, {"tasks": tasks_of_weights(1.0, 1.0, 1.0), **settings}, {"inputs": inputs}, (B, N, 3), {"float32": (0,)}
    )


CASES = {
    "candidate_attention": Case(
        CandidateAttention,
        {"heads": HEADS},
        {
            "queries": normal(B, K, D),
            "candidates": normal(B, N, K, D, seed=1),
            "candidate_mask": CANDIDATES_MASK,
        },
        [(B, 1, K, HEADS), (B, 1, K, HEADS, D // HEADS)],  # log_weight, read
        {"float32": (0,)},
    ),
    "candidate_tokenizer": Case(
        CandidateTokenizer, {"tasks": K, "d": D}, {"candidates": normal(B, N, 6)}, (B, N, 1 + K, D)
    ),
    "candidate_tokenizer_without_tasks": Case(
        CandidateTokenizer, {"tasks": 0, "d": D}, {"candidates": normal(B, N, 6)}, (B, N, 1, D)
    ),
    "history_tokenizer": Case(
        HistoryTokenizer, {"inputs": INPUTS, "d": D}, {"sequences": EVENTS}, [(B, U + 3 + 2, D), (B, U + 3 + 2)]
    ),
    "cross_task_attention_parallel": _cross("parallel", idle=("query/kernel",)),  # one task has all of the softmax
    "cross_task_attention_full": _cross("full"),
    "cross_task_attention_cascade": _cross("cascade"),
    "cross_task_attention_matrix": _cross([[1, 0, 0, 0], [0.5, 1, 0, 0], [0, 0.1, 1, 1], [0.9, 0, 0, 1]]),
    "cross_task_attention_not_detached": _cross("full", detach=False),
    "embedding_table": Case(EmbeddingTable, {"input_dim": 9, "output_dim": 3}, {"inputs": ids(9, B, N)}, (B, N, 3)),
    "feature_embedding": Case(
        FeatureEmbedding,
        {"inputs": CANDIDATE_INPUTS},
        {"features": {"item": ids(10, B, N), "price": normal(B, N), "tags": ids(5, B, N, 3)}, "group": "candidate"},
        (B, N, 7),
    ),
    "field_projection": Case(
        FieldProjection, {"widths": [4, 1, 2, 1], "d": 6}, {"inputs": normal(B, N, D)}, (B, N, 4, 6)
    ),
    "matching_scorer_dot": _matching("dot"),
    "matching_scorer_bilinear": _matching("bilinear"),
    "matching_scorer_mlp": _matching("mlp"),
    "private_channel_block_history": _history([(B, U, D), KEYS, KEYS]),
    "private_channel_block_history_with_tasks": _history(
        [(B, U, D), KEYS, TASK_READ, KEYS],  # the new tokens, and the state: keys, task_read, values
        task_tokens=keras.ops.convert_to_tensor(normal(K, D, seed=3)),  # no array: it has no B
        float32=(2,),
    ),
    "private_channel_block_groups": _groups((B, N, 1 + K, D), {"keys": KEYS, "values": KEYS}),
    "private_channel_block_first_groups": _groups(
        (B, N, 1 + K, D), {"keys": KEYS, "values": KEYS, "task_read": TASK_READ}
    ),
    "private_channel_block_last_groups": _groups((B, N, K, D), {"keys": KEYS, "values": KEYS}, tasks_only=True),
    "private_channel_block_groups_without_history": _groups(
        (B, N, 1 + K, D), dict.fromkeys(("keys", "values"), (B, HEADS, 0, D // HEADS)), mask=EVENTS_MASK[:, :0]
    ),
    "pointwise_loss": _loss(0.0),
    "pointwise_loss_with_infonce": _loss(0.3),
    "shared_bottom": _head(SharedBottom, hidden=[16, 8], dropout=0.1),
    "shared_bottom_per_task": _head(SharedBottom, hidden=[16, 8], per_task=True),
    "single_task": _head(SingleTask, hidden=[16, 8], dropout=0.1),
    "single_task_per_task": _head(SingleTask, hidden=[16, 8], per_task=True),
    "mmoe": _head(MMoE, experts=3, hidden=[16, 8], tower=[6, 5], dropout=0.1),
    "mmoe_per_task": _head(MMoE, experts=3, hidden=[16, 8], tower=[], per_task=True),
    "stacked_dense": Case(
        StackedDense, {"stack": 3, "units": 6, "activation": "relu"}, {"inputs": normal(B, N, D)}, (B, N, 3, 6)
    ),
    "stacked_dense_of_stacked_inputs": Case(
        StackedDense,
        {"stack": K, "units": 6, "use_bias": False, "stacked_inputs": True},
        {"inputs": normal(B, N, K, D)},
        (B, N, K, 6),
    ),
    "task_logits": Case(TaskLogits, {}, {"inputs": normal(B, N, K, D)}, (B, N, K), {"float32": (0,)}),
    "situational_descriptor": Case(
        SituationalDescriptor,
        {"tasks": K, "d": D},
        {"user": normal(B, 6), "context": normal(B, 3, seed=1)},
        (B, K, D),
    ),
    "situational_descriptor_without_context": Case(
        SituationalDescriptor, {"tasks": K, "d": D}, {"user": normal(B, 6)}, (B, K, D)
    ),
    "summary_merge": _merge(3),
    "summary_merge_of_one_part": _merge(1),
    "token_dense": Case(TokenDense, {"units": 3, "activation": "gelu"}, {"inputs": normal(B, N, K, D)}, (B, N, K, 3)),
    "token_norm": Case(TokenNorm, {}, {"inputs": normal(B, N, D)}, (B, N, D)),
    "target_attention": Case(
        TargetAttention,
        {"hidden": 16},
        {"query": normal(B, N, D), "keys": normal(B, U, D, seed=1), "keys_mask": EVENTS_MASK},
        (B, N, D),
    ),
}
