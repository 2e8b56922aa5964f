"""The model and its training: layers and models in `keras.ops`, losses, metrics and the training loop."""
