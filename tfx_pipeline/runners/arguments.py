"""Command-line arguments that the runners share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every run of the pipeline needs to know."""
    parser.add_argument("--spec", required=True, help="the YAML file that describes the ranking problem")
    parser.add_argument("--data", required=True, help="the folder that the paths in the spec are relative to")
    parser.add_argument("--output", required=True, help="the folder for artifacts, metadata and pushed models")
    parser.add_argument("--seed", type=int, help="instead of training.seed in the spec")
    parser.add_argument(
        "--as_of", help="the date that relative split bounds count from, as 2022-05-31 (default: the log's last day)"
    )
    parser.add_argument(
        "--allow_anomalies", action="store_true", help="go on when the data break the schema (default: stop)"
    )
    parser.add_argument("--beam_args", nargs="*", default=None, help="options of the Beam runner, as name=value")


def beam_options(arguments: Iterable[str] | None) -> dict[str, Any]:
    """The field `beam_args` of a PipelineConfig from `name=value` pairs; nothing when there are none to set."""
    return {} if arguments is None else {"beam_args": tuple(f"--{argument}" for argument in arguments)}
