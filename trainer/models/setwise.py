"""`SetwiseScoring`: models in which a candidate's score depends on the other candidates of its request."""

from __future__ import annotations

from typing import Any

Tensors = dict[str, Any]


class SetwiseScoring:
    """Mixin of a `RankingModel` whose scores depend on the set of candidates, and how long lists are scored in parts.

    A list that is longer than one call takes is scored in two passes, with equal results: `summarize_candidates` on
    each part, then `score_summary` on each part with the summaries of all. A model without this mixin scores each
    candidate on its own; its first pass gives the logits, and the second has nothing to do.
    """

    def summarize_candidates(
        self, user_state: Tensors, context: Tensors, candidates: Tensors, training: bool | None = None
    ) -> tuple[Tensors, Tensors]:
        """First pass over a part of the candidates: the work that grows with the number of candidates.

        Args:
            user_state: dict. What `encode_user` returned.
            context: dict. As for `score_candidates`.
            candidates: dict. As for `score_candidates`, a part of them.
            training: bool.

        Returns:
            The states: named tensors [B, N, ...], of each candidate of the part. The summary: named tensors
            [B, 1, ...], what scores need to know of the part.
        """
        raise NotImplementedError(f"`{type(self).__name__}` should define `summarize_candidates`.")

    def score_summary(self, user_state: Tensors, context: Tensors, summary: Tensors, states: Tensors) -> Any:
        """Second pass: scores a part of the candidates beside all others.

        Args:
            user_state: dict. What `encode_user` returned.
            context: dict. As for `score_candidates`.
            summary: dict. The summaries of all parts, in any order, concatenated on axis 1: [B, P, ...].
            states: dict. Those of the part.

        Returns:
            Float [B, N, K]. The logits that `score_candidates` would give these candidates among all.
        """
        raise NotImplementedError(f"`{type(self).__name__}` should define `score_summary`.")


def summarize_candidates(
    model: Any, user_state: Tensors, context: Tensors, candidates: Tensors
) -> tuple[Tensors, Tensors]:
    """First pass over a part of the candidates of any model.

    Args:
        model: RankingModel.
        user_state: dict. As for `SetwiseScoring.summarize_candidates`.
        context: dict. As for `SetwiseScoring.summarize_candidates`.
        candidates: dict. As for `SetwiseScoring.summarize_candidates`.

    Returns:
        States and summary. Those of a model without `SetwiseScoring` are `logits` [B, N, K], and none.
    """
    if isinstance(model, SetwiseScoring):
        return model.summarize_candidates(user_state, context, candidates, training=False)
    return {"logits": model.score_candidates(user_state, context, candidates, training=False)}, {}


def score_summary(model: Any, user_state: Tensors, context: Tensors, summary: Tensors, states: Tensors) -> Any:
    """Second pass over a part of the candidates of any model.

    Args:
        model: RankingModel.
        user_state: dict. As for `SetwiseScoring.score_summary`.
        context: dict. As for `SetwiseScoring.score_summary`.
        summary: dict. As for `SetwiseScoring.score_summary`.
        states: dict. As for `SetwiseScoring.score_summary`.

    Returns:
        Float [B, N, K]. The logits.
    """
    if isinstance(model, SetwiseScoring):
        return model.score_summary(user_state, context, summary, states)
    return states["logits"]
