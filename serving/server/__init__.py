"""An embedded server with TF Serving's API, for laptops and tests: `python -m serving.server --help`."""

from transform.extras import require_extra

require_extra("serving", "serving.server")
