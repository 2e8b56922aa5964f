"""A head of one network and a tower a task."""

import numpy as np
import pytest

from tests.testing.layer_cases import B, D, N, normal
from tests.testing.layer_checks import numpy, spread_weights
from trainer.heads.shared_bottom import SharedBottom


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
