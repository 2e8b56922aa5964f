"""The training step of OneRank, and of the same model computed in other ways.

    python -m benchmarks.training.train_step --help

Steps run in turn, on one batch; processor seconds are compared. Speed is also given as a share of that of one large
matrix product: useful operations (`trainer.training.cost`: contractions, of attention the pairs that see each other) a
second.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

import keras
import numpy as np
import tensorflow as tf

from benchmarks import measure
from benchmarks.measure import Ratio, add_data_arguments
from benchmarks.training.keras_attention import KerasAttentionOneRank
from trainer.layers.token_dense import TokenDense
from trainer.losses.pointwise import PointwiseLoss
from trainer.models.base import RankingModel
from trainer.models.onerank.model import OneRank
from trainer.models.registry import build_loss, build_model
from trainer.ops.fused import fused_attention, unavailable
from trainer.ops.kernels import use_kernels
from trainer.training.cost import batch_cost
from trainer.training.epoch import PrefetchTimer
from trainer.training.trainer import Optimizers, make_train_step
from transform.errors import UserError
from transform.features.batching import count_labels, request_batches
from transform.features.model_inputs import Column, EventSequence, ModelInputs, Task
from transform.ingest.prepare import prepare
from transform.spec.loading import load_spec
from transform.spec.model_sections import Optimizer, Training
from transform.spec.ranking_spec import RankingSpec

Row = dict[str, Any]

LOSS_STEPS = 5  # over which losses are compared
LAZY = Optimizer(name="lazy_adamw", schedule="constant")


@dataclass(frozen=True)
class Way:
    """A way to compute the step: a kernel of attention, and what else is not as it is in the first one.

    Attributes:
        kernel: str or function. See `use_kernels`.
        settings: dict. Of `Training`.
        keras_dense: bool. Dense layers are Keras's: products of batches of matrices.
        keras_attention: bool. Keras's attention, under a dense mask; with another kernel, of norms and GELUs too.
        exact: bool. Whether its losses are to be those of the first way, but for rounding.
    """

    kernel: str | Callable[..., Any] = "fused"
    settings: dict[str, Any] | None = None
    keras_dense: bool = False
    keras_attention: bool = False
    exact: bool = True


WAYS = {
    "fused": Way(),
    "portable": Way("portable"),
    "portable, XLA": Way("portable", {"jit_compile": True}),
    "bfloat16": Way(settings={"precision": "mixed_bfloat16"}, exact=False),
    "recomputed": Way(settings={"gradient_checkpointing": True}),
    "whole tables": Way(settings={"optimizer": Optimizer(schedule="constant")}, exact=False),
    "norms, GELU apart": Way(fused_attention),
    "Keras dense": Way(keras_dense=True),
    "Keras MHA": Way("portable", keras_attention=True),
    "Keras MHA alone": Way(keras_attention=True),
    "all Keras": Way("portable", keras_dense=True, keras_attention=True),
}
QUICK_WAYS = ("fused", "portable", "Keras dense", "Keras MHA")


@dataclass(frozen=True)
class Problem:
    """A model and a batch.

    Attributes:
        name: str.
        make: function. Makes the model; the same values for the same seed.
        batch: dict. What the model is called on.
        targets: dict. Labels and masks.
        shape: (B, N, U). Requests, and the most candidates and events.
    """

    name: str
    make: Callable[[], RankingModel]
    batch: Any
    targets: Any
    shape: tuple[int, int, int]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the tables and writes the results; returns 1 when the user has something to correct."""
    arguments = _parse(argv)
    if arguments.tables:
        print(tables(json.loads(Path(arguments.tables).read_text())))
        return 0
    why_not = unavailable()
    if why_not:
        print(f"error: the fused attention can't be used here: {why_not}", file=sys.stderr)
        return 1
    measure.set_threads(arguments.threads)
    try:
        spec = load_spec(arguments.spec)
        prepared = prepare(spec, arguments.data, Path(arguments.cache))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ways = {name: way for name, way in WAYS.items() if not arguments.quick or name in QUICK_WAYS}
    rounds = 3 if arguments.quick else arguments.rounds
    files = prepared.files("transformed", "train")
    rows = compare(deep_problem(), ways, rounds)
    rows += compare(problem_of(spec, prepared.inputs, files), ways, rounds)
    waited = input_wait_percent(spec, prepared.inputs, files)
    results = {
        "machine": measure.machine(),
        "versions": measure.versions("tensorflow", "keras", "numpy"),
        "threads": arguments.threads,
        "commit": measure.commit(),
        "rows": rows,
        "figures": find_figures(rows, waited),
    }
    print(tables(results))
    if arguments.output:
        measure.write_json(arguments.output, results)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.train_step",
        description="Measures OneRank's training step: kernels of attention, precision, XLA, Keras's own layers.",
    )
    add_data_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="few rounds and ways: about two minutes")
    parser.add_argument("--rounds", type=int, default=9, help="the most a step runs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of TensorFlow (default: %(default)s)")
    parser.add_argument("--tables", metavar="FILE", help="only print the tables of results that were written before")
    return parser.parse_args(argv)


