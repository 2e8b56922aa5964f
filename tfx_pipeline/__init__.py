"""When and in which order: the TFX pipeline, its components, evaluation and runners."""

from transform.extras import require_extra

require_extra("tfx", "tfx_pipeline")
