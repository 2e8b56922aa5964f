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
        of_requests = []
        for b in range(B):
            there = mask[b, :, k] > 0
            x, y = logits[b, there, k].astype("float64"), labels[b, there, k]
            if 0 < y.sum() < len(y):
                of_requests.append(np.mean([np.log(np.exp(x).sum()) - x[n] for n in np.flatnonzero(y)]))
        found[k] = np.mean(of_requests or [0.0])
    return found


def test_infonce_is_the_mean_over_requests_of_the_mean_over_their_positives(columns):
    logits, labels, mask = columns
    expected = by_hand(logits, labels, mask)
    assert (expected > 0).all()
    np.testing.assert_allclose(masked_infonce(*columns), expected, rtol=1e-5)


def test_infonce_is_softmax_cross_entropy(columns):
    """With all labels there it is the library's: targets are the positives' shares."""
    logits, labels, _ = columns
    labels[:, 0], labels[:, 1] = 1, 0  # both classes in every request
    of_requests = tf.nn.softmax_cross_entropy_with_logits(labels / labels.sum(1, keepdims=True), logits, axis=1)
    np.testing.assert_allclose(masked_infonce(logits, labels, np.ones_like(labels)), of_requests.numpy().mean(0), 1e-5)


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
