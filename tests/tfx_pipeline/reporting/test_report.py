"""The report and the model card of runs of the small problem, held to what TFMA wrote."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from tests.testing.schedule import Schedule, reported_runs
from tfx_pipeline.evaluation import tfma_plots, verdict
from tfx_pipeline.evaluation.eval_config import load_metrics
from tfx_pipeline.metadata.runs import Run
from tfx_pipeline.reporting import report
from tfx_pipeline.reporting.model_card import model_card
from tfx_pipeline.reporting.report_data import collect
from trainer.metrics.ranking_metrics import Rows
from transform.errors import PipelineError

TASKS = ("buy", "save", "share")


class Page(HTMLParser):
    """A parsed report: its text by element, values, links, and what a browser would fetch or run."""

    def __init__(self, path: Path):
        super().__init__()
        self.values: dict[tuple[str, str, str], tuple[str, str]] = {}
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.text = ""
        self.headline = ""
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("meta", "link", "br"):
            self._open.append((tag, given))
        self.tags.add(tag)
        self.ids.add(given.get("id") or "")
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        tag, given = self._open[-1] if self._open else ("", {})
        if tag == "h1":
            self.headline += data
        if tag == "data" and "data-task" in given:
            key = (given["data-slice"], given["data-task"], given["data-metric"])
            self.values[key] = (given["value"], data)


@pytest.fixture(scope="module")
def output(schedule: Schedule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with four runs that came to their end; tests change it."""
    return schedule.copy(tmp_path_factory.mktemp("report"))


FIRST, _, WORSE, EDITED = range(4)


def page(output: Path, of: Run) -> Page:
    return Page(output / "reports" / "small" / of.id.replace(":", "-") / "report.html")


def card(output: Path, of: Run) -> dict[str, Any]:
    return json.loads((output / "reports" / "small" / of.id.replace(":", "-") / "model_card.json").read_text())


def test_a_blessed_first_run_says_so_and_that_there_was_nothing_to_compare_with(output, schedule):
    opened = page(output, reported_runs(output)[FIRST])
    assert re.search(r"\nReport: .*/out/reports/small/.*/report.html\n", schedule.start("first").stdout)
    assert opened.headline == "Blessed: every gated task keeps its bound"
    assert "There was no blessed model to compare with" in opened.text
    assert "share: " in opened.text and "too few to judge by" in opened.text
    assert "▲" not in opened.text


def test_serving_is_reported_where_it_was_tried(output):
    of = reported_runs(output)
    served, unserved = of[FIRST], of[EDITED]
    assert "20 requests of the eval split scored by every signature as in training" in page(output, served).text
    assert card(output, served)["serving"]["blessed"] is True
    assert {check["over"] for check in card(output, served)["serving"]["checks"]} == {"gRPC", "REST"}
    assert "The model was not served before it was pushed" in page(output, unserved).text
    assert card(output, unserved)["serving"] is None


def test_a_model_that_could_not_be_served_is_named_with_the_reason(output):
    data = collect(reported_runs(output)[FIRST])
    failed = {
        **data.serving,
        "blessed": False,
        "problems": ["rank over gRPC: NaN"],
        "checks": [],
        "notes": [],
    }
    data = replace(data, serving=failed, pushed="")
    html = report.render(data, model_card(data))
    assert "<h1>Not pushed: blessed by its metrics, but serving it failed</h1>" in html
    assert "Nothing was pushed; the model in production stays." in html
    assert 'class="verdict bad"' in html and html.count("rank over gRPC: NaN") == 2


@pytest.mark.parametrize("index", [FIRST, WORSE])
def test_figures_in_page_and_card_equal_tfmas(output, index):
    of = reported_runs(output)[index]
    measured = load_metrics(of.uri("Evaluator", "evaluation"))
    shown = page(output, of).values
    on_card = {
        (verdict.slice_name(tuple(entry["slice"].items())), entry["task"], entry["type"]): entry
        for entry in card(output, of)["quantitative_analysis"]["performance_metrics"]
    }
    assert len(measured.candidate) > 10
    for place, per_task in measured.candidate.items():
        for task in TASKS:
            for metric, value in per_task[task].items():
                key = (verdict.slice_name(place), task, metric)
                entry, change = on_card[key], measured.change.get(place, {}).get(task, {}).get(metric)
                assert entry["value"] == (None if math.isnan(value) else value)
                if metric in ("auc", "gauc", "ndcg@5", "normalized_entropy", "calibration", "log_loss"):
                    exact, text = shown[key]
                    assert exact == str(value)
                    assert text == ("–" if math.isnan(value) else f"{value:.4f}")
                    assert entry["change"] == (None if change is None or math.isnan(change) else change)
    assert (index == FIRST) == (not measured.baseline)
    assert len(shown) == len(measured.candidate) * len(TASKS) * 6
    assert len(on_card) == sum(len(values) for per_task in measured.candidate.values() for values in per_task.values())


