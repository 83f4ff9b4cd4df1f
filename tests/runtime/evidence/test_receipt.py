"""A receipt tells the owner of one example what became of it, holds only if it is true, and names nobody."""

from __future__ import annotations

import random
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from gradwarden.runtime.errors import EvidenceError, GradwardenError, HeadMismatch
from gradwarden.runtime.evidence.hash_tree import HashTree
from gradwarden.runtime.evidence.prover import last_head
from gradwarden.runtime.evidence.receipt import Place, Receipt, parse_receipt
from gradwarden.runtime.evidence.receipt_check import ReceiptReport, check_receipt
from gradwarden.runtime.evidence.receipt_maker import make_receipt, read_under
from gradwarden.runtime.evidence.tally import tally_ledger
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.ledger.entries import CANONICAL
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.merkle import inclusion_proof, leaf_hash, tree_root
from tests.runtime.provenance.small_runs import BANDS, COMMITTER, Writer, commitment, read_uses, write_run


@pytest.fixture(scope="module")
def tallied(tmp_path_factory: pytest.TempPathFactory, signer: Signer) -> Path:
    return write_run(tmp_path_factory.mktemp("tallied") / "run.ledger", signer, seed=4, tallied=True)


@pytest.fixture
def trust(signer: Signer) -> Trust:
    return Trust([signer.public])


def receipt_of(path: Path, example: str, **options: Any) -> Receipt:
    salt, own = COMMITTER.salt(example), COMMITTER.commit(example)
    return make_receipt(path, example, salt, own, last_head(path), **options)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13, 100])
def test_a_tree_in_memory_gives_the_paths_of_the_definition(size: int) -> None:
    leaves = [leaf_hash(b"%d" % number) for number in range(size)]
    tree = HashTree(b"".join(leaves))
    assert tree.root() == tree_root(leaves)
    assert [tree.path(index) for index in range(size)] == [inclusion_proof(leaves, i) for i in range(size)]


@pytest.mark.parametrize("number", range(0, 12, 2))
def test_a_receipt_tells_every_use_with_its_depth_and_policy(
    tallied: Path, trust: Trust, number: int
) -> None:
    receipt = receipt_of(tallied, f"e{number}", entries=True)
    report = check_receipt(parse_receipt(receipt.encode()), trust)
    assert report.faults == ()
    own = [use for use in read_uses(tallied) if use.commitment == commitment(number).hex()]
    learned = [use.step for use in own if use.learned]
    assert report.leaf is not None
    assert report.closed
    assert report.leaf["exposed"] == ([learned[0], learned[-1]] if learned else None)
    told = Counter[tuple[str, tuple[int, ...]]]()
    exposures = 0
    for use in report.leaf["uses"]:
        weights = tuple(use["decision"]["weights"][band] for band in BANDS)
        told[use["decision"]["verdict"], weights] += use["times"]
        exposures += use["exposures"]
        assert use["decision"]["policy"] == report.opened["policy"]["digest"]
    assert told == Counter((use.decision["verdict"], tuple(use.decision["weights"])) for use in own)
    assert exposures == len(learned)
    assert sorted(step for use in report.leaf["uses"] for step in use["learned"]) == learned
    assert sorted(step for use in report.leaf["uses"] for step in (*use["learned"], *use["other"])) == [
        use.step for use in own
    ]
    assert report.steps is not None
    assert [(step.step, step.entry) for step in report.steps] == sorted(
        {(use.step, use.entry) for use in own}
    )
    assert sum(step.times for step in report.steps) == len(own)
    outcomes = {use.step: use.outcome.replace("lost", "resumed") for use in own}
    assert {step.step: step.outcome for step in report.steps} == outcomes


def test_a_receipt_without_entries_names_nobody_else(tallied: Path, trust: Trust) -> None:
    """Neither the commitment of another example nor any entry of a step is in it."""
    text = receipt_of(tallied, "e3").encode().decode()
    assert check_receipt(parse_receipt(text.encode()), trust).leaf is not None
    others = [commitment(number) for number in range(12) if number != 3]
    assert not any(one.hex() in text or b64encode(one).decode()[:40] in text for one in others)
    assert '"step":' not in text


def test_absence_is_shown_by_two_neighbours_that_mean_nothing(tallied: Path, trust: Trust) -> None:
    for number in range(100, 112):
        receipt = receipt_of(tallied, f"e{number}")
        report = check_receipt(parse_receipt(receipt.encode()), trust)
        assert (report.ok, report.used, report.leaf) == (True, False, None)
        assert report.examples == 12
        assert receipt.absent is not None


