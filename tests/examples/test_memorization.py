"""The experiment with canaries, in small: what is planted, what is counted, and that all of it runs."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import average_precision_score, precision_recall_curve

from examples.memorization.__main__ import POLICIES, command
from examples.memorization.confidence import levels, never_seen
from examples.memorization.detection import combined, curve
from examples.memorization.planting import Settings, plant, stream
from examples.memorization.training import POLICIES as FOLDER
from examples.memorization.training import Kept, Run
from examples.memorization.unseen import cost_rows, traces
from gradwarden.cli.app import cli
from gradwarden.policy import Context, compile_policy, load_policy
from gradwarden.runtime.memorization.manifest import Manifest


@pytest.fixture(scope="module")
def planted():
    return plant(Settings.quick(), 3)


def test_code_comes_once_an_epoch_and_canaries_as_often_as_planned(planted):
    settings = Settings.quick()
    batches = list(stream(planted, settings, 5))
    came = Counter(name for batch in batches for name in batch.ids)
    assert {name: came[name] for name in came if name.startswith("code")} == {
        f"code-{number}": settings.epochs for number in range(settings.windows)
    }
    for canary in planted.canaries:
        ids = Counter(name for name in came.elements() if name.split(".")[0] == canary.id)
        assert ids.total() == canary.repetitions
        assert canary.kind != "copies" or set(ids.values()) == {1}
    texts = planted.texts()
    for batch in batches:
        assert all(
            bool((row == texts[name]).all()) for name, row in zip(batch.ids, batch.tokens, strict=True)
        )


def test_a_canary_differs_from_its_other_fillings_in_the_secret_alone(planted):
    asked = Settings.quick().asked
    for canary in planted.canaries:
        differs = (canary.others != canary.window).any(dim=0)
        assert not differs[: asked.prefix].any()
        assert not differs[asked.end :].any()
        assert (
            (canary.others[:, asked.prefix : asked.end] != canary.window[asked.prefix : asked.end])
            .any(1)
            .all()
        )


def test_copies_of_a_canary_differ_and_are_one_cluster(planted):
    clusters = planted.clusters()
    (copied,) = [canary for canary in planted.canaries if canary.kind == "copies"]
    assert len({tuple(window.tolist()) for _, window in copied.comings}) == copied.repetitions
    assert {clusters[name] for name, _ in copied.comings} == {copied.id}


def test_precision_and_recall_are_those_of_scikit_learn():
    chance = np.random.default_rng(2)
    true, values = chance.random(80) < 0.3, chance.integers(0, 9, 80) / 4
    found = curve("recital", values, true)
    precision, recall, thresholds = precision_recall_curve(true, values)
    assert found.thresholds == thresholds[::-1].tolist()
    np.testing.assert_allclose(found.precision, precision[:-1][::-1])
    np.testing.assert_allclose(found.recall, recall[:-1][::-1])
    assert found.average == pytest.approx(average_precision_score(true, values))
    for place in (0, 3):
        assert found.at(found.thresholds[place]) == (found.precision[place], found.recall[place])
    assert found.recall_at(0.0) == 1.0
    assert found.base == true.mean()


def test_the_combination_is_judged_on_what_it_was_not_fitted_to():
    """An example's own number is its only signal: whoever was fitted to it would know the truth."""
    chance = np.random.default_rng(3)
    true, clusters = chance.random(200) < 0.5, [str(number) for number in range(200)]
    noise = np.eye(200)
    for runs in ([0] * 200, [0] * 100 + [1] * 100):
        found = combined(noise, true, runs, clusters)
        assert average_precision_score(true, found) < 0.65
        told = combined(true[:, None].astype(float), true, runs, clusters)
        assert average_precision_score(true, told) == 1.0


def test_canaries_that_never_came_lie_within_their_interval_and_known_ones_above():
    low, high = never_seen(16, 127)
    means = exact_means(16, 127)
    assert np.mean((means >= low) & (means <= high)) == pytest.approx(0.95, abs=0.02)
    chance = random.Random(4)
    unseen = [math.log2(128 / chance.randint(1, 128)) for _ in range(48)]
    kept = [Kept(f"c-{n}", "letters", 0, 0.0, bits, 0, 0.0) for n, bits in enumerate(unseen)]
    kept += [Kept(f"d-{n}", "letters", 4, 1.0, 7.0, 4, 30.0) for n in range(6)]
    never, known = levels([Run("guarded", 0, kept, 1.0, 0, 0, 1, 1.0, 0.0, [])], 127)
    assert not never.known
    assert known.known
    assert str(known) == "100%, 7.0 (7.0-7.0) *"
    assert known.extracted_within[0] == pytest.approx(0.61, abs=0.01)  # Wilson: 6 / (6 + 1.96^2)


def exact_means(count, fillings):
    """Return draws of the mean exposure of canaries that never came, each ranked among others at random."""
    chance = np.random.default_rng(9)
    bits = chance.random((4_000, count, 1)), chance.random((4_000, count, fillings))
    ranks = 1 + (bits[1] <= bits[0]).sum(axis=2)
    return np.log2((fillings + 1) / ranks).mean(axis=1)


