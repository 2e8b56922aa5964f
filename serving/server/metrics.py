"""What Prometheus reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from serving.server.errors import RequestError
from serving.server.model_versions import ModelVersions

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


@dataclass
class RequestLabels:
    """What a request asks for. Names are set when they are known to exist: clients don't make time series.

    Args:
        api: str. `grpc` or `rest`.
        method: str.
    """

    api: str
    method: str
    model: str = ""
    signature: str = ""


class Metrics:
    """Counts requests and shows the state of queue and versions.

    Args:
        models: iterable of ModelVersions.
        waiting: callable. Gives the number of requests that wait.
    """

    def __init__(self, models: Iterable[ModelVersions], waiting: Callable[[], int]):
        self._registry = CollectorRegistry()
        self._models = list(models)
        names = ["api", "method", "model", "signature"]
        self._requests = Counter("serving_requests", "Requests", [*names, "code"], registry=self._registry)
        self._seconds = Histogram(
            "serving_request_seconds", "Their duration", names, buckets=_SECONDS, registry=self._registry
        )
        self._under_way = Gauge("serving_requests_under_way", "Requests under way", registry=self._registry)
        queue = Gauge("serving_queue_depth", "Requests that wait for a thread", registry=self._registry)
        queue.set_function(waiting)
        self.batch_rows = Histogram(
            "serving_batch_rows", "Rows of joined requests", buckets=[2**i for i in range(11)], registry=self._registry
        )
        self._registry.register(self)  # type: ignore[arg-type]

    @contextmanager
    def request(self, api: str, method: str) -> Iterator[RequestLabels]:
        """Counts and times what happens inside."""
        asked, started, code = RequestLabels(api, method), time.perf_counter(), grpc.StatusCode.OK
        self._under_way.inc()
        try:
            yield asked
        except BaseException as error:  # a client that gave up counts too
            unforeseen = grpc.StatusCode.INTERNAL if isinstance(error, Exception) else grpc.StatusCode.CANCELLED
            code = error.code if isinstance(error, RequestError) else unforeseen
            raise
        finally:
            labels = (asked.api, asked.method, asked.model, asked.signature)
            self._requests.labels(*labels, code.name).inc()
            self._seconds.labels(*labels).observe(time.perf_counter() - started)
            self._under_way.dec()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What is read when it is asked for."""
        loaded = GaugeMetricFamily("serving_version_loaded", "Versions that answer", labels=["model", "version"])
        retraces = GaugeMetricFamily(
            "serving_retraces",
            "Shapes of inputs that came first after warm-up; with XLA each is compiled",
            labels=["model", "version"],
        )
        for model in self._models:
            for version in model.available:
                loaded.add_metric([model.config.name, str(version.number)], 1)
                retraces.add_metric([model.config.name, str(version.number)], version.shapes_after_warm_up)
        yield from (loaded, retraces)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
