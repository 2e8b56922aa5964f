"""The training loop: steps, state, checkpoints, and what it measures of a model."""
