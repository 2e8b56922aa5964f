"""The pictures of a report: small SVG drawings in the colours of the page, so that they follow its theme.

Each function returns the text of one `<svg>` element without scripts, fonts or links, or "" when there is nothing to
draw.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tfx_pipeline.evaluation.tfma_plots import Curves
from tfx_pipeline.reporting.report_data import Losses
from trainer.metrics.ranking_metrics import Array

TASK_COLOURS = 8
MOST_POINTS = 200  # of a curve over steps; more are averaged
MOST_COLUMNS = 24  # of a heat map

# Colours that stand for the page's variables until the drawing is text.
_VARIABLES = ["ink", "muted", "grid", "new", "old", "positive", "negative", *(f"task{n}" for n in range(TASK_COLOURS))]
_COLOUR = {name: f"#0000{index + 1:02x}" for index, name in enumerate(_VARIABLES)}
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
_STYLES = ("-", "--", ":")  # of tasks beyond the eighth

_SETTINGS = {
    "font.size": 8.5,
    "svg.fonttype": "none",
    "axes.edgecolor": _COLOUR["muted"],
    "axes.labelcolor": _COLOUR["ink"],
    "text.color": _COLOUR["ink"],
    "xtick.color": _COLOUR["muted"],
    "ytick.color": _COLOUR["muted"],
    "xtick.labelcolor": _COLOUR["ink"],
    "ytick.labelcolor": _COLOUR["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _COLOUR["grid"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


# === Curves of the evaluation ===


def roc(task: str, candidate: Curves, baseline: Curves | None) -> str:
    """The ROC curve of a task, with that of the blessed model."""
    if not len(candidate.recall):
        return ""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_COLOUR["muted"], linewidth=0.8, linestyle=":")
        if baseline is not None:
            axes.plot(baseline.false_positive_rate, baseline.recall, color=_COLOUR["old"], linestyle="--")
        axes.plot(candidate.false_positive_rate, candidate.recall, color=_COLOUR["new"])
        axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="false positive rate", ylabel="true positive rate")

    return _svg(f"ROC curve of {task}", draw)


def calibration(task: str, candidate: Curves, baseline: Curves | None) -> str:
    """Observed over predicted rate in buckets of equally many candidates, with 95 % intervals of the observed rate."""
    if not len(candidate.calibration):
        return ""

    def points(curves: Curves) -> tuple[Array, Array, Array]:
        rows, positives, scores = curves.calibration[curves.calibration[:, 0] > 0].T
        return scores / rows, positives / rows, np.abs(wilson(positives, rows) - positives / rows)

    def draw(axes: Axes) -> None:
        predicted, observed, errors = points(candidate)
        top = 1.05 * max(predicted.max(), (observed + errors[1]).max())
        axes.plot([0, 1], [0, 1], color=_COLOUR["muted"], linewidth=0.8, linestyle=":")
        if baseline is not None and len(baseline.calibration):
            axes.plot(*points(baseline)[:2], color=_COLOUR["old"], linestyle="--", linewidth=1.2)
        axes.errorbar(predicted, observed, errors, color=_COLOUR["new"], marker="o", markersize=3.5, elinewidth=1)
        axes.set(xlim=(0, top), ylim=(0, top), xlabel="mean prediction", ylabel="observed rate")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(_PERCENT)

    return _svg(f"Calibration of {task}", draw)


def score_distribution(task: str, candidate: Curves) -> str:
    """How the scores of positives and of negatives are distributed; the axis of scores is in log-odds."""
    if not len(candidate.scores):
        return ""
    lower, upper, rows, positives = candidate.scores.T
    bounds = _log_odds(np.append(lower, upper[-1]))

    def draw(axes: Axes) -> None:
        for counts, name in ((rows - positives, "negative"), (positives, "positive")):
            shares = counts / max(counts.sum(), 1)
            axes.stairs(shares, bounds, fill=True, color=_COLOUR[name], alpha=0.22)
            axes.stairs(shares, bounds, color=_COLOUR[name], linewidth=1.4)
        ticks = _probability_ticks(lower[0], upper[-1])
        axes.set_xticks(_log_odds(ticks), [f"{100 * tick:g}%" for tick in ticks])
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.set(xlabel="predicted probability", ylabel="share of the class", ylim=(0, None))

    return _svg(f"Distribution of scores of {task}", draw)


def wilson(positives: Array, rows: Array) -> Array:
    """95 % intervals of rates: lower and upper bounds [2, n]."""
    z = 1.96
    rate, weight = positives / rows, 1 / (1 + z**2 / rows)
    half = z * weight * np.sqrt(rate * (1 - rate) / rows + z**2 / (4 * rows**2))
    centre = weight * (rate + z**2 / (2 * rows))
    return np.stack([centre - half, centre + half])


def _probability_ticks(low: float, high: float) -> Array:
    """Round probabilities inside of bounds: decades, or 1, 2 and 5 times decades where there are few."""
    for digits in ((1,), (1, 2, 5)):
        small = [float(f"{digit}e{power}") for power in range(-7, 0) for digit in digits]
        ticks = np.array(sorted({*small, 0.5, *(round(1 - p, 9) for p in small)}))
        ticks = ticks[(low < ticks) & (ticks < high)]
        if len(ticks) >= 3:
            break
    return ticks


def _log_odds(probabilities: Array) -> Array:
    clipped = np.clip(probabilities, 1e-8, 1 - 1e-8)
    return np.log(clipped / (1 - clipped))


# === Training ===


def loss(task: str, losses: Losses) -> str:
    """A task's training loss over steps: each value that was logged, and their running mean."""
    steps, values = _thinned(np.array(losses.steps, float), np.array(losses.values)[:, None], MOST_POINTS)
    width = max(len(steps) // 8, 1)

    def draw(axes: Axes) -> None:
        axes.plot(steps, values[:, 0], color=_COLOUR["new"], alpha=0.35, linewidth=0.9)
        smooth = np.convolve(values[:, 0], np.ones(width) / width, "valid")
        axes.plot(steps[width - 1 :], smooth, color=_COLOUR["new"])
        axes.set(xlabel="step", ylabel="loss (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    return _svg(f"Training loss of {task}", draw)


def epochs(training: Mapping[str, Any], metric: str, tasks: Sequence[str]) -> str:
    """A metric of every task on the eval split after each epoch; the epoch whose weights were kept is marked."""
    measured = [[_number(epoch["eval"].get(task, {}).get(metric)) for task in tasks] for epoch in training["epochs"]]
    numbers = [epoch["epoch"] + 1 for epoch in training["epochs"]]
    if not measured or np.isnan(measured).all():
        return ""

    def draw(axes: Axes) -> None:
        axes.axvline(training["best_epoch"] + 1, color=_COLOUR["muted"], linewidth=1, linestyle=":")
        _task_lines(axes, numbers, np.array(measured))
        axes.set(xlabel="epoch", xlim=(min(numbers) - 0.25, max(numbers) + 0.25))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return _svg(f"{metric} by epoch", draw)


# === Gradients ===


def conflict(gradients: Sequence[Mapping[str, Any]], group: str) -> str:
    """A heat map of the cosine between the gradients of each pair of tasks: pairs by steps."""
    measured = [entry for entry in gradients if group in entry]
    if not measured or not measured[0][group]["cosine"]:
        return ""
    pairs = list(measured[0][group]["cosine"])
    values = np.array([[_number(entry[group]["cosine"].get(pair)) for pair in pairs] for entry in measured])
    steps, values = _thinned(np.array([entry["step"] for entry in measured], float), values, MOST_COLUMNS)

    def draw(axes: Axes) -> None:
        axes.grid(False)
        for column, of_step in enumerate(values):
            for row, cosine in enumerate(of_step):
                if math.isnan(cosine):
                    axes.text(column + 0.5, row + 0.5, "–", ha="center", va="center", color=_COLOUR["muted"])
                    continue
                colour = _COLOUR["negative" if cosine >= 0 else "positive"]
                alpha = min(0.08 + 0.8 * abs(cosine), 0.85)
                axes.add_patch(Rectangle((column, row), 0.96, 0.92, facecolor=colour, alpha=alpha, linewidth=0))
                if len(values) <= MOST_COLUMNS // 2:
                    axes.text(
                        column + 0.48,
                        row + 0.47,
                        f"{cosine:+.2f}".replace("-", "−"),
                        ha="center",
                        va="center",
                        fontsize=7.5,
                    )
        axes.set(xlim=(0, len(values)), ylim=(len(pairs), 0), xlabel="step")
        shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 7)).round().astype(int))
        axes.set_xticks(shown + 0.48, [f"{steps[index]:,.0f}" for index in shown])
        axes.set_yticks(np.arange(len(pairs)) + 0.47, [pair.replace("-", " – ") for pair in pairs])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    return _svg(f"Gradient conflict, {group}", draw, 4.4, 0.75 + 0.25 * len(pairs))


