import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import log_loss

from trainer.losses import masked_bce, multi_task_loss

B, N, K = 4, 5, 3


@pytest.fixture
def columns():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (B, N, K)).astype("float32")
    labels = random.integers(0, 2, (B, N, K)).astype("float32")
    mask = random.integers(0, 2, (B, N, K)).astype("float32")
    return logits, labels, mask


def value_and_gradient(logits, labels, mask, weights=(1.0,) * K):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss, losses = multi_task_loss(logits, labels, mask, weights)
    return float(loss), losses.numpy(), tape.gradient(loss, logits).numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


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


def test_labels_that_are_not_there_change_nothing(columns):
    logits, labels, mask = columns
    expected = value_and_gradient(*columns)
    other_labels = np.where(mask > 0, labels, 1 - labels)
    other_logits = np.where(mask > 0, logits, 50.0).astype("float32")
    for actual, value in zip(value_and_gradient(other_logits, other_labels, mask), expected, strict=True):
        np.testing.assert_array_equal(actual, value)
    assert not expected[2][mask == 0].any()


def test_padding_changes_nothing(columns):
    padded = [np.pad(column, [(0, 2), (0, 3), (0, 0)]) for column in columns]
    np.testing.assert_allclose(masked_bce(*padded).numpy(), masked_bce(*columns).numpy(), rtol=1e-6)


def test_extreme_logits_give_finite_losses_and_gradients():
    logits = np.array([[[1e4], [-1e4], [1e4], [-1e4], [0.0]]], "float32")
    labels = np.array([[[1.0], [0.0], [0.0], [1.0], [1.0]]], "float32")
    loss, losses, gradient = value_and_gradient(logits, labels, np.ones_like(labels), [1.0])
    assert losses[0] == pytest.approx((0 + 0 + 1e4 + 1e4 + np.log(2)) / 5)
    assert np.isfinite(loss)
    np.testing.assert_allclose(gradient[0, :, 0] * 5, [0, 0, 1, -1, -0.5], atol=1e-6)


def test_a_task_without_labels_has_no_loss_and_no_gradient(columns):
    logits, labels, mask = columns
    mask[..., 1] = 0
    loss, losses, gradient = value_and_gradient(logits, labels, mask)
    assert losses[1] == 0 and not gradient[..., 1].any()
    assert loss == pytest.approx(losses[0] + losses[2]) and losses[0] > 0


def test_the_loss_is_the_weighted_sum_of_the_tasks(columns):
    weights = [2.0, 0.0, 0.5]
    loss, losses, gradient = value_and_gradient(*columns, weights)
    np.testing.assert_array_equal(losses, masked_bce(*columns).numpy())
    assert loss == pytest.approx(2 * losses[0] + 0.5 * losses[2], rel=1e-6)
    np.testing.assert_allclose(gradient, value_and_gradient(*columns)[2] * weights, atol=1e-7)
