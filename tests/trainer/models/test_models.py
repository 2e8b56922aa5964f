import copy
import inspect
import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.testing.layer_checks import numpy, spread_weights
from tests.testing.random_batches import INPUTS, random_batch
from trainer.models.base import RankingModel, empty_batch
from trainer.models.din.model import DIN
from trainer.models.registry import build_model
from transform.errors import SpecError
from transform.spec.model_sections import Model

CANDIDATES, EVENTS = [4, 2, 1], [5, 0, 3]
K = len(INPUTS.tasks)
SHOWN_AT = ("shown_at_day_sin", "shown_at_day_cos")
PADDED = ~(np.arange(4) < np.array(CANDIDATES)[:, None])

MODELS = {  # no setting at its default
    "din": {"d": 8, "attention_hidden": 6, "hidden": [16, 8], "dropout": 0.1},
    "onerank": {
        "d": 12,
        "layers": 3,
        "heads": 2,
        "ffn_ratio": 2,
        "dropout": 0.1,
        "scorer": "bilinear",
        "cross_task": [[1, 0, 0.5], [0, 1, 0], [1, 1, 1]],
    },
}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    keras.utils.set_random_seed(0)
    return made(name)


def made(name, inputs=INPUTS, **settings):
    built = build_model(Model(name=name, **{**MODELS[name], **settings}), inputs)
    spread_weights(built)
    return built


def batch_of(candidates=CANDIDATES, events=EVENTS, **options):
    return random_batch(candidates, events, **options)


def logits_of(model, batch):
    return numpy(model(batch, training=False))


def changed(batch, group, where, seed=9):
    """The batch with other values of a group at some places."""
    other = random_batch([4] * 3, [5] * 3, seed=seed)
    result = copy.deepcopy(batch)
    targets = [(result[group], other[group])]
    if group == "sequences":
        targets = [(result[group][name], other[group][name]) for name in result[group]]
    for target, source in targets:
        for name in target:
            if name != "mask":
                place = where.reshape(where.shape + (1,) * (target[name].ndim - where.ndim))
                target[name] = np.where(place, source[name], target[name]).astype(target[name].dtype)
    return result


# === What holds for every model ===


def test_a_logit_a_candidate_and_task(model):
    logits = logits_of(model, batch_of())
    assert logits.shape == (3, 4, K)
    assert np.isfinite(logits).all() and np.ptp(logits[~PADDED]) > 0.1


def test_calling_the_model_is_encoding_and_scoring(model):
    batch = batch_of()
    cache = model.encode_context(batch["user"], batch["sequences"], training=False)
    scored = model.score_candidates(cache, batch["context"], batch["candidates"], training=False)
    np.testing.assert_allclose(numpy(scored), logits_of(model, batch), rtol=1e-5, atol=1e-6)
    assert all(tensor.shape[0] == 3 for tensor in cache.values()), "the cache is batched"


def test_the_cache_is_made_of_user_and_sequences_and_both_matter(model):
    assert list(inspect.signature(model.encode_context).parameters) == ["user", "sequences", "training"]
    batch, everywhere = batch_of(), np.ones(3, bool)
    for group, where in [("user", everywhere), ("context", everywhere), ("sequences", np.ones((3, 5), bool))]:
        difference = np.abs(logits_of(model, changed(batch, group, where)) - logits_of(model, batch))
        assert difference[0].max() > 1e-3, f"{group} should matter"


def test_requests_of_a_batch_do_not_depend_on_each_other(model):
    together = logits_of(model, batch_of())
    alone = keras.tree.map_structure(lambda array: array[1:2], batch_of())
    np.testing.assert_allclose(logits_of(model, alone), together[1:2], atol=1e-5)


def test_padded_candidates_are_inert(model):
    batch = batch_of()
    expected = logits_of(model, batch)[~PADDED]
    refilled = logits_of(model, changed(batch, "candidates", PADDED))
    np.testing.assert_allclose(refilled[~PADDED], expected, atol=1e-5)
    wider = copy.deepcopy(batch)
    for name, values in batch["candidates"].items():
        wider["candidates"][name] = np.pad(values, [(0, 0), (0, 3)] + [(0, 0)] * (values.ndim - 2))
    np.testing.assert_allclose(logits_of(model, wider)[:, :4][~PADDED], expected, atol=1e-5)


