"""An embedded server with TF Serving's API, for laptops and tests: `onerank server --help`."""

from transform.extras import require_extra

require_extra(
    "serving",
    "serving.server",
    *("grpc", "grpc_health", "prometheus_client", "starlette", "tensorflow", "tensorflow_serving", "uvicorn"),
)
