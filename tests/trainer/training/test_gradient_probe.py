"""Gradients of tasks against a model whose gradients are worked out by hand."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.testing.tensorboard import events
from trainer.losses.pointwise import PointwiseLoss
from trainer.models.base import RankingModel
from trainer.training.gradient_probe import GradientProbe, gradient_conflict, write_json
from transform.features.model_inputs import Column, ModelInputs, Task

TASKS = ("click", "buy", "share")
B, N, K, D, ITEMS = 4, 3, 3, 2, 5
INPUTS = ModelInputs(
    (Column("candidate", "item", "id", "item", D),),
    {"item": ITEMS},
    (),
    tuple(Task(*task) for task in zip(TASKS, (1.0, 2.0, 0.5), strict=True)),
)
MASK = np.arange(N) < np.array([3, 2, 3, 1])[:, None]
LOSS = PointwiseLoss(INPUTS.tasks)


class Tiny(RankingModel):
    """Logits (E[item] + shift) @ kernel: tasks share the table and the shift, and own a column of the kernel each."""

    def __init__(self, inputs, **kwargs):
        super().__init__(inputs, **kwargs)
        self.shift = self.add_weight(shape=(D,), name="shift")
        self.kernel = self.add_weight(shape=(D, len(self.inputs_spec.tasks)), name="kernel")
        self.drop = keras.layers.Dropout(0.5)

    def call(self, batch, training=None):
        x = self.embedding({"item": batch["candidates"]["item"]}, group="candidate") + self.shift
        return keras.ops.matmul(self.drop(x, training=training), self.kernel)


def tiny_model(seed=0):
    random = np.random.default_rng(seed)
    model = Tiny(INPUTS)
    model.embedding.build()
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    return model


def data(seed=0):
    random = np.random.default_rng(seed)
    items = random.integers(1, ITEMS, (B, N)) * MASK
    labels = random.integers(0, 2, (B, N, K)).astype("float32")
    observed = (MASK[..., None] * random.integers(0, 2, (B, N, K))).astype("float32")
    return {"candidates": {"item": items, "mask": MASK}}, {"labels": labels * observed, "weights": observed}


def tensors(batch, targets):
    return keras.tree.map_structure(tf.constant, batch), keras.tree.map_structure(tf.constant, targets)


def probe_of(model, elements, every=1, loss_fn=LOSS, tasks=TASKS):
    element_spec = tf.nest.map_structure(
        lambda tensor: tf.TensorSpec((None,) * 2 + tensor.shape[2:], tensor.dtype), elements
    )
    return GradientProbe(model, loss_fn, tasks, element_spec, every)


def gradients_by_hand(model, batch, targets):
    """By group, a flat gradient a task."""
    embedded = model.embedding.tables["item"].embeddings.numpy().astype("float64")
    shift, kernel = model.shift.numpy().astype("float64"), model.kernel.numpy().astype("float64")
    items, labels, mask = batch["candidates"]["item"], targets["labels"], targets["weights"]
    x = embedded[items] + shift
    probabilities = 1 / (1 + np.exp(-(x @ kernel)))
    of_logits = (
        (probabilities - labels) * mask / mask.sum(axis=(0, 1)) * np.array([task.weight for task in INPUTS.tasks])
    )
    tables, networks = [], []
    for k in range(K):
        of_x = of_logits[..., k, None] * kernel[:, k]
        of_table, of_kernel = np.zeros_like(embedded), np.zeros_like(kernel)
        np.add.at(of_table, items, of_x)
        of_kernel[:, k] = (of_logits[..., k, None] * x).sum(axis=(0, 1))
        tables.append(of_table.ravel())
        networks.append(np.concatenate([of_x.sum(axis=(0, 1)), of_kernel.ravel()]))
    return {"embedding": np.array(tables), "network": np.array(networks)}


def cosine(a, b):
    shared = (a != 0) & (b != 0)
    return a @ b / np.linalg.norm(a[shared]) / np.linalg.norm(b[shared])


# === gradient_conflict ===


def test_cosines_are_of_the_parameters_that_a_pair_shares():
    gradients = np.array([[3.0, 4.0, 0.0, 5.0], [-3.0, -4.0, 7.0, 0.0], [0.0, 1.0, 2.0, 0.0]], "float32")
    norms, cosines = gradient_conflict(tf.constant(gradients))
    np.testing.assert_allclose(norms, [50**0.5, 74**0.5, 5**0.5], rtol=1e-6)
    expected = [[1, -1, 1], [-1, 1, (-4 + 14) / (65 * 5) ** 0.5], [1, (-4 + 14) / (65 * 5) ** 0.5, 1]]
    np.testing.assert_allclose(cosines, expected, rtol=1e-6)


def test_what_shares_nothing_has_no_cosine():
    norms, cosines = gradient_conflict(tf.constant([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(norms, [1, 2, 0])
    np.testing.assert_array_equal(np.isnan(cosines), ~np.eye(3, dtype=bool) | [[0], [0], [1]])


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e12])
def test_cosines_do_not_depend_on_the_size_of_gradients(scale):
    gradients = np.random.default_rng(0).normal(size=(3, 20)).astype("float32")
    expected = gradient_conflict(tf.constant(gradients))[1]
    np.testing.assert_allclose(gradient_conflict(tf.constant(gradients * np.float32(scale)))[1], expected, atol=1e-5)


# === GradientProbe ===


def test_norms_and_cosines_are_those_worked_out_by_hand():
    model, (batch, targets) = tiny_model(), data()
    elements = tensors(batch, targets)
    probe = probe_of(model, elements)
    probe.before_step(0, *elements)
    (measured,) = probe.measured
    assert measured["step"] == 0
    for group, gradients in gradients_by_hand(model, batch, targets).items():
        norms = dict(zip(TASKS, np.linalg.norm(gradients, axis=1), strict=True))
        assert measured[group]["norm"] == pytest.approx(norms, rel=1e-4)
        cosines = {f"{TASKS[a]}-{TASKS[b]}": cosine(gradients[a], gradients[b]) for a, b in [(0, 1), (0, 2), (1, 2)]}
        assert list(measured[group]["cosine"]) == list(cosines)
        assert measured[group]["cosine"] == pytest.approx(cosines, rel=1e-4)
        assert max(map(abs, cosines.values())) < 0.9999, "the batch should tell a cosine from a sign"


@pytest.mark.parametrize(("same", "expected"), [(True, 1), (False, -1)])
def test_equal_tasks_agree_and_opposed_tasks_conflict(same, expected):
    """Two tasks with one column of the kernel and logits 0: their labels alone tell them apart."""
    model, (batch, targets) = tiny_model(), data()
    model.kernel.assign(np.repeat([[1.0], [-1.0]], K, axis=1))
    model.shift.assign([0.5, 0.5])
    model.embedding.tables["item"].embeddings.assign(np.ones((ITEMS, D)))
    mask = np.broadcast_to(MASK[..., None], (B, N, K)).astype("float32")
    labels = targets["labels"]
    labels[..., 1] = labels[..., 0] if same else 1 - labels[..., 0]
    elements = tensors(batch, {"labels": labels * mask, "weights": mask})
    probe = probe_of(model, elements)
    probe.before_step(0, *elements)
    for group in ("embedding", "network"):
        assert probe.measured[0][group]["cosine"]["click-buy"] == pytest.approx(expected, abs=1e-5)


def test_tasks_that_share_no_row_have_no_cosine_there():
    model, (batch, targets) = tiny_model(), data()
    batch["candidates"]["item"] = np.where(MASK, [[1, 2, 3]], 0)
    mask = np.zeros((B, N, K), "float32")
    mask[:3, [0, 1], [0, 1]] = 1  # `click` is observed for item 1, `buy` for item 2, `share` nowhere
    elements = tensors(batch, {"labels": targets["labels"] * mask, "weights": mask})
    probe = probe_of(model, elements)
    probe.before_step(0, *elements)
    measured = probe.measured[0]
    assert measured["embedding"]["norm"]["click"] > 0 and measured["embedding"]["norm"]["buy"] > 0
    assert np.isnan(measured["embedding"]["cosine"]["click-buy"])
    assert not np.isnan(measured["network"]["cosine"]["click-buy"]), "they share the shift"
    assert measured["network"]["norm"]["share"] == 0 and np.isnan(measured["network"]["cosine"]["buy-share"])


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (100, [0])])
def test_it_measures_every_so_many_steps_and_logs_what_it_measures(tmp_path, every, steps):
    model, elements = tiny_model(), tensors(*data())
    probe = probe_of(model, elements, every)
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        for step in range(5):
            probe.before_step(step, *elements)
    assert [measured["step"] for measured in probe.measured] == steps
    pairs = ("click-buy", "click-share", "buy-share")
    values = events(tmp_path)
    assert set(values) == {
        f"gradients/{group}/{kind}/{name}"
        for group in ("embedding", "network")
        for kind, names in [("norm", TASKS), ("cosine", pairs)]
        for name in names
        if steps
    }
    for tag, logged in values.items():
        _, group, kind, name = tag.split("/")
        expected = [(measured["step"], measured[group][kind][name]) for measured in probe.measured]
        np.testing.assert_allclose(logged, expected, rtol=1e-6)


def test_a_single_task_has_a_norm_and_no_cosine():
    model, elements = tiny_model(), tensors(*data())
    one = {name: values[..., :1] for name, values in elements[1].items()}
    alone = Tiny(ModelInputs(INPUTS.columns, INPUTS.rows, (), (Task("click"),)))
    alone.embedding.build()
    alone.embedding.tables["item"].embeddings.assign(model.embedding.tables["item"].embeddings)
    alone.kernel.assign(model.kernel[:, :1])
    alone.shift.assign(model.shift)
    together = probe_of(model, elements)
    probe = probe_of(alone, (elements[0], one), loss_fn=PointwiseLoss([Task("click")]), tasks=("click",))
    together.before_step(0, *elements)
    probe.before_step(0, elements[0], one)
    for group in ("embedding", "network"):
        assert probe.measured[0][group]["cosine"] == {}
        assert probe.measured[0][group]["norm"]["click"] == pytest.approx(
            together.measured[0][group]["norm"]["click"], rel=1e-5
        )


def test_a_number_that_is_not_finite_is_null_in_json(tmp_path):
    write_json(str(tmp_path / "a.json"), {"buy": [float("nan"), 0.5]})
    assert strict_json((tmp_path / "a.json").read_text()) == {"buy": [None, 0.5]}


def strict_json(text):
    """Parses JSON as other languages do: NaN is none."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
