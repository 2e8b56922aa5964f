import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import log_loss

from tests.testing.layer_cases import tasks_of_weights
from trainer.losses.masked import masked_bce, masked_infonce
from trainer.losses.pointwise import LOWEST_TEMPERATURE, PointwiseLoss

B, N, K = 4, 5, 3


@pytest.fixture
def columns():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (B, N, K)).astype("float32")
    labels = random.integers(0, 2, (B, N, K)).astype("float32")
    mask = random.integers(0, 2, (B, N, K)).astype("float32")
    return logits, labels, mask


def value_and_gradient(logits, labels, mask, weights=(1.0,) * K, infonce=0.0, temperature=0.1):
    """The loss that is minimised, the tasks' losses and the gradient of the former by the logits."""
    logits, loss_fn = tf.constant(logits), PointwiseLoss(tasks_of_weights(*weights), infonce, temperature)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = loss_fn(logits, labels, mask)
        loss = tf.reduce_sum(losses)
    return float(loss), losses.numpy(), tape.gradient(loss, logits).numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


# === Point-wise ===


def test_bce_is_the_log_loss_of_each_task_over_the_labels_that_are_there(columns):
    logits, labels, mask = columns
    losses = masked_bce(*columns).numpy()
    assert losses.shape == (K,)
    for k in range(K):
        there = mask[..., k] > 0
        expected = log_loss(labels[..., k][there], sigmoid(logits[..., k][there]))
        assert losses[k] == pytest.approx(expected, rel=1e-5)


def test_gradient_is_prediction_minus_label_over_their_number(columns):
    logits, labels, mask = columns
    gradient = value_and_gradient(*columns)[2]
    expected = (sigmoid(logits) - labels) * mask / mask.sum(axis=(0, 1))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_weight_counts_as_that_many_candidates(columns, scale):
    logits, labels, mask = columns
    repeated = [np.concatenate([array, array[:, :2]], axis=1) for array in columns]
    weighted = (mask * np.array([2, 2, 1, 1, 1])[:, None] * scale).astype("float32")
    expected = masked_bce(*repeated).numpy()
    np.testing.assert_allclose(masked_bce(logits, labels, weighted), expected, rtol=1e-5)


def test_a_weight_counts_as_that_many_candidates_in_infonce(columns):
    logits, labels, mask = columns
    repeated = [np.concatenate([array, array[:, :2]], axis=1) for array in columns]
    weighted = (mask * np.array([2, 2, 1, 1, 1])[:, None]).astype("float32")
    np.testing.assert_allclose(masked_infonce(logits, labels, weighted), masked_infonce(*repeated), rtol=1e-5)
    assert np.abs(masked_infonce(logits, labels, weighted) - masked_infonce(*columns)).min() > 1e-3


