"""Model inputs of the small problem's spec and random batches of them: models are tested without any data."""

import numpy as np

from tests.testing import small_problem
from transform.features.model_inputs import ModelInputs
from transform.spec.ranking_spec import RankingSpec

SPEC = RankingSpec.model_validate(small_problem.SPEC)
INPUTS = ModelInputs.from_spec(SPEC, vocabulary_size=lambda name: 9)


def random_batch(candidates, events, widest=None, inputs=INPUTS, seed=0):
    """A batch with padding behind.

    Args:
        candidates: list of int. The candidates of each request.
        events: list of int. The events of each request, in every sequence.
        widest: int, optional. N. Defaults to the longest list of candidates.
        inputs: ModelInputs.
        seed: int.

    Returns:
        What `features.to_batch` makes of data, as numpy arrays.
    """
    random = np.random.default_rng(seed)
    candidate_mask = _mask(candidates, widest)
    event_mask = _mask(events)

    def group(name, mask):
        return {column.name: _values(random, inputs, column, mask) for column in inputs.group(name)}

    of_request = np.ones(len(candidates), bool)
    return {
        "user": group("user", of_request),
        "context": group("context", of_request),
        "sequences": {name: {**group(name, event_mask), "mask": event_mask} for name in inputs.sequence_names},
        "candidates": {**group("candidate", candidate_mask), "mask": candidate_mask},
    }


def _mask(lengths, widest=None):
    return np.arange(max(lengths) if widest is None else widest) < np.array(lengths)[:, None]


def _values(random, inputs, column, mask):
    if column.kind == "dense":
        return (random.normal(size=mask.shape) * mask).astype("float32")
    rows = inputs.rows[column.table]
    if column.kind == "id":
        return random.integers(1, rows, mask.shape) * mask
    return random.integers(0, rows, (*mask.shape, 3)) * mask[..., None]
