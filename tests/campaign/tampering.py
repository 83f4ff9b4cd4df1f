"""A campaign of tamperings with genuine ledgers, each judged by the verifier in this process.

    python -m tests.campaign.tampering --count 100000 --seed 1 --out tampering.json

Every tampering must be told as `threats.md` says, and a finding of the campaign is one that is not:

- whatever is in the file, verification ends, within `SLOW` seconds of processor time, with a report;
- what changed nothing verifies as before;
- nothing that was changed is vouched for by a signature (`signed_size`);
- what was changed without the key is not OK, and the first fault lies at the first changed entry or the one
  before it; where the chain was made anew, at the latest at the next entry that holds a root;
- what the file alone cannot show (a cut after a head, another history by the true key) shows against the
  last head, kept elsewhere;
- a run that the policy does not allow, signed with the true key, is a VIOLATION at the entry at fault.

`--only KIND --seed N` repeats one tampering. `--sweep` cuts three ledgers at every byte, besides.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from gradwarden.cli.verdict import worst
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.errors import NoteError
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.evidence.witnessed import compare_notes
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.entries import MalformedLineError, decode
from gradwarden.runtime.ledger.merkle import leaf_hash
from gradwarden.runtime.ledger.note import parse_checkpoint, parse_note
from gradwarden.runtime.verification import program_audit
from gradwarden.runtime.verification.verify import VerifyReport, verify_ledger
from tests.campaign import keyholder, outside
from tests.campaign.genuine import WRITERS, Genuine, genuine, joined, workplace
from tests.campaign.outside import note_of

SLOW = 1.0
"""Seconds of processor time from which a tampering is a finding."""

HANG = 60
"""Seconds after which one is given up."""

MAX_FINDINGS = 50

ROOTED = frozenset({"head", "resumed", "rotated", "revoked"})
"""Kinds of entries that hold the root over what stands before them."""

BASES = ("plain", "plain", "changed", "changed", "open", "stranger", "sibling", "private", "rewound")

Verdict = tuple[str, VerifyReport]


class WrongVerdictError(AssertionError):
    """The verifier says something else than it must."""


class HangError(Exception):
    """A verification that does not come to an end."""


@dataclass
class Tally:
    """What became of the tamperings of one kind."""

    count: int = 0
    unchanged: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    """The status against a head that was kept, where the file alone does not show it."""


class Judge:
    """Puts ledgers in a folder and holds verdicts against what they must be."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run.ledger"
        self._beside = folder / "run.ledger.head"

    def verify(self, base: Genuine, content: bytes, sidecar: bytes | None) -> VerifyReport:
        self._path.write_bytes(content)
        if sidecar is None:
            self._beside.unlink(missing_ok=True)
        else:
            self._beside.write_bytes(sidecar)
        return verify_ledger(self._path, base.keys)

    def against(self, base: Genuine, report: VerifyReport, note: bytes) -> tuple[str, Sequence[Finding]]:
        """Return the status of the ledger last verified, compared with a head that was kept."""
        found = compare_notes(self._path, [note], Trust(base.keys), report.facts).findings
        return worst(report.status, found), found

    def from_outside(self, base: Genuine, content: bytes, sidecar: bytes | None, tally: Tally) -> None:
        """Judge a file that was changed without a key."""
        report = self.verify(base, content, sidecar)
        note_verdict(tally, report)
        lines, changed = base.lines, first_change(base.content, content)
        if sound(base, content):
            require(report.status == base.status, f"a ledger that says the same is {report.status}")
            return
        require(report.facts["signed_entries"] <= changed, "a signature vouches for what was changed")
        require(not report.ok, "it is OK")
        if report.status == "TAMPERED":
            least, most = max(0, changed - 1), last_place(base, content, sidecar, changed)
            first = first_error(report).index
            require(least <= first <= most, f"entry {first} is named, not one of {least} to {most}")
        elif changed < base.covered:
            self._convict(base, report, tally)
        else:
            require(report.status != base.status or changed >= len(lines) - 1, "nothing tells")

    def _convict(self, base: Genuine, report: VerifyReport, tally: Tally) -> None:
        """Hold what the file alone does not show against the last head."""
        status, _ = self.against(base, report, base.kept)
        tally.kept[status] += 1
        told = ("ROLLBACK", "FORK", "TAMPERED", "UNTRUSTED")
        require(status in told, f"{status} against the head that was kept")

    def beside(self, base: Genuine, sidecar: bytes | None, tally: Tally) -> None:
        """Judge a change of the head beside a ledger."""
        report = self.verify(base, base.content, sidecar)
        note_verdict(tally, report)
        if sidecar is None or genuine_head(base, sidecar):
            require(report.status == base.status, f"with a true head beside it, it is {report.status}")
        else:
            require(report.status == "TAMPERED", f"with a false head beside it, it is {report.status}")
            code = first_error(report).code
            require(code.startswith("sidecar") or code == "truncated", f"it is called {code}")

    def by_keyholder(self, forged: keyholder.Forgery, tally: Tally) -> None:
        """Judge a ledger that was written with a key."""
        base = forged.base
        report = self.verify(base, joined(forged.lines), forged.sidecar)
        note_verdict(tally, report)
        require(report.status in forged.statuses, f"it is {report.status}: {report.findings[:1]}")
        found = [f for f in report.findings if not forged.codes or f.code in forged.codes]
        if forged.codes:
            require(bool(found), f"it is called {[f.code for f in report.findings]}")
        if forged.at >= 0:
            places = [f.index for f in report.findings]
            require(forged.at == places[0], f"entry {places[0]} is named, not {forged.at}")
        if report.status in ("OK", "INCOMPLETE"):
            self._convict(base, report, tally)


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise WrongVerdictError(otherwise)


