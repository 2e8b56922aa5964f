"""Features: request examples, the preprocessing graph derived from a spec, and the batches that a model reads."""
