"""`gradwarden replay`: segments are executed again by the trainer's code, as many as a challenge chooses."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime.evidence.prover import read_head, root_over
from gradwarden.runtime.evidence.trust import Quorum, Trust
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.cosignature import cosign, witness_key
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.note import Checkpoint, NoteSignature, parse_note, sign_note
from gradwarden.runtime.reexecution import segments
from gradwarden.runtime.reexecution.challenge import challenge_of_note
from gradwarden.runtime.reexecution.segments import find_segments
from tests.cli.conftest import Run

TRAINING = """
import random
from datetime import date
from pathlib import Path

import torch
from torch import nn

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.runtime import Governor, Ledger, ModelMap, Signer
from gradwarden.runtime.reexecution.reexecute import Rebuilt

POLICY = '''policy small version 1 language 1
examples { kind : one of a, b }
model { shallow = top 40%  deep = rest }
depth a { when kind == a  reach all }
depth b { when kind == b  reach shallow at 0.5 }
'''


def parts():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.25), nn.Linear(6, 3)).double()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(governor, steps, forged=None):
    for step in steps:
        batch = [{"id": f"{kind}{step}", "kind": kind} for kind in "ab"]
        with governor.step(batch) as proposal:
            seed = step if step != forged else 99
            inputs = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            proposal.backward((governor.model(inputs) - 1).square().sum(1) * random.random())


def run(key, forged=None):
    model, optimizer = parts()
    random.seed(0)
    program = compile_policy(parse_policy(POLICY), ModelMap.from_module(model))
    ledger = Ledger.open("run.ledger", Signer.load(key), durability="os")
    with Governor(program, model, optimizer, ledger=ledger, clock=lambda: date(2026, 1, 31)) as governor:
        governor.checkpoint("0.safetensors", state=True)
        for at in range(0, 6, 2):
            train(governor, range(at, at + 2), forged)
            governor.checkpoint(f"{at + 2}.safetensors", state=True)
        train(governor, range(6, 7))


def rebuild():
    return Rebuilt(*parts(), train)


def nothing():
    return None


