"""Metrics as a user would write them, named in specs as `tests.testing.own_metrics:precision` and so on."""

import math

from transform.spec.metric_table import Metric


def precision_of_first(labels, scores, groups):
    """How often the best candidate of a request is a positive: over the requests that have one."""
    per_request = []
    for group in set(groups.tolist()):
        inside = groups == group
        if labels[inside].any():
            per_request.append(labels[inside][scores[inside].argmax()])
    return float(sum(per_request) / len(per_request)) if per_request else math.nan


def brier_score(labels, scores, weights, power=2):
    return float((weights * abs(scores - labels) ** power).sum() / weights.sum())


precision = Metric("first is right", direction="higher", best=1.0, bound=0.0, function=precision_of_first)
brier = Metric("Brier score", direction="lower", best=0.0, bound=1.0, function=brier_score)
mean_score = Metric("mean score", direction="target", best=0.5, function=lambda scores: scores.mean())
talkative = Metric("words", direction="higher", best=1.0, bound=0.0, function=lambda labels: "good")
unfinished = Metric("unfinished", direction="higher", best=1.0, bound=0.0)
constant = Metric("constant", direction="higher", best=1.0, bound=0.0, function=lambda scores: 0.5)
