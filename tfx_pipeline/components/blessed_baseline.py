"""Which blessed model a candidate is compared with."""

from __future__ import annotations

import logging
import os

from tfx import types
from tfx.components.evaluator import constants
from tfx.dsl.components.common import resolver
from tfx.utils import path_utils

from serving.export import load_spec
from transform import examples
from transform.errors import UserError

NOTICES = logging.getLogger("onerank")  # what a user should read, whatever happens to the libraries' logs


class BlessedBaselineStrategy(resolver.ResolverStrategy):
    """The latest blessed model other than the candidate itself.

    TFX's LatestBlessedModelStrategy gives a candidate that was blessed before itself as its baseline: a second run on
    the same data would then evaluate and push the same model again. Leaving the candidate out keeps the Evaluator's
    inputs, and so its cache, as they were. A model whose inputs or tasks are not among the candidate's can't be
    evaluated on the same examples and is passed over with a notice.

    Inputs: `model` and `model_blessing` (all there are) and `candidate` (this run's). Outputs: the same keys, with one
    model and its blessing, or none.
    """

    def resolve_artifacts(
        self, store: object, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """Chooses the baseline."""
        candidate = max(input_dict["candidate"], key=lambda model: model.id)
        blessings = {
            blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY): blessing
            for blessing in sorted(input_dict["model_blessing"], key=lambda blessing: blessing.id)
            if blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == 1
        }
        blessed = [model for model in input_dict["model"] if model.id in blessings and model.id != candidate.id]
        for model in sorted(blessed, key=lambda model: blessings[model.id].id, reverse=True):
            if _comparable(model, candidate):
                return {"model": [model], "model_blessing": [blessings[model.id]], "candidate": [candidate]}
        return {"model": [], "model_blessing": [], "candidate": [candidate]}


def _comparable(model: types.Artifact, candidate: types.Artifact) -> bool:
    """Whether a model can be evaluated on the candidate's examples."""
    try:
        old, new = (load_spec(path_utils.serving_model_path(artifact.uri)) for artifact in (model, candidate))
    except UserError as error:
        NOTICES.warning("The blessed model %s is no baseline: %s", os.path.basename(model.uri), error)
        return False
    given = examples.input_dtypes(new)
    changed = [name for name, dtype in examples.input_dtypes(old).items() if given.get(name) != dtype]
    changed += sorted(set(old.task_names) ^ set(new.task_names))
    if changed:
        NOTICES.warning(
            "The blessed model %s is no baseline: %s changed since. Gates hold values alone.",
            *(os.path.basename(model.uri), ", ".join(changed)),
        )
    return not changed
