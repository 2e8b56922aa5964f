"""Operations of a request, as the portable kernel computes it, against a count by hand."""

import keras
import pytest

from benchmarks.quality.request_flops import request_flops
from tests.testing.random_batches import INPUTS
from trainer.models.registry import build_model
from transform.features.model_inputs import Column, ModelInputs, Task
from transform.spec.model_sections import Model

pytestmark = pytest.mark.slow

K, D, H, N, FFN = 2, 8, 2, 3, 2
ITEM = 5  # the width of an item's embedding, of which there are 7
NO_SEQUENCES = ModelInputs(
    columns=(Column("user", "user", "id", "user", 4), Column("candidate", "item", "id", "item", ITEM)),
    rows={"user": 6, "item": 7},
    sequences=(),
    tasks=(Task("click"), Task("buy")),
)


def test_operations_are_those_counted_by_hand():
    keras.utils.set_random_seed(0)
    model = build_model(Model(name="onerank", d=D, layers=1, heads=H, ffn_ratio=FFN), NO_SEQUENCES)
    square, ffn = D * D, 2 * FFN * D * D
    by_part = {
        "candidate's token": N * ITEM * D,
        "queries, keys and values of candidates' and of task tokens": (N + K) * 3 * square,
        "task tokens: scores of themselves and their candidate": (1 + N) * K * D,
        "task tokens: merge, feed-forward": N * K * (square + ffn),
        "descriptor": 4 * D + K * square,
        "candidate attention: to and from heads": K * 4 * square,
        "candidate attention: scores and sums of 2 heads": K * 2 * (2 * N * D),
        "cross-task: query, merge, feed-forward": K * (2 * square + ffn),
        "cross-task: key and value, with and without gradient": K * 2 * 2 * square,
        "cross-task: scores and sums": 2 * (K * 2 * K * D),
        "score": N * K * D,
    }
    assert request_flops(model, N, 0) == 2 * sum(by_part.values())


def test_more_events_cost_more_only_up_to_the_sequences_length():
    model = build_model(Model(name="onerank", d=8, layers=1, heads=2), INPUTS)
    longest = max(sequence.length for sequence in INPUTS.sequences)
    few, most, more = (request_flops(model, 2, events) for events in (3, longest, 10 * longest))
    assert 0 < few < most == more


def test_what_no_logit_depends_on_is_not_counted():
    """The last block's context is never read: only its keys and values are."""
    one, two = (build_model(Model(name="onerank", d=8, layers=n, heads=2), INPUTS) for n in (1, 2))
    for_a_context_token = 2 * (12 * 8 * 8)  # the whole block
    few, more = (request_flops(one, 1, events) for events in (6, 7))
    assert more - few < 2 * for_a_context_token, "a token of each of the two sequences at most"
    few_deep, more_deep = (request_flops(two, 1, events) for events in (6, 7))
    assert more_deep - few_deep > for_a_context_token
