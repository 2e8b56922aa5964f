"""What a training in bfloat16 leaves serves, in float32, the scores that were measured."""

import numpy as np
import tensorflow as tf

from serving.export.signatures import RankingSignatures
from trainer.ops.kernels import use_kernels
from trainer.training.precision import autocast
from trainer.training.trainer import predict, train
from transform.features.batching import request_batches
from transform.features.transform_graph import TransformGraph

TOLERANCE = 1e-5
SETTINGS = {
    "epochs": 1,
    "early_stopping": None,
    "gradients_every": 0,
    "precision": "mixed_bfloat16",
    "gradient_checkpointing": True,
}


def test_it_serves_what_was_measured(small, tmp_path):
    spec = small.spec.model_copy(update={"training": small.spec.training.model_copy(update=SETTINGS)})
    files = small.transformed["test"]
    trained = train(spec, small.inputs(), small.transformed["eval"], files, str(tmp_path / "run"))
    preprocess = TransformGraph(small.transform_output.transform_savedmodel_dir)
    with use_kernels("portable"):  # as they are exported
        signatures = RankingSignatures(spec, trained.model, preprocess).all()

    requests = [record.numpy() for record in tf.data.TFRecordDataset(small.raw["test"], "GZIP")]
    answer = signatures["serving_default"](examples=tf.constant(requests))
    present = answer["candidate_mask"].numpy() > 0
    ((batch, targets),) = request_batches(small.inputs(), files, len(requests))
    for k, (task, rows) in enumerate(predict(spec, trained.model, files).items()):
        observed = targets["weights"].numpy()[..., k][present] > 0
        served = answer[task].numpy()[present][observed]
        np.testing.assert_allclose(served, rows.scores, atol=TOLERANCE, err_msg=task)
    with autocast(trained.model, "mixed_bfloat16"):
        mixed = tf.sigmoid(trained.model(batch, training=False)).numpy()[present]
    assert np.abs(mixed[:, 0] - answer["buy"].numpy()[present]).max() > 10 * TOLERANCE, "or equality says nothing"

    outputs = signatures["encode_user"].structured_outputs.values()
    assert {output.dtype for output in outputs} == {tf.float32, tf.int32}, "a client can hold the cache"
