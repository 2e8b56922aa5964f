"""The synthetic data sets: what they are is what their formulas say, and nothing of the truth is in the data."""

import csv
import gzip
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality.oracle import oracle, popularity
from tests.testing.toy_requests import plain_requests
from transform.datasets import synthetic, synthetic_truth
from transform.datasets.synthetic import main, write
from transform.datasets.synthetic_draw import Sizes, generate
from transform.datasets.synthetic_truth import SCENARIOS, TASKS, History, Requests
from transform.errors import UserError
from transform.spec.loading import load_spec

SCENARIO_NAMES = tuple(SCENARIOS)
TINY = Sizes(train_requests=120, eval_requests=10, test_requests=30, users=20, items=60, past_events=30)
MEDIUM = Sizes(train_requests=2000, eval_requests=100, test_requests=2500, users=800, items=300, past_events=100)
FILES = ("items.csv.gz", "log.csv.gz", "past.csv.gz", "spec.yaml", "truth.csv.gz", "users.csv.gz")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def table(path):
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=SCENARIO_NAMES)
def medium(request, tmp_path_factory):
    """A data set at strength 1: the folder and what is in memory."""
    folder = tmp_path_factory.mktemp("synthetic") / request.param
    write(folder, request.param, 1.0, seed=3, sizes=MEDIUM)
    return folder, generate(request.param, 1.0, seed=3, sizes=MEDIUM)


@pytest.fixture(scope="module", params=SCENARIO_NAMES)
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / request.param
    write(folder, request.param, 1.0, seed=5, sizes=TINY)
    return folder, generate(request.param, 1.0, seed=5, sizes=TINY)


# === Files ===


@pytest.mark.parametrize("scenario", SCENARIO_NAMES)
def test_equal_seeds_write_equal_bytes(tmp_path, scenario):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write(tmp_path / name, scenario, 0.5, seed, TINY)
    first, second, other = (contents(tmp_path / name) for name in "abc")
    assert tuple(sorted(first)) == FILES
    assert first == second
    assert all(first[name] != other[name] for name in FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("scenario", SCENARIO_NAMES)
def test_the_knob_leaves_users_items_requests_and_noise_alone(tmp_path, scenario):
    for strength in (0, 1):
        write(tmp_path / str(strength), scenario, strength, 5, TINY)
    off, on = (contents(tmp_path / str(strength)) for strength in (0, 1))
    assert off["users.csv.gz"] == on["users.csv.gz"] and off["items.csv.gz"] == on["items.csv.gz"]
    assert (off["past.csv.gz"] == on["past.csv.gz"]) == (scenario != "conflict")  # there too, tasks disagree
    shown = [
        [{key: value for key, value in row.items() if key not in synthetic.LABELS} for row in table(path)]
        for path in (tmp_path / "0" / "log.csv.gz", tmp_path / "1" / "log.csv.gz")
    ]
    assert shown[0] == shown[1]
    assert off["log.csv.gz"] != on["log.csv.gz"]


def test_the_spec_loads_and_names_no_truth(tiny):
    folder, dataset = tiny
    spec = load_spec(folder / "spec.yaml")
    scenario = dataset.world.scenario
    assert (spec.name, spec.task_names) == (f"synthetic_{scenario.name}", TASKS)
    assert spec.to_json().count("truth") == 0 and "p_" not in spec.to_json().replace("top_k", "")
    files = [*spec.data.impressions.files, *spec.data.tables.user.files, *spec.data.tables.item.files]
    assert sorted([*files, *spec.data.past.files]) == sorted(set(FILES) - {"spec.yaml", "truth.csv.gz"})
    truth = table(folder / "truth.csv.gz")
    hidden = set(truth[0]) - {"request_id", "user_id", "item_id", "day", *synthetic.LABELS}
    assert hidden == {f"p_{task}" for task in TASKS}
    for name in files + list(spec.data.past.files):
        assert not hidden & set(table(folder / name)[0])
    inputs = {feature.source_column for _, feature in spec.feature_groups()}
    assert not inputs & {*synthetic.LABELS, *hidden}


def test_truth_has_the_rows_of_the_log(tiny):
    folder, _ = tiny
    log, truth = table(folder / "log.csv.gz"), table(folder / "truth.csv.gz")
    for key in ("request_id", "user_id", "item_id", "day", *synthetic.LABELS):
        assert [row[key] for row in log] == [row[key] for row in truth]


@pytest.mark.parametrize("occupied", ["folder", "file"])
def test_output_that_is_not_empty_is_refused(tmp_path, occupied):
    target = tmp_path / "data"
    if occupied == "folder":
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    else:
        target.write_text("mine")
    with pytest.raises(UserError, match="output: a new or empty folder is expected. Received: .*data"):
        write(target, "set", 1.0, sizes=TINY)
    assert sorted(path.name for path in tmp_path.rglob("*")) in (["data", "mine.txt"], ["data"])


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "set", 1.0, sizes=TINY)
    assert tuple(sorted(contents(tmp_path / "data"))) == FILES