def test_a_used_example_cannot_be_shown_to_be_absent(tallied: Path, trust: Trust) -> None:
    """Whatever neighbours are given."""
    sorted_names = sorted(range(12), key=commitment)
    away = [receipt_of(tallied, f"e{number}") for number in range(100, 112)]
    for number in range(0, 12, 3):
        own = receipt_of(tallied, f"e{number}")
        assert own.listed is not None
        assert own.listed.index == sorted_names.index(number)
        place, value = own.listed.index, int.from_bytes(commitment(number), "big")
        made_up = [
            Place(place - 1 + after, (), (value - 1 + 2 * after).to_bytes(32, "big")) for after in (0, 1)
        ]
        pairs = [other.absent for other in away if other.absent is not None]
        mixed = [(before, after) for before, _ in pairs for _, after in pairs]
        for absent in (*dict.fromkeys(mixed), (made_up[0] if place else None, made_up[1])):
            forged = Receipt(own.id, own.salt, own.opened, own.tallied, own.closing, None, absent, None)
            assert "not_absent" in [fault.code for fault in check_receipt(forged, trust).faults]


def test_an_unused_example_cannot_be_listed(tallied: Path, trust: Trust) -> None:
    own, away = receipt_of(tallied, "e1"), receipt_of(tallied, "e100")
    forged = Receipt(away.id, away.salt, own.opened, own.tallied, own.closing, own.listed, None, None)
    assert [fault.code for fault in check_receipt(forged, trust).faults] == ["wrong_leaf"]
    assert own.listed is not None
    leaf = {**orjson.loads(own.listed.leaf), "commitment": commitment(100).hex()}
    renamed = Place(own.listed.index, own.listed.path, orjson.dumps(leaf, option=CANONICAL))
    forged = Receipt(away.id, away.salt, own.opened, own.tallied, own.closing, renamed, None, None)
    assert [fault.code for fault in check_receipt(forged, trust).faults] == ["not_listed"]


def changed(value: Any, chance: random.Random) -> Any:
    """Return JSON data with one thing in it changed."""
    match value:
        case dict() if value:
            name = chance.choice(sorted(value))
            return {**value, name: changed(value[name], chance)}
        case list() if value:
            at = chance.randrange(len(value))
            return [
                *value[:at],
                *([] if chance.random() < 0.3 else [changed(value[at], chance)]),
                *value[at + 1 :],
            ]
        case str() if value:
            at = chance.randrange(len(value))
            return value[:at] + chance.choice("0af9A\n") + value[at + 1 :]
        case int():
            return value + chance.choice([-1, 1])
        case _:
            return chance.choice([None, 0, "", {}, []])


@pytest.mark.parametrize("example", ["e2", "e100"])
def test_no_changed_receipt_says_anything_else(tallied: Path, trust: Trust, example: str) -> None:
    """Each of many changes is refused, or leaves what is shown as it was."""
    chance = random.Random(example)
    receipt = receipt_of(tallied, example, entries=True)
    before = check_receipt(receipt, trust)
    refused = 0
    for _ in range(150):
        told = changed(orjson.loads(receipt.encode()), chance)
        try:
            again = parse_receipt(orjson.dumps(told, option=CANONICAL) + b"\n")
            report = check_receipt(again, trust)
        except GradwardenError:
            refused += 1
            continue
        if not report.ok:
            refused += 1
        else:
            assert shown(report, again) == shown(before, receipt)
    assert refused > 100


def shown(report: ReceiptReport, receipt: Receipt) -> tuple[Any, ...]:
    """What a receipt shows. That an id was not used is shown of whatever commitment its salt gives."""
    steps = report.steps if report.steps is None else [step.step for step in report.steps]
    own = receipt.commitment if report.used else None
    return own, report.used, report.leaf, report.examples, steps, report.opened


def test_steps_that_were_left_out_are_missed(tallied: Path, trust: Trust) -> None:
    own = receipt_of(tallied, "e2", entries=True)
    assert own.entries is not None
    fewer = type(own.entries)(own.entries.proofs, own.entries.uses[1:])
    forged = Receipt(own.id, own.salt, own.opened, own.tallied, own.closing, own.listed, None, fewer)
    assert [fault.code for fault in check_receipt(forged, trust).faults] == ["incomplete"]


