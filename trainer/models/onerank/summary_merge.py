"""OneRank's candidate-aware contextualization, second half: what was read of parts of the candidates becomes one."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="onerank")
class SummaryMerge(keras.layers.Layer):
    """Merges the parts that `CandidateAttention` read, as if they had been one, then the heads, task by task.

    A part counts by its weight, a softmax over the parts' `log_weight`. One of padding alone counts nothing beside
    others.

    Call arguments:
        summary: dict. `read` Float [B, P, K, H, d/H] and `log_weight` Float [B, P, K, H] of P parts, in any order.

    Returns:
        Float [B, K, d].

    Example:
    ```python
    SummaryMerge()({"read": np.ones((2, 5, 3, 2, 4)), "log_weight": np.ones((2, 5, 3, 2))})  # [2, 3, 8]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), candidate-aware contextualization; the merge of parts is
          [online softmax](https://arxiv.org/abs/1805.02867).
    """

    def build(self, summary_shape: Any) -> None:
        """Creates the merge of heads of all tasks, one variable."""
        k, heads, width = summary_shape["read"][-3:]
        limit = (6.0 / (2 * heads * width)) ** 0.5  # the glorot limits of one task's matrix, not of the stack
        self.kernel = self.add_weight(
            shape=(k, heads, width, heads * width),
            initializer=keras.initializers.RandomUniform(-limit, limit),
            name="kernel",
        )
        self.built = True

    def call(self, summary: dict[str, Any]) -> Any:
        """One vector a task."""
        read, log_weight = summary["read"], summary["log_weight"]
        if read.shape[1] == 1:  # nothing to merge: a request that is scored whole pays nothing
            read = read[:, 0]
        else:
            weights = ops.softmax(ops.cast(log_weight, "float32"), axis=1)
            read = ops.einsum("bpkh,bpkhe->bkhe", ops.cast(weights, read.dtype), read)
        k, h, e, d = self.kernel.shape
        rows = ops.transpose(ops.reshape(read, (-1, k, h * e)), (1, 0, 2))
        return ops.transpose(ops.matmul(rows, ops.reshape(self.kernel, (k, h * e, d))), (1, 0, 2))

    def compute_output_shape(self, summary_shape: Any) -> Any:
        """[B, K, d]."""
        b, _, k, heads, width = summary_shape["read"]
        return b, k, heads * width