@pytest.mark.parametrize("infonce", [0.0, 0.5])
def test_labels_that_are_not_there_change_nothing(columns, infonce):
    logits, labels, mask = columns
    expected = value_and_gradient(*columns, infonce=infonce)
    other_labels = np.where(mask > 0, labels, 1 - labels)
    other_logits = np.where(mask > 0, logits, 50.0).astype("float32")
    actual = value_and_gradient(other_logits, other_labels, mask, infonce=infonce)
    for value, of_columns in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(value, of_columns)
    assert not expected[2][mask == 0].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_masked_may_be_no_number(columns, bad):
    """The model may compute anything from padding: no loss and no gradient, not even the temperature's, sees it."""
    logits, labels, mask = columns

    def all_of(logits, labels):
        loss_fn, logits = PointwiseLoss(tasks_of_weights(*[1.0] * K), 0.5, 0.2), tf.constant(logits)
        loss_fn.build()
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = loss_fn(logits, labels, mask)
        gradients = tape.gradient(losses, [logits, loss_fn.log_temperature.value])
        alone = (masked_bce(logits, labels, mask), masked_infonce(logits, labels, mask))
        return [np.array(array) for array in (losses, *gradients, *alone)]

    broken = [np.where(mask > 0, values, bad).astype("float32") for values in (logits, labels)]
    for value, expected in zip(all_of(*broken), all_of(logits, labels), strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("infonce", [0.0, 0.5])
def test_a_score_that_is_no_number_where_a_label_is_there_shows(columns, infonce):
    logits, labels, mask = columns
    logits[tuple(np.argwhere(mask)[0])] = np.nan
    assert not np.isfinite(value_and_gradient(logits, labels, mask, infonce=infonce)[0])


@pytest.mark.parametrize("infonce", [0.0, 0.5])
def test_padding_changes_nothing(columns, infonce):
    padded = [np.pad(column, [(0, 2), (0, 3), (0, 0)]) for column in columns]
    loss_fn = PointwiseLoss(tasks_of_weights(*[1.0] * K), infonce)
    np.testing.assert_allclose(loss_fn(*padded).numpy(), loss_fn(*columns).numpy(), rtol=1e-6)


def test_extreme_logits_give_finite_losses_and_gradients():
    logits = np.array([[[1e4], [-1e4], [1e4], [-1e4], [0.0]]], "float32")
    labels = np.array([[[1.0], [0.0], [0.0], [1.0], [1.0]]], "float32")
    loss, losses, gradient = value_and_gradient(logits, labels, np.ones_like(labels), [1.0])
    assert losses[0] == pytest.approx((0 + 0 + 1e4 + 1e4 + np.log(2)) / 5)
    assert np.isfinite(loss)
    np.testing.assert_allclose(gradient[0, :, 0] * 5, [0, 0, 1, -1, -0.5], atol=1e-6)
    loss, losses, gradient = value_and_gradient(logits, labels, np.ones_like(labels), [1.0], 1.0, 0.011)
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("infonce", [0.0, 0.5])
def test_a_task_without_labels_has_no_loss_and_no_gradient(columns, infonce):
    logits, labels, mask = columns
    mask[..., 1] = 0
    loss, losses, gradient = value_and_gradient(logits, labels, mask, infonce=infonce)
    assert losses[1] == 0 and not gradient[..., 1].any() and np.isfinite(gradient).all()
    assert loss == pytest.approx(losses[0] + losses[2]) and losses[0] > 0


# === List-wise ===


def by_hand(logits, labels, mask):
    """InfoNCE in loops."""
    found = np.zeros(K)
    for k in range(K):
        per_request = []
        for b in range(B):
            there = mask[b, :, k] > 0
            x, y = logits[b, there, k].astype("float64"), labels[b, there, k]
            if 0 < y.sum() < len(y):
                per_request.append(np.mean([np.log(np.exp(x).sum()) - x[n] for n in np.flatnonzero(y)]))
        found[k] = np.mean(per_request or [0.0])
    return found


def test_infonce_is_the_mean_over_requests_of_the_mean_over_their_positives(columns):
    logits, labels, mask = columns
    expected = by_hand(logits, labels, mask)
    assert (expected > 0).all()
    np.testing.assert_allclose(masked_infonce(*columns), expected, rtol=1e-5)


def with_weights(logits, labels, weights):
    """InfoNCE in loops, float64: others stand in a positive's softmax with their weights, itself at least whole."""
    found = np.zeros(logits.shape[-1])
    for k in range(logits.shape[-1]):
        per_request = []
        for x, y, w in zip(logits[..., k].astype("float64"), labels[..., k], weights[..., k], strict=True):
            if (w * y).sum() > 0 and (w * (1 - y)).sum() > 0:
                losses = {}
                for n in np.flatnonzero(y * w):
                    own = np.where(np.arange(len(x)) == n, np.maximum(w, 1), w)
                    losses[n] = -np.log(np.exp(x[n]) / (own * np.exp(x)).sum())
                per_request.append(np.average(list(losses.values()), weights=w[list(losses)]))
        found[k] = np.mean(per_request or [0.0])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_infonce_with_weights_is_the_same_in_numpy(seed):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (B, N, K)).astype("float32")
    labels = random.integers(0, 2, (B, N, K)).astype("float32")
    weights = random.choice([0, 1e-3, 0.1, 0.5, 0.99, 1, 2.5], (B, N, K)).astype("float32")
    expected = with_weights(logits, labels, weights)
    assert (expected > 0).any()
    np.testing.assert_allclose(masked_infonce(logits, labels, weights), expected, rtol=1e-5)


