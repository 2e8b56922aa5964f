"""What holds for every model, on every model that is registered, and on every head behind one of them."""

import pytest

from trainer.heads.registry import HEADS
from trainer.models.registry import MODELS
from trainer.testing.model_contract import ModelContract

pytest.mark.slow(ModelContract.test_it_computes_the_same_when_compiled_with_open_shapes)


def _tests_of(name, model):
    return type(f"Test_{name}", (ModelContract,), {"model": model, "__module__": __name__})


for name, cls in MODELS.classes().items():
    for number, settings in enumerate(cls.test_settings, start=1):
        tests = _tests_of(f"{name}_{number}", {"name": name, **settings})
        globals()[tests.__name__] = tests

for name in HEADS.classes():
    tests = _tests_of(f"head_{name}", {"name": "din", "d": 8, "attention_hidden": 6, "head": {"name": name}})
    tests.pytestmark = [pytest.mark.slow, pytest.mark.once]  # a model is built a dozen times
    globals()[tests.__name__] = tests
