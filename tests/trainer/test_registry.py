"""What a class of the user's own may get wrong is reported when the spec is checked or the model is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
from keras import ops

from tests.testing.random_batches import INPUTS
from trainer.heads.base import Head
from trainer.heads.shared_bottom import SharedBottom
from trainer.losses.base import RankingLoss
from trainer.models.din.model import DIN
from trainer.models.registry import build_loss, build_model, find_model
from transform.errors import SpecError
from transform.spec.model_sections import Loss, Model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.once  # what is reported depends on no version of a library

K = len(INPUTS.tasks)


def own(name: str) -> str:
    return f"{__name__}:{name}"


class Settings(SharedBottom):
    def __init__(
        self,
        tasks,
        untyped=8,
        widths: tuple[int, ...] = (8,),
        pairs: Sequence[tuple[int, int]] = (),
        start: str | keras.initializers.Initializer = "zeros",
        folder: Path | None = None,
        *,
        rate: float = 0.5,
        **options: Any,
    ):
        super().__init__(tasks, **options)
        self.given = {"untyped": untyped, "widths": widths, "pairs": pairs, "start": start, "rate": rate}


@pytest.mark.parametrize(
    "settings",
    [{}, {"untyped": "x"}, {"widths": [3, 4]}, {"pairs": [[1, 2]]}, {"start": "ones"}, {"rate": 1}, {"rate": 0.25}],
    ids=str,
)
def test_settings_of_all_kinds_reach_a_constructor(settings):
    built = build_model(Model(name="din", head={"name": own("Settings"), **settings}), INPUTS)
    assert {name: built.head.given[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": 3}, r"model\.head\.widths: .*Received: 3"),
        ({"widths": [3, "x"]}, r"model\.head\.widths\[1\]: .*Received: 'x'"),
        ({"pairs": [[1, 2], [3, 4.5]]}, r"model\.head\.pairs\[1\]\[1\]: .*Received: 4.5"),
        ({"rate": float("nan")}, r"model\.head\.rate: finite numbers are expected. Received: nan"),
        ({"options": 1}, r"Received: `options`\. .*Known: untyped, widths, pairs, start, folder, rate\.|Did you mean"),
        ({"folder": "x"}, r"model\.head\.folder: a type that can be resolved is expected .*`Settings`.*name 'Path'"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_reported_with_its_place(settings, message):
    with pytest.raises(SpecError, match=message):
        find_model(Model(name="din", head={"name": own("Settings"), **settings}))


class NeedsWidth(SharedBottom):
    def __init__(self, tasks, width: int, **kwargs):
        super().__init__(tasks, hidden=(width,), **kwargs)


def test_a_setting_without_a_default_is_asked_for():
    with pytest.raises(SpecError, match=r"model\.head\.width: a value is expected, as .*NeedsWidth` has no default"):
        find_model(Model(name="din", head={"name": own("NeedsWidth")}))


class Buggy(SharedBottom):
    def __init__(self, tasks, **kwargs):
        super().__init__(tasks, **kwargs)
        self.width = len(tasks) + None


def test_a_bug_in_a_constructor_keeps_its_traceback():
    with pytest.raises(TypeError, match="unsupported operand"):
        build_model(Model(name="din", head=own("Buggy")), INPUTS)


class OneLogit(Head):
    def call(self, inputs, training=None):
        return ops.cast(inputs[..., :1], "float32")

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor((*inputs.shape[:2], 1), "float32")


class Transposed(SharedBottom):
    def call(self, inputs, training=None):
        return ops.transpose(super().call(inputs, training=training), (0, 2, 1))


class WideBias(SharedBottom):
    def initial_bias(self):
        return self.towers.bias


class BatchlessMask(DIN):
    def encode_user(self, user, sequences, training=None):
        state = super().encode_user(user, sequences, training=training)
        return {**state, "is_new": ops.ones(ops.shape(state["user"])[:1], "bool")}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"name": "din", "head": own("OneLogit")},
            rf"logits \[B, N, K\], here of shape \(1, 4, {K}\).*shape \(1, 4, 1\)",
        ),
        ({"name": "din", "head": own("Transposed")}, rf"Received: float32 of shape \(1, {K}, 4\)"),
        ({"name": "din", "head": own("WideBias")}, r"one number per task, is expected of `initial_bias`"),
        ({"name": own("BatchlessMask")}, r"masks \[B, U\], is expected of `encode_user`.*`is_new` of shape \(1,\)"),
    ],
    ids=str,
)
def test_a_wrong_shape_is_reported_when_the_model_is_built(model, message):
    with pytest.raises(SpecError, match=message):
        build_model(Model(**model), INPUTS)


class Total(RankingLoss):
    def call(self, logits, labels, weights):
        return ops.sum(logits * weights)


class PerRequest(RankingLoss):
    def call(self, logits, labels, weights):
        return ops.sum(logits * weights, axis=(1, 2))


@pytest.mark.parametrize("name", ["Total", "PerRequest"])
def test_a_loss_gives_one_value_per_task(name):
    with pytest.raises(SpecError, match=rf"model\.loss: one value per task, of shape \({K},\), .*`{name}`"):
        build_loss(build_model(Model(name="din"), INPUTS), Loss(name=own(name)))


class Learned(RankingLoss):
    def build(self, *_):
        self.scale = self.add_weight(shape=(K,), initializer="ones", name="scale")
        self.built = True

    def call(self, logits, labels, weights):
        return ops.sum(ops.square(logits) * weights, axis=(0, 1)) * self.scale


class WithLoss(DIN):
    def make_loss(self, settings):
        return Learned(self.inputs_spec.tasks)


def test_a_loss_of_the_models_own_is_built_and_no_other_is_taken():
    model = build_model(Model(name=own("WithLoss")), INPUTS)
    assert len(build_loss(model, Loss()).trainable_variables) == 1
    with pytest.raises(SpecError, match=r"model\.loss: no loss is expected: .*has a loss of its own.*`pointwise`"):
        find_model(Model(name=own("WithLoss"), loss={"infonce": 0.5}))


def test_a_name_alone_stands_for_the_default_settings():
    assert Model(name="din", head="mmoe", loss="pointwise").head.settings == {}
    assert np.isfinite(build_loss(build_model(Model(name="din", head="mmoe"), INPUTS), Loss()).task_weights).all()