def note_verdict(tally: Tally, report: VerifyReport) -> None:
    tally.statuses[report.status] += 1
    tally.codes[report.findings[0].code if report.findings else "none"] += 1


def first_error(report: VerifyReport) -> Finding:
    return next(finding for finding in report.findings if finding.severity == "error")


def first_change(old: bytes, new: bytes) -> int:
    """Return the index of the first line in which two files differ."""
    pairs = zip(old.split(b"\n"), new.split(b"\n"), strict=False)
    ends = min(old.count(b"\n"), new.count(b"\n"))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), ends)


def last_place(base: Genuine, content: bytes, sidecar: bytes | None, changed: int) -> int:
    """Return the last entry at which a change must have shown.

    The link behind a changed entry is broken, unless the chain was made anew; then the next root is wrong.
    A head to which signatures were added that nobody knows is still that head.
    """
    lines = content.split(b"\n")
    for index in range(changed, len(lines)):
        try:
            found, kind, prev, body = decode(lines[index])
        except MalformedLineError:
            return index
        holds = index == changed and still_signed(base, index, body)
        if found != index or (kind in ROOTED and not holds) or (kind == "opened" and index):
            return index
        if index and prev != leaf_hash(lines[index - 1]).hex():
            return max(changed, index - 1)
    claimed = -1
    if sidecar is not None:
        with suppress(NoteError):
            claimed = parse_checkpoint(parse_note(sidecar).text).size
    return max(len(lines), claimed)


def still_signed(base: Genuine, index: int, body: dict[str, Any]) -> bool:
    """Whether an entry holds the signed note that stands in its place in a ledger."""
    if index >= len(base.lines):
        return False
    old = decode(base.lines[index])[3]
    return "note" in old and "note" in body and same_head(old["note"].encode(), body["note"].encode())


def sound(base: Genuine, content: bytes) -> bool:
    """Whether a file says what a ledger says: the same lines, but for signatures nobody knows on the last."""
    lines = base.lines
    changed = content.split(b"\n")
    if changed[:-2] != lines[:-1] or changed[-1] != b"":
        return False
    try:
        old, new = (decode(line) for line in (lines[-1], changed[-2]))
    except MalformedLineError:
        return False
    return old[:3] == new[:3] and same_head(old[3]["note"].encode(), new[3]["note"].encode())


def genuine_head(base: Genuine, note: bytes) -> bool:
    return any(same_head(head, note) for head in base.heads.values())


def same_head(old: bytes, new: bytes) -> bool:
    """Whether a note is a given one, with other signatures beside the true one perhaps."""
    try:
        before, after = parse_note(old), parse_note(new)
    except NoteError:
        return False
    mine = before.signatures[0]
    others = [s for s in after.signatures if (s.name, s.key_id) == (mine.name, mine.key_id)]
    return before.text == after.text and others[:1] == [mine]


KINDS: dict[str, float] = {
    **{name: share for name, (share, _) in outside.CHANGES.items()},
    "head beside it": 5,
    **{name: share for name, (share, _) in keyholder.FORGERIES.items()},
}
"""By name: how many of a hundred tamperings, roughly."""


