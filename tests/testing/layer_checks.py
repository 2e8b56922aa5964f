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

from transform.features import model_inputs

TOLERANCE = 1e-5
BFLOAT16_TOLERANCE = 0.1  # 8 bits of mantissa through a few layers


def run_layer_test(
    cls,
    init_kwargs,
    call_args,
    expected_shape,
    bfloat16_tolerance=BFLOAT16_TOLERANCE,
    idle=(),
    reduces=False,
    float32=(),
):
    """Runs a layer in every way in which it will be run.

    Args:
        cls: the layer's class.
        init_kwargs: dict. Arguments of the constructor, best all of them and none at its default.
        call_args: dict. Arguments of the call by name: arrays, or (nested) dicts of arrays, with B first; everything
            else is passed on as it is. Together they should use every weight of the layer.
        expected_shape: tuple of int, or a list of them. The output's shape, or each output's. Outputs are float32 or
            bool; only those of several may be empty.
        bfloat16_tolerance: float. How far bfloat16 may be off, relative to the largest output.
        idle: tuple of str. Ends of the paths of the weights that rightly get no gradient.
        reduces: bool. Whether the layer is a loss: its outputs have no B, and are float32 whatever the policy.
        float32: tuple of int. Places of the outputs that are float32 whatever the policy.
    """
    arrays, options = _parts(call_args)
    layer = _made(cls, init_kwargs, call_args)
    expected = outputs_of(layer(**call_args))
    shapes = expected_shape if isinstance(expected_shape, list) else [expected_shape]
    assert [output.shape for output in expected] == shapes, "eager shapes"
    for output in expected:
        assert output.dtype in (np.float32, bool) and (len(shapes) > 1 or output.dtype == np.float32)
        if output.dtype == np.float32 and (len(shapes) == 1 or output.size):
            assert np.ptp(output) > 0.01, "the outputs should tell weights apart"

    _check_config(layer, init_kwargs, call_args, expected)
    _check_symbolic_call(cls, init_kwargs, arrays, options, expected, reduces)
    _check_compiled(layer, arrays, options, expected)
    _check_gradients(layer, arrays, options, idle)
    exact = range(len(expected)) if reduces else float32
    _check_bfloat16(cls, init_kwargs, layer, call_args, expected, bfloat16_tolerance, exact)
    run_docstring_example(cls)


def run_saving_test(cases):
    """Runs layers in one functional model that goes through `.keras` and SavedModel: that takes a second a model.

    Args:
        cases: dict of (cls, init_kwargs, call_args). What `run_layer_test` takes, by names of letters and underscores.
    """
    all_inputs, all_arrays, outputs, expected = {}, {}, {}, {}
    for name, (cls, init_kwargs, call_args) in cases.items():
        arrays, options = _parts(call_args)
        layer, inputs = _made(cls, init_kwargs, call_args), _inputs(arrays, f"{name}_")
        all_inputs |= {f"{name}_{path}": tensor for path, tensor in _flat(inputs)}
        all_arrays |= {f"{name}_{path}": array for path, array in _flat(arrays)}
        symbolic = keras.tree.flatten(layer(**inputs, **options))
        outputs |= {f"{name}_{place}": output for place, output in enumerate(symbolic)}
        expected |= {f"{name}_{place}": output for place, output in enumerate(outputs_of(layer(**call_args)))}
    model = keras.Model(all_inputs, outputs)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        loaded = keras.saving.load_model(path)(all_arrays)
        model.export(os.path.join(folder, "saved"), verbose=False)
        exported = tf.saved_model.load(os.path.join(folder, "saved"))  # holds the variables
    served = exported.serve(_map(tf.constant, all_arrays))
    assert set(loaded) == set(served) == set(expected)
    for name, output in expected.items():
        _assert_close([numpy(loaded[name])], [output], 0, f"{name}: .keras")
        _assert_close([numpy(served[name])], [output], TOLERANCE, f"{name}: SavedModel")


def spread_weights(model, seed=0):
    """Gives all trainable weights random values: biases and scales no longer hide what they do."""
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(random.normal(0, 0.3, variable.shape))


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def outputs_of(result):
    """What a layer returned as a list of arrays: one, or those of a (nested) structure."""
    return [numpy(output) for output in keras.tree.flatten(result)]


def run_docstring_example(cls):
    """Runs the fenced example of a class; a comment such as `# [2, 5, 3]` states the shape of its last expression."""
    block = re.search(r"```python\n(.*?)```", inspect.getdoc(cls), re.DOTALL)
    assert block, f"{cls.__name__} has no example"
    *statements, last = block[1].strip().splitlines()
    names = {**vars(model_inputs), **vars(sys.modules[cls.__module__]), "keras": keras, "np": np}
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
        _assert_close(outputs_of(copy(**call_args)), expected, 0, "a copy by its config")


