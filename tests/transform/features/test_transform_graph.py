"""Transform's graph on some of its inputs: the numbers of the whole, and no look-up that nobody asked for."""

import numpy as np
import pytest
import tensorflow as tf

from transform.features.request_example import raw_feature_spec
from transform.features.transform_graph import TransformGraph


@pytest.fixture(scope="module")
def raw(small):
    """Sparse raw features of some requests."""
    serialized = next(iter(tf.data.TFRecordDataset(small.raw["test"], "GZIP").batch(20)))
    return tf.io.parse_example(serialized, raw_feature_spec(small.spec, targets=False))


def traced(small, raw):
    preprocess = TransformGraph(small.transform_output.transform_savedmodel_dir)
    specs = {name: tf.SparseTensorSpec(tensor.shape, tensor.dtype) for name, tensor in raw.items()}
    return tf.function(preprocess, autograph=False).get_concrete_function(specs)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        for part in ("indices", "values", "dense_shape"):
            np.testing.assert_array_equal(getattr(actual[name], part), getattr(tensor, part), err_msg=name)


def test_all_features_are_those_of_the_keras_layer(small, raw):
    assert_same(traced(small, raw)(raw), small.transform_output.transform_features_layer()(raw))


@pytest.mark.parametrize("names", [["user"], ["item", "candidate_count"], ["price"]])
def test_of_some_inputs_comes_what_follows_from_them(small, raw, names):
    some = {name: raw[name] for name in names}
    found = traced(small, some)(some)
    assert set(names) <= found.keys()
    assert_same(found, small.transform_output.transform_features_layer()(some))


def doubled(tensor):
    return tf.sparse.map_values(lambda values: 2 * values, tensor)


def test_a_graph_without_vocabularies_is_cut_too(tmp_path, raw):
    module = tf.Module()
    module.resources, module.initializers, module.assets = [], [], []
    spec = tf.SparseTensorSpec([None, None], tf.float32)
    double = tf.function(lambda inputs: {name: doubled(tensor) for name, tensor in inputs.items()})
    module.transform_fn = double.get_concrete_function({"price": spec, "week": spec})
    tf.saved_model.save(module, str(tmp_path))
    some = {"price": raw["price"]}
    found = tf.function(TransformGraph(str(tmp_path))).get_concrete_function(some)(some)
    assert_same(found, {"price": doubled(raw["price"])})


def test_it_wants_a_graph(small, raw):
    preprocess = TransformGraph(small.transform_output.transform_savedmodel_dir)
    with pytest.raises(RuntimeError, match=r"in a `tf.function`"):
        preprocess(raw)


def test_a_vocabulary_is_asked_for_the_features_that_are_there_alone(small, raw):
    def look_ups(names):
        graph = traced(small, {name: raw[name] for name in names}).graph
        return sum(operation.type.startswith("LookupTableFind") for operation in graph.get_operations())

    assert look_ups(["user"]) == 1 < look_ups(raw)
