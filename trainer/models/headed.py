"""`HeadedModel`: a backbone that makes one vector per candidate, and a head that makes logits of it."""

from __future__ import annotations

from typing import Any

import keras

from trainer.heads.registry import HEADS
from trainer.models.base import RankingModel, Tensors
from transform.features.model_inputs import ModelInputs


class HeadedModel(RankingModel):
    """Base of models that take any head. A subclass writes `encode_user` and `candidate_vectors`.

    Args:
        inputs: ModelInputs, or its config.
        head: dict. The head: its `name` (see `trainer.heads`) and its settings. Defaults to a shared bottom.

    Raises:
        ValueError: when `head` has no name.
        SpecError: when there is no such head, or it does not take the settings.
    """

    def __init__(self, inputs: ModelInputs | dict[str, Any], head: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(inputs, **kwargs)
        head = {"name": "shared_bottom"} if head is None else head
        if "name" not in head:
            raise ValueError(f"`head` should hold the `name` of a head. Received: `head={head}`.")
        self.head_settings = dict(head)
        settings = {key: value for key, value in head.items() if key != "name"}
        tasks, dtype = self.inputs_spec.tasks, self.dtype_policy
        self.head = HEADS.build(head["name"], settings, "model.head", tasks, name="head", dtype=dtype)

    def candidate_vectors(
        self, user_state: Tensors, context: Tensors, candidates: Tensors, training: bool | None = None
    ) -> Any:
        """What the head gets.

        Args:
            user_state: dict. What `encode_user` returned.
            context: dict. As for `score_candidates`.
            candidates: dict. As for `score_candidates`.
            training: bool.

        Returns:
            Float [B, N, D], one vector per candidate, or [B, N, K, D], one per candidate and task.
        """
        raise NotImplementedError(f"`{type(self).__name__}` should define `candidate_vectors`.")

    def score_candidates(
        self, user_state: Tensors, context: Tensors, candidates: Tensors, training: bool | None = None
    ) -> Any:
        """Logits [B, N, K]."""
        return self.head(self.candidate_vectors(user_state, context, candidates, training=training), training=training)

    def initial_bias(self) -> keras.Variable | None:
        """The head's bias [K]."""
        return self.head.initial_bias()

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "head": self.head_settings}
