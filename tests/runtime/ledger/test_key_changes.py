"""Keys that are handed over and revoked: the chain of keys holds, and every way of cheating is located."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime import Ledger, Signer
from gradwarden.runtime.errors import EntryInvalid, LedgerError, LedgerRollback, NoteError
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.evidence.witnessed import compare_notes
from gradwarden.runtime.ledger.chain import ChainReport, run_links, verify_chain
from gradwarden.runtime.ledger.entries import compose, decode, encode_body
from gradwarden.runtime.ledger.key_changes import (
    KeyChange,
    Revocation,
    Rotation,
    parse_change,
    sign_change,
)
from gradwarden.runtime.ledger.links import Links
from gradwarden.runtime.ledger.merkle import Tree, leaf_hash
from gradwarden.runtime.ledger.note import Checkpoint, parse_checkpoint, parse_note, sign_note
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.verification.verify import verify_ledger

Forge = Callable[[Checkpoint], str]


@pytest.fixture(scope="module")
def third() -> Signer:
    return Signer.generate("third")


def write_steps(ledger: Ledger, cases: Any, steps: range) -> None:
    for step in steps:
        ledger.append("step", cases.step(step))
        ledger.append("committed", cases.committed(step))


@pytest.fixture
def rotated(path: Path, cases: Any, signer: Signer, other: Signer) -> Path:
    """A sealed ledger: `run` signs the head at 3 and hands over in 4; `other` signs the rest."""
    ledger = cases.begin(path, signer)
    write_steps(ledger, cases, range(1))
    ledger.rotate(other)
    write_steps(ledger, cases, range(1, 3))
    ledger.close(cases.seal)
    return path


def kinds(path: Path) -> list[str]:
    return [entry.kind for entry in read_entries(path)]


def signers(path: Path) -> list[tuple[int, list[str]]]:
    """Return the index of each head, and the names of its signers."""
    heads = [entry for entry in read_entries(path) if entry.kind == "head"]
    return [(e.index, [s.name for s in parse_note(e.body["note"].encode()).signatures]) for e in heads]


def check(path: Path, *keys: Signer) -> ChainReport:
    """Verify a ledger both ways, block by block and line by line."""
    report = verify_chain(path, [key.public for key in keys])
    links = Links([key.public for key in keys])
    run_links(links, path)
    assert (links.size, links.tree.root().hex()) == (report.size, report.root)
    assert tuple(links.authority.changes) == report.changes
    return report


def fault(report: ChainReport) -> tuple[str, int | None, str]:
    error = next(finding for finding in report.findings if finding.severity == "error")
    return report.status, report.first_bad, error.code


def resigned(path: Path, sign: dict[int, Forge | Sequence[Signer]], cut: int | None = None) -> Path:
    """Chain a ledger anew, with the notes at some indices made otherwise, as holders of keys could."""
    prev, tree, out = "0" * 64, Tree(), []
    origin = ""
    for index, line in enumerate(path.read_bytes().split(b"\n")[:-1][:cut]):
        _, kind, _, body = decode(line)
        origin = body["origin"] if index == 0 else origin
        if index in sign:
            place, how = Checkpoint(origin, index, tree.root()), sign[index]
            body = {"note": how(place) if callable(how) else sign_note(place.text(), how)}
        line = compose(kind, index, prev, encode_body(kind, body))
        prev = leaf_hash(line).hex()
        tree.append(bytes.fromhex(prev))
        out.append(line + b"\n")
    path.write_bytes(b"".join(out))
    Path(f"{path}.head").unlink(missing_ok=True)
    return path


def test_the_first_key_is_enough_to_verify_what_others_signed(
    rotated: Path, signer: Signer, other: Signer
) -> None:
    assert kinds(rotated)[3:5] == ["rotated", "head"]
    assert signers(rotated) == [(4, ["other"]), (10, ["other"])]
    report = check(rotated, signer)
    assert (report.status, report.findings, report.signed_size) == ("OK", (), 10)
    assert report.keys_used == (signer.public.vkey, other.public.vkey)
    (change,) = report.changes
    assert isinstance(change.change, Rotation)
    assert (change.index, change.change.old, change.change.new) == (3, signer.public, other.public)


def test_the_last_key_is_enough_too_and_a_stranger_is_not(
    rotated: Path, other: Signer, third: Signer
) -> None:
    assert check(rotated, other).status == "OK"
    assert fault(check(rotated, third)) == ("UNTRUSTED", 4, "unknown_key")


def test_keys_are_handed_over_again_and_again(path: Path, cases: Any) -> None:
    keys = [Signer.generate(f"key-{number}") for number in range(5)]
    ledger = cases.begin(path, keys[0])
    for number, key in enumerate(keys[1:]):
        write_steps(ledger, cases, range(number, number + 1))
        ledger.rotate(key)
    ledger.close(cases.seal)
    for key in keys:
        assert check(path, key).status == "OK"


def test_a_run_goes_on_with_the_new_key_and_only_with_it(
    path: Path, cases: Any, signer: Signer, other: Signer
) -> None:
    ledger = cases.begin(path, signer)
    ledger.rotate(other)
    ledger.close()
    with pytest.raises(LedgerError, match="signed by another key than `run`"):
        Ledger.open(path, signer)
    Ledger.open(path, other).close(cases.seal)
    assert check(path, signer).status == "OK"


@pytest.mark.parametrize("keep", [0, 1])
def test_a_crash_between_the_hand_over_and_its_head_is_mended(
    path: Path, cases: Any, signer: Signer, other: Signer, keep: int
) -> None:
    cases.build(path, signer, steps=1, seal=False)
    sidecar = Path(f"{path}.head").read_bytes()
    ledger = Ledger.open(path, signer)
    ledger.rotate(other)
    ledger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    last = kinds(path).index("rotated")
    path.write_bytes(b"".join(lines[: last + 1]) + lines[last + 1][: keep * 40])
    Path(f"{path}.head").write_bytes(sidecar)
    for key in (signer, other):  # the head beside the ledger is the old key's, and was so rightly
        assert check(path, key).status == "INCOMPLETE"
    Ledger.open(path, other).close(cases.seal)
    assert check(path, signer).status == check(path, other).status == "OK"


def test_a_head_beside_the_ledger_by_the_old_key_is_no_head_of_what_came_after(
    rotated: Path, signer: Signer, other: Signer
) -> None:
    origin = verify_chain(rotated, []).origin or ""
    head = parse_checkpoint(parse_note(Path(f"{rotated}.head").read_bytes()).text)
    note = sign_note(Checkpoint(origin, head.size, head.root).text(), [signer])
    Path(f"{rotated}.head").write_text(note)
    assert fault(check(rotated, signer))[2] == "sidecar_signature"
    with pytest.raises(LedgerRollback):
        Ledger.open(rotated, other)


def begin(path: Path, cases: Any, signer: Signer, other: Signer) -> None:
    """Write the opening of a ledger that either key may sign."""
    with Ledger.open(path, signer, keys=[other.public]) as ledger:
        ledger.append("opened", {**cases.opened(ledger), "keys": ledger.vkeys})


def test_another_key_of_the_ledger_revokes_a_stolen_one(
    path: Path, cases: Any, signer: Signer, other: Signer, third: Signer
) -> None:
    begin(path, cases, signer, other)
    with Ledger.open(path, other, keys=[signer.public]) as ledger:
        index = ledger.revoke(signer.public, "the laptop was stolen")
        ledger.rotate(third)
    with pytest.raises(LedgerError, match="signed by another key"):
        Ledger.open(path, signer, keys=[other.public])
    Ledger.open(path, third, keys=[signer.public]).close(cases.seal)
    report = check(path, signer, other)
    assert report.status == "OK"
    change = report.changes[0].change
    assert isinstance(change, Revocation)
    assert (report.changes[0].index, change.revoked, change.by) == (index, signer.public, other.public)
    last = kinds(path).index("sealed") + 1
    assert fault(check(resigned(path, {last: [signer]}), signer, other)) == ("TAMPERED", last, "retired_key")


def test_what_a_key_of_the_ledger_signed_that_was_not_given_is_untrusted_and_not_tampered(
    path: Path, cases: Any, signer: Signer, other: Signer, third: Signer
) -> None:
    begin(path, cases, signer, other)
    with Ledger.open(path, other, keys=[signer.public]) as ledger:
        ledger.revoke(signer.public, "the laptop was stolen")
    Ledger.open(path, other, keys=[signer.public]).close(cases.seal)
    first, *later = [index for index, _ in signers(path)]
    assert [names for _, names in signers(path)] == [["run"], ["other"], ["other"]]
    report = check(path, signer)
    assert (fault(report), report.signed_size) == (("UNTRUSTED", later[0], "untrusted_key"), first)
    assert [finding.code for finding in report.findings] == ["untrusted_key"]
    for by_stranger in reversed(later):
        forged = resigned(path, {by_stranger: [third]})
        assert fault(check(forged, signer)) == ("TAMPERED", by_stranger, "unknown_key")


FORGERIES: dict[str, tuple[str, Callable[[Signer, Signer, Signer], Forge]]] = {
    "by the new key alone": (
        "unproved_key",
        lambda old, new, _: lambda p: sign_change(Rotation(p, old.public, new.public), (new,)),
    ),
    "by the old key alone": (
        "unproved_key",
        lambda old, new, _: lambda p: sign_change(Rotation(p, old.public, new.public), (old,)),
    ),
    "by neither": (
        "unproved_key",
        lambda old, new, x: lambda p: sign_change(Rotation(p, old.public, new.public), (x,)),
    ),
    "from a key that is none of the ledger's": (
        "undeclared_key",
        lambda _, new, x: lambda p: sign_change(Rotation(p, x.public, new.public), (x, new)),
    ),
    "to the same key": (
        "reused_key",
        lambda old, *_: lambda p: sign_change(Rotation(p, old.public, old.public), (old,)),
    ),
    "to the same key by another name": (
        "reused_key",
        lambda old, *_: lambda p: sign_change(*_renamed(p, old)),
    ),
    "from another place": (
        "wrong_size",
        lambda old, new, _: (
            lambda p: sign_change(
                Rotation(Checkpoint(p.origin, 2, p.root), old.public, new.public), (old, new)
            )
        ),
    ),
    "over other entries": (
        "wrong_root",
        lambda old, new, _: (
            lambda p: sign_change(
                Rotation(Checkpoint(p.origin, p.size, bytes(32)), old.public, new.public), (old, new)
            )
        ),
    ),
    "of another ledger": (
        "wrong_origin",
        lambda old, new, _: (
            lambda p: sign_change(
                Rotation(Checkpoint("elsewhere", p.size, p.root), old.public, new.public), (old, new)
            )
        ),
    ),
    "a head": ("malformed_note", lambda old, new, _: lambda p: sign_note(p.text(), (old, new))),
    "a revocation": (
        "malformed_note",
        lambda old, new, _: lambda p: sign_change(Revocation(p, old.public, new.public, "so"), (new,)),
    ),
}


def _renamed(place: Checkpoint, old: Signer) -> tuple[KeyChange, tuple[Signer, ...]]:
    from gradwarden.runtime.ledger.keys import FileSigner

    assert isinstance(old, FileSigner)
    alias = FileSigner("alias", old._key)
    return Rotation(place, old.public, alias.public), (old, alias)


def test_a_cut_before_the_hand_over_is_located(path: Path, cases: Any, signer: Signer, other: Signer) -> None:
    """The head beside the ledger is by a key that what is left does not know."""
    cases.build(path, signer, steps=1, seal=False)
    lines = path.read_bytes()
    ledger = Ledger.open(path, signer)
    ledger.rotate(other)
    write_steps(ledger, cases, range(1, 3))
    ledger.close(cases.seal)
    path.write_bytes(lines)
    assert fault(check(path, signer)) == ("TAMPERED", lines.count(b"\n"), "sidecar_signature")


@pytest.mark.parametrize(("code", "forge"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_hand_over_is_located(
    rotated: Path, signer: Signer, other: Signer, third: Signer, code: str, forge: Any
) -> None:
    resigned(rotated, {3: forge(signer, other, third), 4: [other], 10: [other]})
    assert fault(check(rotated, signer, other)) == ("TAMPERED", 3, code)


def test_a_thief_of_the_old_key_signs_nothing_after_the_hand_over(
    rotated: Path, signer: Signer, other: Signer
) -> None:
    copy = shutil.copy(rotated, f"{rotated}.copy")
    for keys in ((signer,), (other,), (signer, other)):
        resigned(shutil.copy(copy, rotated), {4: [other], 10: [signer]})
        assert fault(check(rotated, *keys)) == ("TAMPERED", 10, "retired_key")
        resigned(shutil.copy(copy, rotated), {4: [signer], 10: [other]})  # a later good head excuses nothing
        assert fault(check(rotated, *keys)) == ("TAMPERED", 4, "retired_key")


def test_a_hand_over_to_a_thief_does_not_bring_the_owners_key_back(
    rotated: Path, signer: Signer, other: Signer, third: Signer
) -> None:
    """The thief makes another history; who kept a head, or trusts the new key only, sees it."""
    kept = Path(f"{rotated}.head").read_bytes()
    stolen = resigned(
        rotated,
        {
            3: lambda place: sign_change(Rotation(place, signer.public, third.public), (signer, third)),
            4: [third],
            10: [third],
        },
    )
    assert check(stolen, signer).status == "OK"  # as docs/ledger.md says
    assert check(stolen, other).status == "UNTRUSTED"
    facts = verify_ledger(stolen, [signer.public], only="entries").facts
    (found,) = compare_notes(stolen, [kept], Trust([signer.public, other.public]), facts).findings
    assert found.code == "forked"


def test_a_kept_head_by_the_new_key_is_believed_by_who_trusts_the_first(
    rotated: Path, signer: Signer
) -> None:
    facts = verify_ledger(rotated, [signer.public], only="entries").facts
    kept = Path(f"{rotated}.head").read_bytes()
    assert compare_notes(rotated, [kept], Trust([signer.public]), facts).findings == ()
    assert [change["kind"] for change in facts["key_changes"]] == ["rotated"]


REVOCATIONS: dict[str, tuple[str, Callable[[Signer, Signer, Signer], Forge]]] = {
    "of itself": (
        "reused_key",
        lambda one, *_: lambda p: sign_change(Revocation(p, one.public, one.public, "so"), (one,)),
    ),
    "by a stranger": (
        "undeclared_key",
        lambda one, _, x: lambda p: sign_change(Revocation(p, one.public, x.public, "so"), (x,)),
    ),
    "of a stranger": (
        "undeclared_key",
        lambda _, two, x: lambda p: sign_change(Revocation(p, x.public, two.public, "so"), (two,)),
    ),
    "signed by the revoked key": (
        "unproved_key",
        lambda one, two, _: lambda p: sign_change(Revocation(p, one.public, two.public, "so"), (one,)),
    ),
}


@pytest.mark.parametrize(("code", "forge"), REVOCATIONS.values(), ids=REVOCATIONS)
def test_a_forged_revocation_is_located(
    path: Path, cases: Any, signer: Signer, other: Signer, third: Signer, code: str, forge: Any
) -> None:
    ledger = Ledger.open(path, other, keys=[signer.public])
    ledger.append("opened", {**cases.opened(ledger), "keys": ledger.vkeys})
    ledger.revoke(signer.public, "so")
    ledger.close()
    assert check(path, other).status == "INCOMPLETE"
    at = kinds(path).index("revoked")
    resigned(path, {at: forge(signer, other, third), at + 1: [other]})
    assert fault(check(path, signer, other)) == ("TAMPERED", at, code)


def test_what_would_spoil_the_ledger_is_refused_before_it_is_written(
    path: Path, cases: Any, signer: Signer, other: Signer, third: Signer
) -> None:
    with pytest.raises(EntryInvalid, match="without entries"):
        Ledger.open(path, signer).rotate(other)
    path.unlink()
    ledger = cases.begin(path, signer)
    for attempt in (
        lambda: ledger.rotate(signer),
        lambda: ledger.revoke(signer.public, "so"),
        lambda: ledger.revoke(third.public, "so"),
        lambda: ledger.revoke(third.public, "two\nlines"),
        lambda: ledger.append("rotated", {"note": ""}),
        lambda: ledger.append("revoked", {"note": ""}),
    ):
        with pytest.raises(EntryInvalid):
            attempt()
    ledger.rotate(other)
    with pytest.raises(EntryInvalid, match="has been a key"):
        ledger.rotate(signer)
    ledger.revoke(signer.public, "for good measure")
    ledger.close(cases.seal)
    assert check(path, signer).status == "OK"


def test_every_change_of_a_note_is_refused_or_says_something_else(signer: Signer, other: Signer) -> None:
    place = Checkpoint("gradwarden/5f", 3, bytes(32))
    for change in (
        Rotation(place, signer.public, other.public),
        Revocation(place, signer.public, other.public, "stolen"),
    ):
        note = sign_change(change, (signer, other)).encode()
        assert parse_change(note) == change
        for at in range(len(change.text().encode())):
            changed = bytearray(note)
            changed[at] ^= 1
            try:
                assert parse_change(bytes(changed)) != change
            except NoteError:
                continue
