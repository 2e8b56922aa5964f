"""The truth behind the synthetic data sets: pure functions of a user, an item, a context, a set and a history.

For user `u`, item `i`, context `c`, candidate set `C` of N items, history `H` and knob `s` (the strength, 0 to 1),
task `k` is positive with probability `p_k`, independently of all else:

    logit p_k  = b_k + scale * [ √taste * fit_k(u,i)
                                 + √(1-taste) * ( √(1-follow*s²) * main_k(i) + √follow * s * lift(i,H) ) ]
                     + 0.3 * mood_k(u) + context_k(c,i)
                     - s * ( redundancy_k * common(i,C) + contrast_k * dear(i,C) )

    fit_k(u,i)     = t_u · R(s*angle_k) a_i / √D                    a user's taste, unit variance
    main_k(i)      = √0.8 * w · R(s*angle_k) a_i + √0.2 * e_k(i)    an item's appeal, unit variance
    lift(i,H)      = T * share(topic_i, H) - 1                      share: of the topic among the positive (`view`)
                                                                    events of the last `window` events; 1/T if none
    common(i,C)    = (n(topic_i, C) - 1) / (N - 1)                  the share of the other candidates on i's topic
    dear(i,C)      = log(price_i / mean price of C) / 0.6           0.6 is the deviation of an item's log price
    context_k(c,i) = 0.25 * d_k(device) + 0.15 * h_k(hour) + 0.25 * g(device) * log-price_i (standardised)
    mood_k(u)      = √0.5 * m(u) + √0.5 * m_k(u)

`t_u` and `a_i` are D = 6 latent numbers with covariance I over users and over items, `w` is a unit vector, `R(x)` turns
each of the D/2 planes by `x`, so it moves tastes and appeals without changing how strong they are; `e`, `m`, `d`, `h`
and `g` are fixed draws. The intercepts `b_k` make the mean of `p_k` over the log the task's base rate, with the
histories from before the log. From then on histories hold what came of the log: tastes that are followed grow, and at
`s = 1` of `history` the rates by a few hundredths of themselves.

A scenario gives the knob one meaning, all else in it is the same at every strength:

    conflict   angles 0°, 150°, 75°: at 0 all tasks want the same; at 1 the second wants what the first does not, and
               the third, the rare one, something else
    set        redundancy and contrast: at 0 the labels know no other candidates
    history    follow = 0.75: at 0 the labels know no history

Past events are positive with the same probabilities, without context, set and history:
b'_k + scale * [√taste * fit_k + √(1-taste) * main_k] + 0.3 * mood_k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TASKS = ("view", "engage", "order")
BASE_RATES = (0.4, 0.2, 0.05)
DEVICES = ("phone", "tablet", "desktop")
HOURS = ("night", "morning", "afternoon", "evening")
TOPICS, LATENTS, SEGMENTS = 20, 6, 8
HISTORY_TASK = 0  # the task whose positives the history's shares count
LOG_PRICE_DEVIATION = 0.6
OWN_APPEAL = 0.2


@dataclass(frozen=True)
class Scenario:
    """What the knob turns, and the constants of the truth.

    Args:
        name: str.
        scale: float. The deviation of the personal part of a logit.
        taste: float. The part of its variance that is the user's taste and not the item's appeal.
        candidates: pair of int. The least and the most candidates of a request.
        angles: tuple. By task, in degrees at strength 1. Defaults to no turn.
        redundancy: tuple. By task. Defaults to none.
        contrast: tuple. By task. Defaults to none.
        follow: float. The part of an appeal's variance that is the history's at strength 1. Defaults to `0.0`.
        themed: bool. Whether requests lean to two topics and a price level, by chance. Defaults to `False`.
        personal: bool. Whether what users are shown follows their mixture of topics, half of the time in the log
            and always in the past. Defaults to `False`.
    """

    name: str
    scale: float
    taste: float
    candidates: tuple[int, int]
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    redundancy: tuple[float, float, float] = (0.0, 0.0, 0.0)
    contrast: tuple[float, float, float] = (0.0, 0.0, 0.0)
    follow: float = 0.0
    themed: bool = False
    personal: bool = False


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("conflict", 1.3, 0.65, (8, 12), angles=(0.0, 150.0, 75.0)),
        Scenario("set", 1.1, 0.65, (6, 16), redundancy=(5.0, 3.0, 2.0), contrast=(0.3, 0.6, 0.8), themed=True),
        Scenario("history", 1.15, 0.5, (8, 12), follow=0.75, personal=True),
    )
}


@dataclass(frozen=True, eq=False)
class World:
    """The fixed draws: users [U, ...], items [I, ...] and what the formulas name by letters.

    Args:
        scenario: Scenario.
        strength: float. The knob.
        taste: array of shape [U, D]. t.
        mood: array of shape [U, K].
        segment: array of shape [U]. A user's segment, from which half of the variance of his taste comes.
        mixture: array of shape [U, T]. The topics that a user is shown, if the scenario is personal.
        attributes: array of shape [I, D]. a.
        own: array of shape [I, K]. e.
        topic: array of shape [I]. From it 0.6 of the variance of an item's attributes comes.
        log_price: array of shape [I]. Standardised.
        direction: array of shape [D]. w.
        of_device: array of shape [devices, K]. d.
        price_of_device: array of shape [devices]. g.
        of_hour: array of shape [hours, K]. h.
        intercepts: array of shape [K]. b.
        past_intercepts: array of shape [K]. b'.
    """

    scenario: Scenario
    strength: float
    taste: Array
    mood: Array
    segment: Array
    mixture: Array
    attributes: Array
    own: Array
    topic: Array
    log_price: Array
    direction: Array
    of_device: Array
    price_of_device: Array
    of_hour: Array
    intercepts: Array
    past_intercepts: Array

    @classmethod
    def draw(cls, scenario: Scenario, strength: float, users: int, items: int, rng: np.random.Generator) -> World:
        """Draws a world with intercepts of 0; what is drawn does not depend on the strength."""
        tasks = len(TASKS)
        topic, segment = rng.permutation(items) % TOPICS, rng.integers(SEGMENTS, size=users)
        centres, tastes = rng.normal(size=(TOPICS, LATENTS)), rng.normal(size=(SEGMENTS, LATENTS))
        attributes = np.sqrt(0.6) * centres[topic] + np.sqrt(0.4) * rng.normal(size=(items, LATENTS))
        taste = np.sqrt(0.5) * tastes[segment] + np.sqrt(0.5) * rng.normal(size=(users, LATENTS))
        direction = rng.normal(size=LATENTS)
        mood = np.sqrt(0.5) * (rng.normal(size=(users, 1)) + rng.normal(size=(users, tasks)))
        return cls(
            scenario=scenario,
            strength=strength,
            taste=_whitened(taste),
            mood=mood,
            segment=segment,
            mixture=rng.dirichlet(np.full(TOPICS, 4.0), size=users),
            attributes=_whitened(attributes),
            own=_standardised(rng.normal(size=(items, tasks))),
            topic=topic,
            log_price=_standardised(rng.normal(size=items)),
            direction=direction / np.linalg.norm(direction),
            of_device=_standardised(rng.normal(size=(len(DEVICES), tasks))),
            price_of_device=_standardised(rng.normal(size=len(DEVICES))),
            of_hour=_standardised(rng.normal(size=(len(HOURS), tasks))),
            intercepts=np.zeros(tasks),
            past_intercepts=np.zeros(tasks),
        )

    def with_intercepts(self, log: Array | None = None, past: Array | None = None) -> World:
        """The same world with intercepts for logits [..., K] that are without one, so that base rates are met."""
        intercepts = self.intercepts if log is None else _intercepts(log)
        past_intercepts = self.past_intercepts if past is None else _intercepts(past)
        return replace(self, intercepts=intercepts, past_intercepts=past_intercepts)


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests as padded arrays; items are numbers in the world.

    Args:
        user: array of shape [R].
        device: array of shape [R].
        hour: array of shape [R].
        items: array of shape [R, N].
        mask: array of shape [R, N]. False where there is no candidate.
    """

    user: Array
    device: Array
    hour: Array
    items: Array
    mask: Array

    def __getitem__(self, rows: Any) -> Requests:
        return Requests(self.user[rows], self.device[rows], self.hour[rows], self.items[rows], self.mask[rows])


