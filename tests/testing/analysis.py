"""TensorFlow Transform on requests in memory."""

import apache_beam as beam
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_transform import beam as tft_beam
from tfx_bsl.tfxio import tf_example_record

from transform.features import request_example
from transform.features.preprocessing import make_preprocessing_fn


def encoded(requests):
    return [request_example.encode(values).SerializeToString(deterministic=True) for values in requests]


def analysed(spec, requests, folder, records=None):
    """Analyses requests with TensorFlow Transform, and writes what becomes of them to `records`."""
    source = tf_example_record.TFExampleBeamRecord(
        physical_format="memory", schema=request_example.raw_schema(spec), telemetry_descriptors=["test"]
    )
    adapter = source.TensorAdapterConfig()
    with beam.Pipeline("DirectRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "temp")):
        data = pipeline | beam.Create(encoded(requests)) | source.BeamSource()
        function = (data, adapter) | tft_beam.AnalyzeDataset(make_preprocessing_fn(spec))
        _ = function | tft_beam.WriteTransformFn(str(folder))
        if records:
            batches, metadata = ((data, adapter), function) | tft_beam.TransformDataset()
            coder = tft.coders.ExampleProtoCoder(metadata.schema)
            _ = batches | beam.Map(coder.encode) | beam.io.WriteToTFRecord(str(records), num_shards=1)
    return tft.TFTransformOutput(str(folder))


def transformed(transform, requests, spec):
    """Dense lists by key of transformed requests, one dict a request."""
    raw = tf.io.parse_example(encoded(requests), request_example.raw_feature_spec(spec))
    tensors = transform.transform_raw_features(raw)
    lists = {key: tf.RaggedTensor.from_sparse(tensor).to_list() for key, tensor in tensors.items()}
    return [{key: column[place] for key, column in lists.items()} for place in range(len(requests))]
