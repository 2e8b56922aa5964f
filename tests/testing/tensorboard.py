"""What was logged to TensorBoard."""

from pathlib import Path

import tensorflow as tf


def events(folder):
    """The logged (step, value) pairs by tag."""
    values = {}
    for path in Path(folder).glob("events.out.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                tensor = tf.make_ndarray(value.tensor)
                logged = float(tensor) if tensor.dtype.kind == "f" else tensor.item().decode()
                values.setdefault(value.tag, []).append((event.step, logged))
    return values
