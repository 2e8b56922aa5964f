"""The second part of OneRank's unified tokenizer: a group of tokens per candidate."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.layers.token_dense import TokenDense


@keras.saving.register_keras_serializable(package="onerank")
class CandidateTokenizer(keras.layers.Layer):
    """A candidate's token, followed by one token per task.

    The task tokens are learned vectors that all candidates share; they learn about their candidate through attention.
    No token has a position, since the candidates of a request are a set.

    Args:
        tasks: int. K, the number of tasks; 0 for the candidate's token alone.
        d: int. The tokens' width.

    Call arguments:
        candidates: Float [B, N, D]. The candidates' features.

    Returns:
        Float [B, N, 1 + K, d].

    Raises:
        ValueError: when `tasks` is negative or `d` is below 1.

    Example:
    ```python
    CandidateTokenizer(tasks=3, d=8)(np.ones((2, 5, 20)))  # [2, 5, 4, 8]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), unified tokenizer. Ours: no positions here.
    """

    def __init__(self, tasks: int, d: int, **kwargs: Any):
        super().__init__(**kwargs)
        if tasks < 0 or d < 1:
            raise ValueError(
                f"`tasks` should not be negative and `d` should be at least 1. Received: `tasks={tasks}`, `d={d}`."
            )
        self.tasks = tasks
        self.d = d

    def build(self, candidates_shape: Any) -> None:
        """Creates the projection and the task tokens."""
        self.project = TokenDense(self.d, dtype=self.dtype_policy, name="candidate")
        self.project.build(candidates_shape)
        if self.tasks:
            self.task_tokens = self.add_weight(
                shape=(self.tasks, self.d), initializer=keras.initializers.RandomNormal(stddev=0.02), name="task_tokens"
            )
        self.built = True

    def call(self, candidates: Any) -> Any:
        """The groups."""
        tokens = ops.expand_dims(self.project(candidates), 2)  # [B, N, 1, d]
        if not self.tasks:
            return tokens
        b, n = ops.shape(candidates)[0], ops.shape(candidates)[1]
        tasks = ops.broadcast_to(self.task_tokens, (b, n, self.tasks, self.d))  # [B, N, K, d]
        return ops.concatenate([tokens, tasks], axis=2)  # [B, N, 1 + K, d]

    def compute_output_shape(self, candidates_shape: Any) -> Any:
        """[B, N, 1 + K, d]."""
        return (*candidates_shape[:-1], 1 + self.tasks, self.d)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "tasks": self.tasks, "d": self.d}
