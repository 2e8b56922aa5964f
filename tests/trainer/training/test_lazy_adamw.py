"""AdamW that leaves alone what a batch does not look up."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.training.lazy_adamw import LazyAdamW

ROWS, WIDTH, STEPS = 9, 3, 4
SETTINGS = {"learning_rate": 0.05, "weight_decay": 0.1}


def trained(optimizer, lookups, jit_compile=False):
    """A table and a dense variable after steps that look up ids; the optimizer's variables too."""
    generator = np.random.default_rng(0)
    table = keras.Variable(generator.normal(size=(ROWS, WIDTH)), dtype="float32")
    dense = keras.Variable(generator.normal(size=(WIDTH,)), dtype="float32")
    if isinstance(optimizer, LazyAdamW):
        optimizer.exclude_from_weight_decay(var_list=[table])
    optimizer.build([table, dense])

    @tf.function(jit_compile=jit_compile)
    def step(ids, wanted):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(table.value, ids) * dense.value - wanted))
        gradients = tape.gradient(loss, [table.value, dense.value])
        assert isinstance(gradients[0], tf.IndexedSlices)
        if not isinstance(optimizer, LazyAdamW):  # which squares the parts of a row's gradient, not their sum
            gradients[0] = tf.convert_to_tensor(gradients[0])
        optimizer.apply(gradients, [table, dense])

    for ids in lookups:
        step(tf.constant(ids, tf.int64), tf.constant(generator.normal(size=(len(ids), WIDTH)), tf.float32))
    return [table.numpy(), dense.numpy(), *(variable.numpy() for variable in optimizer.variables)]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_with_all_rows_looked_up_it_is_adamw(jit_compile):
    generator = np.random.default_rng(1)
    lookups = [generator.permutation(np.r_[np.arange(ROWS), generator.integers(0, ROWS, 5)]) for _ in range(STEPS)]
    lazy = trained(LazyAdamW(**SETTINGS), lookups, jit_compile)
    for one, other in zip(lazy, trained(keras.optimizers.AdamW(**SETTINGS), lookups), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rows_that_are_not_looked_up_stand_still_and_the_others_move_as_if_alone(jit_compile):
    seldom = [[2, 2, 7], [7, 1], [2], []]
    before = trained(LazyAdamW(**SETTINGS), [])
    after = trained(LazyAdamW(**SETTINGS), seldom, jit_compile)
    for start, end in zip(before, after, strict=True):
        if start.shape == (ROWS, WIDTH):
            moved = np.any(start != end, axis=1)
            np.testing.assert_array_equal(np.flatnonzero(moved), [1, 2, 7])
    everyone = trained(keras.optimizers.AdamW(**SETTINGS), seldom)
    assert np.all(np.any(before[0] != everyone[0], axis=1)), "AdamW's weights decay everywhere"