def test_infonce_is_not_below_zero_whatever_the_weights():
    """A sure positive of a small weight: its share of the softmax is all, not more."""
    random = np.random.default_rng(0)
    weights = random.uniform(1e-6, 1, (500, N, K)).astype("float32")
    labels = np.zeros_like(weights)
    labels[:, 0] = 1
    for scale in (1.0, 30.0):
        logits = (scale * (labels + random.normal(0, 0.1, labels.shape))).astype("float32")
        of_each = np.stack([masked_infonce(*(a[n : n + 1] for a in (logits, labels, weights))) for n in range(500)])
        assert (of_each >= 0).all() and np.isfinite(of_each).all()
    logits, labels, weights = (np.array([[[a], [b]]], "float32") for a, b in ((2, 0), (1, 0), (0.1, 0.5)))
    expected = np.log(1 + 0.5 * np.exp(-2))
    assert masked_infonce(logits, labels, weights).numpy()[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("weight", "size"), [(0.25, 3), (1 / 3, 2), (0.7, 2)])
def test_the_gradient_of_infonce_with_weights_is_its_slope(weight, size):
    logits, labels = np.zeros((1, size, 1), "float32"), np.eye(1, size, dtype="float32")[..., None]
    weights = np.full((1, size, 1), weight, "float32")
    given = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(given)
        value = masked_infonce(given, labels, weights)
    around = (with_weights(logits + step * labels, labels, weights)[0] for step in (1e-4, -1e-4))
    assert tape.gradient(value, given).numpy()[0, 0, 0] == pytest.approx(np.subtract(*around) / 2e-4, rel=1e-4)


def test_infonce_of_whole_weights_is_to_the_last_digit_what_it_was(columns):
    logits, labels, mask = columns
    with tf.GradientTape() as tape:
        given = tf.constant(logits)
        tape.watch(given)
        value = masked_infonce(given, labels, mask)
    with tf.GradientTape() as plain_tape:
        again = tf.constant(logits)
        plain_tape.watch(again)
        plain = tf.reduce_logsumexp(tf.where(mask > 0, again, -1e9), axis=1, keepdims=True) - again
        positives = tf.reduce_sum(labels * mask, axis=1)
        counts = tf.cast((positives > 0) & (tf.reduce_sum((1 - labels) * mask, axis=1) > 0), "float32")
        per_request = tf.reduce_sum(tf.where(mask > 0, plain, 0.0) * labels * mask, axis=1) / tf.maximum(positives, 1)
        expected = tf.reduce_sum(per_request * counts, axis=0) / tf.maximum(tf.reduce_sum(counts, axis=0), 1)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(tape.gradient(value, given), plain_tape.gradient(expected, again))


def test_infonce_is_softmax_cross_entropy(columns):
    """With all labels there it is the library's: targets are the positives' shares."""
    logits, labels, _ = columns
    labels[:, 0], labels[:, 1] = 1, 0  # both classes in every request
    per_request = tf.nn.softmax_cross_entropy_with_logits(labels / labels.sum(1, keepdims=True), logits, axis=1)
    np.testing.assert_allclose(masked_infonce(logits, labels, np.ones_like(labels)), per_request.numpy().mean(0), 1e-5)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_requests_of_one_class_have_no_part_in_infonce(columns, label):
    logits, labels, mask = columns
    mask[:], labels[:, 0], labels[:, 1] = 1, 1, 0
    expected = masked_infonce(logits[1:], labels[1:], mask[1:]).numpy()
    labels[0] = label
    tensor = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        losses = masked_infonce(tensor, labels, mask)
    gradient = tape.gradient(losses, tensor).numpy()
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert not gradient[0].any() and gradient[1:].any()


def test_a_class_of_which_no_label_is_there_does_not_count(columns):
    logits, labels, mask = columns
    mask[:] = 1
    labels[:] = 0
    labels[:, 0] = 1
    mask[0, 0] = 0  # the only positive
    np.testing.assert_allclose(masked_infonce(logits, labels, mask), by_hand(logits, labels, mask), rtol=1e-5)
    nothing = masked_infonce(logits[:1], labels[:1], mask[:1])
    np.testing.assert_array_equal(nothing, np.zeros(K))


def test_without_any_candidate_there_is_no_loss():
    nothing = np.zeros((0, N, K), "float32")
    assert not PointwiseLoss(tasks_of_weights(*[1.0] * K), infonce=0.5)(nothing, nothing, nothing).numpy().any()


# === Both ===


