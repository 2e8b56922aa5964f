"""Set before anything imports TensorFlow: tensorflow_transform would ask for Keras 2 where nothing is said."""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