@dataclass(frozen=True, eq=False)
class History:
    """The last events before each request.

    Args:
        topics: array of shape [R, window].
        positive: array of shape [R, window]. False too where there is no event.
    """

    topics: Array
    positive: Array


# === The formulas ===


def logits(world: World, requests: Requests, history: History) -> Array:
    """The true logits [R, N, K] of all candidates; those of padding have no meaning."""
    scenario, strength = world.scenario, world.strength
    items, user = requests.items, requests.user[:, None]
    appeal = np.sqrt(1 - scenario.follow * strength**2) * main(world, items)
    appeal += np.sqrt(scenario.follow) * strength * lift(world, items, history)[..., None]
    personal = np.sqrt(scenario.taste) * fit(world, user, items) + np.sqrt(1 - scenario.taste) * appeal
    of_set = common(world, requests)[..., None] * np.array(scenario.redundancy)
    of_set += dear(world, requests)[..., None] * np.array(scenario.contrast)
    logit = world.intercepts + scenario.scale * personal + 0.3 * world.mood[user]
    return logit + context(world, requests) - strength * of_set


def past_logits(world: World, user: Array, items: Array) -> Array:
    """The true logits [U, P, K] of past events: items [U, P] of users [U]."""
    taste = world.scenario.taste
    personal = np.sqrt(taste) * fit(world, user[:, None], items) + np.sqrt(1 - taste) * main(world, items)
    return world.past_intercepts + world.scenario.scale * personal + 0.3 * world.mood[user[:, None]]


