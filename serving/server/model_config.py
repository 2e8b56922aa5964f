"""What is served under which name: the flags of one model, or TF Serving's `models.config`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.server.errors import ServerError
from serving.server.options import ServerOptions
from serving.server.version_policy import VersionPolicy


@dataclass(frozen=True)
class ModelConfig:
    """A model: where its versions are and which of them are served.

    Args:
        name: str. As in requests.
        base_path: str. The folder with its versions.
        policy: VersionPolicy. Defaults to the newest version.
        labels: mapping of str to int. Names that requests may use for versions. Defaults to none.
    """

    name: str
    base_path: str
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = field(default_factory=dict)


def model_configs(options: ServerOptions) -> list[ModelConfig]:
    """The models of a server.

    Raises:
        ServerError: when there is none, a folder is missing, or the file can't be read.
    """
    if options.model_config_file:
        configs = _read(options.model_config_file)
    elif options.model_base_path:
        policy = VersionPolicy.parse(options.version_policy)
        configs = [ModelConfig(options.model_name, options.model_base_path, policy)]
    else:
        raise ServerError(
            "--model_base_path or --model_config_file is expected. Received: neither. "
            "Give the folder with the versions."
        )
    for config in configs:
        if not os.path.isdir(config.base_path):
            raise ServerError(
                f"model {config.name}: a folder is expected at {config.base_path}. Received: none. "
                "Give the folder that holds the numbered version folders."
            )
        names = os.listdir(config.base_path)
        if "saved_model.pb" in names and not any(name.isdigit() for name in names):
            raise ServerError(
                f"model {config.name}: a folder that holds numbered version folders is expected. "
                f"Received: {config.base_path}, which is a version. Give the folder above it."
            )
        if not config.name or set("/:") & set(config.name):
            raise ServerError(
                f"model name: a text without / and : is expected. Received: {config.name!r}. Give another name."
            )
    return configs


def _read(path: str) -> list[ModelConfig]:
    config = model_server_config_pb2.ModelServerConfig()
    try:
        with open(path, encoding="utf-8") as file:
            text_format.Parse(file.read(), config)
    except (OSError, ValueError, text_format.ParseError) as error:
        raise ServerError(f"{path}: a ModelServerConfig in text form is expected. Received: {error}.") from error
    models = config.model_config_list.config
    names = [model.name for model in models]
    if not models or len(set(names)) < len(names):
        raise ServerError(
            f"{path}: models of different names in model_config_list are expected. Received: {names}. Add or rename."
        )
    return [ModelConfig(m.name, m.base_path, _policy(m.model_version_policy), dict(m.version_labels)) for m in models]


def _policy(policy: object) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")  # type: ignore[attr-defined]
    if choice == "all":
        return VersionPolicy(latest=None)
    if choice == "specific":
        return VersionPolicy(latest=None, specific=tuple(policy.specific.versions))  # type: ignore[attr-defined]
    return VersionPolicy(latest=policy.latest.num_versions or 1)  # type: ignore[attr-defined]
