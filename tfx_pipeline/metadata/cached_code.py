"""The code that each component runs, by folders: an edit there, and only there, re-runs the component.

Of the models, heads and losses it is those that the spec names: a new one retrains nobody.
"""

from __future__ import annotations

from trainer.training.training_code import training_code

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
LABEL_STATISTICS = (
    *_SPEC,
    "transform.features.model_inputs",
    "transform.features.request_example",
    "trainer.metrics",
    "tfx_pipeline.components.label_statistics",
)


def trainer(*chosen: str) -> tuple[str, ...]:
    """What the Trainer runs, and its export.

    Args:
        *chosen: str. The names of the model, and of its head and loss, in the spec.

    Returns:
        Importable names, for `code_version`.
    """
    return (
        *training_code(*chosen),
        "serving.export",
        *("tfx_pipeline.custom_config", "tfx_pipeline.tfx_functions"),
    )


def serving_validator(*chosen: str) -> tuple[str, ...]:
    """What the ServingValidator runs, for the same names: the server, the client, and the Trainer's own scores."""
    return (
        *trainer(*chosen),
        *("transform.environment", "serving.client", "serving.server", "serving.tools"),
        *("tfx_pipeline.evaluation.serving_validation", "tfx_pipeline.components.serving_validator"),
    )