def test_a_tasks_loss_is_its_weight_times_both_terms(columns):
    logits, labels, mask = columns
    weights, temperature = [2.0, 1.0, 0.5], 0.3
    loss, losses, gradient = value_and_gradient(*columns, weights, 0.2, temperature)
    infonce = masked_infonce(logits / np.float32(temperature), labels, mask)
    expected = weights * (masked_bce(*columns).numpy() + 0.2 * infonce.numpy())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert loss == pytest.approx(losses.sum(), rel=1e-6)
    unweighted = value_and_gradient(*columns, infonce=0.2, temperature=temperature)[2]
    np.testing.assert_allclose(gradient, unweighted * weights, atol=1e-6)


def test_without_infonce_there_is_no_temperature(columns):
    weights = [2.0, 1.0, 0.5]
    loss_fn = PointwiseLoss(tasks_of_weights(*weights))
    np.testing.assert_allclose(loss_fn(*columns), weights * masked_bce(*columns).numpy(), rtol=1e-6)
    assert loss_fn.log_temperature is None and not loss_fn.trainable_variables


def test_each_task_has_a_temperature_that_starts_where_it_is_told(columns):
    loss_fn = PointwiseLoss(tasks_of_weights(*[1.0] * K), infonce=0.5, temperature=0.2)
    loss_fn(*columns)
    (variable,) = loss_fn.trainable_variables
    np.testing.assert_allclose(LOWEST_TEMPERATURE + np.exp(variable.numpy()), [0.2] * K, rtol=1e-6)


def test_the_gradient_of_the_temperature_is_the_slope_of_the_loss(columns):
    loss_fn = PointwiseLoss(tasks_of_weights(*[1.0] * K), infonce=0.5, temperature=0.2)
    loss_fn.build()
    with tf.GradientTape() as tape:
        losses = loss_fn(*columns)
    gradient = tape.gradient(losses, loss_fn.log_temperature.value).numpy()
    logits, labels, mask = (column.astype("float64") for column in columns)

    def of(log_temperature):
        return 0.5 * by_hand(logits / (LOWEST_TEMPERATURE + np.exp(log_temperature)), labels, mask)

    start = np.log(0.2 - LOWEST_TEMPERATURE)
    slope = (of(start + 1e-5) - of(start - 1e-5)) / 2e-5
    np.testing.assert_allclose(gradient, slope, rtol=1e-3)


def test_temperatures_do_not_fall_below_their_bound(columns):
    logits, labels, mask = columns
    loss_fn = PointwiseLoss(tasks_of_weights(*[1.0] * K), infonce=1.0)
    loss_fn(*columns)
    loss_fn.log_temperature.assign([-50.0] * K)
    expected = masked_bce(*columns) + masked_infonce(logits / np.float32(LOWEST_TEMPERATURE), labels, mask)
    np.testing.assert_allclose(loss_fn(*columns), expected, rtol=1e-5)


def test_a_low_temperature_can_rise_again(columns):
    """A bound that cut the gradient would hold it for ever."""
    loss_fn = PointwiseLoss(tasks_of_weights(*[1.0] * K), infonce=1.0)
    loss_fn.build()
    loss_fn.log_temperature.assign([np.log(1e-4)] * K)
    with tf.GradientTape() as tape:
        losses = loss_fn(*columns)
    gradient = tape.gradient(losses, loss_fn.log_temperature.value).numpy()
    assert np.isfinite(gradient).all() and (gradient < 0).all(), "random logits lose least at a high temperature"


def test_the_loss_is_float32_under_a_mixed_policy(columns):
    """Sums over a batch would lose small terms in bfloat16; models hand over bfloat16 logits."""
    logits, labels, mask = (tf.constant(column) for column in columns)
    logits = tf.cast(tf.cast(logits, tf.bfloat16), tf.float32)  # values that both can hold
    plain, mixed = (
        PointwiseLoss(tasks_of_weights(*[1.0] * K), infonce=0.5, temperature=0.125, dtype=dtype)
        for dtype in ("float32", "mixed_bfloat16")
    )
    losses = mixed(tf.cast(logits, tf.bfloat16), labels, mask)
    assert keras.backend.standardize_dtype(losses.dtype) == "float32"
    np.testing.assert_allclose(losses, plain(logits, labels, mask), rtol=1e-5)
