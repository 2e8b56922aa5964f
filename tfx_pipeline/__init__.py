"""When and in which order: the TFX pipeline, its components, evaluation and runners."""

from transform.extras import require_extra

require_extra(
    "tfx",
    "tfx_pipeline",
    *("absl", "jinja2", "markupsafe", "matplotlib", "ml_metadata", "tensorflow_model_analysis", "tfx"),
)
