"""Trains in a process of its own and is killed there, for `test_resume.py`.

    python -m tests.testing.resume_worker JOB.json MOMENT COUNT

JOB.json holds what `training.train` is called with. MOMENT is `step`, `evaluation` or `save`, and COUNT in which of
them it ends, counted from its start: by SIGKILL, or by the kernel in the middle of writing a file.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

from transform.environment import prepare_environment

prepare_environment()

from trainer.training import trainer
from trainer.training.checkpoints import TrainingCheckpoints
from transform.features.model_inputs import ModelInputs
from transform.spec.loading import parse_spec

BYTES_WRITTEN = 2_000  # of a checkpoint: fewer than it has


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing():
    """Lets the kernel end the process when a file grows beyond some bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES_WRITTEN, resource.RLIM_INFINITY))


def nth(function, count, before):
    """A function that calls `before` first when it is called for the n-th time."""
    calls = 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            before()
        return function(*arguments, **options)

    return counted


def main(job, moment, count):
    count = int(count)
    if moment == "step":
        make = trainer.make_train_step
        trainer.make_train_step = lambda *arguments: nth(make(*arguments), count, die)
    elif moment == "evaluation":
        trainer.ranking_metrics.compute = nth(trainer.ranking_metrics.compute, count, die)
    elif moment == "save":
        TrainingCheckpoints.save = nth(TrainingCheckpoints.save, count, die_while_writing)
    values = json.loads(Path(job).read_text())
    spec, inputs = parse_spec(values.pop("spec")), ModelInputs.from_config(values.pop("inputs"))
    trainer.train(spec, inputs, **values)


if __name__ == "__main__":
    main(*sys.argv[1:])
