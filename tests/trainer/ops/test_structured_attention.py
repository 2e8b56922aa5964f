"""The kernels of structured attention: equal on random cases, in every way to run them; and the fused one's bounds."""

import logging
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.testing.attention_cases import TOLERANCE, difference, naive, random_case, run
from tests.testing.repository import repository
from trainer.ops import fused, kernels
from trainer.ops.attention import structured_attention
from trainer.ops.attention.attention_pattern import CAUSAL, AttentionPattern, Prefix
from trainer.ops.kernels import use_kernels

NOT_BUILT = fused.unavailable()
needs_fused = pytest.mark.skipif(NOT_BUILT is not None, reason=str(NOT_BUILT))
KERNELS = ["portable", pytest.param("fused", marks=needs_fused)]


@pytest.fixture(autouse=True)
def say_again():
    kernels._say_once.cache_clear()


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def assert_same(actual, expected, dtype="float32"):
    for name, array in actual.items():
        assert np.isfinite(array).all(), name
        assert difference(array, expected[name]) < TOLERANCE[dtype], name


# === Equality ===


def test_where_there_is_a_compiler_the_fused_attention_is_built():
    if shutil.which("g++") and not tf.config.list_physical_devices("GPU"):
        assert NOT_BUILT is None, "run `make setup`"


@pytest.mark.parametrize("seed", range(30))
def test_the_reference_is_a_plain_loop_over_the_intervals(seed):
    arguments, pattern = random_case(seed)
    assert difference(run(arguments, pattern, "reference")["out"], naive(arguments, pattern)) < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(60))
