"""Multi-task ranking with one Transformer, from raw impression logs to TF Serving.

The names below are imported when they are first used: `import onerank` is instant, and a client needs no TensorFlow.

```python
import onerank

spec = onerank.load_spec("data/kuairand_mini.yaml")
```
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.client.ranker import Ranker as Ranker
    from serving.export.exporter import export_model as export_model
    from trainer.models.registry import build_model as build_model
    from trainer.testing.random_batches import random_batch as random_batch
    from trainer.training.trainer import train as train
    from transform.features.model_inputs import ModelInputs as ModelInputs
    from transform.ingest.prepare import prepare as prepare
    from transform.spec.loading import load_spec as load_spec
    from transform.spec.metric_table import Metric as Metric
    from transform.spec.ranking_spec import RankingSpec as RankingSpec

_PUBLIC = {
    "Metric": "transform.spec.metric_table:Metric",
    "ModelInputs": "transform.features.model_inputs:ModelInputs",
    "RankingSpec": "transform.spec.ranking_spec:RankingSpec",
    "Ranker": "serving.client.ranker:Ranker",
    "build_model": "trainer.models.registry:build_model",
    "export_model": "serving.export.exporter:export_model",
    "load_spec": "transform.spec.loading:load_spec",
    "prepare": "transform.ingest.prepare:prepare",
    "random_batch": "trainer.testing.random_batches:random_batch",
    "train": "trainer.training.trainer:train",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from transform.environment import prepare_environment

    prepare_environment()  # asks for Keras 3 before anything imports TensorFlow Transform
    return globals().setdefault(name, pkgutil.resolve_name(_PUBLIC[name]))


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