# === Problems ===


def deep_problem(b: int = 32, n: int = 16, u: int = 128, d: int = 128, layers: int = 4) -> Problem:
    """Made-up requests with full histories, three tasks, and tables of 100,000 and 50,000 rows."""
    columns = {"item": ("item", 64), "kind": ("kind", 32)}
    inputs = ModelInputs(
        columns=(
            Column("user", "user", "id", "user", 32),
            Column("context", "hour", "id", "hour", 8),
            *(Column("candidate", name, "id", *table) for name, table in columns.items()),
            *(Column("seen", name, "id", *table) for name, table in columns.items()),
        ),
        rows={"user": 50_000, "hour": 24, "item": 100_000, "kind": 1000},
        sequences=(EventSequence("seen", "history", u),),
        tasks=(Task("click"), Task("cart"), Task("order")),
    )
    generator = np.random.default_rng(0)

    def ids(group: str, *shape: int) -> dict[str, Any]:
        return {c.name: tf.constant(generator.integers(1, inputs.rows[c.table], shape)) for c in inputs.group(group)}

    batch = {
        "user": ids("user", b),
        "context": ids("context", b),
        "sequences": {"seen": {**ids("seen", b, u), "mask": tf.ones((b, u), tf.bool)}},
        "candidates": {**ids("candidate", b, n), "mask": tf.ones((b, n), tf.bool)},
    }
    labels = tf.constant(generator.random((b, n, 3)) < 0.2, tf.float32)
    targets = {"labels": labels, "weights": tf.ones_like(labels)}

    def make() -> RankingModel:
        keras.utils.set_random_seed(1)
        model = OneRank(inputs, d=d, layers=layers, heads=4)
        model.create_variables()
        return model

    return Problem(f"{layers} layers, d {d}, B {b}, U {u}, N {n}, K 3", make, batch, targets, (b, n, u))


def problem_of(spec: RankingSpec, inputs: ModelInputs, files: Sequence[str]) -> Problem:
    """A spec's model and the first batch of its data, padding and all."""
    batch, targets = next(iter(request_batches(inputs, files, spec.training.batch_requests)))

    def make() -> RankingModel:
        keras.utils.set_random_seed(1)
        model = build_model(spec.model, inputs)
        for block in model.blocks:
            block.drop.rate = 0  # it draws other numbers each time, and Keras's attention here has none
        return model

    counts = count_labels(inputs, files)
    lengths = [int(part["mask"].shape[1]) for part in batch["sequences"].values()]
    b, n = batch["candidates"]["mask"].shape
    filled = round(counts.candidates / counts.requests)
    name = f"{spec.name}: B {b}, U {sum(lengths)}, N {n} ({filled} on average)"
    return Problem(name, make, batch, targets, (b, n, max(lengths, default=0)))


# === Measurements ===


def compare(problem: Problem, ways: dict[str, Way], rounds: int) -> list[Row]:
    """A row a way: its times, those over the first one's, its share of a matrix product's speed, and its losses."""
    runs, losses = {}, {}
    for name, way in ways.items():
        step = make_step(problem, way)
        losses[name] = [float(step()) for _ in range(LOSS_STEPS)]
        runs[name] = lambda step=step: measure.timed(step)
        print(f"{problem.name}, {name}: ready", flush=True)
    gemm = measure.gemm()
    gemm()
    times = measure.interleaved({**runs, "gemm": lambda: measure.timed(gemm, 10)}, rounds)
    speed = measure.GEMM_FLOPS / measure.least(times["gemm"]).cpu
    first = next(iter(ways))
    flops = batch_cost(problem.make(), *problem.shape).training_flops
    rows = []
    for name, way in ways.items():
        best = measure.least(times[name])
        # Keras's attention has no bias for the own candidate, which is 0 at the start here and learned by the others.
        compared = slice(0, 1) if way.keras_attention else slice(None)
        rows.append(
            {
                "problem": problem.name,
                "way": name,
                "rounds": len(times[name]),
                "cpu_ms": 1e3 * best.cpu,
                "wall_ms": 1e3 * best.wall,
                "over_first": asdict(Ratio.of(times[name], times[first])),
                "gemm_share": flops / best.cpu / speed,
                "loss_difference": float(np.abs(np.subtract(losses[name], losses[first])[compared]).max()),
                "exact": way.exact,
            }
        )
    return rows


