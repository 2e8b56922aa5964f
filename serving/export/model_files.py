"""What stands beside a SavedModel: names that exporter, server and pipeline share."""

ASSETS_EXTRA = "assets.extra"
SPEC_FILE = "ranking_spec.json"
WARMUP_FILE = "tf_serving_warmup_requests"
