"""Training and serving compute one number, whichever way a request takes."""

from pathlib import Path

import pytest

from tests.testing import serving_skew
from tests.testing.far_from_start import far_from_start
from tests.testing.tiny_model import NAME, serving
from transform.ingest.prepare import Prepared

pytestmark = pytest.mark.server

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def compare(small, served):
    """Compares a model, as the Trainer holds it, with what is served."""
    prepared = Prepared(small.spec, Path(small.raw["test"][0]).parents[2])
    with serving(Path(served.path).parent) as server:
        addresses = {"grpc": f"grpc://127.0.0.1:{server.grpc_port}", "http": f"http://127.0.0.1:{server.rest_port}"}
        yield lambda model, most: serving_skew.compare(prepared, model, served.loaded, NAME, addresses, most)


def test_every_way_gives_the_trainers_scores(served, compare):
    rows = compare(served.model, 30)
    assert len(rows) == 7 and len({row["way"] for row in rows}) == 7
    for row in rows:
        assert row["requests"] == 30 and row["candidates"] > 60, row
        assert row["difference"] < TOLERANCE and row["spread"] > 1000 * TOLERANCE, row


def test_a_difference_is_seen_in_every_way(small, compare):
    other = far_from_start(small, small.spec, by=0.31)
    assert min(row["difference"] for row in compare(other, 3)) > 100 * TOLERANCE
