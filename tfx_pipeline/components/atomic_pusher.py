"""AtomicPusher: TFX's Pusher, with a push that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from typing import Any

import tensorflow as tf
from tfx import types
from tfx.components import Pusher
from tfx.components.pusher import executor
from tfx.dsl.components.base import executor_spec
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, proto_utils

from serving.export.exporter import version_folders
from serving.tools.server_config import write_server_config

UNFINISHED = ".unfinished-"


class AtomicPusherExecutor(executor.Executor):
    """Copies a blessed model beside its destination and renames it, unless the newest version is that model already.

    TFX's executor copies in place, so that a server which polls the folder, or a push that was killed, can meet half a
    model. Versions are Unix seconds, as TF Serving expects of a folder's name, and rise. TF Serving's configuration
    files, beside the model's folder, follow.
    """

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Pushes if the model is blessed, else marks the artifact as not pushed."""
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            return
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination)
        base = destination.filesystem.base_directory
        tf.io.gfile.makedirs(base)
        model_path = self.GetModelPath(input_dict)
        for name in tf.io.gfile.listdir(base):
            if name.startswith(UNFINISHED):  # of a push that was killed
                tf.io.gfile.rmtree(os.path.join(base, name))
        there = version_folders(base)
        newest = os.path.join(base, there[-1]) if there else None
        if newest and _same_model(newest, model_path):
            self._publish(pushed, newest)
            return
        version = max([int(time.time()), *(int(name) + 1 for name in there)])
        unfinished = os.path.join(base, f"{UNFINISHED}{uuid.uuid4().hex[:8]}")
        path = os.path.join(base, str(version))
        try:
            io_utils.copy_dir(model_path, unfinished)
            tf.io.gfile.rename(unfinished, path)
        except Exception:  # a full disk, say
            tf.io.gfile.rmtree(unfinished)
            raise
        self._publish(pushed, path)

    def _publish(self, pushed: types.Artifact, path: str) -> None:
        """Tells TF Serving and ML Metadata which version is the newest."""
        write_server_config(os.path.dirname(path))
        self._MarkPushed(pushed, pushed_destination=path, pushed_version=os.path.basename(path))


def _same_model(one: str, other: str) -> bool:
    """Whether two folders hold the same files: names, sizes and contents."""

    def contents(path: str) -> dict[str, bytes]:
        digests = {}
        for folder, _, names in tf.io.gfile.walk(path):
            for name in names:
                with tf.io.gfile.GFile(os.path.join(folder, name), "rb") as file:
                    digest = hashlib.sha256(file.read()).digest()
                digests[os.path.relpath(os.path.join(folder, name), path)] = digest
        return digests

    return contents(one) == contents(other)


class AtomicPusher(Pusher):
    """TFX's Pusher with the executor above, run in every run.

    A cached push would not see that another model was pushed since, or that somebody removed a version; pushing is
    cheap when there is nothing to do.
    """

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(AtomicPusherExecutor)

    def __init__(self, **kwargs: Any):
        super().__init__(custom_config={"never cached": time.time_ns()}, **kwargs)
