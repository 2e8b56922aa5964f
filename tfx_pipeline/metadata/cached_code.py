"""The code that each component runs, by folders: an edit there, and only there, re-runs the component.

Of the models it is the one that the spec names: a new model in a folder of its own retrains nobody.
"""

from __future__ import annotations

_SPEC = (
    "transform.errors",
    "transform.feature_types",
    "transform.import_path",
    "transform.list_text",
    "transform.section",
    "transform.spec",
)

EXAMPLE_GEN = (
    *_SPEC,
    "transform.environment",
    "transform.extras",
    "transform.features.request_example",
    "transform.ingest",
    "tfx_pipeline.custom_config",
    "tfx_pipeline.components.impression_example_gen",
)
TRANSFORM = (
    *_SPEC,
    "transform.features.model_inputs",
    "transform.features.preprocessing",
    "transform.features.request_example",
    "tfx_pipeline.tfx_functions",
)
EVALUATOR = (
    *_SPEC,
    "transform.features.model_inputs",
    "transform.features.request_example",
    "trainer.metrics",
    "tfx_pipeline.evaluation.eval_config",
    "tfx_pipeline.evaluation.extractors",
    "tfx_pipeline.evaluation.tfma_metrics",
    "tfx_pipeline.evaluation.tfma_plots",
)
BASELINES = (
    *_SPEC,
    "transform.features.model_inputs",
    "transform.features.request_example",
    "trainer.metrics",
    "tfx_pipeline.components.baselines",
)


def trainer(model: str) -> tuple[str, ...]:
    """What the Trainer runs, and its export, for the model of that name."""
    return (
        *_SPEC,
        "transform.extras",
        "transform.features",
        *(f"trainer.{room}" for room in ("heads", "layers", "losses", "metrics", "ops", "training")),
        *("trainer.models.base", "trainer.models.registry", f"trainer.models.{model}"),
        "serving.export",
        *("tfx_pipeline.custom_config", "tfx_pipeline.tfx_functions"),
    )


def serving_validator(model: str) -> tuple[str, ...]:
    """What the ServingValidator runs: the server, the client, and the Trainer's own scores."""
    return (
        *trainer(model),
        *("transform.environment", "serving.client", "serving.server", "serving.tools"),
        *("tfx_pipeline.evaluation.serving_validation", "tfx_pipeline.components.serving_validator"),
    )
