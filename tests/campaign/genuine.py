"""Small genuine ledgers, written by the real writer, for campaigns that tamper with them. No torch.

Keys, ids and times are fixed, so that a campaign with the same seed meets the same bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, step_verdict
from gradwarden.policy.evaluation.chosen_steps import is_chosen
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.ledger import writer
from gradwarden.runtime.ledger.entries import compose, decode, encode_body
from gradwarden.runtime.ledger.keys import FileSigner, PublicKey, Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.merkle import Tree, leaf_hash
from gradwarden.runtime.ledger.note import Checkpoint, sign_note
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules
from gradwarden.runtime.records.branches import Branches
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.roster import Roster

Body = dict[str, Any]
Entries = list[tuple[str, Body]]

HEAD = """policy small version 1 language 1
examples { kind : one of a, b, c   ok : bool   who : string optional }
model { shallow = top 40%  deep = rest }
"""
RULES = """
depth a { when kind == a  reach all }
depth b { when kind == b  reach shallow at 0.5 }
suppress no { when not ok  because "no consent" }
retain few { when kind == a  at most 4 exposures }
gradient { shallow at most 0.5 }
"""
RECORDING = RULES.replace("gradient {", "gradient { record 1 in 2 steps ")
PRIVATE = "privacy p { when kind == b  within shallow  epsilon 3  delta 1e-5  clip 1.0 }\n"

BATCHES = ("aab", "bb", "C", "aBb", "ab", "aa", "bab")
"""The kinds of each step's examples; a capital letter is one without consent."""

EVERY = 7
"""Entries after which a head is due, so that small ledgers have several."""


def signer_named(name: str, material: str = "") -> FileSigner:
    """Return a key that is always the same."""
    return FileSigner(
        name, Ed25519PrivateKey.from_private_bytes(sha256(f"{name}{material}".encode()).digest())
    )


RUN, NEXT, SAFE, THIEF = map(signer_named, ("run", "next", "safe", "thief"))
NAMESAKE = signer_named("run", "of a thief")
"""A key of the same name as `run`, and another in truth."""


@dataclass(frozen=True)
class Genuine:
    """A ledger as it was written.

    status: what its verification gives. keys: to verify it by. signer: who signed the last head. heads: notes
    of its signed heads, by the entry in which they stand.
    """

    name: str
    content: bytes
    sidecar: bytes
    status: str
    keys: tuple[PublicKey, ...]
    signer: Signer
    origin: str
    heads: dict[int, bytes]

    @property
    def lines(self) -> list[bytes]:
        return self.content.split(b"\n")[:-1]

    @property
    def kept(self) -> bytes:
        """The last head, as somebody else has kept it."""
        return self.sidecar

    @property
    def covered(self) -> int:
        """The entries under the last head."""
        return max(self.heads)

    def entries(self) -> Entries:
        """Return kind and body of each entry but the heads."""
        found = [decode(line) for line in self.lines]
        return [(kind, body) for _, kind, _, body in found if kind != "head"]