def _check_symbolic_call(cls, init_kwargs, arrays, options, expected, reduces):
    """Symbolic tensors build the layer and give the shape and the dtype of the eager call; B may be unknown."""
    for batch in (None, len(keras.tree.flatten(arrays)[0])):
        symbolic = _map(lambda array, size=batch: keras.KerasTensor((size, *array.shape[1:]), str(array.dtype)), arrays)
        outputs = keras.tree.flatten(cls(**init_kwargs)(**symbolic, **options))
        for output, value in zip(outputs, expected, strict=True):
            shape = value.shape if reduces else (batch, *value.shape[1:])
            assert output.shape == shape, f"symbolic shape {output.shape}"
            assert output.dtype == str(value.dtype)


def _check_compiled(layer, arrays, options, expected):
    """A graph and XLA compute what eager execution computes."""
    signature = _map(lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), arrays)
    for jit_compile in (False, True):
        compiled = tf.function(lambda a: layer(**a, **options), [signature], jit_compile=jit_compile)
        actual = outputs_of(compiled(_map(tf.constant, arrays)))
        _assert_close(actual, expected, TOLERANCE, f"jit_compile={jit_compile}")


def _check_gradients(layer, arrays, options, idle):
    """In a compiled step every weight learns, but for the idle ones, whose gradient is 0."""

    @tf.function
    def gradients(arguments):
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(layer(**arguments, **options, **_training(layer)))
            loss = tf.add_n([tf.reduce_sum(tf.square(output)) for output in outputs if output.dtype.is_floating])
        variables = [variable.value for variable in layer.trainable_variables]
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables, unconnected_gradients="zero")]

    for variable, gradient in zip(layer.trainable_variables, gradients(_map(tf.constant, arrays)), strict=True):
        if variable.path.endswith(tuple(idle)):
            assert np.abs(gradient).max() < TOLERANCE, f"{variable.path} gets a gradient"
        else:
            assert np.isfinite(gradient).all() and np.any(gradient), f"{variable.path} gets no gradient"


def _check_bfloat16(cls, init_kwargs, layer, call_args, expected, tolerance, exact):
    """The policy reaches the sub-layers: outputs are bfloat16 but for the exact ones, weights stay float32."""
    mixed = cls(**init_kwargs, dtype="mixed_bfloat16")
    mixed(**call_args)
    mixed.set_weights(layer.get_weights())
    outputs = keras.tree.flatten(mixed(**call_args))
    for place, (output, value) in enumerate(zip(outputs, expected, strict=True)):
        dtype = "bfloat16" if value.dtype == np.float32 and place not in exact else str(value.dtype)
        assert keras.backend.standardize_dtype(output.dtype) == dtype, f"mixed policy gave {output.dtype}"
    assert {sub.compute_dtype for sub in mixed._flatten_layers()} == {"bfloat16"}
    assert [variable.dtype for variable in mixed.trainable_variables] == ["float32"] * len(layer.trainable_variables)
    outputs = [keras.ops.cast(output, str(value.dtype)) for output, value in zip(outputs, expected, strict=True)]
    _assert_close(outputs_of(outputs), expected, tolerance, "mixed_bfloat16")


# === Steps ===


def _parts(call_args):
    """The arrays among the arguments of a call, which may be nested, and the rest."""
    arrays = {name: value for name, value in call_args.items() if isinstance(value, np.ndarray | dict)}
    return arrays, {name: value for name, value in call_args.items() if name not in arrays}


def _made(cls, init_kwargs, call_args):
    layer = cls(**init_kwargs)
    layer(**call_args)
    spread_weights(layer)
    return layer


def _flat(nested, prefix=""):
    for name, value in nested.items():
        yield from _flat(value, f"{prefix}{name}_") if isinstance(value, dict) else [(prefix + name, value)]


def _map(function, arrays):
    return keras.tree.map_structure(function, arrays)


def _inputs(arrays, prefix=""):
    return {
        name: _inputs(value, f"{prefix}{name}_")
        if isinstance(value, dict)
        else keras.Input(value.shape[1:], dtype=value.dtype, name=prefix + name)
        for name, value in arrays.items()
    }


def _training(layer):
    return {"training": True} if "training" in inspect.signature(layer.call).parameters else {}


def _assert_close(actual, expected, tolerance, message):
    """Each output, up to a tolerance relative to its largest value; bool ones exactly."""
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        largest = np.abs(other).max() if other.size and other.dtype != bool else 0
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest, err_msg=message)
