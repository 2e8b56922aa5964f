"""Drawing a synthetic data set: who asks, what is shown, and what comes of it, one request of a user after another.

`transform.datasets.synthetic` writes it, `transform.datasets.synthetic_truth` says what is true in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from transform.datasets import synthetic_truth as truth
from transform.datasets.synthetic_truth import (
    DEVICES,
    HOURS,
    SCENARIOS,
    TASKS,
    TOPICS,
    Array,
    History,
    Requests,
    World,
)
from transform.errors import UserError

DAYS = {"train": (1, 8), "eval": (9, 9), "test": (10, 11)}
DAY_MS, FIRST_DAY_MS = 86_400_000, 1_704_067_200_000  # day 1 is 1 January 2024
CHUNK = 2048  # rows of weights at a time


@dataclass(frozen=True)
class Sizes:
    """How much is generated.

    Args:
        train_requests: int. On days 1 to 8. Defaults to `12_000`.
        eval_requests: int. On day 9. Defaults to `1_500`.
        test_requests: int. On days 10 and 11. Defaults to `3_000`.
        users: int. Defaults to `2_000`.
        items: int. Defaults to `500`.
        past_events: int. Events per user before the log, each on another item; also the window of the scenario
            `history`. Defaults to `120`.
    """

    train_requests: int = 12_000
    eval_requests: int = 1_500
    test_requests: int = 3_000
    users: int = 2_000
    items: int = 500
    past_events: int = 120

    @property
    def requests(self) -> dict[str, int]:
        """The number of requests by split."""
        return {"train": self.train_requests, "eval": self.eval_requests, "test": self.test_requests}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A generated data set in memory: requests in the order of time, padded to N candidates.

    Args:
        world: World.
        sizes: Sizes.
        users: dict. The user table's attributes, arrays of shape [U].
        items: dict. The item table's attributes, arrays of shape [I].
        past_items: array of shape [U, P]. Oldest first.
        past_labels: bool array of shape [U, P, K].
        requests: Requests.
        day: array of shape [R].
        start: array of shape [R]. Milliseconds.
        step: array of shape [R]. Milliseconds from a candidate to the next.
        history: History. What the truth knew of the past at each request.
        probabilities: array of shape [R, N, K]. The truth.
        labels: bool array of shape [R, N, K].
    """

    world: World
    sizes: Sizes
    users: dict[str, Array]
    items: dict[str, Array]
    past_items: Array
    past_labels: Array
    requests: Requests
    day: Array
    start: Array
    step: Array
    history: History
    probabilities: Array
    labels: Array

    def counts(self) -> dict[str, dict[str, float]]:
        """Requests, impressions and the rate of each task's positives, by split."""
        found: dict[str, dict[str, float]] = {}
        for split, (first, last) in DAYS.items():
            rows = (first <= self.day) & (self.day <= last)
            mask = self.requests.mask[rows]
            rates = self.labels[rows][mask].mean(0)
            by_task = {task: float(rate) for task, rate in zip(TASKS, rates, strict=True)}
            found[split] = {"requests": int(rows.sum()), "impressions": int(mask.sum()), **by_task}
        return found