def test_nothing_is_left_of_a_failed_write(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr("pathlib.Path.rename", fail)
    with pytest.raises(UserError, match="output: .*no space"):
        write(tmp_path / "data", "set", 1.0, sizes=TINY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("drift", 1.0), "scenario: one of conflict, set, history is expected. Received: `drift`"),
        (("set", 1.5), "strength: a number from 0 to 1 is expected. Received: 1.5"),
        (("set", float("nan")), "strength: .* Received: nan"),
        (("set", 1.0, -1), "seed: .* Received: -1"),
        (("set", 1.0, 0, replace(TINY, items=39)), "items: at least 40 are expected. Received: 39"),
        (("set", 1.0, 0, replace(TINY, past_events=70)), "items: at least 70 are expected. Received: 60"),
        (("set", 1.0, 0, replace(TINY, test_requests=1)), "test_requests: at least 2 "),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        generate(*arguments)


def test_the_command_prints_counts_and_errors(tmp_path, capsys):
    sizes = "--train-requests 80 --eval-requests 10 --test-requests 20 --users 20 --items 60 --past-events 30"
    command = ["--scenario", "history", "--strength", "0.5", "--output", str(tmp_path / "data"), *sizes.split()]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["split", "requests", "impressions", *TASKS]
    assert [line.split()[:2] for line in printed[1:4]] == [["train", "80"], ["eval", "10"], ["test", "20"]]
    rows = table(tmp_path / "data" / "log.csv.gz")
    assert sum(int(line.split()[2]) for line in printed[1:4]) == len(rows)
    assert main(command) == 1
    assert capsys.readouterr().err.startswith("error: output: a new or empty folder is expected")


# === The truth ===


def test_labels_follow_the_truth(medium):
    folder, dataset = medium
    truth = table(folder / "truth.csv.gz")
    for task, label, rate in zip(TASKS, synthetic.LABELS, synthetic_truth.BASE_RATES, strict=True):
        p = np.array([float(row[f"p_{task}"]) for row in truth])
        y = np.array([int(row[label]) for row in truth])
        for part in np.array_split(np.argsort(p), 10):
            error = np.sqrt((p[part] * (1 - p[part])).sum()) / len(part)
            assert abs(y[part].mean() - p[part].mean()) < 4 * error
        assert p.mean() == pytest.approx(rate, rel=0.12)
    flat = dataset.probabilities[dataset.requests.mask]
    written = np.array([[float(row[f"p_{task}"]) for task in TASKS] for row in truth])
    np.testing.assert_allclose(written, flat, atol=1e-6)


def test_the_oracle_is_far_from_popularity_and_from_one(medium):
    best, least = oracle(medium[0]), popularity(medium[0])
    assert tuple(best) == TASKS
    for task in TASKS:
        assert 0.75 < best[task]["auc"] < 0.87  # a band of 0.85 and the error of a rare task's AUC on this size
        assert 0.73 < best[task]["gauc"] < 0.87
        assert best[task]["auc"] > least[task]["auc"] + 0.06
        assert least[task]["auc"] > 0.55


def test_tasks_agree_without_conflict_and_oppose_with_it():
    found = {}
    for strength in (0.0, 0.5, 1.0):
        dataset = generate("conflict", strength, 0, MEDIUM)
        logit = np.log(dataset.probabilities / (1 - dataset.probabilities))[dataset.requests.mask]
        found[strength] = np.corrcoef(logit.T)
        spread = logit.std(0)
        assert np.all((1.2 < spread) & (spread < 1.6))
    apart = np.triu_indices(3, 1)
    assert found[0.0][apart].min() > 0.75
    assert found[1.0][0, 1] < -0.5 and found[1.0][apart].max() < 0.5
    assert np.all(found[0.0][apart] > found[0.5][apart]) and np.all(found[0.5][apart] > found[1.0][apart])


def some_requests(dataset):
    """Requests of one size, their histories and their logits."""
    requests = dataset.requests
    rows = np.flatnonzero(requests.mask.sum(1) >= 6)[:300]
    six = Requests(requests.user[rows], requests.device[rows], requests.hour[rows], requests.items[rows, :6],
                   requests.mask[rows, :6])  # fmt: skip
    history = History(dataset.history.topics[rows], dataset.history.positive[rows])
    return six, history, synthetic_truth.logits(dataset.world, six, history)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_other_candidates_matter_only_with_the_set_effect(strength):
    dataset = generate("set", strength, 0, TINY)
    requests, history, logit = some_requests(dataset)
    order = [0, 3, 5, 1, 4, 2]
    permuted = replace(requests, items=requests.items[:, order])
    np.testing.assert_allclose(synthetic_truth.logits(dataset.world, permuted, history), logit[:, order], atol=1e-12)
    others = requests.items.copy()
    others[:, 1:] = (others[:, 1:] + 17) % TINY.items
    replaced = synthetic_truth.logits(dataset.world, replace(requests, items=others), history)
    fewer = synthetic_truth.logits(dataset.world, replace(requests, mask=requests.mask & (np.arange(6) < 3)), history)
    for changed in (replaced[:, 0], fewer[:, 0]):
        difference = np.abs(changed - logit[:, 0])
        if strength:
            assert np.all(difference.mean(0) > 0.1)
        else:
            assert difference.max() < 1e-12


def test_set_effects_have_the_direction_that_is_stated():
    dataset = generate("set", 1.0, 0, TINY)
    topic, price = dataset.world.topic, dataset.world.log_price
    first = int(np.flatnonzero(topic == 0)[0])
    same, other = np.flatnonzero(topic == 0)[1], np.flatnonzero(topic == 1)[0]
    world = replace(dataset.world, log_price=np.where(np.isin(np.arange(len(topic)), (same, other)), 0.0, price))

    def of_first(second, world):
        requests = Requests(*(np.zeros(1, int) for _ in range(3)), np.array([[first, second]]), np.ones((1, 2), bool))
        history = History(np.zeros((1, 1), int), np.zeros((1, 1), bool))
        return synthetic_truth.logits(world, requests, history)[0, 0]

    np.testing.assert_allclose(of_first(other, world) - of_first(same, world), world.scenario.redundancy)
    dear = replace(world, log_price=np.where(np.arange(len(topic)) == other, 2.0, world.log_price))
    assert np.all(of_first(other, dear) > of_first(other, world))


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_old_events_matter_only_with_the_history_effect(strength):
    dataset = generate("history", strength, 0, TINY)
    requests, history, logit = some_requests(dataset)
    positive = history.positive.copy()
    positive[:, :15] = False  # the older half
    changed = synthetic_truth.logits(dataset.world, requests, History(history.topics, positive))
    difference = np.abs(changed - logit)
    assert difference.mean() > 0.1 if strength else difference.max() == 0
    order = np.random.default_rng(0).permutation(history.topics.shape[1])
    shuffled = History(history.topics[:, order], history.positive[:, order])
    np.testing.assert_array_equal(synthetic_truth.logits(dataset.world, requests, shuffled), logit)


def test_recent_events_say_little_about_the_whole_history():
    dataset = generate("history", 1.0, 0, MEDIUM)
    positive = dataset.history.positive.copy()
    positive[:, :-10] = False
    recent = History(dataset.history.topics, positive)
    items, mask = dataset.requests.items, dataset.requests.mask
    lifts = [synthetic_truth.lift(dataset.world, items, history)[mask] for history in (dataset.history, recent)]
    assert 0.2 < np.corrcoef(lifts)[0, 1] < 0.55


@pytest.mark.parametrize("scenario", ["conflict", "set"])
def test_history_is_no_part_of_the_other_scenarios(scenario):
    dataset = generate(scenario, 1.0, 0, TINY)
    requests, history, logit = some_requests(dataset)
    without = History(history.topics, np.zeros_like(history.positive))
    np.testing.assert_array_equal(synthetic_truth.logits(dataset.world, requests, without), logit)


# === As the package reads it ===


def test_context_is_constant_and_the_past_is_over(tiny):
    folder, dataset = tiny
    context, times = {}, {}
    for row in table(folder / "log.csv.gz"):
        context.setdefault(row["request_id"], set()).add((row["user_id"], row["day"], row["device"], row["hour"]))
        times.setdefault(row["request_id"], []).append(int(row["time_ms"]))
    assert all(len(values) == 1 for values in context.values())
    in_order = [time for request in sorted(times) for time in times[request]]
    assert all(earlier < later for earlier, later in zip(in_order, in_order[1:], strict=False))
    for row in table(folder / "past.csv.gz"):
        assert int(row["until_ms"]) < in_order[0]
        shown = row["shown_items"].split()
        assert len(shown) == len(set(shown)) == TINY.past_events  # feedback is told by item: one event an item
        assert all(set(row[column].split()) <= set(shown) for column in synthetic.PAST_COLUMNS)
    assert len(table(folder / "past.csv.gz")) == dataset.sizes.users


def test_built_requests_know_what_the_truth_knew(tiny):
    folder, dataset = tiny
    requests, counts = plain_requests(load_spec(folder / "spec.yaml"), folder)
    assert {split: counts[f"{split}_requests"] for split in dataset.sizes.requests} == dataset.sizes.requests
    assert counts["impressions_read"] == dataset.requests.mask.sum()
    unwanted = ("duplicates_dropped", "impressions_without_item_row", "impressions_outside_splits")
    assert not any(counts[name] for name in (*unwanted, "requests_above_max_candidates", "events_within_past"))
    topics = {f"topic{number}": number for number in range(synthetic_truth.TOPICS)}
    for _, values in requests:
        r = int(values["request_id"][0].removeprefix("r"))
        mask = dataset.requests.mask[r]
        assert values["candidate_count"] == [mask.sum()]
        assert [topics[name] for name in values["topic"]] == dataset.world.topic[
            dataset.requests.items[r][mask]
        ].tolist()
        for k, task in enumerate(TASKS):
            assert values[f"label_{task}"] == dataset.labels[r][mask][:, k].tolist()
        seen = [topics[name] for name in values["shown_topic"]]
        assert seen == dataset.history.topics[r].tolist()
        assert values["shown_view"] == dataset.history.positive[r].tolist()
        assert len(values["liked_item"]) <= 10 and all(f in (0.0, 1.0) for f in values["shown_order"])
