"""`RecomputableBlocks`: models whose gradients can compute activations again instead of keeping them."""

from __future__ import annotations

from typing import Any

import keras

from trainer.ops.recompute import recomputed


class RecomputableBlocks:
    """Mixin of a `RankingModel` that calls its blocks by `apply_block`.

    Attributes:
        recompute: bool. Whether gradients compute the activations of blocks again: less memory for more time. A setting
            of the training, not of the model. Defaults to False.
    """

    recompute = False

    def apply_block(self, block: keras.layers.Layer, **arguments: Any) -> Any:
        """What the block returns; inside, nothing is kept for the gradient if `recompute` says so."""
        return recomputed(block, **arguments) if self.recompute else block(**arguments)
