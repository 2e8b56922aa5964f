"""The model and its training: layers and models in `keras.ops`, losses, metrics and the training loop."""

from transform.extras import require_extra

require_extra("train", "trainer", "keras")  # all that the layers need, on whichever backend
