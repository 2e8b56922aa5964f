"""The model card of a run: a JSON file for registries and reviews, laid out as the Model Card Toolkit's schema is."""

from __future__ import annotations

import datetime
import json
import platform
from importlib.metadata import version
from typing import Any

from tfx_pipeline.evaluation.eval_config import Slice
from tfx_pipeline.evaluation.verdict import consequence, headline, judge
from tfx_pipeline.metadata.code_version import LIBRARIES
from tfx_pipeline.reporting.report_data import RunData, SplitFacts
from transform.spec.metric_table import names_of

SCHEMA_VERSION = "1"


def model_card(data: RunData) -> dict[str, Any]:
    """Makes the card; docs/report.md lists its fields.

    Args:
        data: RunData.

    Returns:
        Plain objects for JSON; a metric that is undefined is NaN.
    """
    spec = json.loads(data.spec.to_json())
    spec.pop("evaluation", None)  # the model was trained without; what it was evaluated by is in `gates`
    return {
        "schema_version": SCHEMA_VERSION,
        "model_details": {
            "name": data.spec.name,
            "overview": f"{data.spec.model.name}: ranks the candidates of a request for {len(data.tasks)} tasks "
            f"({', '.join(data.tasks)}).",
            "version": {
                "name": data.run.id,
                "date": _utc(data.run.ended).date().isoformat(),
                "diff": headline(data) + ". " + consequence(data),
            },
            "path": data.model,
            "pushed": data.pushed or None,
            "baseline": data.baseline or None,
            "packages": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        },
        "model_parameters": {
            "model_architecture": data.spec.model.model_dump(mode="json"),
            "training": data.spec.training.model_dump(mode="json"),
            "data": {name: _split(facts) for name, facts in data.splits.items()},
            "counts": data.counts,
            "anomalies": data.anomalies,
            "input_format": "serialized tf.Example, one a request (signature `serving_default`)",
            "output_format": "probabilities per task, the fused `score`, `candidate_mask`: all [requests, candidates]",
            "score": data.spec.score,
        },
        "quantitative_analysis": {
            "split": "test",
            "blessed": data.blessed,
            "performance_metrics": [
                metric
                for place in data.metrics.candidate
                for task in data.tasks
                for metric in _metrics(data, task, place)
            ],
            "gates": [_gate(data, judgement.task) for judgement in judge(data)],
            "popularity_baseline": data.popularity,
        },
        "serving": data.serving,
        "considerations": {"limitations": _limitations(data)},
        "spec": spec,
    }


def _metrics(data: RunData, task: str, place: Slice) -> list[dict[str, Any]]:
    values = data.metrics.candidate[place].get(task, {})
    of_baseline = data.metrics.baseline.get(place, {}).get(task, {})
    return [
        {
            "type": metric,
            "task": task,
            "slice": dict(place),
            "value": value,
            "baseline": of_baseline.get(metric),
            "change": None
            if metric in names_of("count")
            else data.metrics.change.get(place, {}).get(task, {}).get(metric),
        }
        for metric, value in values.items()
    ]


def _gate(data: RunData, task: str) -> dict[str, Any]:
    gate, judgement = data.gates[task], next(judgement for judgement in judge(data) if judgement.task == task)
    return {
        "task": task,
        "metric": gate.metric,
        "bound": gate.bound,
        "tolerance": gate.tolerance,
        "min_positives": gate.min_positives,
        "status": judgement.status,
        "words": judgement.words,
    }


def _split(facts: SplitFacts) -> dict[str, Any]:
    return {
        "requests": facts.requests,
        "examples": facts.examples,
        "impressions": facts.impressions,
        "first_request": facts.first.isoformat() if facts.first else None,
        "last_request": facts.last.isoformat() if facts.last else None,
        "labelled": facts.labelled,
        "positives": facts.positives,
    }


def _limitations(data: RunData) -> list[str]:
    """What a reader of the numbers should know; each follows from the run or from how the product works."""
    limits = [
        f"{task}: {found.positives} positives in the test split, fewer than the {found.min_positives} to judge by; "
        "its metrics were reported, not gated."
        for task, found in data.not_gated.items()
    ]
    limits += [
        f"{task.name}: learned and measured only where {task.observed_when} is positive."
        for task in data.spec.tasks
        if task.observed_when
    ]
    if not data.baseline:
        limits.append("There was no blessed model to compare with.")
    if data.anomalies:
        limits.append(f"The data break the schema in {len(data.anomalies)} places.")
    return [
        *limits,
        "Labels are those of impressions that another ranker chose: how good the model is on candidates that were not "
        "shown is not measured.",
        "An event's labels count as known from its impression's time on; user and item tables are one snapshot.",
        "A score may depend on the candidates beside it: a request should be scored whole.",
    ]


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
