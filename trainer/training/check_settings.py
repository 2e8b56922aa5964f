"""Finds wrong settings of a model and of its training before there are data to train it on."""

from __future__ import annotations

from dataclasses import replace

from trainer.models.base import RankingModel
from trainer.models.recomputable import RecomputableBlocks
from trainer.models.registry import build_loss, build_model
from transform.errors import SpecError
from transform.features.model_inputs import ModelInputs
from transform.spec.ranking_spec import RankingSpec


def check_settings(spec: RankingSpec) -> None:
    """Builds the model of a spec once, with embedding tables of one row, so that every check of its layers is made.

    Args:
        spec: RankingSpec.

    Raises:
        SpecError: when the settings of the model, its head or its loss are wrong, or the training's don't fit it.
    """
    inputs = ModelInputs.from_spec(spec, lambda _: 1)
    model = build_model(spec.model, replace(inputs, rows=dict.fromkeys(inputs.rows, 1)))
    build_loss(model, spec.model.loss)
    check_training(spec, model)


def check_training(spec: RankingSpec, model: RankingModel) -> None:
    """Raises a SpecError when the settings of the training don't fit the model."""
    if spec.training.gradient_checkpointing and not isinstance(model, RecomputableBlocks):
        raise SpecError(
            f"training.gradient_checkpointing: a model whose blocks can be computed again is expected. Received: "
            f"`{spec.model.name}`. Leave `gradient_checkpointing` out, or use `model: {{name: onerank}}`."
        )
