"""OneRank's scoring: how well a candidate's state matches the task's vector."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

KINDS = ("dot", "bilinear", "mlp")
START_FACTOR = 0.2  # alpha: what random vectors match by is small beside the base rate


@keras.saving.register_keras_serializable(package="onerank")
class MatchingScorer(keras.layers.Layer):
    """Logits from a vector a task and a state a candidate and task.

    logit_k = alpha_k m(z_k, r_k) + b_k, with m by kind. `dot`: (z_k . r_k) / sqrt(d). `bilinear`:
    (z_k W_k r_k) / sqrt(d), W_k the identity at first. `mlp`: a network on [z_k, r_k, z_k * r_k] with one hidden layer
    of width d. The factor alpha_k is learned from 0.2 on, so that training begins near the base rates.

    Args:
        kind: str. `"dot"`, `"bilinear"` or `"mlp"`. Defaults to `"dot"`.

    Call arguments:
        tasks: Float [B, K, d]. z, a vector a task.
        candidates: Float [B, N, K, d]. r, a state a candidate and task.

    Returns:
        Float32 [B, N, K]. The logits, float32 whatever the dtype policy: a bfloat16 one moves in steps of 1/64 at a
        base rate of 5 %.

    Example:
    ```python
    MatchingScorer("bilinear")(np.ones((2, 3, 8)), np.ones((2, 5, 3, 8)))  # [2, 5, 3]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), dynamic matching-based scoring: `dot`. Ours: `bilinear`, `mlp`,
          that alpha is 1 / sqrt(d) times a learned factor, and that b_k starts at the logit of the task's base rate
          (set by the training loop).
    """

    def __init__(self, kind: str = "dot", **kwargs: Any):
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise ValueError(f"`kind` should be one of {', '.join(KINDS)}. Received: `kind={kind}`. Use dot.")
        self.kind = kind

    def build(self, tasks_shape: Any, candidates_shape: Any) -> None:
        """Creates the weights; those of the tasks are one variable each."""
        k, d = tasks_shape[-2:]
        start = keras.initializers.Constant(START_FACTOR)
        self.factor = self.add_weight(shape=(k,), initializer=start, name="factor", autocast=False)
        self.bias = self.add_weight(shape=(k,), initializer="zeros", name="bias", autocast=False)
        if self.kind == "bilinear":
            identity = np.broadcast_to(np.eye(d, dtype="float32"), (k, d, d))
            self.kernel = self.add_weight(shape=(k, d, d), initializer=lambda *_, **__: identity, name="kernel")
        if self.kind == "mlp":
            limit = (6.0 / (4 * d)) ** 0.5  # the glorot limits of one task's matrix, not of the stack
            uniform = [keras.initializers.RandomUniform(-limit, limit) for _ in range(4)]
            self.task_kernel = self.add_weight(shape=(k, d, d), initializer=uniform[0], name="task_kernel")
            self.candidate_kernel = self.add_weight(shape=(k, d, d), initializer=uniform[1], name="candidate_kernel")
            self.product_kernel = self.add_weight(shape=(k, d, d), initializer=uniform[2], name="product_kernel")
            self.hidden_bias = self.add_weight(shape=(k, d), initializer="zeros", name="hidden_bias")
            self.output_kernel = self.add_weight(
                shape=(k, d), initializer=uniform[3], name="output_kernel", autocast=False
            )
        self.built = True

    def call(self, tasks: Any, candidates: Any) -> Any:
        """The logits."""
        return self.factor * self._match(tasks, candidates) + self.bias

    def _match(self, tasks: Any, candidates: Any) -> Any:
        if self.kind == "mlp":
            return self._network(tasks, candidates)
        if self.kind == "bilinear":
            tasks = ops.einsum("bkd,kde->bke", tasks, self.kernel)
        tasks, candidates = ops.cast(tasks, "float32"), ops.cast(candidates, "float32")
        return ops.sum(ops.expand_dims(tasks, 1) * candidates, axis=-1) * (tasks.shape[-1] ** -0.5)

    def _network(self, tasks: Any, candidates: Any) -> Any:
        # The first layer in three parts, so that the task's part is computed once a request.
        of_task = ops.einsum("bkd,kde->bke", tasks, self.task_kernel) + self.hidden_bias
        of_candidate = ops.einsum("bnkd,kde->bnke", candidates, self.candidate_kernel)
        product = ops.expand_dims(tasks, 1) * candidates
        of_product = ops.einsum("bnkd,kde->bnke", product, self.product_kernel)
        hidden = ops.gelu(ops.expand_dims(of_task, 1) + of_candidate + of_product, approximate=False)
        return ops.einsum("bnke,ke->bnk", ops.cast(hidden, "float32"), self.output_kernel)

    def compute_output_spec(self, tasks: Any, candidates: Any) -> Any:
        """[B, N, K]."""
        return keras.KerasTensor(tuple(candidates.shape[:-1]), "float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "kind": self.kind}
