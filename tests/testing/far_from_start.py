"""A model as a training might leave it, without one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from transform.spec.ranking_spec import RankingSpec


def far_from_start(small: Any, spec: RankingSpec, by: float = 0.3) -> Any:
    """A model whose scores differ, as they don't where a training starts."""
    from trainer.models.registry import build_model

    keras.utils.set_random_seed(3)
    model = build_model(spec.model, small.inputs())
    random = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(variable + random.normal(0, by, variable.shape))
    return model