def test_kernels_agree(kernel, seed):
    case = random_case(seed)
    assert_same(run(*case, kernel), run(*case, "reference"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["graph", "xla"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(6))
def test_ways_to_run_agree(kernel, seed, way):
    case = random_case(seed)
    assert_same(run(*case, kernel, way), run(*case, "reference"))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(100, 112))
def test_bfloat16_is_float32_rounded(kernel, seed):
    case = random_case(seed, "bfloat16")
    assert_same(run(*case, kernel), run(*case, "reference"), "bfloat16")


@pytest.mark.slow
@needs_fused
@pytest.mark.parametrize("build", ["plain", "avx2"])
def test_builds_for_other_processors_agree(build):
    """Those of this one are what the tests above run."""
    program = [sys.executable, "-m", "tests.testing.fuzz_ops", "--cases", "25"]
    environment = {**os.environ, "ONERANK_INSTRUCTIONS": build, "PYTHONPATH": str(repository())}
    found = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_far_apart_neither_overflow_nor_vanish(kernel):
    arguments, pattern = random_case(0)
    arguments["queries"] = arguments["queries"] * 300
    assert_same(run(arguments, pattern, kernel), run(arguments, pattern, "reference"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_is_inert(kernel):
    """Whatever stands in masked tokens, NaN too, reaches nothing: neither results nor gradients."""
    pattern, mask, there = AttentionPattern("first", 3), np.array([[True] * 6 + [False] * 3]), np.array([[True, False]])
    arguments = {name: normal(1, 2, 9, 8, seed=n) for n, name in enumerate(("queries", "keys", "values", "grad_out"))}
    arguments |= {f"prefix_{name}": normal(1, 2, 2, 8, seed=9) for name in ("keys", "values")}
    arguments |= {"bias": normal(2), "mask": tf.constant(mask), "prefix_mask": tf.constant(there)}
    other = dict(arguments)
    for name, kept in {"keys": mask, "values": mask, "prefix_keys": there, "prefix_values": there}.items():
        other[name] = tf.where(kept[:, None, :, None], arguments[name], 7.0)
    expected = run(arguments, pattern, kernel)
    assert_same(run(other, pattern, kernel), expected)
    assert not expected["out"][:, :, 6:].any() and not expected["keys"][:, :, 6:].any()
    assert not expected["prefix_values"][:, :, 1].any() and expected["prefix_values"][:, :, 0].any()


@pytest.mark.parametrize("kernel", [*KERNELS, "reference"])
@pytest.mark.parametrize("seed", range(6))
def test_no_mask_is_a_mask_of_all(kernel, seed):
    arguments, pattern = random_case(seed)
    everywhere = arguments | {"mask": tf.ones_like(arguments["mask"])}
    assert_same(run(arguments | {"mask": None}, pattern, kernel), run(everywhere, pattern, kernel))


@needs_fused
def test_threads_change_nothing():
    case = random_case(3)
    first, second = run(*case, "fused"), run(*case, "fused")
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


# === No tensor of queries by all keys ===


def test_no_tensor_of_the_portable_kernel_grows_with_the_square_of_the_list():
    def largest(n):
        spec = tf.TensorSpec([1, 1, 4 * n, 8], tf.float32)
        prefix = Prefix(*[tf.TensorSpec([1, 1, 10, 8], tf.float32)] * 2, tf.TensorSpec([1, 10], tf.bool))

        @tf.function(input_signature=[spec, prefix])
        def step(tokens, prefix):
            with use_kernels("portable"), tf.GradientTape() as tape:
                tape.watch(tokens)
                out = structured_attention.structured_attention(
                    tokens, tokens, tokens, AttentionPattern("first", 4), prefix=prefix
                )
            return out, tape.gradient(out, tokens)

        graph = step.get_concrete_function().graph
        return max(t.shape.num_elements() or 0 for op in graph.get_operations() for t in op.outputs)

    assert largest(400) == 10 * largest(40)


# === Which kernel runs ===


def operations(kernel, jit_compile=False, dtype=tf.float32, depth=8):
    """The types of operations in a traced call."""
    tokens = tf.TensorSpec([1, 2, 5, depth], dtype)
    with use_kernels(kernel):
        step = tf.function(lambda t: structured_attention.structured_attention(t, t, t), jit_compile=jit_compile)
        return {op.type for op in step.get_concrete_function(tokens).graph.get_operations()}


@needs_fused
def test_the_setting_chooses_and_the_log_says_so_once(caplog):
    caplog.set_level(logging.INFO)
    assert "OneRankAttention" in operations("auto") and "OneRankAttention" in operations("fused")
    assert "OneRankAttention" not in operations("portable")
    assert [record.getMessage() for record in caplog.records] == ["Kernels of attention, norms and GELU: fused"]
    for case in [{"jit_compile": True}, {"dtype": tf.float64}, {"depth": 129}]:
        assert "OneRankAttention" not in operations("auto", **case)
    said = " ".join(record.getMessage() for record in caplog.records[1:])
    assert said.count("portable") == 3 and all(why in said for why in ("XLA", "float64", "129"))
    with pytest.raises(ValueError, match="one of auto, fused"), use_kernels("quick"):
        pass


@needs_fused
def test_a_library_of_another_tensorflow_is_refused(tmp_path, monkeypatch, caplog):
    built = fused.LIBRARY.read_bytes()
    now, other = (f"TensorFlow {version};".encode() for version in (tf.__version__, "0" * len(tf.__version__)))
    assert built.count(now) == 1
    (tmp_path / "other.so").write_bytes(built.replace(now, other))
    for cached in (fused.unavailable, fused._library):
        monkeypatch.setattr(fused, cached.__name__, cached.__wrapped__)
    for library, why in [(tmp_path / "other.so", "was built against 0"), (tmp_path / "none.so", "is not built")]:
        monkeypatch.setattr(fused, "LIBRARY", library)
        caplog.set_level(logging.INFO)
        assert "OneRankAttention" not in operations("auto") and why in caplog.text
        with pytest.raises(RuntimeError, match=why):
            operations("fused")


@needs_fused
def test_a_saved_model_holds_the_kernel_it_was_traced_with(tmp_path):
    tokens = normal(1, 2, 5, 8)
    expected = structured_attention.structured_attention(tokens, tokens, tokens)
    for kernel in ("portable", "fused"):
        module = tf.Module()
        module.call = tf.function(lambda t: structured_attention.structured_attention(t, t, t))
        with use_kernels(kernel):
            module.call(tokens)
            tf.saved_model.save(module, str(tmp_path / kernel))  # which may trace anew
        loaded = tf.saved_model.load(str(tmp_path / kernel)).call(tokens)
        assert difference(loaded.numpy(), expected.numpy()) < 1e-5
        names = (tmp_path / kernel / "saved_model.pb").read_bytes()
        assert (b"OneRankAttention" in names) == (kernel == "fused")


@pytest.mark.slow
@needs_fused
def test_xla_compiles_a_training_step_that_asks_for_the_fused_kernel():
    class Attend(keras.layers.Layer):
        def call(self, x):
            return structured_attention.structured_attention(x, x, x)

    losses = {}
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(8), Attend(), keras.layers.Dense(1)])
        with use_kernels("fused"):
            model.compile("sgd", "mse", jit_compile=jit_compile)
            history = model.fit(normal(4, 2, 5, 8), normal(4, 2, 5, 1), epochs=3, verbose=0).history
        losses[jit_compile] = history["loss"]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-5)
    assert losses[True][-1] < losses[True][0]


