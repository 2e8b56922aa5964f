"""Models by name: what `model:` in a spec may say."""

from __future__ import annotations

import inspect

from trainer.heads.registry import HEADS
from trainer.losses.registry import LOSSES
from trainer.models.base import RankingModel
from trainer.registry import Registry
from transform.errors import SpecError
from transform.features.model_inputs import ModelInputs
from transform.spec.model_sections import Model

MODELS: Registry[RankingModel] = Registry("model", "trainer.models", RankingModel, provided=("inputs", "head"))


def build_model(model: Model, inputs: ModelInputs) -> RankingModel:
    """The model that a spec asks for, with its variables created.

    Args:
        model: Model. The spec's `model` section.
        inputs: ModelInputs.

    Returns:
        A model.

    Raises:
        SpecError: when there is no model, head or loss of that name, or a setting is unknown or out of range.
    """
    find_model(model)
    head = {} if model.head is None else {"head": {"name": model.head.name, **model.head.settings}}
    built = MODELS.build(model.name, model.settings, "model", inputs, **head)
    built.create_variables()
    built.make_loss(model.loss)  # a setting that the loss rejects is reported now, not when training begins
    return built


def find_model(model: Model) -> type[RankingModel]:
    """The class that a spec asks for, without building it.

    Args:
        model: Model. The spec's `model` section.

    Returns:
        The class.

    Raises:
        SpecError: for an unknown model, head or loss, an unknown setting of one of them, or a value of a wrong type.
    """
    cls = MODELS.find(model.name, model.settings, "model")
    LOSSES.find(model.loss.name, model.loss.settings, "model.loss")
    if model.head is not None:
        if not takes_head(cls):
            raise SpecError(
                f"model.head: no head is expected: `{model.name}` makes its logits itself. Received: "
                f"`{model.head.name}`. Leave `head` out, or choose a model that takes one."
            )
        HEADS.find(model.head.name, model.head.settings, "model.head")
    return cls


def takes_head(cls: type[RankingModel]) -> bool:
    """Whether a model takes a head: its constructor has a parameter `head`."""
    return "head" in inspect.signature(cls.__init__).parameters
