"""Models by name: what `model:` in a spec may say."""

from __future__ import annotations

import numpy as np

from trainer.heads.registry import HEADS
from trainer.losses.base import RankingLoss
from trainer.losses.registry import LOSSES
from trainer.models.base import RankingModel
from trainer.models.headed import HeadedModel
from trainer.registry import Registry
from transform.errors import SpecError
from transform.features.model_inputs import ModelInputs
from transform.spec.model_sections import Loss, Model

MODELS: Registry[RankingModel] = Registry("trainer.models", RankingModel, provided=("inputs", "head"))


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
    try:
        built.create_variables()
    except ValueError as error:
        raise SpecError(f"model: {error}") from error
    return built


def build_loss(model: RankingModel, settings: Loss) -> RankingLoss:
    """The loss that a model is trained with, its own weights created.

    Args:
        model: RankingModel. With its variables created.
        settings: Loss. The spec's `model.loss`.

    Returns:
        The loss.

    Raises:
        SpecError: when there is no such loss, it does not take the settings, or it does not give one value per task.
    """
    loss = model.make_loss(settings)
    k = len(model.inputs_spec.tasks)
    shape = (k + 1, 2, k)  # not K requests, so that a value per request is seen
    if not loss.built:
        loss.build(shape)  # before a graph is traced and before optimizers look for variables
    found = tuple(loss(np.zeros(shape, "float32"), np.zeros(shape, "float32"), np.ones(shape, "float32")).shape)
    if found != (k,):
        raise SpecError(
            f"model.loss: one value per task, of shape {(k,)}, is expected of `{type(loss).__name__}`. Received: shape "
            f"{found}."
        )
    return loss


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
    if cls.make_loss is RankingModel.make_loss:
        LOSSES.find(model.loss.name, model.loss.settings, "model.loss")
    elif model.loss != Loss():
        raise SpecError(
            f"model.loss: no loss is expected: `{model.name}` has a loss of its own, whose settings are the model's. "
            f"Received: `{model.loss.name}`. Leave `loss` out."
        )
    if model.head is not None:
        if not takes_head(cls):
            raise SpecError(
                f"model.head: no head is expected: `{model.name}` makes its logits itself. Received: "
                f"`{model.head.name}`. Leave `head` out, or choose a model that takes one."
            )
        HEADS.find(model.head.name, model.head.settings, "model.head")
    return cls


def takes_head(cls: type[RankingModel]) -> bool:
    """Whether a model takes a head."""
    return issubclass(cls, HeadedModel)