@dataclass
class Campaign:
    """The state of a campaign; `report` is what it found so far."""

    judge: Judge
    tallies: dict[str, Tally] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    slowest: float = 0.0
    slowest_seed: str = ""

    def tamper(self, kind: str, seed: int) -> None:
        """Make one tampering and judge it."""
        random = Random(f"{kind}:{seed}")
        base = genuine(random.choice(BASES))
        tally = self.tallies.setdefault(kind, Tally())
        if kind in outside.CHANGES:
            content = outside.CHANGES[kind][1](random, base)
            sidecar = base.sidecar if random.randrange(2) else None
            if content == base.content:
                tally.count += 1
                tally.unchanged += 1
                return
            self._timed(kind, seed, lambda: self.judge.from_outside(base, content, sidecar, tally))
        elif kind in keyholder.FORGERIES:
            forged = keyholder.FORGERIES[kind][1](random, base)
            self._timed(kind, seed, lambda: self.judge.by_keyholder(forged, tally))
        else:
            note = changed_sidecar(random, base)
            self._timed(kind, seed, lambda: self.judge.beside(base, note, tally))
        tally.count += 1

    def sweep(self, name: str, *, beside: bool) -> None:
        """Cut a ledger at every byte."""
        base = genuine(name)
        tally = self.tallies.setdefault(f"cut at every byte of `{name}`", Tally())
        for at in range(len(base.content)):
            sidecar = base.sidecar if beside else None
            content = base.content[:at]
            self._timed("cut", at, lambda: self.judge.from_outside(base, content, sidecar, tally))  # noqa: B023
            tally.count += 1

    def _timed(self, kind: str, seed: int, judge: Any) -> None:
        begun = time.process_time()
        signal.alarm(HANG)
        try:
            judge()
        except Exception as error:
            self._find(kind, seed, error)
        finally:
            signal.alarm(0)
        spent = time.process_time() - begun
        if spent > self.slowest:
            self.slowest, self.slowest_seed = spent, f"{kind}:{seed}"
        if spent > SLOW:
            self._find(kind, seed, WrongVerdictError(f"it took {spent:.2f} s"))

    def _find(self, kind: str, seed: int, error: Exception) -> None:
        if len(self.findings) < MAX_FINDINGS:
            what = str(error) if isinstance(error, WrongVerdictError) else type(error).__name__
            detail = "".join(traceback.format_exception(error))[-2000:]
            self.findings.append({"kind": kind, "seed": seed, "what": what, "detail": detail})
            print(f"finding: {what} (--only {kind!r} --seed {seed})", file=sys.stderr, flush=True)

    def report(self) -> dict[str, Any]:
        return {
            "tamperings": sum(tally.count for tally in self.tallies.values()),
            "unchanged": sum(tally.unchanged for tally in self.tallies.values()),
            "slowest_seconds": round(self.slowest, 3),
            "slowest": self.slowest_seed,
            "kinds": {name: vars(tally) for name, tally in self.tallies.items()},
            "codes": sum((tally.codes for tally in self.tallies.values()), Counter[str]()),
            "findings": self.findings,
        }


def changed_sidecar(random: Random, base: Genuine) -> bytes | None:
    """Change the head beside a ledger, take that of another, or take it away."""
    note = base.sidecar.decode()
    match random.randrange(6):
        case 0:
            return None
        case 1:
            return genuine(random.choice([name for name in WRITERS if name != base.name])).sidecar
        case 2:
            return random.choice([*base.heads.values()])
        case 3:
            content = bytearray(base.sidecar)
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            return bytes(content)
        case 4:
            return base.sidecar[: random.randrange(len(base.sidecar))] + random.choice((b"", b"\n", b"\x00"))
        case _:
            return note_of(random, base, note).encode()


@cache
def _programs(text: str) -> Any:
    return program_from_json(text)


def run(
    count: int, seed: int, only: Sequence[str] = (), *, sweep: bool = False, out: Path | None = None
) -> Campaign:
    """Make `count` tamperings with consecutive seeds.

    only: kinds that take turns; by default all kinds, each according to its share.
    """
    # Programs are read once: the same text gives the same program.
    with workplace() as folder, patch.object(program_audit, "program_from_json", _programs):
        campaign = Campaign(Judge(folder))
        for name in WRITERS:
            base = genuine(name)
            report = campaign.judge.verify(base, base.content, base.sidecar)
            require(report.status == base.status, f"the genuine ledger `{name}` is {report.status}")
        names, shares = [*KINDS], [*KINDS.values()]
        for number in range(seed, seed + count):
            kind = only[number % len(only)] if only else Random(number).choices(names, shares)[0]
            campaign.tamper(kind, number)
            if out is not None and number % 5_000 == 0:
                write(out, campaign)
        for name, beside in (("plain", True), ("changed", False), ("open", True)) if sweep else ():
            campaign.sweep(name, beside=beside)
    return campaign


def write(out: Path, campaign: Campaign) -> None:
    out.write_text(json.dumps(campaign.report(), indent=1) + "\n", "utf-8")


def table(campaign: Campaign) -> Iterator[str]:
    """Yield the lines of a table in Markdown: what became of each kind."""
    yield "| kind | number | unchanged | alone | against a kept head |"
    yield "|---|---|---|---|---|"
    for name, tally in campaign.tallies.items():
        alone, kept = (
            ", ".join(f"{status} {number:,}" for status, number in counted.most_common())
            for counted in (tally.statuses, tally.kept)
        )
        yield f"| {name} | {tally.count:,} | {tally.unchanged or ''} | {alone} | {kept} |"


def _hang(_signal: int, _frame: object) -> None:
    raise HangError(f"not done after {HANG} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--only", choices=[*KINDS], help="one kind instead of all")
    parser.add_argument("--sweep", action="store_true", help="cut ledgers at every byte, besides")
    parser.add_argument("--out", type=Path, help="where to write the report")
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    only = [given.only] if given.only else []
    campaign = run(given.count, given.seed, only, sweep=given.sweep, out=given.out)
    if given.out is not None:
        write(given.out, campaign)
    print("\n".join(table(campaign)))
    report = campaign.report()
    print(json.dumps({key: value for key, value in report.items() if key not in ("kinds", "findings")}))
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
