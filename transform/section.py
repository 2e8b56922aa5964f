"""The base of all sections of a spec."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.fields import FieldInfo

NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


class Section(BaseModel):
    """Base of all sections: unknown keys are rejected, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def known_fields(cls) -> dict[str, FieldInfo]:
        """The keys that the section may have, for messages about one that it may not."""
        return dict(cls.model_fields)
