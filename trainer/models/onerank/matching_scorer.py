"""OneRank's scoring: how well a candidate's state matches a task's vector."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from trainer.layers.initializers import glorot_of_one

KINDS = ("dot", "bilinear", "mlp")
START_FACTOR = 0.2  # of alpha: at first, random matches move the logits little beside the base rate


@keras.saving.register_keras_serializable(package="onerank")
class MatchingScorer(keras.layers.Layer):
    """Logits from a vector per task and a state per candidate and task.

    logit_k = alpha_k m(z_k, r_k) + b_k, where m depends on `kind`:

    - `dot`: (z_k . r_k) / sqrt(d);
    - `bilinear`: (z_k W_k r_k) / sqrt(d), where W_k starts as the identity;
    - `mlp`: a network on [z_k, r_k, z_k * r_k] with one hidden layer of width d.

    The factor alpha_k is learned and starts at 0.2, so that training begins near the base rates.

    Args:
        kind: str. `"dot"`, `"bilinear"` or `"mlp"`. Defaults to `"dot"`.

    Call arguments:
        tasks: Float [B, K, d]. z, a vector per task.
        candidates: Float [B, N, K, d]. r, a state per candidate and task.

    Returns:
        Float32 [B, N, K]. The logits, in float32 under every dtype policy: at a base rate of 5 %, a bfloat16 logit
        moves in steps of 1/64.

    Raises:
        ValueError: when `kind` is unknown.

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
            raise ValueError(f"`kind` should be one of {', '.join(KINDS)}. Received: `kind={kind}`.")
        self.kind = kind

    def build(self, tasks_shape: Any, candidates_shape: Any) -> None:
        """Creates the weights; each is one variable that holds those of all tasks."""
        k, d = tasks_shape[-2:]
        start = keras.initializers.Constant(START_FACTOR)
        self.factor = self.add_weight(shape=(k,), initializer=start, name="factor", autocast=False)
        self.bias = self.add_weight(shape=(k,), initializer="zeros", name="bias", autocast=False)
        if self.kind == "bilinear":
            identity = np.broadcast_to(np.eye(d, dtype="float32"), (k, d, d))
            self.kernel = self.add_weight(shape=(k, d, d), initializer=lambda *_, **__: identity, name="kernel")
        if self.kind == "mlp":
            uniform = [
                glorot_of_one(3 * d, d) for _ in range(4)
            ]  # the task, the candidate and their product are its inputs
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
        return self.factor * self._match(tasks, candidates) + self.bias  # [B, N, K]

    def _match(self, tasks: Any, candidates: Any) -> Any:
        """The match m of every candidate and task, [B, N, K]."""
        if self.kind == "mlp":
            return self._network(tasks, candidates)
        if self.kind == "bilinear":
            tasks = ops.einsum("bkd,kde->bke", tasks, self.kernel)  # [B, K, d]
        tasks, candidates = ops.cast(tasks, "float32"), ops.cast(candidates, "float32")  # [B, K, d], [B, N, K, d]
        return ops.sum(ops.expand_dims(tasks, 1) * candidates, axis=-1) * (tasks.shape[-1] ** -0.5)  # [B, N, K]

    def _network(self, tasks: Any, candidates: Any) -> Any:
        """The match of the kind `mlp`, [B, N, K]."""
        # The first layer is split into three parts, so that the task's part is computed once per request.
        task_part = ops.einsum("bkd,kde->bke", tasks, self.task_kernel) + self.hidden_bias  # [B, K, d]
        candidate_part = ops.einsum("bnkd,kde->bnke", candidates, self.candidate_kernel)  # [B, N, K, d]
        product = ops.expand_dims(tasks, 1) * candidates  # [B, N, K, d]
        product_part = ops.einsum("bnkd,kde->bnke", product, self.product_kernel)  # [B, N, K, d]
        hidden = ops.expand_dims(task_part, 1) + candidate_part + product_part  # [B, N, K, d]
        hidden = ops.gelu(hidden, approximate=False)  # [B, N, K, d]
        return ops.einsum("bnke,ke->bnk", ops.cast(hidden, "float32"), self.output_kernel)  # [B, N, K]

    def compute_output_spec(self, tasks: Any, candidates: Any) -> Any:
        """[B, N, K]."""
        return keras.KerasTensor(tuple(candidates.shape[:-1]), "float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "kind": self.kind}
