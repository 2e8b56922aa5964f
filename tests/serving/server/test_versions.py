"""Versions come, go wrong and go while requests are answered: none fails, none is answered by two versions."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from tensorflow_serving.apis import get_model_status_pb2

from serving.server.errors import RequestError, ServerError
from serving.server.model_config import ModelConfig, model_configs
from serving.server.model_versions import ModelVersions
from serving.server.options import ServerOptions
from serving.server.version_policy import VersionPolicy
from tests.testing.tiny_model import NAME, SECONDS, Client, Gate, floats, request, serving, until, write_model

pytestmark = pytest.mark.server

State = get_model_status_pb2.ModelVersionStatus


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Versions 1 to 3, to copy from."""
    store = tmp_path_factory.mktemp("store")
    for number in (1, 2, 3):
        write_model(store, number)
    return store


def push(store: Path, base: Path, number: int) -> Path:
    """A version appears as a whole."""
    shutil.copytree(store / str(number), base / f"{number}.unfinished")
    return (base / f"{number}.unfinished").rename(base / str(number))


def versions_of(base: Path, policy: str = "latest", labels=None) -> ModelVersions:
    """The versions of a folder, looked for once."""
    versions = ModelVersions(ModelConfig(NAME, str(base), VersionPolicy.parse(policy), labels or {}), ServerOptions())
    versions.poll()
    return versions


def available(versions: ModelVersions) -> list[int]:
    return [version.number for version in versions.available]


def twice(versions: ModelVersions) -> list[int]:
    """What is available after two looks: the first may find a folder still being written."""
    versions.poll()
    versions.poll()
    return available(versions)


def state(versions: ModelVersions, number: int) -> str:
    (status,) = versions.statuses(number)
    return State.State.Name(status.state)


# === Served while requests come in ===


