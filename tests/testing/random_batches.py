"""Model inputs of the small problem's spec, and random batches of them."""

from tests.testing import small_problem
from trainer.testing import random_batches
from transform.features.model_inputs import ModelInputs
from transform.spec.ranking_spec import RankingSpec

SPEC = RankingSpec.model_validate(small_problem.SPEC)
INPUTS = ModelInputs.from_spec(SPEC, vocabulary_size=lambda name: 9)


def random_batch(candidates, events, widest=None, inputs=INPUTS, seed=0):
    """A batch of the small problem, see `trainer.testing.random_batches`."""
    return random_batches.random_batch(inputs, candidates, events, widest, seed)
