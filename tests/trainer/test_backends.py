"""Layers and models compute on Keras's JAX backend what they compute on TensorFlow: outputs and gradients."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.testing.jax_worker import is_float, named, objective, part, to_flat, to_nested
from tests.testing.layer_cases import CASES
from tests.testing.layer_checks import spread_weights
from tests.testing.random_batches import INPUTS, random_batch
from tests.testing.repository import repository
from tests.testing.tiers import costly
from trainer.models import registry
from trainer.models.registry import build_model
from transform.spec.model_sections import Model

pytest.importorskip("jax", reason="Stack A leaves no room for JAX: `make test-other` has it")

TOLERANCE = 3e-5  # of an array's largest value,
SMALL = 1e-3  # or of this part of the largest of all gradients: what is smaller is a difference of larger numbers
# Nothing learns from a gradient by labels, and where two values tie, a maximum's gradient is a matter of taste.
WITHOUT_GRADIENT = ("input:labels", "input:weights")
MODELS = {
    "model_din": Model(name="din", d=8, attention_hidden=6, head={"name": "shared_bottom", "hidden": [16, 8]}),
    "model_onerank": Model(name="onerank", d=8, layers=2, heads=2, ffn_ratio=2, cross_task="cascade"),
    "model_onerank_other": Model(
        name="onerank", d=8, layers=1, heads=2, scorer="mlp", cross_task="full", detach=False, task_tokens=False
    ),
}


def made(case):
    """A layer or model with weights that tell it from others, the arguments of its call and the options."""
    keras.utils.set_random_seed(0)
    if case in MODELS:
        model = build_model(MODELS[case], INPUTS)
        spread_weights(model)
        return model, {"batch": random_batch([4, 2, 1], [5, 0, 3])}, {"training": False}
    cls, settings, arguments, *_ = CASES[case]
    layer = cls(**settings)
    layer(**arguments)
    spread_weights(layer)
    # what is no array in the case, as it has no B, is one here
    arguments = {name: value.numpy() if tf.is_tensor(value) else value for name, value in arguments.items()}
    options = {name: value for name, value in arguments.items() if not isinstance(value, np.ndarray | dict)}
    return layer, {name: value for name, value in arguments.items() if name not in options}, options


def compute(layer, inputs, options):
    """On TensorFlow what `jax_worker.compute` computes on JAX."""
    tensors = {key: tf.constant(array) for key, array in inputs.items()}
    floats = {key: tensors[key] for key, array in inputs.items() if is_float(array)}
    with tf.GradientTape() as tape:
        tape.watch(floats)
        outputs = layer(**to_nested(tensors), **options)
        value = objective(outputs)
    weights = [variable.value for variable in layer.trainable_variables]
    of_weights, of_inputs = tape.gradient(value, (weights, floats), unconnected_gradients="zero")
    return {
        **named("output", keras.tree.flatten(outputs)),
        **named("weight", [tf.convert_to_tensor(gradient) for gradient in of_weights]),
        **{f"input:{key}": gradient.numpy() for key, gradient in of_inputs.items()},
    }


@pytest.fixture(scope="module")
@costly("slow")
def results(tmp_path_factory):
    """By case: what TensorFlow gives, and the file of what JAX gives. All cases run in one process of the other."""
    folder = tmp_path_factory.mktemp("jax")
    expected = {}
    for case in [*CASES, *MODELS]:
        layer, arguments, options = made(case)
        inputs = to_flat(arguments)
        config = {"layer": keras.saving.serialize_keras_object(layer), "options": options}
        (folder / f"{case}.json").write_text(json.dumps(config))
        of_inputs = {f"input:{key}": array for key, array in inputs.items()}
        np.savez(folder / f"{case}.npz", **of_inputs, **named("weight", layer.get_weights()))
        paths = [variable.path for variable in layer.trainable_variables]
        expected[case] = compute(layer, inputs, options), paths, folder / f"{case}.jax.npz"
    root = str(repository())
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles in half the time
    command = [sys.executable, "-m", "tests.testing.jax_worker", str(folder)]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    return expected, run


def test_jax_runs_all_without_tensorflow(results):
    _, run = results
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.mark.parametrize("case", [*CASES, *MODELS])
def test_jax_computes_what_tensorflow_computes(results, case):
    (expected, paths, file), run = results[0][case], results[1]
    assert file.exists(), run.stderr[-4000:]
    actual = dict(np.load(file))
    assert set(actual) == set(expected) and part(expected, "output")
    idle = CASES[case].options.get("idle", ()) if case in CASES else ()  # a gradient of nothing but rounding
    largest = max(np.abs(value).max(initial=0) for key, value in expected.items() if not key.startswith("output"))
    for key, value in expected.items():
        kind, _, place = key.partition(":")
        name = f"gradient of {paths[int(place)]}" if kind == "weight" else key
        assert actual[key].shape == value.shape and actual[key].dtype == value.dtype, name
        if key not in WITHOUT_GRADIENT:
            part_of_largest = 1 if idle and name.endswith(idle) else SMALL
            scale = max(np.abs(value).max(initial=0), 0 if kind == "output" else part_of_largest * largest)
            np.testing.assert_allclose(actual[key], value, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_every_model_has_a_case():
    assert {model.name for model in MODELS.values()} == set(registry.MODELS.classes())
