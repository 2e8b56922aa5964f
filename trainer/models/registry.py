"""Models by name: what `model:` in a spec may say."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, get_type_hints

from pydantic import TypeAdapter, ValidationError

from transform.errors import SpecError
from transform.features.model_inputs import ModelInputs
from transform.spec.model_sections import Model

if TYPE_CHECKING:
    from trainer.models.base import RankingModel

_MODELS: dict[str, type[RankingModel]] = {}


def register_model(name: str) -> Callable[[type[RankingModel]], type[RankingModel]]:
    """Class decorator that makes a model known under a name."""

    def register(cls: type[RankingModel]) -> type[RankingModel]:
        _MODELS[name] = cls
        return cls

    return register


def registered_models() -> dict[str, type[RankingModel]]:
    """All models by name, in the order of names."""
    for found in pkgutil.iter_modules(importlib.import_module("trainer.models").__path__):
        if found.ispkg:
            importlib.import_module(f"trainer.models.{found.name}.model")
    return dict(sorted(_MODELS.items()))


def build_model(model: Model, inputs: ModelInputs) -> RankingModel:
    """The model that a spec asks for, with its variables created.

    Args:
        model: Model. The spec's `model` section.
        inputs: ModelInputs.

    Returns:
        A model.

    Raises:
        SpecError: when there is no model of that name, or a setting is unknown or out of range.
    """
    cls = find_model(model)
    try:
        built = cls(inputs, **model.settings)
    except (TypeError, ValueError) as error:
        raise SpecError(f"model: {error}") from error
    built.create_variables()
    return built


def find_model(model: Model) -> type[RankingModel]:
    """The class that a spec asks for; raises a SpecError for an unknown name or setting, or a value of a wrong type."""
    models = registered_models()
    if model.name not in models:
        near = difflib.get_close_matches(model.name, models, 1)
        cure = f" Did you mean `{near[0]}`?" if near else ""
        raise SpecError(f"model.name: one of {', '.join(models)} is expected. Received: `{model.name}`.{cure}")
    cls = models[model.name]
    known = [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "inputs", "kwargs")]
    types = get_type_hints(cls.__init__)
    for name, value in model.settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            cure = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}."
            raise SpecError(f"model.{name}: a setting of `{model.name}` is expected. Received: `{name}`. {cure}")
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise SpecError(f"model.{name}: {error.errors()[0]['msg']}. Received: {value!r}.") from error
    return cls
