"""How requests are joined."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, fields, replace

from serving.server.errors import ServerError

logger = logging.getLogger(__name__)

_ENTRY = re.compile(r"\s*(\w+)\s*(?:\{\s*value\s*:\s*([^\s}]+)\s*\}|:\s*([^\s,;]+))\s*[,;]?")


@dataclass(frozen=True)
class BatchingParameters:
    """How requests are joined, as in TF Serving's file.

    Args:
        max_batch_size: int. Rows of joined requests. Defaults to 32.
        batch_timeout_micros: int. How long a request waits for others. Defaults to 2,000.
        pad_variable_length_inputs: bool. Join requests whose lists differ in length. Defaults to False.
    """

    max_batch_size: int = 32
    batch_timeout_micros: int = 2000
    pad_variable_length_inputs: bool = False

    @classmethod
    def read(cls, path: str) -> BatchingParameters:
        """Reads BatchingParameters in text form; says in the log which of its keys this server has no use for.

        Raises:
            ServerError: when the file can't be read.
        """
        try:
            with open(path, encoding="utf-8") as file:
                text = re.sub(r"#.*", "", file.read()).strip()
            entries, end = {}, 0
            while end < len(text):
                match = _ENTRY.match(text, end)
                if match is None:
                    raise ValueError(repr(text[end : end + 40]))
                entries[match[1]], end = match[2] or match[3], match.end()
            known = {field.name: entries.pop(field.name) for field in fields(cls) if field.name in entries}
            if entries:
                logger.info("%s: not used by this server: %s", path, ", ".join(entries))
            padding = known.pop("pad_variable_length_inputs", "false")
            if padding not in ("true", "false"):
                raise ValueError(repr(padding))
            numbers = {key: int(value) for key, value in known.items()}
            return replace(cls(), pad_variable_length_inputs=padding == "true", **numbers)
        except (OSError, ValueError) as error:
            raise ServerError(
                f"{path}: BatchingParameters in text form, as `max_batch_size {{ value: 32 }}`, are expected. "
                f"Received: {error}. Correct the file."
            ) from error
