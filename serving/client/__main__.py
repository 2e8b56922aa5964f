"""Ranks the candidates of a request in a JSON file: `onerank rank --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from transform.environment import prepare_environment

prepare_environment()

from rich.console import Console
from rich.table import Table

from serving.client.errors import RankingError, RequestError
from serving.client.ranker import Ranker
from serving.client.ranking import Ranking

KEYS = ("user", "context", "sequences", "candidates", "user_key", "history_version")


def main(argv: Sequence[str] | None = None) -> int:
    """Sends one request and prints the ranking.

    Args:
        argv: sequence of str, optional. Command-line arguments. Defaults to those of the process.

    Returns:
        0, or 1 when the request is wrong or the server doesn't answer.
    """
    parser = argparse.ArgumentParser(
        prog="onerank rank",
        description="Ranks the candidates of one request with a model that a server offers; prints them best first.",
        epilog='A request is {"user": {feature: value}, "context": {feature: value}, "sequences": {name: [{feature: '
        'value}, ...]}, "candidates": [{feature: value}, ...]}; null is a missing value, a set is a list of texts.',
    )
    parser.add_argument("--request", required=True, help="the JSON file, or - for standard input")
    parser.add_argument("--model", required=True, help="the model's name on the server")
    parser.add_argument(
        "--address",
        default="grpc://localhost:8500",
        help="grpc://host:port or http://host:port; grpcs:// and https:// for TLS (default: %(default)s)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, help="the version to ask (default: the newest that is served)")
    which.add_argument("--label", help="a version's label on the server")
    parser.add_argument(
        "--deadline", type=float, default=5.0, help="seconds, all attempts together (default: %(default)s)"
    )
    parser.add_argument("--max_candidates", type=int, default=4096, help="in one call (default: %(default)s)")
    parser.add_argument("--token_file", help="a file with the token to send")
    parser.add_argument("--ca", help="a file with the certificates to trust, PEM (default: the system's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    try:
        request = _read(arguments.request)
        token = _text(arguments.token_file, "--token_file").strip() if arguments.token_file else None
        with Ranker(
            arguments.address,
            arguments.model,
            version=arguments.version,
            label=arguments.label,
            deadline=arguments.deadline,
            max_candidates=arguments.max_candidates,
            token=token,
            ca=arguments.ca,
        ) as ranker:
            ranking = ranker.rank(**request)
    except RankingError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(_as_json(ranking, arguments.model), indent=2))
    else:
        _print_table(ranking, request["candidates"], arguments.model)
    return 0


def _read(path: str) -> dict[str, Any]:
    """The arguments of `Ranker.rank`."""
    try:
        request = json.loads(sys.stdin.read() if path == "-" else _text(path, "--request"))
    except ValueError as error:
        raise RequestError(f"--request: {path}: JSON in UTF-8 is expected. Received: {error}.") from error
    unknown = set(request) - set(KEYS) if isinstance(request, dict) else {type(request).__name__}
    if unknown:
        raise RequestError(
            f"--request: {path}: {', '.join(KEYS)} are expected. Received: {', '.join(sorted(unknown))}. Correct it."
        )
    return {"user": None, "candidates": None, **request}


def _text(path: str, flag: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{flag}: a readable file in UTF-8 is expected. Received: {path}: {error}.") from error


def _as_json(ranking: Ranking, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "version": ranking.version,
        "candidates": [
            {
                "candidate": n,
                "score": float(ranking.score[n]),
                **{task: float(values[n]) for task, values in ranking.tasks.items()},
            }
            for n in ranking.order.tolist()
        ],
    }


def _print_table(ranking: Ranking, candidates: Any, model: str) -> None:
    """Best first: the place in the request, and the feature that the request names first."""
    rows = isinstance(candidates, list)
    first = next(iter((candidates[0] if rows else candidates) or ()), None) if candidates else None
    table = Table(title=f"{model}, version {ranking.version}")
    for name in ("rank", "candidate"):
        table.add_column(name, justify="right")
    if first:
        table.add_column(first)
    for name in (*ranking.tasks, "score"):
        table.add_column(name, justify="right")
    for place, n in enumerate(ranking.order.tolist(), start=1):
        scores = [f"{values[n]:.6f}" for values in (*ranking.tasks.values(), ranking.score)]
        named = [str(candidates[n][first] if rows else candidates[first][n])] if first else []
        table.add_row(str(place), str(n), *named, *scores)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(main())
