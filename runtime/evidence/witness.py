"""A witness: it cosigns the head of a log only if that head continues the last one that it cosigned.

It remembers one head per log, named by the head's origin. The rules are those of C2SP tlog-witness, section
"add-checkpoint" (https://c2sp.org/tlog-witness), without the HTTP: the head is signed by a trusted key of the
log; it covers no fewer entries than the last one; the proof is from the size of the last one and holds; equal
sizes have equal roots. Reading the record, checking and writing it happen under one lock, and the record is
durable before a cosignature is handed out, so that no two heads that contradict each other are ever cosigned.

The record is a JSON file, canonical (sorted keys, no white space):

    {"format":"gradwarden/witness/1","logs":{"gradwarden/3f2a…":"the cosigned note"},"witness":"the vkey"}

Whole notes are kept because they are evidence: a log that forks is convicted by the note in the record and
the one that was refused. The witness's own signature keeps a damaged record from being believed. A record
that was put back to an earlier state is not noticed: it belongs where only the witness writes.

Why a head is refused (`Refusal.code`):

- `unknown_key`, `bad_signature`, `ambiguous_key`: no trusted key of the log has signed it
- `rollback`: it covers fewer entries than the last one cosigned
- `fork`: it covers as many and has another root; or the ledger itself is at hand, and does not begin with
  what was cosigned
- `wrong_size`: the proof is from another size than that of the last one cosigned
- `inconsistent`: the proof does not show that the head continues the last one
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import NoteError, WitnessError
from gradwarden.runtime.evidence.proof_check import Fault, compare_heads, trust_head
from gradwarden.runtime.evidence.proof_file import ConsistencyProof
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.ledger.cosignature import cosign, cosignatures, witness_key
from gradwarden.runtime.ledger.durable import replace_durably
from gradwarden.runtime.ledger.keys import PublicKey, Signer, WitnessKey
from gradwarden.runtime.ledger.merkle import EMPTY_ROOT
from gradwarden.runtime.ledger.note import Checkpoint, parse_checkpoint, parse_note

FORMAT = "gradwarden/witness/1"

MAX_RECORD = 64 << 20
"""The longest record that is read, in bytes."""

Logs: TypeAlias = dict[str, bytes]
"""The last cosigned note of each log, by origin."""


@frozen
class Cosigned:
    """A head that was cosigned. before: the one cosigned before it, None for the first of its log."""

    checkpoint: Checkpoint
    note: bytes
    before: Checkpoint | None


@frozen
class Refusal:
    """A head that was not cosigned. seen: the note of the last one of its log that was, if any."""

    code: str
    message: str
    checkpoint: Checkpoint
    seen: bytes | None


class Witness:
    """A witness and its record, which is locked for as long as this is open (`open_witness`)."""

    def __init__(self, signer: Signer, keys: Sequence[PublicKey], record: str, logs: Logs) -> None:
        self._signer = signer
        self._keys = keys
        self._record = record
        self._logs = logs

    def seen(self, origin: str) -> Checkpoint | None:
        """Return the last head of a log that was cosigned."""
        note = self._logs.get(origin)
        return None if note is None else parse_checkpoint(parse_note(note).text)

    def consider(
        self, request: ConsistencyProof, seconds: int, *, at_hand: bool = False
    ) -> Cosigned | Refusal:
        """Cosign a head, or say why not.

        request: the head, and the proof from the last one that was cosigned. seconds: the time now, since
        1970. at_hand: the proof was made from the ledger itself, so that one that does not hold shows a fork.
        Raises NoteError (`malformed`) for a note that is no head, WitnessError where the record cannot be
        written; nothing is cosigned then.
        """
        head = trust_head(request.note, Trust(self._keys))
        checkpoint = head.checkpoint
        before = self.seen(checkpoint.origin)
        fault = next(iter([*head.faults, *self._objections(before, checkpoint, request)]), None)
        if fault is not None:
            code = "fork" if at_hand and fault.code == "inconsistent" else fault.code
            return Refusal(code, fault.message, checkpoint, self._logs.get(checkpoint.origin))
        note = cosign(request.note, self._signer, seconds)
        self._logs[checkpoint.origin] = note
        self._write()
        return Cosigned(checkpoint, note, before)

    def _objections(
        self, before: Checkpoint | None, head: Checkpoint, request: ConsistencyProof
    ) -> Iterator[Fault]:
        old = before or Checkpoint(head.origin, 0, EMPTY_ROOT)
        if head.size >= old.size and request.old_size != old.size:
            message = (
                f"the proof is from {request.old_size:,} entries; the last head seen covers {old.size:,}"
            )
            yield Fault("wrong_size", message)
        yield from compare_heads(old, head, request.path)

    def _write(self) -> None:
        logs = {origin: note.decode() for origin, note in self._logs.items()}
        document = {"format": FORMAT, "logs": logs, "witness": witness_key(self._signer).vkey}
        try:
            replace_durably(self._record, _encode(document))
        except OSError as error:
            raise WitnessError(f"cannot write the record `{self._record}`: {error.strerror}") from error


@contextmanager
def open_witness(record: Path, signer: Signer, keys: Sequence[PublicKey]) -> Iterator[Witness]:
    """Open a witness on its record, which is made where there is none.

    keys: of the logs that it is a witness of. Raises WitnessError for a record that is damaged, of another
    witness or in use, and where the witness's key is also one of a log: nobody is a witness of itself.
    """
    if any(key.raw == signer.public.raw for key in keys):
        raise WitnessError(
            f"`{signer.name}` signs the log itself", help="a witness has a key of its own, kept elsewhere"
        )
    with _locked(record):
        yield Witness(signer, keys, os.fspath(record), _read(record, witness_key(signer)))


@contextmanager
def _locked(record: Path) -> Iterator[None]:
    """Hold the lock file beside a record. Raises WitnessError."""
    lock = f"{os.fspath(record)}.lock"
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise WitnessError(f"cannot lock the record: `{lock}`: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise WitnessError(f"the record `{record}` is in use", help="try again in a moment") from None
    finally:
        os.close(handle)


def _read(record: Path, witness: WitnessKey) -> Logs:
    try:
        with record.open("rb") as file:
            data = file.read(MAX_RECORD + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WitnessError(f"cannot read the record `{record}`: {error.strerror}") from error
    fault = f"the record `{record}` is damaged" if len(data) <= MAX_RECORD else f"`{record}` is too large"
    try:
        document = json.loads(data)
        if _encode(document) != data or document.keys() != {"format", "logs", "witness"}:
            raise ValueError
        logs = {origin: note.encode() for origin, note in document["logs"].items()}
        if document["format"] != FORMAT or len(data) > MAX_RECORD:
            raise ValueError
        if document["witness"] != witness.vkey:
            fault = f"the record `{record}` is of another witness, `{document['witness']}`"
            raise ValueError
        for origin, note in logs.items():
            if not cosignatures(note, [witness]) or parse_checkpoint(parse_note(note).text).origin != origin:
                raise ValueError
    except (ValueError, AttributeError, TypeError, RecursionError, NoteError):
        raise WitnessError(
            fault, help="take it from a backup; a witness that forgot what it saw vouches for nothing"
        ) from None
    return logs


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