# === Wrong arguments ===


def arguments(**changes):
    tokens, prefix = normal(2, 3, 6, 8), normal(2, 3, 4, 8)
    made = {"queries": tokens, "keys": tokens, "values": tokens, "mask": tf.ones((2, 6), tf.bool)}
    made |= {"context_keys": prefix, "context_values": prefix, "context_mask": tf.ones((2, 4), tf.bool)}
    return {**made, "bias": tf.zeros(3), "reads": "before", "group_size": 0, **changes}


WRONG = {
    "queries-rank": ("queries", {"queries": normal(2, 3, 6)}),
    "queries-too-many": ("queries", {"queries": normal(2, 3, 7, 8)}),
    "queries-not-all": ("queries", {"queries": normal(2, 3, 4, 8), "group_size": 2}),
    "queries-depth": ("queries", {name: normal(2, 3, 6, 0) for name in ("queries", "keys", "values")}),
    "keys-heads": ("keys", {"keys": normal(2, 1, 6, 8)}),
    "values-length": ("values", {"values": normal(2, 3, 5, 8)}),
    "mask-length": ("mask", {"mask": tf.ones((2, 5), tf.bool)}),
    "mask-rank": ("mask", {"mask": tf.ones((2, 6, 6), tf.bool)}),
    "context_keys-depth": ("context_keys", {"context_keys": normal(2, 3, 4, 7)}),
    "context_values-batch": ("context_values", {"context_values": normal(1, 3, 4, 8)}),
    "context_mask": ("context_mask", {"context_mask": tf.ones((2, 3), tf.bool)}),
    "bias": ("bias", {"bias": tf.zeros(4)}),
    "group_size-negative": ("group_size", {"group_size": -2}),
    "group_size-uneven": ("group_size", {"group_size": 4}),
}


@needs_fused
@pytest.mark.parametrize("name, changes", WRONG.values(), ids=WRONG)
def test_the_operation_names_what_is_wrong(name, changes):
    wrong = arguments(**changes)
    if name == "queries" and wrong["queries"].shape[-1:] == [0]:
        wrong |= {part: normal(2, 3, 4, 0) for part in ("context_keys", "context_values")}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{name}` should"):
        fused._library().one_rank_attention(**wrong)


@needs_fused
def test_the_gradients_operation_names_what_is_wrong():
    right = arguments(out=normal(2, 3, 6, 8), lse=normal(2, 3, 6), grad_out=normal(2, 3, 6, 8))
    for name, wrong in {"out": normal(2, 3, 5, 8), "lse": normal(2, 3, 6, 1), "grad_out": normal(1, 3, 6, 8)}.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{name}` should"):
            fused._library().one_rank_attention_grad(**{**right, name: wrong})


@needs_fused
def test_wrong_dtypes_and_a_traced_graphs_shapes_are_named_too():
    tokens, mask = normal(2, 3, 6, 8), tf.ones((2, 6), tf.bool)
    prefix = Prefix(tokens, tokens, mask)

    def call(queries=tokens, keys=tokens, mask=mask, prefix=prefix):
        return fused.fused_attention(queries, keys, tokens, CAUSAL, mask, prefix, tf.zeros(3))

    for name, wrong in {
        "queries": {"queries": tf.cast(tokens, tf.float64)},
        "keys": {"keys": tf.cast(tokens, tf.bfloat16)},
        "mask": {"mask": tf.ones((2, 6))},
        "prefix.mask": {"prefix": prefix._replace(mask=tf.ones((2, 6)))},
        "prefix.values": {"prefix": prefix._replace(values=tf.cast(tokens, tf.float16))},
    }.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{name}` should"):
            call(**wrong)
    with pytest.raises(ValueError, match=r"`keys` should have the shape \[B, H, M, D\] with B = 2"):
        tf.function(call).get_concrete_function(keys=tf.TensorSpec([2, 4, None, 8], tf.float32))


def test_visibility_and_bias_say_what_they_expect():
    tokens = normal(1, 2, 4, 8)
    with pytest.raises(ValueError, match="`reads` should be one of first, before, all"):
        AttentionPattern("behind")
    with pytest.raises(ValueError, match="`group_size` should be at least 1"):
        AttentionPattern("first", -1)
    with pytest.raises(ValueError, match='`bias` is for reads="first"'):
        structured_attention.structured_attention(tokens, tokens, tokens, bias=np.zeros(2))