def test_curves_rest_on_the_rows_of_tfmas_metrics(output):
    data = collect(reported_runs(output)[WORSE])
    assert set(data.curves.candidate) == set(data.curves.baseline) == set(TASKS)
    for curves, metrics in (
        (data.curves.candidate, data.metrics.candidate),
        (data.curves.baseline, data.metrics.baseline),
    ):
        for task in TASKS:
            of_task, measured = curves[task], metrics[()][task]
            area = np.trapezoid if hasattr(np, "trapezoid") else np.trapz
            assert area(of_task.recall, of_task.false_positive_rate) == pytest.approx(measured["auc"], abs=0.003)
            rows, positives, scores = of_task.calibration.sum(axis=0)
            assert (rows, positives) == (measured["example_count"], measured["positive_count"])
            assert scores / positives == pytest.approx(measured["calibration"], abs=1e-5)
            assert list(of_task.scores[:, 2:].sum(axis=0)) == [rows, positives]


def test_a_run_that_is_not_blessed_names_the_task_first_and_what_it_lost(output):
    of = reported_runs(output)[WORSE]
    worse, change = page(output, of), load_metrics(of.uri("Evaluator", "evaluation")).change[()]["save"]["auc"]
    assert worse.headline == "Not blessed: save got worse; serving it failed"
    assert f"AUC fell by {-change:.4f}" in worse.text
    assert "It lost most on " in worse.text
    assert "Nothing was pushed; the model in production stays." in worse.text
    first = card(output, of)["quantitative_analysis"]
    assert first["blessed"] is False
    assert [gate["task"] for gate in first["gates"] if gate["status"] == "fail"] == ["save"]


def test_nothing_is_fetched_or_run_when_the_page_is_opened(output):
    for of in reported_runs(output):
        opened = page(output, of)
        assert [link for link in opened.links if not link.startswith("#") and link != "data:,"] == []
        assert {link[1:] for link in opened.links if link.startswith("#")} <= opened.ids, "links lead somewhere"
        assert not opened.tags & {"script", "iframe", "img", "object", "embed", "image"}
        assert re.findall(r"@import|url\((?!#)", opened.source) == []
        assert "#0000" not in opened.source, "every colour is the page's"
        assert len(opened.source) < 1_000_000


def test_pictures_are_drawn_for_every_task(output):
    source = page(output, reported_runs(output)[WORSE]).source
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', source)
    for task in TASKS:
        for picture in ("ROC curve", "Calibration", "Distribution of scores", "Training loss"):
            assert f"{picture} of {task}" in labels
    assert "Gradient conflict, network" in labels and "auc by epoch" in labels


def test_data_summary_holds_the_counts_of_the_examples(output):
    data = collect(reported_runs(output)[FIRST])
    for split, facts in data.splits.items():
        assert facts.requests == data.counts[f"{split}_requests"] < facts.examples, "long requests were split"
        assert facts.impressions == data.counts[f"{split}_impressions"]
        assert facts.positives == {task: data.counts[f"{split}_positives_{task}"] for task in TASKS}
        assert facts.labelled["share"] == facts.positives["buy"], "observed where buy is positive"
        assert facts.sequences["seen"].longest <= 12
        assert facts.first < facts.last
    assert f"{data.splits['train'].requests:,}" in page(output, reported_runs(output)[FIRST]).text


def test_card_holds_what_reproduces_the_model(output):
    held = card(output, reported_runs(output)[FIRST])
    assert held["model_details"]["packages"]["tfx"] and held["model_details"]["packages"]["keras"]
    assert held["model_parameters"]["training"]["seed"] == 1
    assert held["model_parameters"]["data"]["train"]["first_request"].startswith("1970-01-02")
    assert [task["name"] for task in held["spec"]["tasks"]] == list(TASKS)
    assert any(
        text.startswith("share: learned and measured only where buy") for text in held["considerations"]["limitations"]
    )


def test_a_run_without_training_history_still_reports_and_says_what_is_missing(output, tmp_path, capsys):
    first = reported_runs(output)[FIRST]
    model_run = Path(first.uri("Trainer", "model_run"))
    shutil.move(model_run, tmp_path / "away")
    try:
        assert report.main(["--output", str(output), "--run", first.id]) == 0
        text = page(output, first).text
        for missing in ("No training history", "No training losses", "Gradients were not compared"):
            assert missing in text
    finally:
        shutil.move(tmp_path / "away", model_run)
    assert report.main(["--output", str(output), "--run", first.id]) == 0
    assert "No training history" not in page(output, first).text
    assert "Report: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "arguments", "said"),
    [
        ("nowhere", [], "an output folder of the pipeline, with metadata/*.db, is expected"),
        ("", ["--run", "yesterday"], "--run: a run of `small` is expected. Received: `yesterday`. Newest first:\n  20"),
        ("", ["--pipeline", "large"], "--pipeline: one of small is expected. Received: large"),
    ],
)
def test_a_users_mistake_gets_one_message(output, folder, arguments, said, capsys):
    assert report.main(["--output", str(output / folder), *arguments]) == 1
    told = capsys.readouterr()
    assert said in told.err and told.err.count("error:") == 1
    assert "Traceback" not in told.err and not told.out