class Run:
    """Writes a run as a governor would, without a model."""

    def __init__(self, path: Path, text: str, origin: str, seed: str, keys: Sequence[PublicKey] = ()) -> None:
        self.path = path
        self.program = compile_policy(parse_policy(text))
        self.ledger = Ledger.open(path, RUN, "os", origin, keys)
        self.step = self.committed = self.refused = self.exposed = 0
        self._keys = keys
        committer = Committer(sha256(seed.encode()).digest())
        rules = privacy_rules(self.program)
        self.plan = JointPlan.for_noise(rules, 0.5, 2.0) if rules else None
        self.branches = Branches()
        self.roster, self.recorder = Roster(self.program, committer), Recorder(self.ledger)
        facts = {
            "at": "2026-01-31T12:00:00+00:00",
            "run": sha256(seed.encode()).hexdigest()[:32],
            "code": {"python": "3.11.7"},
            "origin": origin,
            "dataset": None,
            "keys": self.ledger.vkeys,
            "engine": "split",
            "normaliser": "4.0" if rules else None,
            "clip_norm": None,
            "secret_commitment": committer.secret_commitment,
            "privacy": [
                {**terms, "clipping": "flat", "on_trust": "", "records": "all"}
                for terms in self.plan.declaration()
            ]
            if self.plan
            else [],
        }
        self.recorder.open(self.program, facts)

    def train(self, batches: Sequence[str], prefix: str = "e") -> None:
        """Record a step for each batch. The third of the run is refused by the gradient gate."""
        for kinds in batches:
            rows = self.roster.rows(
                [
                    {"id": f"{prefix}{kind}{place}", "kind": kind.lower(), "ok": kind.islower()}
                    for place, kind in enumerate(kinds)
                ]
            )
            context = Context(
                self.step, at=date(2026, 1, 31), exposures=self.roster.exposures(rows), signals={}
            )
            admitted = self.roster.admit(rows, context)
            self.recorder.classes(self.roster.new_classes())
            verdict = step_verdict({VERDICTS[code] for code in admitted.verdicts.tolist()})
            self.recorder.propose(admitted, self.roster.commitments(rows), context, verdict)
            self._conclude(admitted, rows)
            self.step += 1

    def _conclude(self, admitted: Any, rows: Any) -> None:
        hit = admitted.micro.any(axis=0)
        active = [band for band, reached in zip(self.program.band_names, hit, strict=True) if reached]
        if self.step == 3:
            self._refuse("gradient", "not_finite", "the gradient of `deep` is not finite")
        elif active or self.plan:
            active = active or ["shallow"]  # which is noised in any case
            norms = {band: "0.25" if band in active else None for band in self.program.band_names}
            learned = rows[admitted.micro.any(axis=1)]
            self.roster.expose(learned)
            self.exposed += len(learned)
            self.committed += 1
            self._contributions(admitted, active)
            steps = {"p": {"steps": self.committed, "epsilon": "3"}} if self.plan else {}
            self.recorder.commit(self.step, active, norms, "2.5", steps)
        else:
            self._refuse("admission", "nothing_admitted", "no example may shape any band")

    def _contributions(self, admitted: Any, active: Sequence[str]) -> None:
        names = self.program.band_names
        if is_chosen(self.step, self.program.recorded):
            columns = zip(names, admitted.micro.T.tolist(), strict=True)
            added = {band: ["0.3" if weight else "0" for weight in column] for band, column in columns}
            moved = {band: "0.01" if band in active else "0" for band in names}
            self.recorder.contributions(self.step, added, moved)

    def _refuse(self, gate: str, reason: str, detail: str) -> None:
        self.refused += 1
        self.recorder.refuse(self.step, gate, reason, detail)

    def checkpoint(self, name: str = "model") -> None:
        digest = sha256(b"weights" if name == "model" else name.encode()).hexdigest()
        body = {"step": self.step, "file": f"{name}.safetensors", "digest": digest, "tensors": None}
        self.recorder.event("checkpoint", body)
        self.branches.apply("checkpoint", body)

    def rewind(self) -> None:
        """Go back to the weights that were saved last."""
        assert self.branches.last is not None
        body = self.branches.rewind(self.branches.last, self.step)
        self.recorder.event("rewound", body)
        self.branches.apply("rewound", body)

    def change_policy(self, text: str) -> None:
        self.program = compile_policy(parse_policy(text))
        self.recorder.change_policy(self.program, self.step)
        self.roster.change_program(self.program)

    def seal(self) -> None:
        counts = (self.step, self.committed, self.refused, self.exposed)
        self.ledger.close(dict(zip(("steps", "committed", "refused", "examples"), counts, strict=True)))


def _plain(path: Path, origin: str, seed: str, batches: Sequence[str]) -> FileSigner:
    run = Run(path, HEAD + RULES, origin, seed)
    run.train(batches, seed)
    run.checkpoint()
    run.seal()
    return RUN


def _changed(path: Path) -> FileSigner:
    """Two policies, a key handed over and another revoked, and a resumption."""
    run = Run(path, HEAD + RULES, "gradwarden/changed", "changed", [SAFE.public, THIEF.public])
    run.train(BATCHES[:2])
    run.ledger.revoke(THIEF.public, "the laptop was stolen")
    run.change_policy(HEAD.replace("version 1", "version 2") + RULES.replace("0.5 }", "0.25 }", 1))
    run.train(BATCHES[2:4])
    run.ledger.rotate(NEXT)
    run.train(BATCHES[4:5])
    run.seal()
    return NEXT