def test_the_experiment_runs_and_its_ledgers_can_be_asked(planted, tmp_path):
    asked = ["--quick", "--workers", "1", "--seed", "3", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(command, asked)
    assert result.exception is None, result.output
    runs = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    assert [(run["policy"], run["seed"], run["unseen"]) for run in runs] == [
        (name, 3, unseen)
        for name, twin in POLICIES.items()
        for unseen in ([False, True] if twin else [False])
    ]
    assert not any(one["learned"] for run in runs if run["unseen"] for one in run["canaries"])
    learned = {
        (run["policy"], one["kind"], one["repetitions"]): one["learned"]
        for run in runs
        if not run["unseen"]
        for one in run["canaries"]
    }
    assert [learned["unguarded", "letters", times] for times in (0, 1, 4)] == [0, 1, 4]
    assert learned["unguarded", "copies", 4] == 4
    assert learned["guarded", "words", 4] == learned["guarded", "copies", 4] == 1
    settings = Settings.quick()
    came = sum(canary.repetitions for canary in planted.canaries)
    for name, times in (("unguarded-3", came), ("unguarded-3-unseen", 0)):
        manifest = Manifest.read(tmp_path / "out/runs" / name / "run.ledger").to_json()
        assert manifest["exposures"] == settings.epochs * settings.windows + times
    assert (tmp_path / "out/memorization.png").stat().st_size > 10_000
    repeated = [one.id for one in planted.canaries if (one.kind, one.repetitions) == ("words", 4)]
    told = asks(tmp_path / "out/runs/guarded-3", repeated[0])
    assert "flagged by again, odd (in force)" in told
    assert "stopped: learned from 0 times since it was first flagged" in told


def kept_runs(advantages, exposures, unseen):
    """Return a run for each seed, with canaries that came four times."""
    return [
        Run(
            "guarded", seed,
            [Kept(f"c-{n}", "words", 4, 0.0, e, 1, a) for n, (a, e) in enumerate(zip(*both, strict=True))],
            1.0, 0, 0, 1, 1.0, 0.0, [], unseen,
        )
        for seed, both in enumerate(zip(advantages, exposures, strict=True))
    ]  # fmt: skip


def test_a_canary_is_compared_with_itself_and_not_with_others():
    """Some fillings are far likelier than others from the start; what was learned is told all the same."""
    chance = np.random.default_rng(6)
    unseen, ranks = chance.normal(0, 9, (2, 12)), chance.uniform(0, 7, (2, 12))
    taught = unseen + 0.5 + chance.normal(0, 0.1, unseen.shape)
    twins = kept_runs(unseen.tolist(), ranks.tolist(), unseen=True)
    every, fourfold = traces([*kept_runs(taught.tolist(), ranks.tolist(), unseen=False), *twins])
    assert (every.repetitions, fourfold.repetitions, every.count) == (None, 4, 24)
    assert every.learned == fourfold.learned
    assert every.learned.value == pytest.approx(0.5, abs=0.1)
    assert every.learned.known
    assert every.learned.within[1] - every.learned.within[0] < 0.2
    assert str(every.more_exposure) == "+0.00 (+0.00 to +0.00)"
    (same, _) = traces([*kept_runs(unseen.tolist(), ranks.tolist(), unseen=False), *twins])
    assert not same.learned.known


def test_the_cost_of_guards_is_told_with_canaries_and_without():
    def run(policy, held_out, unseen):
        return Run(policy, 0, [], held_out, 0, 0, 1, 1.0, 0.0, [], unseen)

    plain, guarded, alone = cost_rows(
        [
            run("unguarded", 2.0, False),
            run("unguarded", 1.9, True),
            run("guarded", 1.96, False),
            run("guarded", 1.938, True),
            run("goldfish", 2.1, False),
        ]
    )
    assert plain["cost with canaries, %"] == plain["cost on code alone, %"] == "+0.0 (+0.0 to +0.0)"
    assert alone["cost on code alone, %"] == ""
    assert guarded["cost with canaries, %"] == "-2.0 (-2.0 to -2.0)"
    assert guarded["cost on code alone, %"] == "+2.0 (+2.0 to +2.0)"


def asks(folder, name):
    """Return what a ledger tells of an example."""
    asked = ["--id", name, "--secret", str(folder / "run.secret"), "--key", str(folder / "run.pub")]
    told = CliRunner().invoke(cli, ["memorized", str(folder / "run.ledger"), *asked])
    assert told.exit_code == 0, told.output
    return told.stdout


@pytest.mark.parametrize("policy", POLICIES)
def test_its_policies_are_checked(policy):
    path = str(FOLDER / f"{policy}.policy")
    for verb in (["check", "--strict"], ["fmt", "--check"]):
        result = CliRunner().invoke(cli, [*verb, path])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("epoch", "comings", "surprisal", "weight"),
    [
        (0, 0, 65.0, 1.0),  # odd, but early: what it leaves is forgotten
        (0, 3, 35.0, 1.0),  # boilerplate may come again
        (0, 1, 36.0, 0.0),
        (1, 1, 39.0, 1.0),
        (1, 1, 40.0, 0.25),
        (1, 2, 40.0, 0.0),
        (0, 0, 66.0, 0.0),
    ],
)
def test_the_guards_spare_boilerplate_and_stop_what_is_repeated_or_strange(epoch, comings, surprisal, weight):
    program = compile_policy(load_policy(FOLDER / "guarded.policy"))
    signals = {"comings": comings, "surprisal": surprisal}
    decision = program.decide({"source": "stdlib"}, Context(epoch=epoch, signals=signals))
    assert set(decision.weights.values()) == {weight}