def test_padded_events_are_inert(model):
    batch = batch_of()
    expected = logits_of(model, batch)
    no_event = ~(np.arange(5) < np.array(EVENTS)[:, None])
    np.testing.assert_allclose(logits_of(model, changed(batch, "sequences", no_event)), expected, atol=1e-5)
    longer = copy.deepcopy(batch)
    for events in longer["sequences"].values():
        events.update({name: np.pad(values, [(0, 0), (0, 4)]) for name, values in events.items()})
    np.testing.assert_allclose(logits_of(model, longer), expected, atol=1e-5)


def test_users_without_events(model):
    nothing = logits_of(model, batch_of(events=[0, 0, 0]))
    assert np.isfinite(nothing).all()
    masked = batch_of()
    for events in masked["sequences"].values():
        events["mask"] = np.zeros_like(events["mask"])
    without = copy.deepcopy(masked)
    for events in without["sequences"].values():
        events.update({name: values[:, :0] for name, values in events.items()})
    np.testing.assert_allclose(logits_of(model, masked), logits_of(model, without), atol=1e-5)


def test_requests_of_one_candidate(model):
    logits = logits_of(model, batch_of(candidates=[1, 1, 1]))
    assert logits.shape == (3, 1, K) and np.isfinite(logits).all()


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_compiled_with_open_shapes_it_computes_the_same(model, jit_compile):
    signature = keras.tree.map_structure(lambda array: tf.TensorSpec([None] * array.ndim, array.dtype), batch_of())
    compiled = tf.function(lambda batch: model(batch, training=False), [signature], jit_compile=jit_compile)
    for batch in (batch_of(), batch_of(candidates=[1, 1, 1]), batch_of(events=[0, 0, 0])):
        actual = compiled(keras.tree.map_structure(tf.constant, batch)).numpy()
        np.testing.assert_allclose(actual, logits_of(model, batch), atol=1e-5)


def score_in_chunks(model, batch, chunk):
    cache = model.encode_context(batch["user"], batch["sequences"], training=False)
    return model.score_in_chunks(cache, batch["context"], batch["candidates"], chunk)


@pytest.mark.slow
def test_chunks_of_a_list_are_scored_as_the_whole(model):
    for sizes in ([7, 2, 3], [1, 1, 1]):  # with chunks that are all padding
        batch = batch_of(candidates=sizes)
        there, expected = batch["candidates"]["mask"], logits_of(model, batch)
        for chunk in (1, 2, 3, 7, 100):
            scored = numpy(score_in_chunks(model, batch, chunk))
            np.testing.assert_allclose(
                scored[there], expected[there], atol=1e-5, err_msg=f"{sizes} in chunks of {chunk}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_chunks_are_compiled_with_open_shapes(model, jit_compile):
    signature = keras.tree.map_structure(lambda array: tf.TensorSpec([None] * array.ndim, array.dtype), batch_of())
    compiled = tf.function(lambda batch: score_in_chunks(model, batch, 3), [signature], jit_compile=jit_compile)
    for sizes in ([7, 2, 3], [1, 1, 1]):
        batch = batch_of(candidates=sizes)
        there = batch["candidates"]["mask"]
        np.testing.assert_allclose(numpy(compiled(batch))[there], logits_of(model, batch)[there], atol=1e-5)


def test_a_chunk_holds_a_candidate_at_least(model):
    with pytest.raises(ValueError, match="`chunk` should be at least 1. Received: `chunk=0`. Use 512"):
        model.score_in_chunks({}, {}, {}, 0)


def test_gradient_reaches_every_weight(model):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(batch_of(), training=True)))
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, f"{variable.path} gets no gradient"
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert np.isfinite(gradient).all() and np.any(gradient), f"{variable.path} gets no gradient"


def test_all_variables_exist_before_the_first_batch(name):
    fresh = made(name)
    before = [variable.path for variable in fresh.variables]
    logits_of(fresh, batch_of())
    assert len(before) > 5 and [variable.path for variable in fresh.variables] == before


def test_config_holds_the_settings_and_survives_json(name, model):
    config = json.loads(json.dumps(model.get_config()))
    assert {setting: config[setting] for setting in MODELS[name]} == MODELS[name]
    twin = type(model).from_config(config)
    twin.create_variables()
    twin.set_weights(model.get_weights())
    assert twin.get_config() == model.get_config()
    np.testing.assert_array_equal(logits_of(twin, batch_of()), logits_of(model, batch_of()))


