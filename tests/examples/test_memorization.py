"""The experiment with canaries, in small: what is planted, what is counted, and that all of it runs."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import average_precision_score, precision_recall_curve

from examples.memorization.__main__ import POLICIES, command
from examples.memorization.detection import curve
from examples.memorization.planting import Settings, plant, stream
from examples.memorization.training import POLICIES as FOLDER
from examples.memorization.training import Scored
from gradwarden.cli.app import cli


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
    assert {canary.id: came[canary.id] for canary in planted.canaries} == {
        canary.id: canary.repetitions for canary in planted.canaries
    }
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


def test_precision_and_recall_are_those_of_scikit_learn():
    chance = random.Random(2)
    scored = [
        Scored(str(n), {"loss_ratio": chance.randrange(9) / 4}, chance.random() < 0.3, memorized=False)
        for n in range(80)
    ]
    found = curve("loss_ratio", scored, lambda one: one.extractable)
    true, values = [one.extractable for one in scored], [-one.signals["loss_ratio"] for one in scored]
    precision, recall, thresholds = precision_recall_curve(true, values)
    assert found.thresholds == thresholds[::-1].tolist()
    np.testing.assert_allclose(found.precision, precision[:-1][::-1])
    np.testing.assert_allclose(found.recall, recall[:-1][::-1])
    assert found.average == pytest.approx(average_precision_score(true, values))
    for place in (0, 3):
        assert found.at(found.thresholds[place]) == (found.precision[place], found.recall[place])
    assert found.recall_at(0.0) == 1.0


def test_the_experiment_runs_and_its_ledgers_can_be_asked(tmp_path):
    result = CliRunner().invoke(command, ["--quick", "--workers", "1", "--out", str(tmp_path / "out")])
    assert result.exception is None, result.output
    runs = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    assert [run["policy"] for run in runs] == list(POLICIES)
    learned = {
        run["policy"]: {level["repetitions"]: level["learned"] for level in run["levels"]} for run in runs
    }
    assert learned["unguarded"] == {0: 0, 1: 1, 4: 4}
    assert learned["guarded"][4] == 2
    assert (tmp_path / "out/memorization.png").stat().st_size > 10_000
    folder = tmp_path / "out/runs/guarded"
    asked = ["--id", "canary-4", "--secret", str(folder / "run.secret"), "--key", str(folder / "run.pub")]
    told = CliRunner().invoke(cli, ["memorized", str(folder / "run.ledger"), *asked])
    assert told.exit_code == 0, told.output
    assert "flagged by two_epochs (in force)" in told.stdout
    assert "stopped: learned from 0 times since it was first flagged" in told.stdout


@pytest.mark.parametrize("policy", POLICIES)
def test_its_policies_are_checked(policy):
    path = str(FOLDER / f"{policy}.policy")
    for verb in (["check", "--strict"], ["fmt", "--check"]):
        result = CliRunner().invoke(cli, [*verb, path])
        assert result.exit_code == 0, result.output
