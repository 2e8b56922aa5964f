"""Requests that a server joins to one call get the scores that each gets alone."""

import itertools

import numpy as np
import pytest

from serving.export.raw_inputs import raw_values
from tests.testing.raw_requests import call, joined_request, part_of, request_examples

TOLERANCE = 1e-5


def join(requests: list[dict], with_first_value: bool) -> dict[str, np.ndarray]:
    """What TensorFlow Serving does: on axis 0, each padded to the longest, with its own first value or with zeros."""
    joined = {}
    for name in requests[0]:
        tensors = [request[name] for request in requests]
        shape = np.max([tensor.shape for tensor in tensors], axis=0)[1:]
        padded = []
        for tensor in tensors:
            if tensor.shape[1:] != tuple(shape):
                assert tensor.size, f"{name}: TensorFlow Serving refuses an empty tensor among others"
                zero = "" if tensor.dtype == object else np.zeros((), tensor.dtype)
                filler = tensor.flat[0] if with_first_value else zero
                widths = [(0, 0), *((0, size - had) for size, had in zip(shape, tensor.shape[1:], strict=True))]
                tensor = np.pad(tensor, widths, constant_values=filler)
            padded.append(tensor)
        joined[name] = np.concatenate(padded)
    return joined


def assert_own_answers(function, requests: list[dict], with_first_value: bool) -> list[dict]:
    """Checks what each request gets out of a joined call, and returns it."""
    names = list(function.structured_input_signature[1])
    together = call(function, join([{name: request[name] for name in names} for request in requests], with_first_value))
    answers = [{name: values[b : b + 1] for name, values in together.items()} for b in range(len(requests))]
    for request, answer in zip(requests, answers, strict=True):
        for name, own in call(function, request).items():
            if name in ("buy", "save", "share", "score", "candidate_mask"):
                n = int(request["candidate_count"][0])
                np.testing.assert_allclose(answer[name][:, :n], own[:, :n], atol=TOLERANCE, err_msg=name)
    return answers


@pytest.fixture(scope="module")
def signatures(served):
    return served.loaded.signatures


@pytest.fixture(scope="module")
def requests(small) -> list[dict]:
    """Users with long, short and no histories, and lists of every length, of other widths of sets."""
    spec, records = small.spec, request_examples(small)
    joined = [joined_request(spec, records[a:b]) for a, b in ((0, 1), (1, 9), (20, 24), (30, 31))]
    for key in [key for key in joined[2] if key.startswith(("seen_", "bought_"))]:
        joined[1][key], joined[2][key] = joined[1][key][-4:], []
    raw = [raw_values(spec, request) for request in joined]
    raw[3] = part_of(spec, raw[3], 0, 1)
    raw[3]["tags"] = raw[3]["tags"][:, :, :1]  # no tag at all
    shapes = {tuple(request["tags"].shape) for request in raw}
    assert len(shapes) == 4 and len({request["seen_item"].shape for request in raw}) > 2
    return raw


def test_each_user_gets_the_own_scores(small, signatures, requests):
    for with_first_value, reverse in itertools.product((True, False), (True, False)):
        together = requests[::-1] if reverse else requests
        assert_own_answers(signatures["rank"], together, with_first_value)
        caches = assert_own_answers(signatures["encode_user"], together, with_first_value)
        # what was encoded among others, and what was encoded alone
        alone = [call(signatures["encode_user"], request) for request in together]
        assert len({cache["cache_mask"].shape for cache in alone}) > 2
        for cache in (caches, alone):
            known = [{**request, **own} for request, own in zip(together, cache, strict=True)]
            assert_own_answers(signatures["rank_with_user_state"], known, with_first_value)
            mixed = call(signatures["rank_with_user_state"], known[1])
            own = call(signatures["rank"], together[1])
            np.testing.assert_allclose(mixed["score"], own["score"], atol=TOLERANCE)
        in_parts_together(small.spec, signatures, known, with_first_value)


def in_parts_together(spec, signatures, known: list[dict], with_first_value: bool) -> None:
    """Users whose lists have other numbers of parts, each of another size."""
    whole = [call(signatures["rank"], request) for request in known]
    parts = [
        [part_of(spec, request, start, size) for start in range(0, int(request["candidate_count"][0]), size)]
        for request, size in zip(known, (2, 3, 5, 4), strict=True)
    ]
    summaries: list[dict] = [{} for _ in known]
    summarized: list[list[dict]] = [[] for _ in known]
    for turn in range(max(map(len, parts))):
        users = [u for u in range(len(known)) if turn < len(parts[u])]
        answers = assert_own_answers(
            signatures["summarize_candidates"], [parts[u][turn] for u in users], with_first_value
        )
        for user, answer in zip(users, answers, strict=True):
            summarized[user].append({**parts[user][turn], **answer})
            for name in [name for name in answer if name.startswith("summary_")]:
                before = [summaries[user][name]] if name in summaries[user] else []
                summaries[user][name] = np.concatenate([*before, answer[name]], axis=1)
    assert len({len(own) for own in parts}) > 2
    first = [{**known[u], **summarized[u][0], **summaries[u]} for u in range(len(known))]
    for user, answer in enumerate(assert_own_answers(signatures["score_summary"], first, with_first_value)):
        n = int(parts[user][0]["candidate_count"][0])
        np.testing.assert_allclose(answer["score"][:, :n], whole[user]["score"][:, :n], atol=TOLERANCE)


def test_examples_are_joined_as_they_are(small, signatures):
    function = signatures["serving_default"]
    records = np.array(request_examples(small)[:6], object)
    together = call(function, {"examples": records})
    for b, record in enumerate(records):
        own = call(function, {"examples": np.array([record], object)})
        n = own["score"].shape[1]
        for name, values in own.items():
            np.testing.assert_allclose(together[name][b : b + 1, :n], values, atol=TOLERANCE)
            assert not together[name][b, n:].any()


def test_a_set_that_begins_with_a_member_would_be_padded_by_it(signatures, requests):
    """Why a client of a server that batches begins sets with "": nobody else can tell padding from a member."""
    function = signatures["rank"]
    narrow = dict(requests[0])
    narrow["tags"] = np.array([[["t1"], ["t2"], ["t0"]]], object)
    wide = max(requests, key=lambda request: request["tags"].shape[2])
    joined = call(function, join([narrow, wide], with_first_value=True))
    alone = call(function, narrow)
    n = alone["score"].shape[1]
    assert np.abs(joined["score"][:1, :n] - alone["score"]).max() > 100 * TOLERANCE
