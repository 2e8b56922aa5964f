"""`RecomputableBlocks`: models whose gradients can compute activations again instead of keeping them."""

from __future__ import annotations

from typing import Any

import keras

from trainer.ops.gradient_checkpointing import checkpointed


class RecomputableBlocks:
    """Mixin of a `RankingModel` that calls its blocks by `apply_block`.

    Attributes:
        gradient_checkpointing: bool. Whether gradients compute the activations of blocks again: less memory for more
            time. A setting of the training, not of the model. Defaults to False.
    """

    gradient_checkpointing = False

    def apply_block(self, block: keras.layers.Layer, **arguments: Any) -> Any:
        """What the block returns; inside, nothing is kept for the gradient if `gradient_checkpointing` says so."""
        return checkpointed(block, **arguments) if self.gradient_checkpointing else block(**arguments)
