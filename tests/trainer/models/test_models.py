import copy
import inspect

import keras
import numpy as np
import pytest

from tests.testing.layer_checks import numpy, spread_weights
from tests.testing.random_batches import INPUTS, random_batch
from trainer.models.base import RankingModel, empty_batch
from trainer.models.din.model import DIN
from trainer.models.registry import build_loss, build_model
from transform.errors import SpecError
from transform.spec.model_sections import Model

CANDIDATES, EVENTS = [4, 2, 1], [5, 0, 3]
K = len(INPUTS.tasks)
SHOWN_AT = ("shown_at_day_sin", "shown_at_day_cos")
PADDED = ~(np.arange(4) < np.array(CANDIDATES)[:, None])

DIN_SETTINGS = DIN.test_settings[0]


@pytest.fixture(scope="module")
def din():
    keras.utils.set_random_seed(0)
    return made("din")


def made(name, inputs=INPUTS, **settings):
    built = build_model(Model(name=name, **{**DIN_SETTINGS, **settings}), inputs)
    spread_weights(built)
    return built


def batch_of(candidates=CANDIDATES, events=EVENTS, **options):
    return random_batch(candidates, events, **options)


def logits_of(model, batch):
    return numpy(model(batch, training=False))


# === DIN ===


def test_din_is_blind_to_the_order_of_events(din):
    batch = batch_of(events=[5, 5, 5])
    turned = copy.deepcopy(batch)
    for events in turned["sequences"].values():
        events.update({name: values[:, ::-1] for name, values in events.items()})
    np.testing.assert_allclose(logits_of(din, turned), logits_of(din, batch), atol=1e-5)


def test_din_reads_what_candidate_and_event_have_in_common(din):
    assert din.item_columns == {"seen": ("item", "brand", "price", *SHOWN_AT), "bought": ("item",)}


def test_dropout_of_din_acts_in_training_only():
    dropping, batch = made("din", head={"name": "shared_bottom", "dropout": 0.5}), batch_of()
    plain = logits_of(dropping, batch)
    np.testing.assert_array_equal(logits_of(dropping, batch), plain)
    assert np.abs(numpy(dropping(batch, training=True)) - plain).max() > 1e-3


# === Base ===


def test_an_empty_batch_is_one_request_of_zeros():
    batch, shape_of = empty_batch(INPUTS), random_batch([2], [2])
    keras.tree.assert_same_structure(batch, shape_of)
    for zeros, values in zip(keras.tree.flatten(batch), keras.tree.flatten(shape_of), strict=True):
        assert zeros.ndim == values.ndim and zeros.dtype == values.dtype


@pytest.mark.parametrize("stage", ["encode_user", "score_candidates"])
def test_a_model_without_a_stage_says_so(stage):
    class Unfinished(RankingModel):
        pass

    arguments = [{}] * (len(inspect.signature(getattr(Unfinished, stage)).parameters) - 2)
    with pytest.raises(NotImplementedError, match=f"`Unfinished` should define `{stage}`"):
        getattr(Unfinished(INPUTS), stage)(*arguments)


# === Registry ===


def test_an_unknown_model_is_a_spec_error():
    with pytest.raises(SpecError, match=r"^model\.name: one of .*din.* is expected\. Received: `dinn`"):
        build_model(Model(name="dinn"), INPUTS)


@pytest.mark.parametrize(
    ("setting", "cure"), [("attention_hiden", "Did you mean `attention_hidden`?"), ("zzz", "Known: d, attention_hid")]
)
def test_an_unknown_setting_is_a_spec_error_with_its_cure(setting, cure):
    with pytest.raises(SpecError) as caught:
        build_model(Model(name="din", **{setting: 1}), INPUTS)
    assert str(caught.value).startswith(f"model.{setting}: a setting of `din` is expected. Received: `{setting}`.")
    assert cure in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("d", 0),
        ("d", "wide"),
        ("attention_hidden", 0),
        ("attention_hidden", 1.5),
        ("head", {"name": "shared_bottom", "hidden": []}),
        ("head", {"name": "shared_bottom", "hidden": [16, 0]}),
        ("head", {"name": "shared_bottom", "hidden": [16, 0.5]}),
        ("head", {"name": "shared_bottom", "hidden": 64}),
        ("head", {"name": "mmoe", "dropout": 1.5}),
        ("loss", {"infonce": -1.0}),
        ("loss", {"temperature": "hot"}),
    ],
)
def test_a_value_out_of_range_is_a_spec_error_that_names_the_setting(setting, value):
    with pytest.raises(SpecError) as caught:
        section = Model(name="din", **{setting: value})
        build_loss(build_model(section, INPUTS), section.loss)
    assert str(caught.value).startswith("model")
    assert setting in str(caught.value)


def test_settings_reach_the_model():
    assert made("din", d=4).d == 4
    assert isinstance(made("din"), DIN)
