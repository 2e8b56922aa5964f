"""DIN's attention of a candidate to events."""

import numpy as np
import pytest

from tests.testing.layer_cases import EVENTS_MASK, B, D, N, U, normal
from tests.testing.layer_checks import numpy, spread_weights
from trainer.models.din.target_attention import TargetAttention


def target_attention(hidden=6):
    layer = TargetAttention(hidden)
    layer.build((B, N, D), (B, U, D))
    spread_weights(layer)
    return layer


def test_target_attention_is_dins_network_on_query_key_difference_and_product():
    layer, query, keys = target_attention(), normal(B, N, D), normal(B, U, D, seed=1)
    of_difference = normal(D, layer.hidden, seed=2)
    kernel = {name: numpy(getattr(layer, f"{name}_kernel")) for name in ("query", "key", "product", "output")}
    # the kernel of [q, k, q - k, q * k]: what the difference adds to query and key is taken off their own parts
    whole = np.concatenate(
        [kernel["query"] - of_difference, kernel["key"] + of_difference, of_difference, kernel["product"]]
    )
    expected = np.zeros((B, N, D))
    for b, n in np.ndindex(B, N):
        for u in range(U):
            if EVENTS_MASK[b, u]:
                q, k = query[b, n].astype("float64"), keys[b, u].astype("float64")
                x = np.concatenate([q, k, q - k, q * k]) @ whole + numpy(layer.bias)
                expected[b, n] += (x / (1 + np.exp(-x))) @ kernel["output"] * k
    np.testing.assert_allclose(numpy(layer(query, keys, EVENTS_MASK)), expected, rtol=1e-4, atol=1e-5)


def test_padded_events_are_inert():
    layer, query, keys = target_attention(), normal(B, N, D), normal(B, U, D)
    expected = numpy(layer(query, keys, EVENTS_MASK))
    changed = np.where(EVENTS_MASK[..., None], keys, 100.0).astype("float32")
    np.testing.assert_array_equal(numpy(layer(query, changed, EVENTS_MASK)), expected)
    longer = np.concatenate([keys, normal(B, 4, D, seed=3)], axis=1)
    mask = np.pad(EVENTS_MASK, [(0, 0), (0, 4)])
    np.testing.assert_allclose(numpy(layer(query, longer, mask)), expected, atol=1e-5)


def test_without_events_the_interest_is_zero():
    layer, query = target_attention(), normal(B, N, D)
    nothing = layer(query, np.zeros((B, 0, D), "float32"), np.zeros((B, 0), bool))
    np.testing.assert_array_equal(numpy(nothing), np.zeros((B, N, D)))
    masked = layer(query, normal(B, U, D), np.zeros((B, U), bool))
    np.testing.assert_array_equal(numpy(masked), np.zeros((B, N, D)))


def test_the_order_of_events_does_not_matter():
    layer, query, keys = target_attention(), normal(B, N, D), normal(B, U, D)
    order = np.random.default_rng(0).permutation(U)
    permuted = layer(query, keys[:, order], EVENTS_MASK[:, order])
    np.testing.assert_allclose(numpy(permuted), numpy(layer(query, keys, EVENTS_MASK)), atol=1e-5)


@pytest.mark.parametrize("hidden", [0, -4])
def test_target_attention_refuses_a_network_without_width(hidden):
    with pytest.raises(ValueError, match=rf"`hidden` should be at least 1.*{hidden}.*Use a multiple of 8"):
        TargetAttention(hidden)
