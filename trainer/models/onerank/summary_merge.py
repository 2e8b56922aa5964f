"""OneRank's candidate-aware contextualization, second half: merges the summaries of parts of the candidates."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.layers.initializers import glorot_of_one


@keras.saving.register_keras_serializable(package="onerank")
class SummaryMerge(keras.layers.Layer):
    """Merges the summaries of `CandidateAttention` over all parts, then the heads of each task.

    The result is that of attention to all candidates at once: parts are weighted by a softmax over their `log_weight`.
    A part that holds only padding has a weight of 0 beside other parts.

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
        """Creates the projections that merge the heads; those of all tasks are one variable."""
        k, heads, width = summary_shape["read"][-3:]
        self.kernel = self.add_weight(
            shape=(k, heads, width, heads * width),
            initializer=glorot_of_one(heads * width, heads * width),
            name="kernel",
        )
        self.built = True

    def call(self, summary: dict[str, Any]) -> Any:
        """One vector per task."""
        read, log_weight = summary["read"], summary["log_weight"]
        if read.shape[1] == 1:  # one part needs no merge: a request that is scored at once has no extra cost
            read = read[:, 0]  # [B, K, H, d/H]
        else:
            weights = ops.softmax(ops.cast(log_weight, "float32"), axis=1)  # [B, P, K, H]
            read = ops.einsum("bpkh,bpkhe->bkhe", ops.cast(weights, read.dtype), read)  # [B, K, H, d/H]
        k, h, e, d = self.kernel.shape  # e = d/H
        rows = ops.transpose(ops.reshape(read, (-1, k, h * e)), (1, 0, 2))  # [K, B, d]
        merged = ops.matmul(rows, ops.reshape(self.kernel, (k, h * e, d)))  # [K, B, d]
        return ops.transpose(merged, (1, 0, 2))  # [B, K, d]

    def compute_output_shape(self, summary_shape: Any) -> Any:
        """[B, K, d]."""
        b, _, k, heads, width = summary_shape["read"]
        return b, k, heads * width
