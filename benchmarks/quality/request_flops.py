"""The operations of one request, as the portable attention computes it."""

from __future__ import annotations

from trainer.models.base import RankingModel
from trainer.training.cost import contraction_cost, needed_operations, trace_forward


def request_flops(model: RankingModel, candidates: int, events: int) -> int:
    """Floating-point operations to score one request, context encoded anew, with the portable attention.

    Unlike `Cost.forward_flops`, this counts all that the portable kernel of structured attention multiplies: hidden
    pairs of a causal list, and the columns that ride along.

    Args:
        model: RankingModel. With its variables created.
        candidates: int. N.
        events: int. The events in each sequence, at most its length.

    Returns:
        The operations.
    """
    graph = trace_forward(model, 1, candidates, events, "portable")
    return sum(contraction_cost(operation)[0] for operation in needed_operations(graph.outputs).values())
