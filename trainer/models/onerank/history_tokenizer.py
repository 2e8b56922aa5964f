"""The first part of OneRank's unified tokenizer: turns histories and preference anchors into one list of tokens."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from transform.features.model_inputs import ModelInputs


@keras.saving.register_keras_serializable(package="onerank")
class HistoryTokenizer(keras.layers.Layer):
    """Joins a user's sequences into one list of history tokens: histories first, then anchors.

    An event's token is a projection of its features plus a learned vector for its position. Each anchor stands between
    a learned BOS and EOS token. All sequences share one projection per feature, so that an item has the same token in a
    history and in an anchor. Padding stays in its place and is masked; so are the BOS and EOS of an anchor without
    events.

    Args:
        inputs: ModelInputs, or its config. The sequences and their columns.
        d: int. The tokens' width.

    Call arguments:
        sequences: dict. Per sequence: `events` Float [B, U_s, D], the concatenated features, and `mask` Bool [B, U_s].

    Returns:
        The tokens, Float [B, U, d], and their mask, Bool [B, U]. U is the sum of all U_s, plus 2 per anchor.

    Raises:
        ValueError: when `d` is below 1.

    Example:
    ```python
    inputs = ModelInputs(
        columns=(Column("seen", "item", "id", "item", 4), Column("liked", "item", "id", "item", 4)),
        rows={"item": 100},
        sequences=(EventSequence("seen", "history", 50), EventSequence("liked", "anchor", 10)),
        tasks=(Task("click"),),
    )
    events = {"events": np.ones((2, 7, 4)), "mask": np.ones((2, 7), bool)}
    HistoryTokenizer(inputs, d=8)({"seen": events, "liked": events})[0]  # [2, 16, 8]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), unified tokenizer: histories with learned positions, anchors
          between BOS and EOS in which positions start again. Ours: one projection for the items of both (as in
          OnePiece, arXiv 2509.18091); each sequence has its own positions, counted from the newest event, so that a
          position means the same recency in short and long lists.
    """

    def __init__(self, inputs: ModelInputs | dict[str, Any], d: int, **kwargs: Any):
        super().__init__(**kwargs)
        if d < 1:
            raise ValueError(f"`d` should be at least 1. Received: `d={d}`.")
        self.inputs = inputs if isinstance(inputs, ModelInputs) else ModelInputs.from_config(inputs)
        self.d = d
        # Histories first: the attention is causal, so anchors attend to histories and not the other way round.
        self.ordered = sorted(self.inputs.sequences, key=lambda sequence: sequence.role == "anchor")

    def build(self, *_: Any) -> None:
        """Creates a kernel per feature, the positions of each sequence, and the BOS and EOS of each anchor."""
        self.kernels: dict[str, Any] = {}
        self.positions: dict[str, Any] = {}
        self.marks: dict[str, Any] = {}
        for sequence in self.ordered:
            name = sequence.name
            group = self.inputs.group(name)
            fan_in = sum(column.dim for column in group)
            # The variance that one projection of all features of the event would have.
            normal = [keras.initializers.RandomNormal(stddev=fan_in**-0.5) for _ in group]
            for column, initializer in zip(group, normal, strict=True):
                if column.name not in self.kernels:
                    self.kernels[column.name] = self.add_weight(
                        shape=(column.dim, self.d), initializer=initializer, name=f"{column.name}_kernel"
                    )
            self.positions[name] = self.add_weight(
                shape=(sequence.length, self.d), initializer=_small(), name=f"{name}_positions"
            )
            if sequence.role == "anchor":
                self.marks[name] = self.add_weight(shape=(2, self.d), initializer=_small(), name=f"{name}_bos_eos")
        self.built = True

    def call(self, sequences: dict[str, dict[str, Any]]) -> tuple[Any, Any]:
        """The tokens and their mask."""
        tokens, masks = [], []
        for sequence in self.ordered:
            mask = sequences[sequence.name]["mask"]  # [B, U_s]
            events = self._project(sequence.name, sequences[sequence.name]["events"])  # [B, U_s, d]
            age = _age(mask, sequence.length)  # [B, U_s]
            events = events + ops.take(self.positions[sequence.name], age, axis=0)  # [B, U_s, d]
            if sequence.role == "anchor":
                marks = ops.broadcast_to(self.marks[sequence.name], (ops.shape(mask)[0], 2, self.d))  # [B, 2, d]
                any_event = ops.any(mask, axis=1, keepdims=True)  # [B, 1]
                events = ops.concatenate([marks[:, :1], events, marks[:, 1:]], axis=1)  # [B, U_s + 2, d]
                mask = ops.concatenate([any_event, mask, any_event], axis=1)  # [B, U_s + 2]
            tokens.append(events)
            masks.append(mask)
        return ops.concatenate(tokens, axis=1), ops.concatenate(masks, axis=1)  # [B, U, d], [B, U]

    def _project(self, name: str, events: Any) -> Any:
        """The events of a sequence [B, U_s, D] as tokens [B, U_s, d]."""
        kernel = ops.concatenate([self.kernels[column.name] for column in self.inputs.group(name)], axis=0)  # [D, d]
        return ops.matmul(events, kernel)  # [B, U_s, d]

    def compute_output_spec(self, sequences: dict[str, dict[str, Any]]) -> Any:
        """Shapes and dtypes of the tokens and the mask."""
        lengths = [sequences[sequence.name]["mask"].shape[1] for sequence in self.ordered]
        marks = 2 * sum(sequence.role == "anchor" for sequence in self.ordered)
        u = None if None in lengths else sum(lengths) + marks
        b = sequences[self.ordered[0].name]["mask"].shape[0]
        return keras.KerasTensor((b, u, self.d), self.compute_dtype), keras.KerasTensor((b, u), "bool")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "inputs": self.inputs.to_config(), "d": self.d}


def _small() -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=0.02)


def _age(mask: Any, length: int) -> Any:
    """How many newer events of the sequence there are, [B, U_s], at most length - 1."""
    present = ops.cast(mask, "int32")  # [B, U_s]
    newer = ops.sum(present, axis=1, keepdims=True) - ops.cumsum(present, axis=1)  # [B, U_s]
    return ops.clip(newer, 0, length - 1)  # [B, U_s]
