"""Rebuilds layers and models on Keras's JAX backend and computes what `test_backends.py` compares with TensorFlow.

    KERAS_BACKEND=jax python -m tests.testing.jax_worker FOLDER

FOLDER holds `<case>.json`, a layer's config and the options of its call, and `<case>.npz`, its inputs and weights. What
comes of them is written to `<case>.jax.npz`.
"""

import importlib
import json
import pkgutil
import sys
from pathlib import Path

import keras
import numpy as np


def objective(outputs):
    """A number whose gradient reaches every value of the outputs with another weight."""
    total = 0.0
    for output in keras.tree.flatten(outputs):
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(output.dtype)):
            # never the same weight twice: the sum of a normalised vector would have no gradient
            weights = np.cos(np.arange(np.prod(output.shape, dtype=int))).astype("float32")
            total = total + keras.ops.sum(output * weights.reshape(output.shape))
    return total


def to_flat(tree, prefix=""):
    """Nested dicts of arrays as one dict, keys joined by a slash."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, part in tree.items() for key, value in to_flat(part, f"{prefix}/{name}".strip("/")).items()
    }


def to_nested(flat):
    """The opposite of `to_flat`."""
    nested = {}
    for key, value in flat.items():
        *groups, name = key.split("/")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return nested


def is_float(array):
    return np.issubdtype(array.dtype, np.floating)


def named(kind, arrays):
    """Arrays of a list by keys that tell their kind and place."""
    return {f"{kind}:{place}": np.asarray(array) for place, array in enumerate(arrays)}


def part(arrays, kind):
    """The arrays of a kind, by the rest of their keys."""
    return {key.partition(":")[2]: array for key, array in arrays.items() if key.partition(":")[0] == kind}


def compute(layer, options, inputs, weights):
    """Outputs, the objective's gradient by each weight and by each float input."""
    import jax

    if not layer.built:  # its config may have built it
        layer(**to_nested(inputs), **options)
    layer.set_weights(weights)
    floats = {key: array for key, array in inputs.items() if is_float(array)}
    rest = {key: array for key, array in inputs.items() if key not in floats}
    fixed = [variable.value for variable in layer.non_trainable_variables]

    @jax.jit
    def run(trainable, floats, rest):
        def of_weights_and_inputs(trainable, floats):
            outputs, _ = layer.stateless_call(trainable, fixed, **to_nested({**floats, **rest}), **options)
            return objective(outputs), outputs

        return jax.value_and_grad(of_weights_and_inputs, argnums=(0, 1), has_aux=True)(trainable, floats)

    (_, outputs), (of_weights, of_inputs) = run([v.value for v in layer.trainable_variables], floats, rest)
    return {
        **named("output", keras.tree.flatten(outputs)),
        **named("weight", of_weights),
        **{f"input:{key}": np.asarray(gradient) for key, gradient in of_inputs.items()},
    }


def main(folder):
    assert keras.backend.backend() == "jax"
    for package in ("trainer.layers", "trainer.heads", "trainer.losses", "trainer.models"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    for path in sorted(folder.glob("*.json")):
        case, arrays = json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz")))
        layer = keras.saving.deserialize_keras_object(case["layer"])
        results = compute(layer, case["options"], part(arrays, "input"), list(part(arrays, "weight").values()))
        np.savez(path.with_suffix(".jax.npz"), **results)
    # layers and models are keras.ops alone: JAX users need no TensorFlow
    assert "tensorflow" not in sys.modules, "something imported TensorFlow"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
