"""The verdict on a run in words: which task got worse, by how much, and what its gate allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tfx_pipeline.evaluation.eval_config import Failure, Slice
from tfx_pipeline.reporting.report_data import RunData
from transform.spec.metric_table import find_metric

_SHOWN_SLICES = 3


@dataclass(frozen=True)
class Judgement:
    """What the gate says of one task.

    Attributes:
        task: str.
        status: str. `fail`, `not gated` or `pass`.
        words: str. One or two sentences.
        slices: list of str. Where a task that failed lost most: slices that hold enough positives to judge by.
    """

    task: str
    status: Literal["fail", "not gated", "pass"]
    words: str
    slices: list[str]


def headline(data: RunData) -> str:
    """The verdict in one sentence."""
    if not data.blessed:
        worse = dict.fromkeys(f.task for f in data.failures if f.kind == "change" and not math.isnan(f.received))
        others = dict.fromkeys(failure.task for failure in data.failures if failure.task not in worse)
        parts = [f"{_listed([*worse])} got worse"] if worse else []
        parts += [f"{_listed([*others])} did not pass"] if others else []
        return "Not blessed: " + "; ".join([*parts, *([] if data.servable else ["serving it failed"])])
    if not data.servable:
        return "Not pushed: blessed by its metrics, but serving it failed"
    if not data.baseline:
        return "Blessed: every gated task keeps its bound"
    return "Blessed: no gated task got worse than its gate allows"


def consequence(data: RunData) -> str:
    """What follows from the verdict, and what it rests on."""
    if not (data.blessed and data.servable):
        pushed = "Nothing was pushed; the model in production stays."
    else:
        pushed = f"Pushed to {data.pushed}." if data.pushed else "Nothing was pushed."
    if data.baseline:
        return f"{pushed} Compared with the blessed model {'/'.join(data.baseline.split('/')[-3:])}."
    return f"{pushed} There was no blessed model to compare with: the gates held values alone."


def judge(data: RunData) -> list[Judgement]:
    """What the gates say of each task, those that failed first.

    Args:
        data: RunData.

    Returns:
        One judgement per task.
    """
    failures = {task: [failure for failure in data.failures if failure.task == task] for task in data.tasks}
    judgements = []
    for task in data.tasks:
        if failures[task]:
            words = " ".join(dict.fromkeys(_failure_words(data, failure) for failure in failures[task]))
            judgements.append(Judgement(task, "fail", words, _worst_slices(data, task)))
        elif task in data.not_gated:
            positives, least = data.not_gated[task].positives, data.not_gated[task].min_positives
            words = (
                f"{positives:,} positives are too few to judge by, the gate asks for {least:,}. {_course(data, task)}."
            )
            judgements.append(Judgement(task, "not gated", words, []))
        else:
            judgements.append(Judgement(task, "pass", f"{_course(data, task)}; {_allowed(data, task)}.", []))
    return sorted(judgements, key=lambda judgement: judgement.status != "fail")


def is_better(metric: str, value: float, before: float) -> bool | None:
    """Whether a value is better than the one before; None when it is the same or either is undefined."""
    return find_metric(metric).is_better(value, before)


def slice_name(place: Slice) -> str:
    """A slice as text."""
    return ", ".join(f"{name}={value}" for name, value in place) or "overall"


def _failure_words(data: RunData, failure: Failure) -> str:
    title, where = find_metric(failure.metric).title, f" on {slice_name(failure.slice)}" if failure.slice else ""
    if failure.kind == "missing":
        return "There was nothing to evaluate: the test split holds no candidate."
    if math.isnan(failure.received):
        return f"{title}{where} is undefined: a score is not finite, or positives or negatives are missing."
    if failure.kind == "value":
        least = "at least" if find_metric(failure.metric).higher_is_better else "at most"
        return f"{title}{where} is {failure.received:.4f}; the gate asks for {least} {failure.bound:g}."
    after = data.value(failure.task, failure.metric, failure.slice)
    moved = "fell" if failure.received < 0 else "rose"
    return (
        f"{title}{where} {moved} by {abs(failure.received):.4f}, from {after - failure.received:.4f} to {after:.4f}; "
        f"the gate allows {abs(failure.bound):g}."
    )


def _course(data: RunData, task: str) -> str:
    metric = data.gates[task].metric
    title = find_metric(metric).title
    value, change = data.value(task, metric), data.change(task, metric)
    if math.isnan(value):
        return f"{title} is undefined"
    if math.isnan(change):
        return f"{title} is {value:.4f}"
    if abs(change) < 0.00005:
        return f"{title} is unchanged at {value:.4f}"
    moved = "fell" if change < 0 else "rose"
    return f"{title} {moved} by {abs(change):.4f}, from {value - change:.4f} to {value:.4f}"


def _allowed(data: RunData, task: str) -> str:
    gate = data.gates[task]
    higher = find_metric(gate.metric).higher_is_better
    if gate.tolerance is None:
        return f"the gate asks for {'at least' if higher else 'at most'} {gate.bound:g}"
    return f"the gate allows a {'fall' if higher else 'rise'} of {gate.tolerance:g}"


def _worst_slices(data: RunData, task: str) -> list[str]:
    """The slices where the gate's metric got worse most, of those with as many positives as the gate asks for."""
    gate = data.gates[task]
    sign = 1 if find_metric(gate.metric).higher_is_better else -1
    found = []
    for place in data.metrics.candidate:
        change, positives = data.change(task, gate.metric, place), data.value(task, "positive_count", place)
        if place and sign * change < 0 and positives >= gate.min_positives:
            found.append((sign * change, f"{slice_name(place)} ({change:+.4f}, {positives:,.0f} positives)"))
    return [text.replace("-", "−") for _, text in sorted(found)[:_SHOWN_SLICES]]


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
