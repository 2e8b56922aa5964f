"""The first part of OneRank's unified tokenizer: histories and preference anchors as one list of tokens."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from transform.features.model_inputs import ModelInputs


@keras.saving.register_keras_serializable(package="onerank")
class ContextTokenizer(keras.layers.Layer):
    """Joins a user's typed sequences to one list of context tokens: histories first, then anchors.

    An event's token is a projection of its features plus a learned vector of its position; each anchor is wrapped in a
    learned BOS and EOS. A feature has one projection in all sequences, so that an item is the same in a history and
    in an anchor. Padding stays where it is, under the mask; an anchor without events has no BOS and EOS either.

    Args:
        inputs: ModelInputs, or its config. The sequences and their columns.
        d: int. The tokens' width.

    Call arguments:
        sequences: dict. By sequence: `events` Float [B, U_s, D], the concatenated features, and `mask` Bool [B, U_s].

    Returns:
        The tokens, Float [B, U, d], and their mask, Bool [B, U]. U is the sum of all U_s and 2 for each anchor.

    Example:
    ```python
    inputs = ModelInputs(
        columns=(Column("seen", "item", "id", "item", 4), Column("liked", "item", "id", "item", 4)),
        rows={"item": 100},
        sequences=(EventSequence("seen", "history", 50), EventSequence("liked", "anchor", 10)),
        tasks=(Task("click"),),
    )
    events = {"events": np.ones((2, 7, 4)), "mask": np.ones((2, 7), bool)}
    ContextTokenizer(inputs, d=8)({"seen": events, "liked": events})[0]  # [2, 16, 8]
    ```

    References:
        - [OneRank](https://arxiv.org/abs/2606.16838), unified tokenizer: histories with learned positions, anchors
          between BOS and EOS in which positions start anew. Ours: one projection for the items of both (as in
          OnePiece, arXiv 2509.18091); each sequence has its own positions, counted from the newest event, so that
          how recent an event is reads the same in short and long lists.
    """

    def __init__(self, inputs: ModelInputs | dict[str, Any], d: int, **kwargs: Any):
        super().__init__(**kwargs)
        if d < 1:
            raise ValueError(f"`d` should be at least 1. Received: `d={d}`. Use a multiple of 8.")
        self.inputs = inputs if isinstance(inputs, ModelInputs) else ModelInputs.from_config(inputs)
        self.d = d
        # histories first: anchors, which follow, read them, and not the other way round
        self.ordered = sorted(self.inputs.sequences, key=lambda sequence: sequence.role == "anchor")

    def build(self, *_: Any) -> None:
        """Creates a kernel a feature, and the positions and marks of each sequence."""
        self.kernels: dict[str, Any] = {}
        self.positions: dict[str, Any] = {}
        self.marks: dict[str, Any] = {}
        for sequence in self.ordered:
            name = sequence.name
            group = self.inputs.group(name)
            fan_in = sum(column.dim for column in group)
            # the variance of a projection of all features of the event at once
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
            mask = sequences[sequence.name]["mask"]
            events = self._project(sequence.name, sequences[sequence.name]["events"])
            events = events + ops.take(self.positions[sequence.name], _age(mask, sequence.length), axis=0)
            if sequence.role == "anchor":
                marks = ops.broadcast_to(self.marks[sequence.name], (ops.shape(mask)[0], 2, self.d))
                any_event = ops.any(mask, axis=1, keepdims=True)
                events = ops.concatenate([marks[:, :1], events, marks[:, 1:]], axis=1)
                mask = ops.concatenate([any_event, mask, any_event], axis=1)
            tokens.append(events)
            masks.append(mask)
        return ops.concatenate(tokens, axis=1), ops.concatenate(masks, axis=1)

    def _project(self, name: str, events: Any) -> Any:
        kernel = ops.concatenate([self.kernels[column.name] for column in self.inputs.group(name)], axis=0)
        return ops.matmul(events, kernel)

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
    """How many newer events there are, [B, U]; 0 where padded."""
    present = ops.cast(mask, "int32")
    newer = ops.sum(present, axis=1, keepdims=True) - ops.cumsum(present, axis=1)
    return ops.clip(newer, 0, length - 1)