def broken():
    raise ValueError("no data")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with an honest run and a forged one, and the code that made them."""
    namespace: dict[str, Any] = {}
    exec(TRAINING, namespace)
    signer, before = Signer.generate("run"), Path.cwd()
    folders = {}
    for name, forged in (("honest", None), ("forged", 3)):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        signer.save(folder / "run.key")
        signer.public.save(folder / "run.pub")
        (folder / "replayed_training.py").write_text(TRAINING)
        os.chdir(folder)
        namespace["run"]("run.key", forged)
    os.chdir(before)
    return folders


REPLAY = ("replay", "run.ledger", "--key", "run.pub", "--using")


def test_an_honest_run_is_equal_to_the_bit(
    run: Run, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained["honest"])
    result = run(*REPLAY, "replayed_training:rebuild")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("equal to the bit") == 3
    assert "3 of 3 segments" in result.stdout
    assert "1 of 7 steps lie in no segment" in result.stdout
    result = run(*REPLAY, "replayed_training:rebuild", "--tolerance", "1e-9", "--format", "json")
    document = json.loads(result.stdout)
    assert document["ok"]
    assert document["chance_of_one_forged"] == 1.0
    assert [found["difference"] for found in document["executed"]] == [0.0, 0.0, 0.0]


def test_a_forged_segment_is_caught_where_the_challenge_meets_it(
    run: Run, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained["forged"])
    assert run("verify", "run.ledger", "--key", "run.pub").exit_code == 0
    met = []
    for seed in range(4):
        result = run(
            *REPLAY, "replayed_training:rebuild", "--segments", 1, "--challenge", seed, "--format", "json"
        )
        document = json.loads(result.stdout)
        assert document["chance_of_one_forged"] == pytest.approx(1 / 3)
        (found,) = document["executed"]
        assert found["ok"] == (found["segment"] != 1) == (result.exit_code == 0)
        met.append(found["segment"])
    assert len(set(met)) > 1
    result = run(*REPLAY, "replayed_training:rebuild", "--segments", 3, "--challenge", "head")
    assert result.exit_code == 1
    assert "error[other_steps]: step 3, taken again, has another `outcome` than recorded" in result.stderr


def test_a_note_chooses_only_as_a_head_of_the_ledger_that_is_cosigned_as_asked(
    run: Run, trained: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained["honest"])
    ann, ben = Signer.generate("ann"), Signer.generate("ben")
    for witness in (ann, ben):
        witness_key(witness).save(here / f"{witness.name}.pub")
    head = Path("run.ledger.head").read_bytes()
    cosigned = cosign(head, ann, 1_700_000_000)
    opened = read_head(head).checkpoint
    early = Checkpoint(opened.origin, 20, root_over("run.ledger", 20))
    notes = {
        "head": head,
        "cosigned": cosigned,
        "padded": cosigned + b"\xe2\x80\x94 x AAAAAAAAAAAAAAAA\n",
        "later": cosign(head, ann, 1_700_000_001),
        "early": sign_note(early.text(), [Signer.load("run.key")]).encode(),
        "foreign": sign_note("elsewhere\n5\n" + head.decode().split("\n")[2] + "\n", [ann]).encode(),
        "broken": cosigned[:-8] + b"AAAA" + cosigned[-4:],
    }
    for name, note in notes.items():
        (here / name).write_bytes(note)

    def chosen(name: str, *witnesses: str) -> Any:
        options = [part for witness in witnesses for part in ("--witness", here / f"{witness}.pub")]
        command = (*REPLAY, "replayed_training:rebuild", "--segments", 1, "--challenge", here / name)
        return run(*command, *options, "--format", "json")

    plain, word = chosen("cosigned", "ann"), json.loads
    assert plain.exit_code == 0
    assert word(plain.stdout)["challenge"] == {"from": "note", "witnesses": ["ann"]}
    assert word(chosen("padded", "ann").stdout)["executed"] == word(plain.stdout)["executed"]
    assert word(chosen("head").stdout)["challenge"] == {"from": "note", "witnesses": []}
    for name, witnesses, message in (
        ("head", ("ann",), "not cosigned by the witnesses asked for"),
        ("cosigned", ("ben",), "not cosigned by the witnesses asked for"),
        ("foreign", (), "no head of the ledger"),
        ("early", (), "covers 20 entries, and segment"),
        ("broken", ("ann",), "proves nothing"),
    ):
        refused = chosen(name, *witnesses)
        assert (refused.exit_code, message in refused.stderr) == (2, True), (name, refused.stderr)


def test_exchanged_weights_are_told_whatever_is_chosen(
    run: Run, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained["honest"])
    found = replace(find_segments("run.ledger"), jumps=(Finding("other_weights", 9, "no step lies between"),))
    monkeypatch.setattr(segments, "find_segments", lambda _: found)
    asked = (*REPLAY, "replayed_training:rebuild", "--segments", 1, "--challenge", "x")
    told = run(*asked)
    assert (told.exit_code, "error[other_weights]: no step lies between" in told.stderr) == (1, True)
    document = json.loads(run(*asked, "--format", "json").stdout)
    assert (document["ok"], document["executed"][0]["ok"], document["jumps"][0]["index"]) == (False, True, 9)


def test_lines_that_a_trainer_adds_in_the_name_of_a_witness_choose_nothing(trained: dict[str, Path]) -> None:
    ledger, ann = trained["honest"] / "run.ledger", Signer.generate("ann")
    trust = Trust([PublicKey.load(trained["honest"] / "run.pub")], Quorum(1, (witness_key(ann),)))
    head = Path(f"{ledger}.head").read_bytes()
    facts = {"keys_used": [], "origin": read_head(head).checkpoint.origin}
    cosigned = cosign(head, ann, 1_700_000_000)
    wanted = challenge_of_note(ledger, cosigned, trust, facts, ())
    assert wanted.witnesses == ("ann",)
    for added in (bytes(72), parse_note(cosign(head, ann, 1_700_000_001)).signatures[-1].signature):
        line = NoteSignature("ann", witness_key(ann).key_id, added).line()
        assert challenge_of_note(ledger, cosigned + line.encode(), trust, facts, ()) == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("replayed_training:rebuild", "--segments", "2"), "needs a --challenge"),
        (("replayed_training:rebuild", "--segments", "0", "--challenge", "x"), "a number from 1 on"),
        (("replayed_training",), "is not MODULE:FUNCTION"),
        (("replayed_training:nothing",), "not a `Rebuilt`"),
        (("replayed_training:broken",), "no data"),
        (("replayed_training:missing",), "has no `missing`"),
        (("replayed_training:rebuild", "--secret", "absent"), "absent"),
    ],
)
def test_misuse_is_told(
    run: Run,
    trained: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(trained["honest"])
    result = run(*REPLAY, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_ledger_that_does_not_hold_is_not_executed(
    run: Run, trained: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run.pub", "replayed_training.py"):
        (here / name).write_bytes((trained["honest"] / name).read_bytes())
    content = (trained["honest"] / "run.ledger").read_bytes()
    (here / "run.ledger").write_bytes(content.replace(b'"loss":"', b'"loss":"1', 1))
    result = run(*REPLAY, "replayed_training:rebuild")
    assert result.exit_code == 2
    assert "is TAMPERED" in result.stderr
