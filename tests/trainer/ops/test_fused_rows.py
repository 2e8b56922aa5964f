"""Norms and GELUs in C++: equal to Keras's on random cases, in every way to run them; and their bounds."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import ndtr

from tests.testing.attention_cases import difference
from tests.testing.repository import repository
from tests.testing.rows_cases import TOLERANCE, random_case, run
from trainer.layers.token_dense import TokenDense
from trainer.layers.token_norm import TokenNorm
from trainer.ops import fused
from trainer.ops.kernels import use_kernels

NOT_BUILT = fused.unavailable()
pytestmark = pytest.mark.skipif(NOT_BUILT is not None, reason=str(NOT_BUILT))


def assert_same(actual, expected, dtype="float32"):
    for name, array in actual.items():
        assert np.isfinite(array).all(), name
        assert difference(array, expected[name]) < TOLERANCE[dtype], name


@pytest.mark.parametrize("seed", range(40))
def test_they_are_kerass(seed):
    case = random_case(seed)
    assert_same(run(*case, "fused"), run(*case, "reference"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["graph", "xla"])
@pytest.mark.parametrize("seed", range(6))
def test_ways_to_run_agree(seed, way):
    case = random_case(seed)
    assert_same(run(*case, "fused", way), run(*case, "reference"))


@pytest.mark.parametrize("seed", range(100, 110))
def test_bfloat16_is_float32_rounded(seed):
    case = random_case(seed, "bfloat16")
    assert_same(run(*case, "fused"), run(*case, "reference"), "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("build", ["plain", "avx2"])
def test_builds_for_other_processors_agree(build):
    program = "from tests.trainer.ops import test_fused_rows as t\nfor seed in range(12): t.test_they_are_kerass(seed)"
    environment = {**os.environ, "ONERANK_INSTRUCTIONS": build, "PYTHONPATH": str(repository())}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_the_gelu_is_exact_on_all_of_its_range():
    x = np.concatenate([np.linspace(-30, 30, 100_001), [-1e30, 1e30]]).astype("float32")[:, None]
    with tf.GradientTape() as tape:
        source = tf.constant(x)
        tape.watch(source)
        out = fused.fused_gelu(source, tf.zeros(1))
    z = x.astype("float64")
    share, density = ndtr(z), np.exp(-np.minimum(z * z, 1e3) / 2) / np.sqrt(2 * np.pi)
    assert (np.abs(out - z * share) / np.maximum(1, np.abs(z))).max() < 3e-7
    assert np.abs(tape.gradient(out, source) - (share + z * density)).max() < 1e-6
    np.testing.assert_allclose(out[x < -10], 0, atol=1e-8)
    assert np.isnan(fused.fused_gelu(tf.constant([[np.nan]]), tf.zeros(1)).numpy()).all()


def test_a_row_of_one_value_norms_to_beta():
    layer = TokenNorm()
    layer.build((None, 20))
    layer.beta.assign(np.arange(20.0))
    with use_kernels("fused"):
        np.testing.assert_allclose(layer(tf.fill([3, 20], 1e4)), np.broadcast_to(np.arange(20.0), (3, 20)))


def test_repetition_changes_nothing_with_more_rows_than_the_least_chunks_hold():
    layer, _, _ = random_case(3)
    random = np.random.default_rng(0)
    case = layer, tf.constant(random.normal(size=(20_001, 5)), tf.float32), tf.ones((20_001, layer.units))
    assert_same(run(*case, "fused"), run(*case, "reference"))
    first, second = run(*case, "fused"), run(*case, "fused")
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_the_setting_chooses_for_layers_too():
    model = keras.Sequential([TokenDense(8, "gelu"), TokenNorm(), TokenDense(8, "relu"), TokenDense(2)])
    model.build((None, 4))
    for kernel, times in {"auto": 1, "fused": 1, "portable": 0}.items():
        with use_kernels(kernel):
            step = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec([None, 4]))
        types = [op.type for op in step.graph.get_operations()]
        assert types.count("OneRankGelu") == types.count("OneRankNorm") == times, kernel


@pytest.mark.parametrize("name", ["bias", "gamma", "beta", "grad_out", "x"])
def test_the_operations_name_what_is_wrong(name):
    x, vector, library = tf.ones((4, 3)), tf.ones(3), fused._library()
    wrong = {"bias": tf.ones(4), "gamma": tf.ones(2), "beta": tf.ones((1, 3)), "grad_out": tf.ones((3, 4))}
    if name == "x":
        with pytest.raises(tf.errors.InvalidArgumentError, match="`x` should"):
            library.one_rank_gelu(x=tf.ones(()), bias=vector)
        return
    if name == "bias":
        with pytest.raises(tf.errors.InvalidArgumentError, match="`bias` should"):
            library.one_rank_gelu(x=x, bias=wrong["bias"])
    else:
        right = {"x": x, "gamma": vector, "beta": vector, "grad_out": x, "epsilon": 1e-6}
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{name}` should"):
            library.one_rank_norm_grad(**{**right, name: wrong[name]})