def generate(scenario: str, strength: float, seed: int = 0, sizes: Sizes | None = None) -> Dataset:
    """Draws a data set.

    Args:
        scenario: str. `conflict`, `set` or `history`.
        strength: float. From 0, no effect, to 1.
        seed: int. Defaults to `0`.
        sizes: Sizes or None. Defaults to those of `Sizes()`.

    Returns:
        The data set.

    Raises:
        UserError: when an argument can't be used.
    """
    sizes = sizes or Sizes()
    _check(scenario, strength, seed, sizes)
    rng = np.random.default_rng(seed)
    # All is drawn in one order and number, whatever the strength: labels compare these numbers with probabilities.
    world = World.draw(SCENARIOS[scenario], strength, sizes.users, sizes.items, rng)
    users, items = _draw_tables(world, rng)
    day, start, step = _times(sizes, world.scenario.candidates[1])
    requests, past_items = _draw_requests(world, start, sizes.past_events, rng)
    past_chance = rng.random((*past_items.shape, len(TASKS)))
    chance = rng.random((*requests.items.shape, len(TASKS)))

    everybody = np.arange(sizes.users)
    world = world.with_intercepts(past=truth.past_logits(world, everybody, past_items))
    past_labels = past_chance < truth.sigmoid(truth.past_logits(world, everybody, past_items))
    timelines = _Timelines(world.topic[past_items], past_labels[..., truth.HISTORY_TASK], requests)
    at_first = truth.logits(world, requests, timelines.window(requests.user, sizes.past_events))
    world = world.with_intercepts(log=at_first[requests.mask])

    # The n-th requests of all users at once: what came of them is history for the next ones.
    shape = (len(start), sizes.past_events)
    history = History(np.zeros(shape, np.int64), np.zeros(shape, bool))
    probabilities, labels = np.zeros(chance.shape), np.zeros(chance.shape, bool)
    turn = _turns(requests.user)
    for n in range(turn.max() + 1):
        rows = np.flatnonzero(turn == n)
        now, seen = requests[rows], timelines.window(requests.user[rows], sizes.past_events)
        history.topics[rows], history.positive[rows] = seen.topics, seen.positive
        probabilities[rows] = truth.sigmoid(truth.logits(world, now, seen))
        labels[rows] = chance[rows] < probabilities[rows]
        timelines.append(now, world.topic[now.items], labels[rows][..., truth.HISTORY_TASK])
    parts = (users, items, past_items, past_labels, requests, day, start, step, history, probabilities, labels)
    return Dataset(world, sizes, *parts)