def test_a_swap_under_load_fails_no_request_and_mixes_none(store, tmp_path):
    push(store, tmp_path, 1)
    answers: list[tuple[int, set[int], list[float]]] = []
    done = threading.Event()

    def ask_grpc(client: Client) -> None:
        while not done.is_set():
            outputs, version = client.predict(request(x=floats(1, 2)))
            answers.append((version, set(outputs["version"].tolist()), outputs["y"].tolist()))

    def ask_rest(port: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
            while not done.is_set():
                outputs = client.post(f"/v1/models/{NAME}:predict", json={"inputs": [1, 2]}).raise_for_status().json()
                (version,) = set(outputs["outputs"]["version"])
                answers.append((version, {version}, outputs["outputs"]["y"]))

    with serving(tmp_path) as server, ThreadPoolExecutor(4) as threads:
        client = Client(server.grpc_port)
        asking = [threads.submit(ask_grpc, client) for _ in range(3)] + [threads.submit(ask_rest, server.rest_port)]
        for number in (2, 3):
            push(store, tmp_path, number)
            until(lambda n=number: answers and answers[-1][0] == n)
            until(lambda n=number: client.statuses()[n - 1].state == State.END)
        done.set()
        for future in asking:
            future.result()  # raises what failed
        assert client.statuses()[1].status.error_code == 0, "unloaded, not failed"
    for version, told, y in answers:
        assert told == {version} and y == [version, 2 * version]
    assert {version for version, _, _ in answers} == {1, 2, 3}


def test_the_old_version_stays_until_its_requests_are_answered(store, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    push(store, base, 1)
    gate = Gate(tmp_path / "gate")
    with serving(base) as server, ThreadPoolExecutor(1) as threads:
        client = Client(server.grpc_port)
        running = threads.submit(client.predict, gate.request())
        until(lambda: server.models[0].available[0].in_flight == 1)
        push(store, base, 2)
        until(lambda: client.predict(request(x=floats(1)))[1] == 2)
        until(lambda: client.statuses()[1].state == State.UNLOADING)
        push(store, base, 3)
        until(lambda: client.predict(request(x=floats(1)))[1] == 3)
        assert client.statuses()[1].state == State.UNLOADING
        gate.open()
        outputs, version = running.result()
        assert (version, outputs["version"].tolist()) == (1, [1])
        until(lambda: client.statuses()[1].state == State.END)


def test_a_corrupt_version_is_told_and_the_old_one_goes_on(store, tmp_path):
    push(store, tmp_path, 1)
    with serving(tmp_path) as server:
        client = Client(server.grpc_port)
        graph = push(store, tmp_path, 2) / "saved_model.pb"
        whole = graph.read_bytes()
        until(lambda: client.predict(request(x=floats(1)))[1] == 2)
        (tmp_path / "3").mkdir()
        (tmp_path / "3" / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
        until(lambda: 3 in client.statuses() and client.statuses()[3].state == State.END)
        told = client.statuses()
        assert told[3].status.error_code != 0 and told[3].status.error_message
        assert told[2].state == State.AVAILABLE
        assert client.predict(request(x=floats(1)))[1] == 2
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/{NAME}/versions/3"
        (over_rest,) = httpx.get(url).json()["model_version_status"]
        assert over_rest["state"] == "END" and over_rest["status"]["error_message"]
        assert httpx.get(f"http://127.0.0.1:{server.rest_port}/readyz").status_code == 200


# === What is loaded ===


def test_a_half_copied_version_waits_until_it_is_whole(store, tmp_path):
    push(store, tmp_path, 1)
    versions = versions_of(tmp_path)
    source, copy = store / "2", tmp_path / "2"
    copy.mkdir()
    assert twice(versions) == [1]
    with pytest.raises(RequestError, match="Could not find version 2"):
        versions.statuses(2)  # without a graph it is no version at all
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name != "saved_model.pb"):  # the graph first, the worst order
        place = copy / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        content = path.read_bytes()
        place.write_bytes(content[: len(content) // 2])
        versions.poll()
        assert available(versions) == [1], path
        place.write_bytes(content)
        versions.poll()
        assert available(versions) == [1], path
    assert twice(versions) == [2]


@pytest.mark.parametrize(
    "damage", ["no variables", "truncated variables", "flipped byte", "no graph in it", "missing asset"]
)
def test_damaged_versions_are_passed_over_and_served_when_repaired(store, tmp_path, damage, caplog):
    push(store, tmp_path, 1)
    versions = versions_of(tmp_path)
    new = push(store, tmp_path, 2)
    data, graph = new / "variables" / "variables.data-00000-of-00001", new / "saved_model.pb"
    if damage == "no variables":
        shutil.rmtree(new / "variables")
    elif damage == "truncated variables":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "flipped byte":
        content = bytearray(data.read_bytes())
        content[0] ^= 1
        data.write_bytes(content)
    elif damage == "no graph in it":
        graph.write_bytes(b"")
    else:
        from tensorflow.core.protobuf import saved_model_pb2

        saved = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
        saved.meta_graphs[0].asset_file_def.add(filename="words").tensor_info.name = "words:0"
        graph.write_bytes(saved.SerializeToString())
    assert twice(versions) == [1]
    assert state(versions, 2) == "END"
    assert versions.statuses(2)[0].status.error_message
    assert twice(versions) == [1]
    assert len([record for record in caplog.records if "is not served" in record.message]) == 1, "tried once"
    shutil.rmtree(new)
    push(store, tmp_path, 2)
    assert twice(versions) == [2] and state(versions, 2) == "AVAILABLE" and state(versions, 1) == "END"


def test_a_version_whose_warm_up_fails_is_not_served(store, tmp_path):
    push(store, tmp_path, 1)
    versions = versions_of(tmp_path)
    write_model(tmp_path, 2, records=[request(x=floats(1)), request("limited", x=floats([1, 2, 3, 4]))])
    assert twice(versions) == [1]
    assert "at most 3 candidates" in versions.statuses(2)[0].status.error_message


def test_a_restart_falls_back_to_the_newest_version_that_loads(store, tmp_path):
    push(store, tmp_path, 1)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "saved_model.pb").write_bytes(b"no model")
    versions = versions_of(tmp_path)
    assert available(versions) == [1] and state(versions, 2) == "END"


def test_other_folders_and_files_are_no_versions(store, tmp_path):
    push(store, tmp_path, 1)
    for name in ("2.unfinished-1f", "-3", "latest", "٣", str(2**63)):
        shutil.copytree(store / "2", tmp_path / name)
    (tmp_path / "9").write_text("a file")
    (tmp_path / "8").mkdir()
    versions = versions_of(tmp_path)
    assert available(versions) == [1] and len(versions.statuses()) == 1


def test_versions_are_ordered_by_number(store, tmp_path):
    for source, name in ((1, "9"), (2, "10"), (3, "0011")):
        shutil.copytree(store / str(source), tmp_path / name)
    assert available(versions_of(tmp_path)) == [11]


# === Which are wanted ===


def test_policies(store, tmp_path):
    for number in (1, 2, 3):
        push(store, tmp_path, number)
    assert available(versions_of(tmp_path)) == [3]
    assert available(versions_of(tmp_path, "latest:2")) == [3, 2]
    assert available(versions_of(tmp_path, "all")) == [3, 2, 1]
    assert available(versions_of(tmp_path, "specific:1")) == [1]
    assert available(versions_of(tmp_path, "specific:1,3,7")) == [3, 1]


def test_a_pinned_version_is_answered_while_it_is_loaded(store, tmp_path):
    push(store, tmp_path, 1)
    with serving(tmp_path, version_policy="latest:2") as server:
        client = Client(server.grpc_port)
        for number in (2, 3):
            push(store, tmp_path, number)
            until(lambda n=number: client.predict(request(x=floats(1)))[1] == n)
        assert client.predict(request(version=2, x=floats(1)))[0]["y"].tolist() == [2.0]
        until(lambda: client.statuses()[1].state == State.END)
        for gone in (1, 4):
            with pytest.raises(grpc.RpcError) as caught:
                client.predict(request(version=gone, x=floats(1)))
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            assert caught.value.details() == f"Servable not found for request: Specific({NAME}, {gone})"


def test_removing_the_newest_version_rolls_back(store, tmp_path):
    for number in (1, 2):
        push(store, tmp_path, number)
    versions = versions_of(tmp_path)
    shutil.rmtree(tmp_path / "2")
    assert twice(versions) == [1]


def test_what_is_loaded_outlives_its_folder(store, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    push(store, base, 1)
    versions = versions_of(base)
    shutil.rmtree(base)
    assert twice(versions) == [1]
    with versions.lease() as version:
        outputs = version.run(version.signature(""), {"x": floats(2)})
    assert outputs["y"].tolist() == [2.0]


def test_models_and_labels_of_a_config_file(store, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in (1, 2):
            push(store, tmp_path / name, number)
    (tmp_path / "models.config").write_text(f"""
        model_config_list {{
          config {{
            name: "a" base_path: "{tmp_path}/a" model_platform: "tensorflow"
            model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
            version_labels {{ key: "stable" value: 1 }}
            version_labels {{ key: "gone" value: 5 }}
          }}
          config {{ name: "b" base_path: "{tmp_path}/b" }}
        }}""")
    with serving(tmp_path, model_config_file=str(tmp_path / "models.config")) as server:
        client = Client(server.grpc_port)
        assert client.predict(request(model="a", x=floats(1)))[1] == 2
        assert client.predict(request(model="a", label="stable", x=floats(1)))[1] == 1
        assert client.predict(request(model="b", x=floats(1)))[1] == 2
        assert set(client.statuses("a")) == {1, 2} and set(client.statuses("b")) == {2}
        http = httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}/v1/models", timeout=SECONDS)
        assert http.post("/a/labels/stable:predict", json={"inputs": [3]}).json()["outputs"]["version"] == [1]
        assert http.get("/a/labels/stable").json()["model_version_status"][0]["version"] == "1"
        assert http.get("/a/labels/stable/metadata").json()["model_spec"]["version"] == "1"
        assert http.post("/a/labels/gone:predict", json={"inputs": [3]}).status_code == 404
        assert http.post("/a/labels/nobody:predict", json={"inputs": [3]}).status_code == 400


@pytest.mark.parametrize(
    "text", ["", 'model_config_list { config { name: "a" base_path: "." } config { name: "a" base_path: "." } }']
)
def test_config_files_without_distinct_models_are_refused(tmp_path, text):
    (tmp_path / "models.config").write_text(text)
    with pytest.raises(ServerError, match="models of different names"):
        model_configs(ServerOptions(model_config_file=str(tmp_path / "models.config")))


@pytest.mark.parametrize("text", ["", "latest:0", "latest:", "latest:x", "specific", "specific:", "specific:1,", "All"])
def test_unknown_policies_are_refused(text):
    with pytest.raises(ServerError, match="--version_policy"):
        VersionPolicy.parse(text)


def test_requests_before_the_first_look_may_be_tried_again(store, tmp_path):
    push(store, tmp_path, 1)
    versions = ModelVersions(ModelConfig(NAME, str(tmp_path)), ServerOptions())
    with pytest.raises(RequestError) as caught, versions.lease():
        pass
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    versions.poll()
    with versions.lease() as version:
        assert np.array_equal(version.run(version.signature(""), {"x": floats(1)})["y"], floats(1))
