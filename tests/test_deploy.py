"""deploy/: what can be checked of it without Docker and without a cluster."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import kubernetes.client
import pytest
import yaml

from serving.tools.server_config import BATCHING_PARAMETERS, MODELS_CONFIG, MONITORING_CONFIG, SERVED_FROM
from tests.testing.repository import repository

DEPLOY = repository() / "deploy"
FILES = sorted(DEPLOY.rglob("*.y*ml"))
LINT = "{extends: default, rules: {document-start: disable, line-length: {max: 120}}}"
# tensorflow_serving/model_servers/main.cc
FLAGS = {
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "file_system_poll_wait_seconds",
    "allow_version_labels_for_unavailable_models",
    "monitoring_config_file",
    "enable_batching",
    "batching_parameters_file",
}
MODELS = {
    "Deployment": kubernetes.client.V1Deployment,
    "Service": kubernetes.client.V1Service,
    "HorizontalPodAutoscaler": kubernetes.client.V2HorizontalPodAutoscaler,
    "PersistentVolumeClaim": kubernetes.client.V1PersistentVolumeClaim,
}


def test_yaml_is_tidy():
    done = subprocess.run([sys.executable, "-m", "yamllint", "--strict", "-d", LINT, *FILES], capture_output=True)
    assert len(FILES) == 5 and done.returncode == 0, done.stdout.decode()


@pytest.fixture(scope="module")
def objects() -> dict[str, list]:
    """The manifests by kind, read by the Kubernetes client, which refuses a value of a wrong type or a missing one."""
    found: dict[str, list] = {}
    client = kubernetes.client.ApiClient()
    for path in (DEPLOY / "kubernetes").glob("*.yaml"):
        for content in yaml.safe_load_all(path.read_text()):
            kind = content["kind"]
            read = client.deserialize(SimpleNamespace(data=json.dumps(content)), MODELS[kind])
            assert client.sanitize_for_serialization(read) == content, f"{path.name}: keys that are unknown are dropped"
            found.setdefault(kind, []).append(read)
    return found


def test_manifests_fit_one_another(objects):
    (deployment,), (autoscaler,), (claim,) = (objects[kind] for kind in list(MODELS) if kind != "Service")
    pod = deployment.spec.template
    assert deployment.spec.selector.match_labels == pod.metadata.labels
    (container,) = pod.spec.containers
    names = {port.name: port.container_port for port in container.ports}
    assert names == {"grpc": 8500, "rest": 8501}
    for service in objects["Service"]:
        assert service.spec.selector == pod.metadata.labels
        assert {port.target_port for port in service.spec.ports} <= set(names)
    target = autoscaler.spec.scale_target_ref
    assert (target.api_version, target.kind, target.name) == ("apps/v1", "Deployment", deployment.metadata.name)
    assert container.resources.requests["cpu"], "the share of what is asked for is what is scaled by"
    (volume,) = pod.spec.volumes
    assert volume.persistent_volume_claim.claim_name == claim.metadata.name
    (mount,) = container.volume_mounts
    assert (mount.name, mount.mount_path) == (volume.name, SERVED_FROM)
    for probe in (container.startup_probe, container.readiness_probe, container.liveness_probe):
        assert re.fullmatch(r"/v1/models/\w+", probe.http_get.path) and probe.http_get.port == "rest"
    check_flags(container.args)


def test_compose_has_known_keys():
    content = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
    assert set(content) == {"services"}
    (service,) = content["services"].values()
    known = {"image", "command", "environment", "ports", "volumes", "healthcheck", "restart"}
    assert set(service) == known
    assert set(service["healthcheck"]) == {"test", "interval", "timeout", "retries", "start_period"}
    assert [volume.split(":")[-2:] for volume in service["volumes"]] == [[SERVED_FROM, "ro"]]
    check_flags(service["command"])
    commented = re.findall(r"# - (--\S+)", (DEPLOY / "docker-compose.yml").read_text())
    assert len(commented) == 2
    check_flags(commented)


def check_flags(arguments: list[str]) -> None:
    """The flags are known, and the files are those that a push writes."""
    flags = dict(argument.removeprefix("--").split("=") for argument in arguments)
    assert set(flags) <= FLAGS
    written = {f"{SERVED_FROM}/{name}" for name in (MODELS_CONFIG, BATCHING_PARAMETERS, MONITORING_CONFIG)}
    assert {value for flag, value in flags.items() if flag.endswith("_file")} <= written


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_health_check_is_a_command_of_bash():
    _, command = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]["tensorflow-serving"][
        "healthcheck"
    ]["test"]
    script = re.fullmatch(r"bash -c '(.*)'", command)
    assert script and subprocess.run(["bash", "-n", "-c", script[1]]).returncode == 0


def test_one_version_of_tensorflow_serving_is_meant_everywhere():
    versions = re.findall(r"tensorflow/serving:([\d.]+)", "".join(path.read_text() for path in FILES))
    assert len(versions) == 2 and len(set(versions)) == 1
