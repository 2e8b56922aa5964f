"""OneRank: one Transformer in which every task has a private channel, and a matching score instead of an MLP head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from trainer.layers.token_norm import TokenNorm
from trainer.models.base import RankingModel, Tensors
from trainer.models.onerank.candidate_attention import CandidateAttention
from trainer.models.onerank.candidate_tokenizer import CandidateTokenizer
from trainer.models.onerank.cross_task_attention import CrossTaskAttention, visibility_matrix
from trainer.models.onerank.history_state import pack_states, unpack_states
from trainer.models.onerank.history_tokenizer import HistoryTokenizer
from trainer.models.onerank.matching_scorer import KINDS, MatchingScorer
from trainer.models.onerank.private_channel_block import PrivateChannelBlock
from trainer.models.onerank.situational_descriptor import SituationalDescriptor
from trainer.models.onerank.summary_merge import SummaryMerge
from trainer.models.recomputable import RecomputableBlocks
from trainer.models.registry import MODELS
from trainer.models.setwise import SetwiseScoring
from transform.features.model_inputs import ModelInputs


@MODELS.register("onerank")
@keras.saving.register_keras_serializable(package="onerank")
class OneRank(SetwiseScoring, RecomputableBlocks, RankingModel):
    """Task-private channels, a situational descriptor over all candidates, detached cross-task attention, matching.

    The user state holds the user's embedding, each block's keys and values of the history, and what the task tokens
    get from it in the first block.

    Args:
        inputs: ModelInputs, or its config.
        d: int. The width of tokens. Defaults to 64.
        layers: int. L, the Transformer's blocks. Defaults to 2.
        heads: int. H, the attention heads; divides d. Defaults to 4.
        ffn_ratio: int. The width of feed-forward networks' hidden layers over d. Defaults to 4.
        dropout: float. The dropout in the Transformer's blocks. Defaults to 0.0.
        scorer: str. `"dot"`, `"bilinear"` or `"mlp"`, see `MatchingScorer`. Defaults to `"dot"`.
        cross_task: str or matrix [K, K]. `"parallel"`, `"full"`, `"cascade"` or weights, see `CrossTaskAttention`.
            Defaults to `"cascade"`.
        detach: bool. Whether tasks attend to each other without gradient. Defaults to True.
        query_residual: bool. Whether a task's query is added to what it gets from the candidates. Defaults to True.
        task_tokens: bool. Without them a candidate's own state serves all tasks; for ablation. Defaults to True.
        descriptor: str. `"situational"`, or `"constant"`: the same learned queries for every request; for ablation.
            It is then blind to user and context. Defaults to `"situational"`.
        candidate_attention: bool. Without it the queries stand for the candidates' set; for ablation. Defaults to True.

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838). Ours: `query_residual` (the paper's h_k is the attention's output
          alone, in which the user's profile only weighs candidates: nothing of it is left with a single candidate),
          and what the layers' docstrings name.
    """

    full_precision_state = frozenset({"task_read"})
    test_settings = (
        {
            "d": 12,
            "layers": 3,
            "heads": 2,
            "ffn_ratio": 2,
            "dropout": 0.1,
            "scorer": "bilinear",
            "cross_task": [[1, 0, 0.5], [0, 1, 0], [1, 1, 1]],
        },
        {"d": 8, "layers": 1, "heads": 2},
    )

    def __init__(
        self,
        inputs: ModelInputs | dict[str, Any],
        d: int = 64,
        layers: int = 2,
        heads: int = 4,
        ffn_ratio: int = 4,
        dropout: float = 0.0,
        scorer: str = "dot",
        cross_task: str | Sequence[Sequence[float]] = "cascade",
        detach: bool = True,
        query_residual: bool = True,
        task_tokens: bool = True,
        descriptor: str = "situational",
        candidate_attention: bool = True,
        **kwargs: Any,
    ):
        super().__init__(inputs, **kwargs)
        k, dtype = len(self.inputs_spec.tasks), self.dtype_policy
        if d < 1 or layers < 1 or heads < 1 or d % heads:
            raise ValueError(
                "`d`, `layers` and `heads` should be at least 1 and `heads` should divide `d`. "
                f"Received: `d={d}`, `layers={layers}`, `heads={heads}`. Use `d: 64`, `layers: 2`, `heads: 4`."
            )
        if descriptor not in ("situational", "constant"):
            raise ValueError(
                f"`descriptor` should be situational or constant. Received: `descriptor={descriptor}`. Use situational."
            )
        if scorer not in KINDS:
            raise ValueError(f"`scorer` should be one of {', '.join(KINDS)}. Received: `scorer={scorer}`. Use dot.")
        try:
            visibility_matrix(cross_task, k)
        except ValueError as error:
            raise ValueError(str(error).replace("visibility", "cross_task")) from error
        self.d = d
        self.depth = layers
        self.heads = heads
        self.ffn_ratio = ffn_ratio
        self.dropout = dropout
        self.scorer_kind = scorer
        self.cross_task = cross_task
        self.detach = detach
        self.query_residual = query_residual
        self.task_tokens = task_tokens
        self.descriptor_kind = descriptor
        self.candidate_attention = candidate_attention

        # === Layers ===
        self.history_tokenizer = None
        if self.inputs_spec.sequences:
            self.history_tokenizer = HistoryTokenizer(self.inputs_spec, d, name="history_tokenizer", dtype=dtype)
        self.candidate_tokenizer = CandidateTokenizer(
            k if task_tokens else 0, d, name="candidate_tokenizer", dtype=dtype
        )
        # at once: users are encoded with the task tokens, before any candidate is there
        self.candidate_tokenizer.build((None, None, self.embedding.width("candidate")))
        self.blocks = [
            PrivateChannelBlock(heads, ffn_ratio, dropout, name=f"block_{index}", dtype=dtype)
            for index in range(layers)
        ]
        self.final_norm = TokenNorm(name="final_norm", dtype=dtype)
        self.descriptor = SituationalDescriptor(k, d, name="descriptor", dtype=dtype)
        self.attend_candidates = None
        if candidate_attention:
            self.attend_candidates = CandidateAttention(heads, name="candidate_attention", dtype=dtype)
            self.merge_summary = SummaryMerge(name="summary_merge", dtype=dtype)
        self.cross = CrossTaskAttention(cross_task, heads, ffn_ratio, detach, name="cross_task", dtype=dtype)
        self.scorer = MatchingScorer(scorer, name="scorer", dtype=dtype)

    def initial_bias(self) -> keras.Variable:
        """The scorer's bias [K]."""
        return self.scorer.bias

    # === Stages ===

    def encode_user(self, user: Tensors, sequences: dict[str, Tensors], training: bool | None = None) -> Tensors:
        """The user's embedding `user` [B, D], `mask` [B, U], a block's `keys_0`, `values_0` ... [B, H, U, d/H].

        And `task_read` [B, H, K, 2 d/H + 1], what the task tokens get from the history in the first block.
        """
        embedded = self.embedding(user, group="user")
        tokens, mask = self._history_tokens(sequences, embedded)
        # A copy: gradients would be wrong if a block that is recomputed got a variable as its argument.
        task_tokens = ops.copy(self.candidate_tokenizer.task_tokens) if self.task_tokens else None
        states = []
        for index, block in enumerate(self.blocks):
            tokens, state = self.apply_block(
                block,
                tokens=tokens,
                history_mask=mask,
                task_tokens=task_tokens if index == 0 else None,  # later, they differ from candidate to candidate
                training=training,
            )
            states.append(state)
        return {"user": embedded, "mask": mask, **pack_states(states)}

    def score_candidates(
        self, user_state: Tensors, context: Tensors, candidates: Tensors, training: bool | None = None
    ) -> Any:
        """Logits [B, N, K]."""
        states = self._candidate_states(user_state, candidates, training)
        queries = self._queries(user_state, context)
        return self._score(queries, self._summary(queries, states, candidates["mask"]), states)

    def summarize_candidates(
        self, user_state: Tensors, context: Tensors, candidates: Tensors, training: bool | None = None
    ) -> tuple[Tensors, Tensors]:
        """`states` [B, N, K, d], and what `CandidateAttention` returns, if there is one."""
        states = self._candidate_states(user_state, candidates, training)
        return {"states": states}, self._summary(self._queries(user_state, context), states, candidates["mask"])

    def score_summary(self, user_state: Tensors, context: Tensors, summary: Tensors, states: Tensors) -> Any:
        """Logits [B, N, K]."""
        return self._score(self._queries(user_state, context), summary, states["states"])

    # === Steps ===

    def _history_tokens(self, sequences: dict[str, Tensors], user: Any) -> tuple[Any, Any]:
        if self.history_tokenizer is None:
            b = ops.shape(user)[0]
            return ops.zeros((b, 0, self.d), self.compute_dtype), ops.zeros((b, 0), "bool")
        embedded = {}
        for name in self.inputs_spec.sequence_names:
            events = {key: value for key, value in sequences[name].items() if key != "mask"}
            embedded[name] = {"events": self.embedding(events, group=name), "mask": sequences[name]["mask"]}
        return self.history_tokenizer(embedded)

    def _candidate_states(self, user_state: Tensors, candidates: Tensors, training: bool | None) -> Any:
        """R [B, N, K, d]: what each task makes of each candidate."""
        features = {key: value for key, value in candidates.items() if key != "mask"}
        groups = self.candidate_tokenizer(self.embedding(features, group="candidate"))
        for index, (block, state) in enumerate(zip(self.blocks, unpack_states(user_state, self.depth), strict=True)):
            groups = self.apply_block(
                block,
                tokens=groups,
                history_mask=user_state["mask"],
                state=state,
                tasks_only=self.task_tokens and index == self.depth - 1,
                training=training,
            )
        states = self.final_norm(groups)
        return states if self.task_tokens else ops.repeat(states, len(self.inputs_spec.tasks), axis=2)

    def _queries(self, user_state: Tensors, context: Tensors) -> Any:
        """[B, K, d]: what the situation makes each task look for."""
        user, request = user_state["user"], self.embedding(context, group="context") if context else None
        if self.descriptor_kind == "constant":
            user, request = ops.zeros_like(user), None if request is None else ops.zeros_like(request)
        return self.descriptor(user, request)

    def _summary(self, queries: Any, states: Any, candidate_mask: Any) -> Tensors:
        return {} if self.attend_candidates is None else self.attend_candidates(queries, states, candidate_mask)

    def _score(self, queries: Any, summary: Tensors, states: Any) -> Any:
        return self.scorer(self._task_vectors(queries, summary), states)

    def _task_vectors(self, queries: Any, summary: Tensors) -> Any:
        """Z [B, K, d]: what each task looks for in this request."""
        tasks = queries
        if self.attend_candidates is not None:
            tasks = self.merge_summary(summary)
            tasks = tasks + queries if self.query_residual else tasks
        return self.cross(tasks)

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "d": self.d,
            "layers": self.depth,
            "heads": self.heads,
            "ffn_ratio": self.ffn_ratio,
            "dropout": self.dropout,
            "scorer": self.scorer_kind,
            "cross_task": self.cross.visibility,
            "detach": self.detach,
            "query_residual": self.query_residual,
            "task_tokens": self.task_tokens,
            "descriptor": self.descriptor_kind,
            "candidate_attention": self.candidate_attention,
        }
