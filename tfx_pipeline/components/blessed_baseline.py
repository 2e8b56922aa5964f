"""Which blessed model a candidate is compared with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from ml_metadata.metadata_store import MetadataStore
from tfx import types
from tfx.components.evaluator import constants
from tfx.dsl.components.common import resolver
from tfx.orchestration.portable.mlmd import event_lib
from tfx.utils import path_utils

from serving.export.exporter import load_exported_spec
from transform.errors import UserError
from transform.features import request_example

NOTICES = logging.getLogger("onerank")  # what a user should read, whatever happens to the libraries' logs


class BlessedBaselineStrategy(resolver.ResolverStrategy):
    """The latest blessed model other than the candidate itself.

    TFX's LatestBlessedModelStrategy gives a candidate that was blessed before itself as its baseline: a second run on
    the same data would then evaluate and push the same model again. Leaving the candidate out keeps the Evaluator's
    inputs, and so its cache, as they were. A model whose inputs or tasks are not among the candidate's can't be
    evaluated on the same examples and is passed over with a notice, and so is, without one, a model that could not be
    served: it was blessed by its metrics, but never pushed.

    Airflow's runner gives the models of all runs as candidates: this run's is the one that was put out last.

    Inputs: `model`, `model_blessing` and `infra_blessing` (all there are) and `candidate` (this run's). Outputs: the
    same keys, with one model and its blessings, or none.
    """

    def resolve_artifacts(
        self, store: MetadataStore | None, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """Chooses the baseline."""
        candidate = _newest_output(store, input_dict["candidate"])
        blessings = _by_model(blessing for blessing in input_dict["model_blessing"] if _is_blessed(blessing))
        served = _by_model(input_dict.get("infra_blessing", ()))
        blessed = [model for model in input_dict["model"] if model.id in blessings and model.id != candidate.id]
        for model in sorted(blessed, key=lambda model: blessings[model.id].id, reverse=True):
            of_serving = [served[model.id]] if model.id in served else []
            if all(map(_is_blessed, of_serving)) and _comparable(model, candidate):
                of_model = {"model_blessing": [blessings[model.id]], "infra_blessing": of_serving}
                return {"model": [model], **of_model, "candidate": [candidate]}
        return {"model": [], "model_blessing": [], "infra_blessing": [], "candidate": [candidate]}


def _by_model(blessings: Iterable[types.Artifact]) -> dict[int, types.Artifact]:
    """The last blessing, or refusal, of each model."""
    ordered = sorted(blessings, key=lambda blessing: blessing.id)
    return {b.get_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY): b for b in ordered}


def _is_blessed(blessing: types.Artifact) -> bool:
    return blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == 1


def _newest_output(store: MetadataStore | None, models: list[types.Artifact]) -> types.Artifact:
    """The model of the newest execution: a cached one is older than models of runs in between."""
    if len(models) == 1 or store is None:
        return max(models, key=lambda model: model.id)
    events = store.get_events_by_artifact_ids([model.id for model in models])
    newest = max(
        (event for event in events if event_lib.is_valid_output_event(event)), key=lambda event: event.execution_id
    )
    return next(model for model in models if model.id == newest.artifact_id)


def _comparable(model: types.Artifact, candidate: types.Artifact) -> bool:
    """Whether a model can be evaluated on the candidate's examples."""
    try:
        old, new = (load_exported_spec(path_utils.serving_model_path(artifact.uri)) for artifact in (model, candidate))
    except UserError as error:
        NOTICES.warning("The blessed model %s is no baseline: %s", os.path.basename(model.uri), error)
        return False
    given = request_example.input_dtypes(new)
    changed = [name for name, dtype in request_example.input_dtypes(old).items() if given.get(name) != dtype]
    changed += sorted(set(old.task_names) ^ set(new.task_names))
    if changed:
        NOTICES.warning(
            "The blessed model %s is no baseline: %s changed since. Gates hold values alone.",
            *(os.path.basename(model.uri), ", ".join(changed)),
        )
    return not changed
