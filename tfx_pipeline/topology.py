"""Which components the pipeline has and in which order they run, known without TFX: importing TFX takes seconds."""

from __future__ import annotations

from transform.spec.ranking_spec import RankingSpec

RESOLVER_ID = "latest_blessed_model"


def topology(spec: RankingSpec) -> dict[str, tuple[str, ...]]:
    """The components of `create_pipeline` for the target `tfx`.

    Args:
        spec: RankingSpec.

    Returns:
        By component id the ids of the components whose outputs it waits for, in an order in which they can run.
    """
    is_served = bool(spec.evaluation.served_requests)
    validator = {"ServingValidator": ("ImpressionExampleGen", "Trainer", "Transform", RESOLVER_ID)}
    return {
        "ImpressionExampleGen": (),
        "SpecSchema": (),
        "LabelStatistics": ("ImpressionExampleGen",),
        "StatisticsGen": ("ImpressionExampleGen",),
        "ExampleValidator": ("SpecSchema", "StatisticsGen"),
        "AnomalyGate": ("ExampleValidator",),
        "Transform": ("AnomalyGate", "ImpressionExampleGen", "SpecSchema"),
        "Trainer": ("SpecSchema", "Transform"),
        RESOLVER_ID: ("Trainer",),
        "Evaluator": ("ImpressionExampleGen", "SpecSchema", "Trainer", RESOLVER_ID),
        **(validator if is_served else {}),
        "AtomicPusher": ("Evaluator", *(["ServingValidator"] if is_served else []), "Trainer"),
    }