def norms(gradients: Sequence[Mapping[str, Any]], group: str, tasks: Sequence[str]) -> str:
    """The size of each task's gradient over steps, on a logarithmic axis."""
    measured = [entry for entry in gradients if group in entry]
    if not measured:
        return ""
    values = np.array([[_number(entry[group]["norm"].get(task)) for task in tasks] for entry in measured])
    steps, values = _thinned(np.array([entry["step"] for entry in measured], float), values, MOST_POINTS)

    def draw(axes: Axes) -> None:
        _task_lines(axes, steps, np.where(values > 0, values, np.nan))
        axes.set(xlabel="step", ylabel="norm", yscale="log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    return _svg(f"Gradient norms, {group}", draw)


# === Drawing ===


def _task_lines(axes: Axes, x: Any, values: Array) -> None:
    marker = "o" if len(values) <= 20 else ""
    for k, column in enumerate(values.T):
        style = _STYLES[k // TASK_COLOURS % len(_STYLES)]
        axes.plot(x, column, style, marker=marker, markersize=3.5, color=_COLOUR[f"task{k % TASK_COLOURS}"])


def _thinned(steps: Array, values: Array, most: int) -> tuple[Array, Array]:
    """Means of neighbours, so that no more than `most` points are left: steps [n] and values [n, columns]."""
    if len(steps) <= most:
        return steps, values
    parts = zip(np.array_split(steps, most), np.array_split(values, most), strict=True)
    means = [(part_steps.mean(), part.mean(axis=0)) for part_steps, part in parts]
    return np.array([step for step, _ in means]), np.array([mean for _, mean in means])


def _number(value: float | None) -> float:
    """JSON's null is NaN."""
    return math.nan if value is None else value


def _svg(title: str, draw: Any, width: float = 2.8, height: float = 2.35) -> str:
    """Draws into axes of `width` by `height` inches and returns them as an SVG element."""
    settings: Any = {**_SETTINGS, "svg.hashsalt": title}  # newer versions of Matplotlib list the names in the type
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height))
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;]*; ", "", text)  # the page's
    text = re.sub(
        r' id="(?:figure|axes|patch|line2d|text|matplotlib|[xy]tick|LineCollection|PathCollection)[^"]*"', "", text
    )
    text = re.sub(r"#0000([0-9a-f]{2})\b", lambda found: f"var(--{_VARIABLES[int(found[1], 16) - 1]})", text)
    opening = f'<svg role="img" aria-label="{title}" viewBox="0 0 {72 * width:g} {72 * height:g}">'
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"<svg[^>]*>", opening, text, count=1))
