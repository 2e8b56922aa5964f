"""`TrainingCheckpoints`: the state of a training, kept where the next process finds it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from trainer.training.training_state import TrainingState
from transform.errors import PipelineError


class TrainingCheckpoints:
    """Saves all that decides how a training goes on, so that it ends as if it had never been interrupted.

    That is every variable (of the model with its dropout's random state, of the loss and of the optimizers), the
    training state (position, early stopping, measurements) and the best weights so far. Batches need no state: an
    epoch's order follows from the seed and the epoch, and the batches that are done are skipped. A checkpoint appears
    whole or not at all: the folder's file `checkpoint` names the newest one and is renamed into place when everything
    else is written.

    Args:
        folder: str. Where checkpoints are kept; used by this training alone.
        variables: sequence of Keras variables.
        training_state: TrainingState.
        best_weights: str. The file of the best weights, which need not be there yet.
    """

    def __init__(self, folder: str, variables: Sequence[Any], training_state: TrainingState, best_weights: str):
        self._folder = folder
        self._training_state = training_state
        self._best_weights = best_weights
        self._state = tf.train.Checkpoint(
            variables=[variable.value for variable in variables], training_state=_AsJson(training_state)
        )
        self._manager = tf.train.CheckpointManager(self._state, folder, max_to_keep=1)

    def restore(self) -> bool:
        """Brings variables, state and best weights to where the newest checkpoint has them; False if there is none.

        Raises:
            PipelineError: when the checkpoint can't be read.
        """
        newest = self._manager.latest_checkpoint
        if newest is None:
            self._forget_weights_but("")
            return False
        try:
            self._state.restore(newest).assert_existing_objects_matched().assert_consumed()
        except (tf.errors.OpError, AssertionError, LookupError, ValueError) as error:
            raise PipelineError(
                f"{newest}: a checkpoint of this training is expected. Received: {str(error).splitlines()[0]}. "
                f"Delete the folder {self._folder}: training then starts anew."
            ) from error
        self._forget_weights_but(self._kept_best())
        if tf.io.gfile.exists(self._kept_best()):
            tf.io.gfile.makedirs(os.path.dirname(self._best_weights))
            tf.io.gfile.copy(self._kept_best(), self._best_weights, overwrite=True)
        return True

    def save(self) -> None:
        """Replaces the newest checkpoint by one of the state as it is now."""
        kept = self._kept_best()
        if tf.io.gfile.exists(self._best_weights) and not tf.io.gfile.exists(kept):
            tf.io.gfile.makedirs(self._folder)
            tf.io.gfile.copy(self._best_weights, f"{kept}.unfinished", overwrite=True)
            tf.io.gfile.rename(f"{kept}.unfinished", kept, overwrite=True)
        self._manager.save()
        self._forget_weights_but(kept)

    def _forget_weights_but(self, kept: str) -> None:
        """Removes weights that belong to an older checkpoint, or to one that was not finished."""
        for path in tf.io.gfile.glob(os.path.join(self._folder, "best-*")):
            if path != kept:
                tf.io.gfile.remove(path)

    def _kept_best(self) -> str:
        return os.path.join(self._folder, f"best-{self._training_state.best_epoch}.weights.h5")


class _AsJson(tf.train.experimental.PythonState):
    """A training state as a part of a TensorFlow checkpoint."""

    def __init__(self, training_state: TrainingState):
        self._training_state = training_state

    def serialize(self) -> str:
        return self._training_state.to_json()

    def deserialize(self, string_value: bytes) -> None:
        self._training_state.restore(string_value.decode())