def _recorded(path: Path) -> FileSigner:
    run = Run(path, HEAD + RECORDING, "gradwarden/recorded", "recorded")
    run.train(BATCHES)
    run.seal()
    return RUN


def _private(path: Path) -> FileSigner:
    run = Run(path, HEAD + RULES + PRIVATE, "gradwarden/private", "private")
    run.train(("aab", "ab", "bb"))
    run.seal()
    return RUN


def _rewound(path: Path) -> FileSigner:
    """Back to earlier weights twice; the second time, from steps that had gone back before."""
    run = Run(path, HEAD + RULES, "gradwarden/rewound", "rewound")
    run.train(BATCHES[:2])
    run.checkpoint("two")
    run.train(BATCHES[2:4])
    run.rewind()
    run.train(BATCHES[4:6])
    run.rewind()
    run.train(BATCHES[6:])
    run.checkpoint()
    run.seal()
    return RUN


def _open(path: Path) -> FileSigner:
    run = Run(path, HEAD + RULES, "gradwarden/open", "open")
    run.train(BATCHES[:5])
    run.ledger.close()
    return RUN


WRITERS: dict[str, tuple[str, Callable[[Path], FileSigner]]] = {
    "plain": ("OK", lambda path: _plain(path, "gradwarden/plain", "plain", BATCHES)),
    "sibling": ("OK", lambda path: _plain(path, "gradwarden/plain", "sibling", BATCHES[::-1])),
    "stranger": ("OK", lambda path: _plain(path, "gradwarden/stranger", "plain", BATCHES)),
    "changed": ("OK", _changed),
    "recorded": ("OK", _recorded),
    "private": ("OK", _private),
    "rewound": ("OK", _rewound),
    "open": ("INCOMPLETE", _open),
}


@cache
def genuine(name: str) -> Genuine:
    """Return one of the ledgers; the same bytes every time."""
    status, write = WRITERS[name]
    folder = Path(tempfile.mkdtemp(prefix="gradwarden-genuine-"))
    path = folder / "run.ledger"
    with patch.object(writer, "HEAD_ENTRIES", EVERY), patch.object(writer, "HEAD_SECONDS", 1e6):
        signer = write(path)
    content, sidecar = path.read_bytes(), Path(f"{path}.head").read_bytes()
    shutil.rmtree(folder)
    found = [decode(line) for line in content.split(b"\n")[:-1]]
    heads = {index: body["note"].encode() for index, kind, _, body in found if kind == "head"}
    origin = found[0][3]["origin"]
    return Genuine(name, content, sidecar, status, (RUN.public,), signer, origin, heads)


def joined(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def relinked(lines: Sequence[bytes], start: int = 0) -> list[bytes]:
    """Number and chain lines anew from one on, as a forger without the key would."""
    prev, out = "0" * 64, []
    for index, line in enumerate(lines):
        if index >= start:
            _, kind, _, body = decode(line)
            line = compose(kind, index, prev, encode_body(kind, body))
        prev = leaf_hash(line).hex()
        out.append(line)
    return out


def rewritten(entries: Entries, signer: Signer, origin: str, every: int = EVERY) -> list[bytes]:
    """Write entries as a holder of a key can: chained, with a signed head after some, and after the last."""
    prev, tree, out = "0" * 64, Tree(), list[bytes]()

    def put(kind: str, body: Body) -> None:
        nonlocal prev
        line = compose(kind, len(out), prev, encode_body(kind, body))
        prev = leaf_hash(line).hex()
        tree.append(bytes.fromhex(prev))
        out.append(line)

    since = 0
    for kind, body in entries:
        put(kind, body)
        since += 1
        if since == every or (kind, body) == entries[-1]:
            put("head", {"note": signed(signer, origin, len(out), tree.root())})
            since = 0
    return out


def signed(signer: Signer, origin: str, size: int, root: bytes) -> str:
    return sign_note(Checkpoint(origin, size, root).text(), [signer])


@contextmanager
def workplace() -> Iterator[Path]:
    """Give a folder for files under test, in memory where the system has such a place."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="gradwarden-campaign-", dir=shared if shared.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
