"""A governed run is tallied before it is closed, and a tally that is not what the run adds up to is found."""

from __future__ import annotations

from typing import Any

import pytest

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.evidence.prover import last_head
from gradwarden.runtime.evidence.receipt_check import check_receipt
from gradwarden.runtime.evidence.receipt_maker import make_receipt
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.ledger.keys import Signer


@pytest.fixture(scope="module")
def tallied(laboratory: Any, tmp_path_factory: pytest.TempPathFactory, run_signer: Signer) -> Any:
    """Examples e0 to e3 of kinds a, b, c, d; `e1` without consent; tallied twice, as a resumed run may be."""
    lab = laboratory(tmp_path_factory.mktemp("tallied"), run_signer)
    with lab.governor() as governor:
        for seed in range(3):
            lab.step(governor, lab.batch("aBcd"), seed=seed)
        governor.tally()
        lab.step(governor, lab.batch("b", prefix="late"))
        governor.tally()
    yield lab
    lab.close()


def test_owners_get_receipts_of_what_a_governor_did(tallied: Any) -> None:
    assert tallied.verify().ok
    path = tallied.path()
    committer = Committer.load(path.with_name(f"{path.name}.secret"))
    weights = {}
    for name in ("e0", "e1", "e2", "late0"):
        receipt = make_receipt(path, name, committer.salt(name), committer.commit(name), last_head(path))
        report = check_receipt(receipt, Trust([tallied.signer.public]))
        assert report.ok
        assert report.closed
        assert report.leaf is not None
        [use] = report.leaf["uses"]
        weights[name] = (use["decision"]["weights"], use["exposures"], use["decision"]["rules"])
    full = {"shallow": 1_000_000, "deep": 1_000_000}
    assert weights["e0"] == (full, 3, ["a"])
    assert weights["e1"] == ({"shallow": 0, "deep": 0}, 0, ["b", "no"])
    assert weights["e2"] == ({"shallow": 0, "deep": 0}, 0, [])
    assert weights["late0"] == ({"shallow": 500_000, "deep": 0}, 1, ["b"])


@pytest.mark.parametrize(("which", "field"), [(0, "uses"), (1, "examples"), (1, "commitments"), (1, "uses")])
def test_a_forged_tally_is_found_and_named(tallied: Any, which: int, field: str) -> None:
    def forge(entries: list[tuple[str, dict[str, Any]]]) -> None:
        body = [body for kind, body in entries if kind == "tallied"][which]
        body[field] = body[field] + 1 if field == "examples" else "00" * 32

    name = f"forged {which} {field}"
    report = tallied.forge(forge, target=name)
    assert report.status == "VIOLATION"
    [finding] = [finding for finding in report.findings if finding.severity == "error"]
    assert finding.code == "wrong_tally"
    assert tallied.entries(name)[finding.index].kind == "tallied"


def test_a_run_is_tallied_between_steps_and_not_without_end(tallied: Any) -> None:
    def within(entries: list[tuple[str, dict[str, Any]]]) -> None:
        place = next(at for at, (kind, _) in enumerate(entries) if kind == "step")
        entries.insert(place + 1, next(entry for entry in entries if entry[0] == "tallied"))

    def many(entries: list[tuple[str, dict[str, Any]]]) -> None:
        place = next(at for at, (kind, _) in enumerate(entries) if kind == "tallied")
        entries[place:place] = [entries[place]] * 8

    for number, change in enumerate((within, many)):
        codes = [finding.code for finding in tallied.forge(change, target=f"odd {number}").findings]
        assert "wrong_tally" in codes
