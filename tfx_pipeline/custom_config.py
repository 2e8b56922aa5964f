"""The keys of TFX's `custom_config`, by which `create_pipeline` hands values to what TFX calls."""

SPEC_KEY = "spec"
CODE_KEY = "code"  # a hash of the code that a component runs: TFX's cache sees it, nothing else reads it
CHECKPOINTS_KEY = "checkpoints"