def test_keras_file_gives_the_model_back(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(logits_of(loaded, batch_of()), logits_of(model, batch_of()))


def test_weights_file_fits_a_new_model(model, tmp_path):
    model.save_weights(tmp_path / "model.weights.h5")
    twin = type(model).from_config(model.get_config())
    twin.create_variables()
    twin.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(logits_of(twin, batch_of()), logits_of(model, batch_of()))


def test_mixed_precision_reaches_every_layer(model):
    mixed = type(model).from_config({**model.get_config(), "dtype": "mixed_bfloat16"})
    mixed.create_variables()
    mixed.set_weights(model.get_weights())
    assert {layer.compute_dtype for layer in mixed._flatten_layers()} == {"bfloat16"}
    assert {variable.dtype for variable in mixed.trainable_variables} == {"float32"}
    exact, logits = logits_of(model, batch_of()), mixed(batch_of())
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    np.testing.assert_allclose(numpy(logits), exact, atol=0.1 * np.abs(exact).max())


def test_inputs_without_sequences_or_context(name):
    kept = tuple(column for column in INPUTS.columns if column.group in ("user", "candidate"))
    inputs = replace(INPUTS, columns=kept, sequences=())
    logits = logits_of(made(name, inputs), batch_of(inputs=inputs))
    assert logits.shape == (3, 4, K) and np.isfinite(logits).all()


# === DIN ===


@pytest.fixture(scope="module")
def din():
    keras.utils.set_random_seed(0)
    return made("din")


def test_din_scores_each_candidate_for_itself(din):
    batch = batch_of(candidates=[4, 4, 4])
    expected = logits_of(din, batch)
    others = np.array([[True, False, True, True]] * 3)
    actual = logits_of(din, changed(batch, "candidates", others))
    np.testing.assert_allclose(actual[:, 1], expected[:, 1], atol=1e-5)
    assert (np.abs(actual - expected)[:, [0, 2, 3]].max(axis=-1) > 1e-4).all(), "the others did change"
    first = copy.deepcopy(batch)
    first["candidates"] = {name: values[:, :1] for name, values in batch["candidates"].items()}
    np.testing.assert_allclose(logits_of(din, first), expected[:, :1], atol=1e-5)


def test_din_is_blind_to_the_order_of_events(din):
    batch = batch_of(events=[5, 5, 5])
    turned = copy.deepcopy(batch)
    for events in turned["sequences"].values():
        events.update({name: values[:, ::-1] for name, values in events.items()})
    np.testing.assert_allclose(logits_of(din, turned), logits_of(din, batch), atol=1e-5)


def test_din_reads_what_candidate_and_event_have_in_common(din):
    assert din.item_columns == {"seen": ("item", "brand", "price", *SHOWN_AT), "bought": ("item",)}


def test_dropout_of_din_acts_in_training_only():
    dropping, batch = made("din", dropout=0.5), batch_of()
    plain = logits_of(dropping, batch)
    np.testing.assert_array_equal(logits_of(dropping, batch), plain)
    assert np.abs(numpy(dropping(batch, training=True)) - plain).max() > 1e-3


# === Base ===


def test_an_empty_batch_is_one_request_of_zeros():
    batch, shape_of = empty_batch(INPUTS), random_batch([2], [2])
    keras.tree.assert_same_structure(batch, shape_of)
    for zeros, values in zip(keras.tree.flatten(batch), keras.tree.flatten(shape_of), strict=True):
        assert zeros.ndim == values.ndim and zeros.dtype == values.dtype


@pytest.mark.parametrize("stage", ["encode_context", "score_candidates"])
def test_a_model_without_a_stage_says_so(stage):
    class Unfinished(RankingModel):
        pass

    arguments = [{}] * (len(inspect.signature(getattr(Unfinished, stage)).parameters) - 2)
    with pytest.raises(TypeError, match=f"`Unfinished` should define `{stage}`"):
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
        ("predictor", "none"),
        ("hidden", []),
        ("hidden", [16, 0]),
        ("hidden", [16, 0.5]),
        ("hidden", 64),
        ("dropout", 1.5),
        ("dropout", "much"),
    ],
)
def test_a_value_out_of_range_is_a_spec_error_that_names_the_setting(setting, value):
    with pytest.raises(SpecError) as caught:
        build_model(Model(name="din", **{setting: value}), INPUTS)
    assert str(caught.value).startswith("model")
    assert setting in str(caught.value)


def test_settings_reach_the_model():
    assert made("din", d=4).d == 4
    assert isinstance(made("din"), DIN)
