import keras
import numpy as np
import pytest
from layer_checks import numpy, run_layer_test, spread_weights

from trainer.layers.feature_embedding import FeatureEmbedding
from trainer.layers.shared_bottom import SharedBottom
from trainer.layers.target_attention import TargetAttention
from transform.columns import Column, ModelInputs

B, N, U, D = 3, 5, 7, 8

INPUTS = ModelInputs(
    columns=(
        Column("user", "user", "id", "user", 3),
        Column("candidate", "item", "id", "item", 4),
        Column("candidate", "price", "dense", None, 1),
        Column("candidate", "tags", "ids", "tag", 2),
        Column("seen", "item", "id", "item", 4),
        Column("seen", "buy", "id", "feedback.buy", 2),
    ),
    rows={"user": 6, "item": 10, "tag": 5, "feedback.buy": 3},
    sequences=("seen",),
    tasks=("buy",),
)
CANDIDATE_INPUTS = ModelInputs(INPUTS.group("candidate"), {"item": 10, "tag": 5}, (), ("buy",))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def ids(high, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape)


def prefix_mask(lengths, size):
    return np.arange(size) < np.array(lengths)[:, None]


EVENTS_MASK = prefix_mask([U, 3, 0], U)


# === What holds for every layer ===


def test_feature_embedding_is_a_sound_layer():
    features = {"item": ids(10, B, N), "price": normal(B, N), "tags": ids(5, B, N, 3)}
    run_layer_test(
        FeatureEmbedding, {"inputs": CANDIDATE_INPUTS}, {"features": features, "group": "candidate"}, (B, N, 7)
    )


def test_target_attention_is_a_sound_layer():
    arguments = {"query": normal(B, N, D), "keys": normal(B, U, D, seed=1), "keys_mask": EVENTS_MASK}
    run_layer_test(TargetAttention, {"hidden": 16}, arguments, (B, N, D))


def test_shared_bottom_is_a_sound_layer():
    settings = {"tasks": 3, "hidden": (16, 8), "dropout": 0.1}
    run_layer_test(SharedBottom, settings, {"inputs": normal(B, N, D)}, (B, N, 3))


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


# === TargetAttention ===


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


# === SharedBottom ===


def test_shared_bottom_is_a_tower_a_task_on_one_network():
    layer, x = SharedBottom(tasks=3, hidden=(6, 4)), normal(B, N, D)
    layer.build(x.shape)
    spread_weights(layer)
    shared = x
    for dense in layer.bottom:
        shared = np.maximum(shared @ numpy(dense.kernel) + numpy(dense.bias), 0)
    expected = np.zeros((B, N, 3))
    for k in range(3):
        tower = np.maximum(shared @ numpy(layer.tower_kernel)[k] + numpy(layer.tower_bias)[k], 0)
        expected[..., k] = tower @ numpy(layer.logit_kernel)[k] + numpy(layer.logit_bias)[k]
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=1e-5)


def test_weights_of_shared_bottom_start_independent():
    layer = SharedBottom(tasks=3, hidden=(16,))
    layer.build((None, None, 8))
    tower, logit = numpy(layer.tower_kernel), numpy(layer.logit_kernel)
    assert len(np.unique(tower)) == tower.size, "towers differ from each other"
    assert not np.isin(logit, tower).any(), "logits and towers do not come from one stream of numbers"


def test_dropout_acts_in_training_only():
    layer, x = SharedBottom(tasks=2, hidden=(32,), dropout=0.5), normal(B, N, D)
    plain = numpy(layer(x))
    np.testing.assert_array_equal(numpy(layer(x, training=False)), plain)
    assert np.abs(numpy(layer(x, training=True)) - plain).max() > 1e-3
    without = SharedBottom(tasks=2, hidden=(32,))
    np.testing.assert_array_equal(numpy(without(x, training=True)), numpy(without(x)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": 0}, "`tasks` should be at least 1.*`tasks=0`.*Use"),
        ({"tasks": 2, "hidden": ()}, r"`hidden` a list of widths.*`hidden=\(\)`.*Use"),
        ({"tasks": 2, "hidden": (8, 0)}, r"`hidden` a list of widths.*`hidden=\(8, 0\)`.*Use"),
        ({"tasks": 2, "dropout": 1.0}, r"`dropout` should be in \[0, 1\).*`dropout=1.0`.*Use"),
        ({"tasks": 2, "dropout": -0.1}, r"`dropout` should be in \[0, 1\).*`dropout=-0.1`.*Use"),
    ],
)
def test_shared_bottom_refuses_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        SharedBottom(**settings)


def test_layers_follow_the_global_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = SharedBottom(tasks=2, hidden=(8,))
        assert keras.backend.standardize_dtype(layer(normal(B, N, D)).dtype) == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
