"""When and in which order: the TFX pipeline, its components, evaluation and runners."""
