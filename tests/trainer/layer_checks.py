"""What must hold for every layer, checked at once: a new layer costs a few lines in `test_layers.py`."""

import inspect
import json
import os
import re
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

TOLERANCE = 1e-5
BFLOAT16_TOLERANCE = 0.1  # 8 bits of mantissa through a few layers


def run_layer_test(cls, init_kwargs, call_args, expected_shape, bfloat16_tolerance=BFLOAT16_TOLERANCE):
    """Runs a layer in every way in which it will be run.

    Args:
        cls: the layer's class.
        init_kwargs: dict. Arguments of the constructor, best all of them and none at its default.
        call_args: dict. Arguments of the call by name: arrays, or (nested) dicts of arrays, with B first; everything
            else is passed on as it is. Together they should use every weight of the layer.
        expected_shape: tuple of int. The output's shape.
        bfloat16_tolerance: float. How far bfloat16 may be off, relative to the largest output.
    """
    arrays = {name: value for name, value in call_args.items() if isinstance(value, np.ndarray | dict)}
    options = {name: value for name, value in call_args.items() if name not in arrays}
    layer = cls(**init_kwargs)
    layer(**call_args)
    spread_weights(layer)
    expected = numpy(layer(**call_args))
    assert expected.shape == tuple(expected_shape), f"eager shape {expected.shape}"
    assert expected.dtype == np.float32 and np.ptp(expected) > 0.01, "the outputs should tell weights apart"

    _check_config(layer, init_kwargs, call_args, expected)
    _check_symbolic_call(cls, init_kwargs, arrays, options, expected)
    _check_compiled(layer, arrays, options, expected)
    _check_gradients(layer, arrays, options)
    _check_bfloat16(cls, init_kwargs, layer, call_args, expected, bfloat16_tolerance)
    _check_saving(layer, arrays, options, expected)
    run_docstring_example(cls)


def spread_weights(model, seed=0):
    """Gives all trainable weights random values: biases and scales no longer hide what they do."""
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(random.normal(0, 0.3, variable.shape))


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def run_docstring_example(cls):
    """Runs the fenced example of a class; a comment such as `# [2, 5, 3]` states the shape of its last expression."""
    block = re.search(r"```python\n(.*?)```", inspect.getdoc(cls), re.DOTALL)
    assert block, f"{cls.__name__} has no example"
    *statements, last = block[1].strip().splitlines()
    names = {**vars(sys.modules[cls.__module__]), "keras": keras, "np": np}
    exec("\n".join(statements), names)
    expression, shape = last.rsplit("#", 1)
    assert list(eval(expression, names).shape) == json.loads(shape), f"{cls.__name__}: the example's shape is wrong"


# === Checks ===


def _check_config(layer, init_kwargs, call_args, expected):
    """The config holds the arguments and survives JSON, and the class is registered under its package."""
    config = json.loads(json.dumps(layer.get_config()))
    for name, value in init_kwargs.items():
        plain = value.to_config() if hasattr(value, "to_config") else value
        assert config[name] == json.loads(json.dumps(plain)), f"the config does not hold `{name}`"
    through_keras = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    assert through_keras["registered_name"] == f"onerank>{type(layer).__name__}"
    for copy in (type(layer).from_config(config), keras.saving.deserialize_keras_object(through_keras)):
        copy(**call_args)
        copy.set_weights(layer.get_weights())
        assert copy.get_config() == layer.get_config()
        np.testing.assert_array_equal(numpy(copy(**call_args)), expected)


def _check_symbolic_call(cls, init_kwargs, arrays, options, expected):
    """Symbolic tensors build the layer and give the shape and the dtype of the eager call; B may be unknown."""
    for batch in (None, expected.shape[0]):
        symbolic = _map(lambda array, size=batch: keras.KerasTensor((size, *array.shape[1:]), str(array.dtype)), arrays)
        output = cls(**init_kwargs)(**symbolic, **options)
        assert output.shape == (batch, *expected.shape[1:]), f"symbolic shape {output.shape}"
        assert output.dtype == str(expected.dtype)


def _check_compiled(layer, arrays, options, expected):
    """A graph and XLA compute what eager execution computes."""
    signature = _map(lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), arrays)
    for jit_compile in (False, True):
        compiled = tf.function(lambda a: layer(**a, **options), [signature], jit_compile=jit_compile)
        actual = compiled(_map(tf.constant, arrays)).numpy()
        _assert_close(actual, expected, TOLERANCE, f"jit_compile={jit_compile}")


def _check_gradients(layer, arrays, options):
    """In a compiled step every weight learns."""

    @tf.function
    def gradients(arguments):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(**arguments, **options, **_training(layer))))
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, [v.value for v in layer.trainable_variables])]

    for variable, gradient in zip(layer.trainable_variables, gradients(_map(tf.constant, arrays)), strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient), f"{variable.path} gets no gradient"


def _check_bfloat16(cls, init_kwargs, layer, call_args, expected, tolerance):
    """The policy reaches the sub-layers: outputs are bfloat16, weights stay float32."""
    mixed = cls(**init_kwargs, dtype="mixed_bfloat16")
    mixed(**call_args)
    mixed.set_weights(layer.get_weights())
    output = mixed(**call_args)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16", f"mixed policy gave {output.dtype}"
    assert {sub.compute_dtype for sub in mixed._flatten_layers()} == {"bfloat16"}
    assert {variable.dtype for variable in mixed.trainable_variables} == {"float32"}
    _assert_close(numpy(keras.ops.cast(output, "float32")), expected, tolerance, "mixed_bfloat16")


def _check_saving(layer, arrays, options, expected):
    """A functional model around the layer survives `.keras` and SavedModel."""
    inputs = _inputs(arrays)
    model = keras.Model(inputs, layer(**inputs, **options))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        loaded = keras.saving.load_model(path)
        np.testing.assert_array_equal(numpy(loaded(arrays)), expected, err_msg=".keras")
        model.export(os.path.join(folder, "saved"), verbose=False)
        served = tf.saved_model.load(os.path.join(folder, "saved"))
        _assert_close(served.serve(_map(tf.constant, arrays)).numpy(), expected, TOLERANCE, "SavedModel")


# === Steps ===


def _map(function, arrays):
    return keras.tree.map_structure(function, arrays)


def _inputs(arrays):
    return {
        name: _inputs(value) if isinstance(value, dict) else keras.Input(value.shape[1:], dtype=value.dtype, name=name)
        for name, value in arrays.items()
    }


def _training(layer):
    return {"training": True} if "training" in inspect.signature(layer.call).parameters else {}


def _assert_close(actual, expected, tolerance, message):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=message)