def test_a_run_without_a_tally_gives_entries_alone(tmp_path: Path, signer: Signer, trust: Trust) -> None:
    path = write_run(tmp_path / "run.ledger", signer, seed=4)
    with pytest.raises(EvidenceError, match="was not tallied"):
        receipt_of(path, "e2")
    report = check_receipt(receipt_of(path, "e2", entries=True), trust)
    assert (report.ok, report.used, report.examples) == (True, True, None)
    nothing = check_receipt(receipt_of(path, "e100", entries=True), trust)
    assert (nothing.ok, nothing.used, nothing.steps) == (True, False, ())


def test_no_receipt_is_made_from_a_wrong_tally_or_another_ledger(
    tmp_path: Path, signer: Signer, tallied: Path
) -> None:
    writer = Writer(tmp_path / "lying.ledger", signer, 0)
    writer.train(5)
    writer.ledger.flush()
    body = tally_ledger(writer.path).body()
    writer.train(5)
    writer.ledger.append("tallied", body)
    writer.ledger.close()
    with pytest.raises(EvidenceError, match="not what its entries add up to"):
        receipt_of(writer.path, "e2")
    with pytest.raises(HeadMismatch):
        make_receipt(writer.path, "e2", bytes(32), bytes(32), last_head(tallied))


USE = {
    "decision": {"policy": "ab", "rules": [], "verdict": "admit", "weights": {"deep": 1}},
    "exposures": 2,
    "learned": [0, 1],
    "other": [4],
    "times": 3,
}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"exposed": ["first", "last"]}, "wrong_leaf"),
        ({"exposed": 5}, "wrong_leaf"),
        ({"exposed": None}, "wrong_leaf"),
        ({"exposed": [0, 2]}, "wrong_leaf"),
        ({"exposed": None, "uses": [{**USE, "exposures": 0, "learned": [], "times": 1}]}, None),
        ({"uses": [{**USE, "exposures": 3}]}, "wrong_leaf"),
        ({"uses": [{**USE, "times": 2}]}, "wrong_leaf"),
        ({"uses": [{**USE, "learned": [1, 0]}]}, "wrong_leaf"),
        ({"uses": [{**USE, "learned": [0, "1"]}]}, "wrong_leaf"),
        ({"uses": [{**USE, "other": None}]}, "wrong_leaf"),
        ({"uses": [{**USE, "exposures": 1, "learned": [0], "times": 2}]}, "wrong_leaf"),
        ({"uses": {}}, "wrong_leaf"),
        ({"uses": [{**USE, "decision": 1}]}, "wrong_leaf"),
        ({"uses": [{**USE, "decision": {**USE["decision"], "weights": {"deep": "much"}}}]}, "wrong_leaf"),
        ({"uses": [{**USE, "decision": {**USE["decision"], "rules": [1]}}]}, "wrong_leaf"),
    ],
)
def test_a_leaf_that_only_a_lying_trainer_signs_is_told(
    tmp_path: Path, signer: Signer, trust: Trust, change: Any, code: str | None
) -> None:
    """Whoever has the key can put any text in a tally."""
    commitment = COMMITTER.commit("e2")
    told = {"commitment": commitment.hex(), "exposed": [0, 1], "uses": [USE], **change}
    leaf = orjson.dumps(told, option=CANONICAL)
    writer = Writer(tmp_path / "run.ledger", signer, 0)
    roots = {"commitments": leaf_hash(commitment).hex(), "uses": leaf_hash(leaf).hex()}
    writer.ledger.append("tallied", {"examples": 1, **roots})
    writer.ledger.close()
    covered = read_under(writer.path, last_head(writer.path), ())
    assert covered.tally is not None
    proofs = covered.prove(0), covered.prove(covered.tally)
    receipt = Receipt("e2", COMMITTER.salt("e2"), *proofs, (), Place(0, (), leaf), None, None)
    report = check_receipt(parse_receipt(receipt.encode()), trust)
    assert [fault.code for fault in report.faults] == ([] if code is None else [code])


def test_a_run_that_went_on_after_its_tally_is_not_called_closed(
    tmp_path: Path, signer: Signer, trust: Trust
) -> None:
    path = write_run(tmp_path / "run.ledger", signer, sealed=False, tallied=True)
    report = check_receipt(receipt_of(path, "e2"), trust)
    assert (report.ok, report.closed) == (True, False)