def make_step(problem: Problem, way: Way) -> Callable[[], Any]:
    """A function that makes one training step on the problem's batch and returns the loss."""
    model = problem.make()
    for block in model.blocks:
        block.candidate_bias.assign(np.zeros(block.candidate_bias.shape))
    if way.keras_attention:
        model = KerasAttentionOneRank.of(model)
    settings = Training(**{"optimizer": LAZY, **(way.settings or {})})
    loss_fn = PointwiseLoss(model.inputs_spec.tasks)
    loss_fn.build()
    optimizers = Optimizers(settings, model, loss_fn, steps=1000)
    arguments = (problem.batch, problem.targets)
    signature = keras.tree.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), arguments)
    step = make_train_step(model, loss_fn, optimizers, settings, signature)
    with use_kernels(way.kernel), _keras_dense() if way.keras_dense else nullcontext():
        step.get_concrete_function()
    return lambda: step(*arguments)[0]


@contextmanager
def _keras_dense() -> Iterator[None]:
    ours = TokenDense.call
    TokenDense.call = keras.layers.Dense.call
    try:
        yield
    finally:
        TokenDense.call = ours


def input_wait_percent(spec: RankingSpec, inputs: ModelInputs, files: Sequence[str]) -> float:
    """The share of an epoch's time for which the loop waits for a batch, after the first, which fills the buffer."""
    model, settings = build_model(spec.model, inputs), spec.training
    loss_fn = build_loss(model, spec.model.loss)
    optimizers = Optimizers(settings, model, loss_fn, steps=1000)
    batches = request_batches(inputs, files, settings.batch_requests, settings.shuffle_requests)
    step = make_train_step(model, loss_fn, optimizers, settings, batches.element_spec)
    timer = PrefetchTimer()
    started = waited = 0.0
    for number, (batch, targets) in enumerate(timer.over(batches)):
        float(step(batch, targets)[0])
        if number == 0:
            started, waited = time.perf_counter(), timer.seconds
    return 100 * (timer.seconds - waited) / (time.perf_counter() - started)


# === Figures and tables ===


def find_figures(rows: Sequence[Row], waited: float) -> dict[str, float]:
    """The figures that targets are about: of the first problem, but for waiting and losses."""
    of_first = {row["way"]: row for row in rows if row["problem"] == rows[0]["problem"]}
    return {
        "train.gemm_percent": 100 * of_first["fused"]["gemm_share"],
        "train.over_keras_mha": of_first["Keras MHA"]["over_first"]["median"],
        "train.input_wait_percent": waited,
        "train.max_abs_loss_difference": max(row["loss_difference"] for row in rows if row["exact"]),
    }


def tables(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    rows = results["rows"]
    lines = [measure.describe(results)]
    for problem in dict.fromkeys(row["problem"] for row in rows):
        lines += [
            "",
            f"**{problem}**",
            "",
            "| step | CPU ms | wall ms | over fused | min / min | wall | of GEMM | largest loss difference |",
        ]
        lines += ["|---" * 8 + "|"]
        for row in rows:
            if row["problem"] == problem:
                over = row["over_first"]
                ratios = " | ".join(f"{over[key]:.2f}" for key in ("median", "least", "wall"))
                times = f"{row['cpu_ms']:.0f} | {row['wall_ms']:.0f}"
                share, difference = f"{row['gemm_share']:.0%}", f"{row['loss_difference']:.1e}"
                lines.append(f"| {row['way']} | {times} | {ratios} | {share} | {difference} |")
    lines += ["", "| figure | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {figure:.3g} |" for name, figure in results["figures"].items())])


if __name__ == "__main__":
    sys.exit(main())
