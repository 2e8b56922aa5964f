"""Trainings of the small problem: what is trained, on which examples, and what becomes of the weights."""

import numpy as np
import tensorflow as tf

from trainer.training.trainer import train
from transform.features import request_example
from transform.spec.model_sections import Model, Optimizer

STEEP = Optimizer(name="adam", learning_rate=0.05, schedule="constant")  # overfits in a few epochs
MODELS = {
    "din": Model(name="din", d=8, head={"name": "shared_bottom", "hidden": [32, 16]}),
    "onerank": Model(name="onerank", d=16, layers=1, heads=2, ffn_ratio=2),
}


def with_model(spec, model):
    return spec.model_copy(update={"model": model})


def with_training(spec, **changes):
    """Gradients are measured where a test asks for it: the graph takes seconds to trace."""
    return spec.model_copy(update={"training": spec.training.model_copy(update={"gradients_every": 0, **changes})})


def with_din(spec, **changes):
    """For what does not depend on the model: its graphs are traced in half the time."""
    return with_training(with_model(spec, MODELS["din"]), **changes)


def run(small, run_dir, spec=None, train_files=None, eval_files=None, inputs=None):
    train_files = small.transformed["train"] if train_files is None else train_files
    eval_files = small.transformed["eval"] if eval_files is None else eval_files
    return train(spec or small.spec, inputs or small.inputs(), train_files, eval_files, str(run_dir))


def rewritten(files, path, change=lambda values: None, limit=-1):
    """A copy of transformed examples, each changed."""
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for record in tf.data.TFRecordDataset(files, "GZIP").take(limit):
            values = request_example.decode(record.numpy())
            change(values)
            writer.write(request_example.encode(values).SerializeToString())
    return [str(path)]


def weights_of(model):
    return [np.array(weight) for weight in model.get_weights()]


def same_weights(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