def test_a_run_that_stopped_or_whose_artifacts_are_gone_is_refused(output, tmp_path):
    first = reported_runs(output)[FIRST]
    with pytest.raises(PipelineError, match="a finished run is expected. Received: one that stopped before Evaluator"):
        collect(Run("x", "small", 0.0, 0.0, {}))
    evaluation = Path(first.uri("Evaluator", "evaluation"))
    shutil.move(evaluation, tmp_path / "away")
    try:
        with pytest.raises(PipelineError, match="artifacts that ML Metadata knows of are expected"):
            collect(first)
    finally:
        shutil.move(tmp_path / "away", evaluation)


# === Curves, without a pipeline ===


def rows(count: int, seed: int = 0, levels: int = 0, weighted: bool = False) -> Rows:
    random = np.random.default_rng(seed)
    scores = random.beta(1, 9, count)
    scores = np.round(scores * levels) / levels if levels else scores
    labels = (random.random(count) < scores).astype(np.float32)
    weights = random.integers(1, 5, count) if weighted else None
    return Rows.observed(labels, scores.astype(np.float32), np.zeros(count, np.int64), weights)


@pytest.mark.parametrize(("count", "levels", "weighted"), [(40, 0, False), (5000, 0, False), (5000, 7, True)])
def test_roc_points_lie_on_the_exact_curve(count, levels, weighted):
    some = rows(count, levels=levels, weighted=weighted)
    points = [(m.threshold, m.false_positive_rate, m.recall) for m in tfma_plots.roc(some).matrices]
    assert points[0][1:] == (0, 0) and points[-1][1:] == (1, 1) and len(points) <= 100
    for threshold, false_rate, recall in points:
        for rate, label in ((recall, 1), (false_rate, 0)):
            of_class = some.labels == label
            reached = some.scores[of_class] >= threshold
            assert rate == pytest.approx(np.average(reached, weights=some.weights[of_class]), abs=1e-12)
    area = reference.auc([x for _, x, _ in points], [y for *_, y in points])
    exact = reference.roc_auc_score(some.labels, some.scores, sample_weight=some.weights)
    assert area == pytest.approx(exact, abs=1e-9 if count == 40 else 0.003)


def test_curves_of_nothing_are_empty():
    broken = Rows.observed([0.0, 1.0], [np.nan, 0.5], np.zeros(2, np.int64), None)
    one_class = Rows.observed(np.ones(3), [0.1, 0.2, 0.3], np.zeros(3, np.int64), None)
    for plot in tfma_plots.PLOTS.values():
        assert not plot(broken).ByteSize() and not plot(rows(0)).ByteSize()
    assert not tfma_plots.roc(one_class).matrices
    assert sum(b.num_weighted_examples.value for b in tfma_plots.calibration_buckets(one_class).buckets) == 3


def test_a_histogram_s_rates_are_weighted_and_its_counts_are_the_effective_number_of_rows():
    some = rows(5000, weighted=True)
    effective = some.weights.sum() ** 2 / (some.weights**2).sum()
    assert 4000 < effective < 4500
    for plot in (tfma_plots.calibration_buckets, tfma_plots.score_distribution):
        buckets = plot(some).buckets
        examples, positives = (
            sum(getattr(bucket, name).value for bucket in buckets)
            for name in ("num_weighted_examples", "total_weighted_label")
        )
        assert examples == pytest.approx(effective)
        assert positives / examples == pytest.approx(np.average(some.labels, weights=some.weights))


def test_calibration_buckets_are_of_equal_size_and_rare_tasks_have_fewer():
    counts = [b.num_weighted_examples.value for b in tfma_plots.calibration_buckets(rows(5000)).buckets]
    assert len(counts) == 10 and max(counts) - min(counts) <= 2
    few = rows(300)
    assert len(tfma_plots.calibration_buckets(few).buckets) == int(few.labels.sum()) // 10 < 10


@pytest.mark.parametrize(
    ("metric", "value", "before", "better"),
    [
        ("auc", 0.7, 0.6, True),
        ("normalized_entropy", 0.7, 0.6, False),
        ("calibration", 1.1, 0.8, True),
        ("calibration", 0.7, 0.8, False),
        ("auc", 0.7, 0.7, None),
        ("auc", 0.7, math.nan, None),
    ],
)
def test_better_follows_the_metric(metric, value, before, better):
    assert verdict.is_better(metric, value, before) is better
