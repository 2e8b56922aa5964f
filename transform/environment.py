"""What an entry point sets before TensorFlow and its friends are imported."""

from __future__ import annotations

import os
import warnings


def prepare_environment() -> None:
    """Asks for Keras 3 and for silence about what a user can't change.

    `tensorflow_transform` sets TF_USE_LEGACY_KERAS to 1 where nothing is said, and `tf.keras` becomes Keras 2. What the
    caller's environment says about log levels is kept.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
