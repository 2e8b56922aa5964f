"""What `make serve` refuses, before it tells anything of a server."""

import socket

import pytest

from tests.testing.repository import repository
from tfx_pipeline.runners import serve


def told(capsys, *flags):
    spec = str(repository() / "data/kuairand_mini.yaml")
    assert serve.main(["--spec", spec, "--port", "0", "--rest_api_port", "0", *flags]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_a_port_that_is_taken(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option, variable in [("--port", "PORT"), ("--rest_api_port", "REST_PORT")]:
            found = told(capsys, "--output", str(tmp_path), option, str(port))
            assert found.startswith(f"error: {option}: a free port is expected. Received: {port} (")
            assert f"`make serve {variable}=...`" in found


@pytest.mark.parametrize("port", [-1, 70_000])
def test_a_number_that_is_no_port(capsys, tmp_path, port):
    assert f"Received: {port} (" in told(capsys, "--output", str(tmp_path), "--port", str(port))


def test_an_output_without_a_model(capsys, tmp_path):
    found = told(capsys, "--output", str(tmp_path))
    assert "a model that the pipeline pushed is expected" in found and "make demo" in found