def _check(scenario: str, strength: float, seed: int, sizes: Sizes) -> None:
    if scenario not in SCENARIOS:
        raise UserError(f"scenario: one of {', '.join(SCENARIOS)} is expected. Received: `{scenario}`.")
    if not 0 <= strength <= 1:
        raise UserError(f"strength: a number from 0 to 1 is expected. Received: {strength}.")
    if seed < 0:
        raise UserError(f"seed: a whole number from 0 on is expected. Received: {seed}.")
    least = {"train_requests": 8, "eval_requests": 1, "test_requests": 2, "users": 10, "past_events": 1}
    least["items"] = max(2 * TOPICS, sizes.past_events)  # past events are on different items
    for name, minimum in least.items():
        if getattr(sizes, name) < minimum:
            raise UserError(f"{name}: at least {minimum} are expected. Received: {getattr(sizes, name)}.")
    slots = max(-(-count // (DAYS[split][1] - DAYS[split][0] + 1)) for split, count in sizes.requests.items())
    most = DAY_MS // (SCENARIOS[scenario].candidates[1] + 1)
    if slots > most:
        raise UserError(f"requests: at most {most:,} a day are expected. Received: {slots:,}.")


def _draw_tables(world: World, rng: np.random.Generator) -> tuple[dict[str, Array], dict[str, Array]]:
    """What is seen of users and items: noisy looks at the latent numbers, and some that mean nothing."""
    count, items = len(world.taste), len(world.attributes)
    age = np.clip(np.round(40 + 8 * world.taste[:, 0] + 8 * rng.normal(size=count)), 16, 80).astype(int)
    users = {"segment": world.segment, "region": rng.integers(6, size=count), "age": age}
    kind = np.argmax(world.attributes[:, :4] + 0.5 * rng.normal(size=(items, 4)), axis=1)
    quality = 0.7 * world.attributes @ world.direction + 0.7 * rng.normal(size=items)
    price = np.exp(3 + truth.LOG_PRICE_DEVIATION * world.log_price)
    return users, {"topic": world.topic, "format": kind, "price": np.round(price, 2), "quality": np.round(quality, 3)}


def _times(sizes: Sizes, candidates: int) -> tuple[Array, Array, Array]:
    """Day, start and step of each request: a day's requests follow one another and do not overlap."""
    days, starts, steps = [], [], []
    for split, count in sizes.requests.items():
        first, last = DAYS[split]
        for day, part in zip(range(first, last + 1), np.array_split(np.arange(count), last - first + 1), strict=True):
            slot = DAY_MS // max(len(part), 1)
            days.append(np.full(len(part), day))
            starts.append(FIRST_DAY_MS + (day - 1) * DAY_MS + slot * np.arange(len(part)))
            steps.append(np.full(len(part), min(1000, slot // (candidates + 1))))
    return np.concatenate(days), np.concatenate(starts), np.concatenate(steps)


def _draw_requests(world: World, start: Array, past_events: int, rng: np.random.Generator) -> tuple[Requests, Array]:
    """Who asks, where from, what he is shown, and what everybody was shown before."""
    scenario, users, items = world.scenario, len(world.taste), len(world.attributes)
    least, most = scenario.candidates
    user, device = rng.integers(users, size=len(start)), rng.choice(len(DEVICES), len(start), p=[0.6, 0.15, 0.25])
    hour = start % DAY_MS * len(HOURS) // DAY_MS
    exposure = rng.normal(0, 0.5, items)
    themes, price_level = rng.integers(TOPICS, size=(len(start), 2)), rng.normal(0, 1.5, len(start))
    size = rng.integers(least, most + 1, size=len(start))

    def in_log(rows: slice) -> Array:
        weights = np.broadcast_to(exposure, (len(user[rows]), items))
        if scenario.themed:
            on_theme = (world.topic == themes[rows, :1]) | (world.topic == themes[rows, 1:])
            weights = weights + np.where(on_theme, np.log(9.0), 0.0) + price_level[rows, None] * world.log_price
        if scenario.personal:
            weights = weights + np.log(0.5 + 0.5 * TOPICS * world.mixture[user[rows]][:, world.topic])
        return weights

    def in_past(rows: slice) -> Array:
        weights = np.broadcast_to(exposure, (len(world.mixture[rows]), items))
        if scenario.personal:
            weights = weights + np.log(TOPICS * world.mixture[rows][:, world.topic])
        return weights

    shown = _draw_distinct(in_log, len(start), most, rng)
    past = rng.permuted(_draw_distinct(in_past, users, past_events, rng), axis=1)
    return Requests(user, device, hour, shown, np.arange(most) < size[:, None]), past


def _draw_distinct(log_weights: Callable[[slice], Array], rows: int, count: int, rng: np.random.Generator) -> Array:
    """Draws `count` different items per row by weight: the largest sums of a logarithm and a Gumbel number."""
    drawn = []
    for first in range(0, rows, CHUNK):
        weights = log_weights(slice(first, min(first + CHUNK, rows)))
        keys = weights + rng.gumbel(size=weights.shape)
        drawn.append(np.argsort(-keys, axis=1, kind="stable")[:, :count])
    return np.concatenate(drawn)


def _turns(user: Array) -> Array:
    """Which of its user's requests each one is, from 0."""
    order = np.argsort(user, kind="stable")
    first = np.r_[True, user[order][1:] != user[order][:-1]]
    position = np.arange(len(user))
    turn = np.empty_like(position)
    turn[order] = position - np.maximum.accumulate(np.where(first, position, 0))
    return turn


class _Timelines:
    """Topic and outcome of every user's events, oldest first: those of the past, and then the log's."""

    def __init__(self, topics: Array, positive: Array, requests: Requests):
        users, past = topics.shape
        room = int(np.bincount(requests.user, requests.mask.sum(1), users).max())
        self._topics = np.pad(topics, ((0, 0), (0, room)))
        self._positive = np.pad(positive, ((0, 0), (0, room)))
        self._length = np.full(users, past)

    def window(self, user: Array, size: int) -> History:
        """The last events of users."""
        places = self._length[user][:, None] + np.arange(-size, 0)
        return History(self._topics[user[:, None], places], self._positive[user[:, None], places])

    def append(self, requests: Requests, topics: Array, positive: Array) -> None:
        """Adds the candidates of requests, at most one request per user."""
        rows, columns = np.nonzero(requests.mask)
        user = requests.user[rows]
        self._topics[user, self._length[user] + columns] = topics[rows, columns]
        self._positive[user, self._length[user] + columns] = positive[rows, columns]
        self._length[requests.user] += requests.mask.sum(1)
