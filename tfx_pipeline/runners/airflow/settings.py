"""What an Airflow variable says about a scheduled pipeline."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from transform.errors import PipelineError
from transform.section import Section

SHIPPED_DATA = Path(__file__).resolve().parents[3] / "data"


def _absolute(path: str) -> str:
    if not os.path.isabs(path) and "://" not in path:
        raise ValueError("an absolute path is expected, as Airflow's processes have folders of their own")
    return path


AbsolutePath = Annotated[str, AfterValidator(_absolute)]


class AirflowSettings(Section):
    """The settings of one DAG, from an Airflow variable that holds a JSON object; every key has a default.

    Attributes:
        spec: str. The YAML file that describes the ranking problem. Defaults to the shipped sample.
        data: str. The folder that the spec's paths are relative to. Defaults to the shipped sample.
        output: str. Artifacts, metadata and pushed models go below it. Defaults to `onerank` in Airflow's home.
        seed: int or None. Instead of `training.seed` in the spec. Defaults to `None`.
        schedule: str or None. A cron expression or a preset, in UTC; None: only by hand. Defaults to `"@daily"`.
        start_date: date. No run lies before it. Defaults to 1 January 2022.
        catchup: bool. Whether intervals before today that were missed are run. Defaults to `False`.
        retries: int. How often a task is tried again; a mistake in spec or data is not. Defaults to 2.
        retry_delay: float. Minutes between tries. Defaults to 5.
        allow_anomalies: bool. Whether a run goes on when the data break the schema. Defaults to `False`.
        beam_args: list of str or None. Options of the Beam runner, as `name=value`. Defaults to the in-memory
            DirectRunner.
    """

    spec: AbsolutePath = str(SHIPPED_DATA / "kuairand_mini.yaml")
    data: AbsolutePath = str(SHIPPED_DATA / "kuairand_pure_mini")
    output: AbsolutePath = Field(
        default_factory=lambda: os.path.join(os.path.expanduser(os.environ.get("AIRFLOW_HOME", "~/airflow")), "onerank")
    )
    seed: int | None = Field(None, ge=0)
    schedule: str | None = "@daily"
    start_date: datetime.date = datetime.date(2022, 1, 1)
    catchup: bool = False
    retries: int = Field(2, ge=0)
    retry_delay: float = Field(5.0, ge=0)
    allow_anomalies: bool = False
    beam_args: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, text: str, variable: str) -> AirflowSettings:
        """Reads the value of a variable.

        Args:
            text: str. A JSON object.
            variable: str. The variable's name, for messages.

        Returns:
            The settings.

        Raises:
            PipelineError: when the text is no JSON object, or a value is not what its key needs.
        """
        place = f"Airflow variable `{variable}`"
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise PipelineError(f"{place}: a JSON object is expected. Received: {text!r} ({error}).") from None
        if not isinstance(content, dict):
            raise PipelineError(f"{place}: a JSON object is expected. Received: {text!r}.")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise PipelineError("\n".join(f"{place}: {_describe(problem)}" for problem in error.errors())) from None


def _describe(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: a known key is expected. Known keys: {', '.join(AirflowSettings.model_fields)}."
    text = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {text}. Received: {json.dumps(problem['input'])}."