def fit(world: World, user: Array, items: Array) -> Array:
    """How well items suit users, [..., K]."""
    return np.einsum("...d,...dk->...k", world.taste[user], _turned(world)[items]) / np.sqrt(LATENTS)


def main(world: World, items: Array) -> Array:
    """How items appeal to everybody, [..., K]."""
    turned = np.einsum("d,idk->ik", world.direction, _turned(world))
    return (np.sqrt(1 - OWN_APPEAL) * turned + np.sqrt(OWN_APPEAL) * world.own)[items]


def context(world: World, requests: Requests) -> Array:
    """What device and hour do, [R, N, K]."""
    per_request = 0.25 * world.of_device[requests.device] + 0.15 * world.of_hour[requests.hour]
    of_price = 0.25 * world.price_of_device[requests.device][:, None] * world.log_price[requests.items]
    return per_request[:, None, :] + of_price[..., None]


def common(world: World, requests: Requests) -> Array:
    """The share of the other candidates that have a candidate's topic, [R, N]."""
    counts = _topic_counts(world.topic[requests.items], requests.mask)
    others = np.maximum(requests.mask.sum(1, keepdims=True) - 1, 1)
    return (np.take_along_axis(counts, world.topic[requests.items], 1) - 1) / others


def dear(world: World, requests: Requests) -> Array:
    """A candidate's price over the mean price of its request, as a logarithm in deviations, [R, N]."""
    log_price = LOG_PRICE_DEVIATION * world.log_price[requests.items]
    total = np.where(requests.mask, np.exp(log_price), 0.0).sum(1, keepdims=True)
    return (log_price - np.log(total / requests.mask.sum(1, keepdims=True))) / LOG_PRICE_DEVIATION


def lift(world: World, items: Array, history: History) -> Array:
    """How much more often than by chance the positive events had a candidate's topic, [R, N]."""
    counts = _topic_counts(history.topics, history.positive)
    total = counts.sum(1, keepdims=True)
    shares = np.where(total > 0, counts / np.maximum(total, 1), 1 / TOPICS)
    return TOPICS * np.take_along_axis(shares, world.topic[items], 1) - 1


def sigmoid(x: Array) -> Array:
    """The probability of a logit."""
    return 1 / (1 + np.exp(-x))


# === Parts ===


def _topic_counts(topics: Array, counted: Array) -> Array:
    """How often each topic is counted in each row: [R, T] of [R, n]."""
    rows = np.arange(len(topics))[:, None] * TOPICS + topics
    return np.bincount(rows.ravel(), counted.ravel(), len(topics) * TOPICS).reshape(-1, TOPICS)


def _turned(world: World) -> Array:
    """The attributes turned for each task, [I, D, K]: plane by plane, the first half of D with the second."""
    angles = np.radians(world.strength * np.array(world.scenario.angles))
    first, second = np.split(world.attributes[..., None], 2, axis=1)
    return np.concatenate(
        [np.cos(angles) * first - np.sin(angles) * second, np.sin(angles) * first + np.cos(angles) * second], axis=1
    )


def _standardised(values: Array) -> Array:
    return (values - values.mean(0)) / values.std(0)


def _whitened(values: Array) -> Array:
    """Rows with mean 0 and covariance I."""
    centred = values - values.mean(0)
    root = np.linalg.cholesky(np.cov(centred.T, bias=True))
    return np.linalg.solve(root, centred.T).T


def _intercepts(x: Array) -> Array:
    """By bisection, the numbers [K] that added to logits make the mean probabilities the base rates."""
    flat, rates = x.reshape(-1, x.shape[-1]), np.array(BASE_RATES)
    low, high = np.full(len(rates), -20.0), np.full(len(rates), 20.0)
    for _ in range(40):
        middle = (low + high) / 2
        above = sigmoid(flat + middle).mean(0) > rates
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2
