"""A list that is scored in parts gets the scores that it would get whole."""

import numpy as np
import pytest

from serving.export.raw_inputs import raw_values
from serving.export.signatures import RankingSignatures
from tests.testing.far_from_start import far_from_start
from tests.testing.raw_requests import call, in_parts, in_two_steps, joined_request, part_of, request_examples
from transform.features.transform_graph import TransformGraph
from transform.spec.model_sections import Model

TOLERANCE = 1e-5
N = 23


@pytest.fixture(scope="module")
def raw(small):
    """A request of N candidates."""
    request = joined_request(small.spec, request_examples(small)[3:40])
    return part_of(small.spec, raw_values(small.spec, request), 0, N)


def onerank(small, served):
    return served.loaded.signatures


def din(small, served):
    spec = served.spec.model_copy(update={"model": Model(name="din")})
    model = far_from_start(small, spec, by=0.1)
    return RankingSignatures(spec, model, TransformGraph(small.transform_output.transform_savedmodel_dir)).all()


@pytest.mark.parametrize("model", [onerank, din])
def test_parts_get_the_scores_of_the_whole(small, served, raw, model):
    signatures = model(small, served)
    whole = call(signatures["rank"], raw)
    assert whole["score"].shape == (1, N) and np.ptp(whole["buy"]) > 1000 * TOLERANCE
    ways = {"two steps": in_two_steps(signatures, raw)}
    for size, pad in [(1, False), (4, True), (7, False), (22, True), (23, False), (30, True)]:
        ways[f"parts of {size}, {pad}"] = in_parts(small.spec, signatures, raw, size, pad)
    for way, answer in ways.items():
        for name, values in whole.items():
            np.testing.assert_allclose(answer[name], values, atol=TOLERANCE, err_msg=f"{way}: {name}")

    # Equality says something of the summaries only where a part alone gets other scores.
    alone = call(signatures["rank"], part_of(small.spec, raw, 0, 4))["buy"]
    difference = np.abs(alone - whole["buy"][:, :4]).max()
    assert difference > 1000 * TOLERANCE if model is onerank else difference < TOLERANCE
    known = {**raw, **call(signatures["encode_user"], raw)}
    first = call(signatures["summarize_candidates"], known)
    summaries = [name for name in first if name.startswith("summary_")]
    assert bool(summaries) == (model is onerank)

    # A client whose parts have one size may send one that holds no candidate.
    nobody = call(signatures["summarize_candidates"], {**known, "candidate_count": np.array([0])})
    both = {name: np.concatenate([first[name], nobody[name]], axis=1) for name in summaries}
    answer = call(signatures["score_summary"], {**known, **first, **both})
    np.testing.assert_allclose(answer["score"], whole["score"], atol=TOLERANCE)

    # TensorFlow Serving joins no tensor without elements with others: a user without events has a cache of padding.
    nothing = {**raw, "seen_length": np.array([0]), "bought_length": np.array([0])}
    assert all(values.size for values in call(signatures["encode_user"], nothing).values())
    np.testing.assert_allclose(
        in_two_steps(signatures, nothing)["score"], call(signatures["rank"], nothing)["score"], atol=TOLERANCE
    )
