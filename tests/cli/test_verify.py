"""`gradwarden verify`: what holds, what does not, and where; without torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.evaluation.admission import Admission
from gradwarden.policy.program import Program
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.merkle import leaf_hash, tree_root
from gradwarden.runtime.ledger.note import Checkpoint, sign_note
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.weights.stored import StoredWeights
from gradwarden.runtime.weights.tree import hash_weights
from tests.cli.conftest import POLICY, Run

GOVERNED = "\n".join(line for line in POLICY.splitlines() if not line.startswith("privacy")) + "\n"
EXAMPLES = [
    {"kind": "a", "lines": 1, "topic": []},
    {"kind": "a", "lines": 500, "topic": ["y"]},
    {"kind": "c", "lines": 1, "topic": []},
    {"kind": "d", "lines": 1, "topic": []},
]
ORIGIN = "gradwarden/test"
STEPS = 4

Record = Callable[..., Path]


@pytest.fixture
def program(here: Path) -> Program:
    (here / "governed.policy").write_text(GOVERNED)
    return compile_policy(parse_policy(GOVERNED))


@pytest.fixture
def record(here: Path, program: Program, signer: Signer) -> Record:
    """Record a run of a few steps as a governor would, and return its ledger.

    lie: what to record of a step in place of the truth, given its number and its `step` body. signature: of
    the program.
    """
    signer.public.save(here / "run.pub")

    def write(
        *,
        sealed: bool = True,
        lie: Callable[[int, dict[str, object]], None] | None = None,
        weights: bytes = b"weights",
        signature: bytes | None = None,
        supplied: bytes | None = None,
    ) -> Path:
        (here / "weights.bin").write_bytes(weights)
        path = here / "run.ledger"
        ledger = Ledger.open(path, signer, durability="os", origin=ORIGIN)
        append = ledger.append

        def recording(kind: str, body: dict[str, object]) -> int:  # type: ignore[misc]  # of this test only
            if kind == "step" and lie is not None:
                lie(int(str(body["step"])), body)
            return append(kind, body)

        ledger.append = recording  # type: ignore[method-assign, assignment]
        committer = Committer(b"s" * 32)
        recorder = Recorder(ledger)
        recorder.open(
            program,
            {
                "run": "11" * 16,
                "origin": ORIGIN,
                "dataset": None,
                "keys": [signer.public.vkey],
                "engine": "split",
                "normaliser": None,
                "clip_norm": None,
                "secret_commitment": committer.secret_commitment,
                "privacy": [],
            },
            signature,
        )
        if supplied is not None:
            recorder.event("supplied", {"note": supplied.decode()})
        admission = Admission(program)
        rows = admission.add(EXAMPLES)
        recorder.classes(admission.class_bodies())
        commitments = b"".join(committer.commit(f"example {index}") for index in range(len(EXAMPLES)))
        for number in range(STEPS):
            context = Context(step=number, at=date(2026, 1, 1), signals={"loss": 0.5 * number})
            admitted = admission.admit(rows, context)
            recorder.propose(admitted, commitments, context, "limit")
            active = [
                b for b, hit in zip(program.band_names, (admitted.micro > 0).any(axis=0), strict=True) if hit
            ]
            recorder.commit(number, active, dict.fromkeys(active, "1"), "2.5", {})
        digest = hashlib.sha256(weights).hexdigest()
        recorder.event(
            "checkpoint", {"step": STEPS, "file": "weights.bin", "digest": digest, "tensors": None}
        )
        learned = 2 * STEPS
        totals = {"steps": STEPS, "committed": STEPS, "refused": 0, "examples": learned}
        ledger.close(totals if sealed else None)
        return path

    return write


def verify(run: Run, ledger: Path, *options: object) -> tuple[int, dict[str, object]]:
    result = run("verify", ledger, "--key", "run.pub", "--format", "json", *options)
    return result.exit_code, json.loads(result.stdout)


def kinds(ledger: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in ledger.read_bytes().splitlines()]


def archived(ledger: Path, size: int, signer: Signer, origin: str = ORIGIN) -> bytes:
    """A signed head over the first entries, as someone else may have kept it."""
    leaves = [leaf_hash(line) for line in ledger.read_bytes().splitlines()[:size]]
    return sign_note(Checkpoint(origin, size, tree_root(leaves)).text(), [signer]).encode()


def test_an_honest_run_holds(run: Run, record: Record, program: Program) -> None:
    ledger = record()
    run("build", "governed.policy", "-o", "governed.json")
    status, document = verify(run, ledger, "--policy", "governed.json", "--checkpoint-weights", "weights.bin")
    assert (status, document["status"], document["findings"]) == (0, "OK", [])
    facts = document["facts"]
    assert isinstance(facts, dict)
    assert facts["decisions_replayed"] == STEPS * len(EXAMPLES)
    enforced = {"calm": 2 * STEPS, "granted": 2 * STEPS, "long": STEPS}
    assert facts["rules"] == {"enforced": enforced, "advisory": {}, "waived": {}}
    assert facts["verdicts"] == {"limit": 2 * STEPS, "refuse": STEPS, "invalid": STEPS}
    checked = " ".join(document["checked"])  # type: ignore[arg-type]
    assert "signed heads by run" in checked
    assert f"{STEPS * len(EXAMPLES)} decisions in {STEPS} steps, made again" in checked
    assert "the run was governed by what was given (--policy)" in checked
    assert "`weights.bin` holds the weights" in checked


def test_the_words_say_what_was_not_checked(run: Run, record: Record) -> None:
    result = run("verify", record(), "--key", "run.pub")
    assert result.exit_code == 0
    assert result.stdout.startswith("OK ")
    unchecked = result.stdout.split("not checked")[1]
    assert "self-attested" in unchecked
    assert all(option in unchecked for option in ("--policy", "--checkpoint", "--checkpoint-weights"))


def test_a_policy_is_compared_whether_or_not_it_is_compiled(run: Run, record: Record, here: Path) -> None:
    ledger = record()
    assert verify(run, ledger, "--policy", "governed.policy")[0] == 0
    other = GOVERNED.replace("lines >= 100", "lines >= 101")
    (here / "other.policy").write_text(other)
    status, document = verify(run, ledger, "--policy", "other.policy")
    assert (status, document["status"]) == (1, "VIOLATION")
    assert [f["code"] for f in document["findings"]] == ["policy_mismatch"]  # type: ignore[index, union-attr]


def test_a_decision_that_the_policy_does_not_give_is_found(run: Run, record: Record) -> None:
    def lie(number: int, body: dict[str, object]) -> None:
        if number == 2:
            body["decision"][0] = body["decision"][2]  # type: ignore[index]

    ledger = record(lie=lie)
    result = run("verify", ledger, "--key", "run.pub")
    bad = [index for index, kind in enumerate(kinds(ledger)) if kind == "step"][2]
    assert result.exit_code == 1
    assert result.stdout.startswith("VIOLATION ")
    assert f"entry {bad}, the first bad one: error[wrong_decision]" in result.stderr
    assert "step 2" in result.stderr
    assert "help: `gradwarden log" in result.stderr


def test_one_flipped_byte_is_found_where_it_is(run: Run, record: Record) -> None:
    ledger = record()
    lines = ledger.read_bytes().splitlines(keepends=True)
    bad = [index for index, kind in enumerate(kinds(ledger)) if kind == "committed"][1]
    lines[bad] = lines[bad].replace(b'"2.5"', b'"2.4"')
    ledger.write_bytes(b"".join(lines))
    status, document = verify(run, ledger)
    assert (status, document["status"]) == (1, "TAMPERED")
    assert document["first_bad"] in (bad, bad + 1)


def test_a_run_that_was_not_sealed_is_incomplete(run: Run, record: Record) -> None:
    status, document = verify(run, record(sealed=False))
    assert (status, document["status"]) == (1, "INCOMPLETE")


def test_a_step_without_an_outcome_is_counted(run: Run, record: Record, here: Path) -> None:
    lines = record(sealed=False).read_bytes().splitlines(keepends=True)
    last = max(place for place, line in enumerate(lines) if b'"kind":"committed"' in line)
    (here / "cut.ledger").write_bytes(b"".join(lines[:last]))
    shown = run("verify", "cut.ledger", "--key", "run.pub").stdout
    assert f"{STEPS} steps: {STEPS - 1} committed, 0 refused, 1 without a recorded outcome" in shown


def test_another_key_does_not_vouch(run: Run, record: Record, here: Path) -> None:
    ledger = record()
    Signer.generate("other").public.save(here / "other.pub")
    result = run("verify", ledger, "--key", "other.pub", "--format", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "UNTRUSTED"
    both = run("verify", ledger, "--key", "other.pub", "--key", "run.pub")
    assert both.exit_code == 0


def test_other_weights_are_found(run: Run, record: Record, here: Path) -> None:
    (here / "other.bin").write_bytes(b"other")
    status, document = verify(run, record(), "--checkpoint-weights", "other.bin")
    assert status == 1
    assert [f["code"] for f in document["findings"]] == ["weights_mismatch"]  # type: ignore[index, union-attr]


def stored(path: Path, values: dict[str, list[int]]) -> Path:
    """Write a safetensors file of bytes."""
    header, data = {}, b""
    for name, numbers in values.items():
        place = [len(data), len(data) + len(numbers)]
        header[name] = {"dtype": "U8", "shape": [len(numbers)], "data_offsets": place}
        data += bytes(numbers)
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data)
    return path


@pytest.fixture
def listed(record: Record, here: Path, signer: Signer) -> Path:
    """The ledger of a run that names `first.safetensors`, and then `last.safetensors`, tensor by tensor."""
    ledger = Ledger.open(record(sealed=False), signer, durability="os", origin=ORIGIN)
    for name, values in (("first", [1, 2, 3]), ("last", [1, 2, 4])):
        path = stored(here / f"{name}.safetensors", {"a": values, "b": [7]})
        with StoredWeights([path]) as weights:
            Recorder(ledger).checkpoint(STEPS, path.name, file_digest(path), hash_weights(weights))
    ledger.close({"steps": STEPS, "committed": STEPS, "refused": 0, "examples": 2 * STEPS})
    return here / "run.ledger"


def test_weights_are_known_tensor_by_tensor(run: Run, listed: Path, here: Path) -> None:
    (here / "shards").mkdir()
    stored(here / "shards" / "1.safetensors", {"b": [7]})
    stored(here / "shards" / "2.safetensors", {"a": [1, 2, 4]})
    first, shards = ("--checkpoint-weights", "first.safetensors"), ("--checkpoint-weights", "shards")
    status, document = verify(run, listed, *shards, *first)
    assert (status, document["status"]) == (0, "OK")
    checked = "\n".join(document["checked"])  # type: ignore[arg-type]
    assert "`shards` holds the weights that the ledger names last (step 4, entry " in checked
    assert "tensor by tensor, in another file" in checked
    assert "`first.safetensors` holds the weights of an earlier checkpoint (step 4, entry " in checked
    status, document = verify(run, listed, *first)
    assert (status, document["status"]) == (1, "VIOLATION")
    assert verify(run, listed, *first, "--earlier")[0] == 0
    lonely = run("verify", listed, "--key", "run.pub", "--earlier")
    assert (lonely.exit_code, "--checkpoint-weights" in lonely.stderr) == (2, True)


def test_only_the_file_itself_is_attested(run: Run, listed: Path, here: Path, signer: Signer) -> None:
    signer.save(here / "run.key")
    (here / "copy").mkdir()
    stored(here / "copy" / "last.safetensors", {"b": [7], "a": [1, 2, 4]})
    attest = ("attest", listed, "--sign", "run.key", "-o", "made.json", "--checkpoint-weights")
    assert verify(run, listed, "--checkpoint-weights", "copy/last.safetensors")[0] == 0
    refused = run(*attest, "copy/last.safetensors")
    assert (refused.exit_code, "in another file" in refused.stderr) == (2, True)
    assert run(*attest, "last.safetensors").exit_code == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": [1, 2, 5], "b": [7]}, "1 of 2 tensors differ from the checkpoint at step 4"),
        ({"a": [1, 2, 4]}, "`b` is missing"),
        ({"a": [1, 2, 4], "b": [7], "\x1b[31mc": [1]}, "c` is not in the checkpoint"),
    ],
)
def test_the_tensors_that_differ_are_named(
    run: Run, listed: Path, here: Path, values: dict[str, list[int]], words: str
) -> None:
    stored(here / "other.safetensors", values)
    result = run("verify", listed, "--key", "run.pub", "--checkpoint-weights", "other.safetensors")
    assert (result.exit_code, words in result.stderr, "\x1b" in result.stderr) == (1, True, False)


def test_of_a_tampered_ledger_no_weights_are_compared(run: Run, record: Record, here: Path) -> None:
    ledger = record()
    lines = ledger.read_bytes().split(b"\n")
    ledger.write_bytes(b"\n".join([lines[0], *lines[2:]]))
    (here / "other.bin").write_bytes(b"other")
    status, document = verify(run, ledger, "--checkpoint-weights", "other.bin")
    assert (status, document["status"]) == (1, "TAMPERED")
    assert "weights_mismatch" not in [f["code"] for f in document["findings"]]  # type: ignore[index, union-attr]
    assert "the weights" in document["not_checked"]  # type: ignore[operator]
    assert not [line for line in document["checked"] if "other.bin" in line]  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [0, 1, 5])
def test_an_archived_head_fits_its_ledger(
    run: Run, record: Record, here: Path, signer: Signer, size: int
) -> None:
    ledger = record()
    (here / "kept.note").write_bytes(archived(ledger, size, signer))
    status, document = verify(run, ledger, "--checkpoint", "kept.note")
    assert (status, document["status"]) == (0, "OK")
    assert "the checkpoint given is a head of this ledger" in document["checked"]  # type: ignore[operator]


def test_the_head_beside_a_ledger_is_one_to_archive(run: Run, record: Record, here: Path) -> None:
    ledger = record()
    (here / "kept.note").write_bytes(Path(f"{ledger}.head").read_bytes())
    assert verify(run, ledger, "--checkpoint", "kept.note")[0] == 0


def test_a_ledger_rewritten_by_its_own_key_is_found_by_an_archived_head(
    run: Run, record: Record, here: Path, signer: Signer
) -> None:
    ledger = record()
    (here / "kept.note").write_bytes(archived(ledger, 8, signer))
    for path in (ledger, Path(f"{ledger}.head")):
        path.unlink()

    def rewrite(_number: int, body: dict[str, object]) -> None:
        body["epoch"] = 1

    ledger = record(lie=rewrite)
    assert verify(run, ledger)[0] == 0
    status, document = verify(run, ledger, "--checkpoint", "kept.note")
    assert (status, document["status"]) == (1, "FORK")
    assert "forked" in [f["code"] for f in document["findings"]]  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("size", "origin", "known", "code"),
    [(5, "gradwarden/else", True, "checkpoint_mismatch"), (5, ORIGIN, False, "checkpoint_untrusted")],
)
def test_an_archived_head_of_another_ledger_or_key(
    run: Run, record: Record, here: Path, signer: Signer, size: int, origin: str, known: bool, code: str
) -> None:
    ledger = record()
    key = signer if known else Signer.generate("stranger")
    (here / "kept.note").write_bytes(archived(ledger, size, key, origin))
    status, document = verify(run, ledger, "--checkpoint", "kept.note")
    assert status == 1
    assert [f["code"] for f in document["findings"]] == [code]  # type: ignore[index, union-attr]


def test_an_archived_head_shows_that_entries_were_cut_off(
    run: Run, record: Record, here: Path, signer: Signer
) -> None:
    ledger = record(sealed=False)
    lines = ledger.read_bytes().splitlines(keepends=True)
    (here / "kept.note").write_bytes(archived(ledger, len(lines), signer))
    ledger.write_bytes(b"".join(lines[:5]))
    Path(f"{ledger}.head").unlink()
    status, document = verify(run, ledger, "--checkpoint", "kept.note")
    assert (status, document["status"]) == (1, "ROLLBACK")
    assert f"the checkpoint covers {len(lines)} entries; the ledger has 5" in json.dumps(document)


@pytest.mark.parametrize("content", [b"", b"no note\n", b"a\nb\n\n\xe2\x80\x94 run AAAA\n", b"\xff" * 100])
def test_what_is_no_note_is_unreadable(run: Run, record: Record, here: Path, content: bytes) -> None:
    (here / "kept.note").write_bytes(content)
    result = run("verify", record(), "--key", "run.pub", "--checkpoint", "kept.note")
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("content", [b"", b"\n", b"hello\n", b"\x00" * 5000, b"{}\n" * 3])
def test_what_is_no_ledger_does_not_hold(run: Run, record: Record, here: Path, content: bytes) -> None:
    record()
    (here / "odd.ledger").write_bytes(content)
    result = run("verify", "odd.ledger", "--key", "run.pub")
    assert result.exit_code == 1
    assert not result.stdout.startswith("OK")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--policy", "missing.json"], "missing.json"),
        (["--policy", "run.ledger.json"], "run.ledger.json"),
        (["--model-map", "m.yaml"], "there is none"),
        (["--checkpoint", "missing.note"], "missing.note"),
        (["--checkpoint-weights", "missing.bin"], "missing.bin"),
        (["--key", "governed.policy"], "public key"),
    ],
)
def test_unreadable_company_is_told(
    run: Run, record: Record, here: Path, options: list[str], told: str
) -> None:
    ledger = record()
    (here / "run.ledger.json").write_bytes(ledger.read_bytes())
    result = run("verify", ledger, "--key", "run.pub", *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "GW999" not in result.stderr


def with_another_signature(note: bytes) -> bytes:
    """A note whose last line names the same key and bears other bytes."""
    head, _, last = note.rstrip(b"\n").rpartition(b" ")
    signed = bytearray(b64decode(last))
    signed[-1] ^= 1
    return head + b" " + b64encode(signed) + b"\n"


def test_the_signature_of_a_program(run: Run, record: Record, here: Path, signer: Signer) -> None:
    ledger = record()
    signer.save(here / "run.key")
    Signer.generate("other").public.save(here / "other.pub")
    run("build", "governed.policy", "-o", "governed.json", "--sign", "run.key")
    good = run("verify", "governed.json", "--key", "run.pub", "--format", "json")
    assert (good.exit_code, json.loads(good.stdout)["signed_by"]) == (0, ["run"])
    assert run("verify", "governed.json", "--key", "other.pub").exit_code == 1
    _, document = verify(run, ledger, "--policy", "governed.json")
    assert "the program's signature by run" in document["checked"]  # type: ignore[operator]

    note = here / "governed.json.note"
    genuine = note.read_bytes()
    note.write_bytes(with_another_signature(genuine))
    forged = run("verify", "governed.json", "--key", "run.pub")
    assert (forged.exit_code, forged.stdout.split()[0]) == (1, "UNTRUSTED")
    note.write_bytes(genuine)

    (here / "other.policy").write_text(GOVERNED.replace("lines >= 100", "lines >= 101"))
    run("build", "other.policy", "-o", "other.json")
    (here / "other.json.note").write_bytes((here / "governed.json.note").read_bytes())
    swapped = run("verify", "other.json", "--key", "run.pub")
    assert (swapped.exit_code, swapped.stdout.split()[0]) == (1, "UNTRUSTED")
    (here / "other.json.note").unlink()
    assert run("verify", "other.json", "--key", "run.pub").exit_code == 2


def test_who_must_have_signed_the_policy_is_the_verifiers_to_say(
    run: Run, record: Record, here: Path
) -> None:
    for name in ("officer", "owner"):
        run("keygen", name)
    run("build", "governed.policy", "-o", "governed.json", "--sign", "officer.key")
    assert "has the signature by `owner`" in run("approve", "governed.json", "--sign", "owner.key").stdout
    both = (here / "governed.json.note").read_bytes()
    ledger = record(signature=both)
    demands = ("--policy-key", "officer.pub", "--policy-key", "owner.pub")
    status, document = verify(run, ledger, *demands)
    assert status == 0
    assert "the policy `sample` version 2 was signed by officer, owner" in document["checked"]  # type: ignore[operator]
    assert "signed as officer, owner" in run("log", ledger, "--kind", "approved").stdout

    ledger.unlink()
    (here / "run.ledger.head").unlink()
    (here / "governed.json.note").unlink()
    run("approve", "governed.json", "--sign", "owner.key")
    ledger = record(signature=(here / "governed.json.note").read_bytes())
    assert verify(run, ledger, *demands)[0] == 1
    assert verify(run, ledger, *demands, "--policy-signers", 1)[0] == 0


def test_what_cannot_be_approved(run: Run, program: Program, here: Path) -> None:
    run("keygen", "owner")
    run("build", "governed.policy", "-o", "governed.json")
    assert "no compiled program" in run("approve", "governed.policy", "--sign", "owner.key").stderr
    (here / "governed.json.note").write_text("another thing\n\n— owner AAAAAAA=\n")
    refused = run("approve", "governed.json", "--sign", "owner.key")
    assert (refused.exit_code, "is not of this program" in refused.stderr) == (2, True)
    assert (here / "governed.json.note").read_text().startswith("another thing")
    assert run("verify", "governed.json", "--key", "owner.pub", "--policy-key", "owner.pub").exit_code == 2
    assert run("verify", "x.ledger", "--key", "owner.pub", "--policy-signers", "1").exit_code == 2


def test_the_data_set_opens_what_was_recorded(run: Run, record: Record, here: Path) -> None:
    ledger = record()
    records = [{"id": f"example {number}", **example} for number, example in enumerate(EXAMPLES)]
    (here / "secret").write_text((b"s" * 32).hex())
    (here / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    opened = ("--data", "data.jsonl", "--secret", "secret")
    status, document = verify(run, ledger, *opened)
    assert (
        status,
        f"{STEPS * len(EXAMPLES)} examples in steps, against their metadata (--data)" in str(document),
    ) == (0, True)

    (here / "other.policy").write_text(GOVERNED.replace("lines >= 100", "lines >= 10000"))
    _, document = verify(run, ledger, *opened, "--what-if", "other.policy")
    assert document["what_if"]["steps_changed"] == STEPS  # type: ignore[index]
    told = run("verify", ledger, "--key", "run.pub", *opened, "--what-if", "other.policy").stdout
    assert "under other.policy instead" in told
    told = run("verify", ledger, "--key", "run.pub", *opened, "--what-if", "governed.policy").stdout
    assert f"the same decisions in all {STEPS} steps" in told

    (here / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records[1:]))
    status, document = verify(run, ledger, *opened)
    assert (status, document["status"]) == (1, "VIOLATION")
    assert "unknown_example" in str(document)
    for wrong in (opened[:2], opened[2:], ("--what-if", "other.policy")):
        assert run("verify", ledger, "--key", "run.pub", *wrong).exit_code == 2
    (here / "data.jsonl").write_text('{"id": "a"\n')
    assert run("verify", ledger, "--key", "run.pub", *opened).exit_code == 2


def test_the_data_set_opens_what_stands_of_a_ledger_that_was_cut_off(
    run: Run, record: Record, here: Path
) -> None:
    ledger = record(sealed=False)
    with ledger.open("ab") as file:
        file.write(b'{"body":{"step"')
    records = [{"id": f"example {number}", **example} for number, example in enumerate(EXAMPLES)]
    (here / "secret").write_text((b"s" * 32).hex())
    (here / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    status, document = verify(run, ledger, "--data", "data.jsonl", "--secret", "secret")
    assert (status, document["status"]) == (1, "INCOMPLETE")
    assert "against their metadata (--data)" in str(document["checked"])


def test_verifying_never_imports_torch(run: Run, listed: Path) -> None:
    ledger = listed
    script = (
        "import sys\nfrom gradwarden.cli.app import cli\n"
        f"try:\n    cli(['verify', {str(ledger)!r}, '--key', 'run.pub', '--policy', 'governed.policy', "
        "'--checkpoint-weights', 'last.safetensors'])\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_verifying_a_chain_alone_imports_nothing_that_replays_a_run(run: Run, record: Record) -> None:
    ledger = record()
    script = (
        "import sys\nfrom gradwarden.cli.app import cli\n"
        f"try:\n    cli(['verify', {str(ledger)!r}, '--key', 'run.pub', '--only', 'chain'])\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "gradwarden.runtime.ledger.chain" in loaded
    assert not loaded & {f"gradwarden.runtime.verification.{name}" for name in ("memory", "run_replay")}
    assert "lark" not in loaded


def test_suppliers_sign_the_data_set(run: Run, record: Record, here: Path) -> None:
    lines = [json.dumps({"id": f"example {i}", **example}) + "\n" for i, example in enumerate(EXAMPLES)]
    (here / "data.jsonl").write_text("".join(lines))
    (here / "secret").write_bytes((b"s" * 32).hex().encode() + b"\n")
    (here / "secret").chmod(0o600)
    for name in ("clinic", "lab", "stranger"):
        assert run("keygen", name).exit_code == 0
    for name in ("clinic", "lab"):
        assert run("sign-data", "data.jsonl", "--sign", f"{name}.key").exit_code == 0
    ledger = record(supplied=(here / "data.jsonl.note").read_bytes())
    opened = ("--data", "data.jsonl", "--secret", "secret")
    both = ("--supplier", "clinic.pub", "--supplier", "lab.pub")
    status, document = verify(run, ledger, *opened, *both)
    assert (status, document["status"]) == (0, "OK"), document["findings"]
    assert "the data set was signed by its supplier lab before the first step" in str(document["checked"])
    assert "--supplier" in str(verify(run, ledger, *opened)[1]["not_checked"])
    for options in (("--remember", "m"), ("--since", "m")):
        (told,) = verify(run, ledger, *options)[1]["facts"]["supplied"]  # type: ignore[index]
        assert [one.split("+")[0] for one in told["claimed_signers"]] == ["clinic", "lab"]
    status, document = verify(run, ledger, *opened, "--supplier", "stranger.pub")
    assert (status, document["status"]) == (1, "VIOLATION")
    assert [f["code"] for f in document["findings"]] == ["unsigned_data"]  # type: ignore[index, union-attr]
    (here / "data.jsonl").write_text("".join(reversed(lines)))
    for suppliers in ((), both):
        findings = verify(run, ledger, *opened, *suppliers)[1]["findings"]
        assert [f["code"] for f in findings] == ["unsupplied_data"]  # type: ignore[index, union-attr, attr-defined]
    again = run("sign-data", "data.jsonl", "--sign", "lab.key")
    assert (again.exit_code, "it was changed since" in again.stderr) == (2, True)
    assert run("verify", ledger, "--key", "run.pub", "--supplier", "lab.pub").exit_code == 2


def test_a_supplier_is_asked_for_where_none_signed(run: Run, record: Record, here: Path) -> None:
    lines = [json.dumps({"id": f"example {i}", **example}) + "\n" for i, example in enumerate(EXAMPLES)]
    (here / "data.jsonl").write_text("".join(lines))
    (here / "secret").write_bytes((b"s" * 32).hex().encode() + b"\n")
    (here / "secret").chmod(0o600)
    run("keygen", "clinic")
    ledger = record()
    opened = ("--data", "data.jsonl", "--secret", "secret")
    assert verify(run, ledger, *opened)[0] == 0
    findings = verify(run, ledger, *opened, "--supplier", "clinic.pub")[1]["findings"]
    assert [f["code"] for f in findings] == ["unsupplied_data"]  # type: ignore[index, union-attr, attr-defined]


def test_no_more_is_claimed_than_was_asked_for(run: Run, record: Record) -> None:
    """Of a run with a decision that its policy does not give, and of one with a line that is no entry."""
    ledger = record(lie=lambda number, body: body.update(verdict="admit") if number == 2 else None)
    for only in ("chain", "entries"):
        status, document = verify(run, ledger, "--only", only)
        assert (status, document["status"], document["findings"]) == (0, "OK", [])
        assert "decisions" in " ".join(document["not_checked"])  # type: ignore[arg-type]
        assert not any("decision" in line for line in document["checked"])  # type: ignore[attr-defined]
        shown = run("verify", ledger, "--key", "run.pub", "--only", only).stdout
        assert "its decisions were not made again" in shown
    assert verify(run, ledger)[1]["status"] == "VIOLATION"
    refused = run("verify", ledger, "--key", "run.pub", "--only", "chain", "--policy", "governed.policy")
    assert refused.exit_code == 2


def test_a_line_that_is_no_entry_is_found_unless_the_chain_alone_is_asked_for(
    run: Run, record: Record, signer: Signer
) -> None:
    """Signed as it is, which only a holder of the key can do."""
    ledger = record()
    lines = ledger.read_bytes().splitlines()
    place = kinds(ledger).index("committed")
    out, prev, leaves = [], "0" * 64, []
    for index, line in enumerate(lines):
        kind = json.loads(line)["kind"]
        body = line[len(b'{"body":') : line.rindex(b',"index":')]
        if kind == "head":
            note = Checkpoint(ORIGIN, index, tree_root(leaves)).text()
            body = json.dumps({"note": sign_note(note, [signer])}, separators=(",", ":"), ensure_ascii=False)
            body = body.encode()
        body = body.replace(b'"loss":"2.5"', b'"loss":2.5') if index == place else body
        out.append(
            b'{"body":%b,"index":%d,"kind":"%b","prev":"%b"}' % (body, index, kind.encode(), prev.encode())
        )
        leaves.append(leaf_hash(out[-1]))
        prev = leaves[-1].hex()
    ledger.write_bytes(b"".join(line + b"\n" for line in out))
    ledger.with_name("run.ledger.head").unlink(missing_ok=True)
    assert verify(run, ledger, "--only", "chain")[1]["status"] == "OK"
    status, document = verify(run, ledger, "--only", "entries")
    assert (status, document["status"], document["first_bad"]) == (1, "TAMPERED", place)


def test_what_was_remembered_is_gone_on_from_and_said_to_be_trusted(run: Run, record: Record) -> None:
    ledger = record()
    whole = ledger.read_bytes()
    end = whole.index(b"\n", len(whole) // 2) + 1
    head = ledger.with_name("run.ledger.head")
    kept = head.read_bytes()
    head.unlink()
    ledger.write_bytes(whole[:end])
    status, document = verify(run, ledger, "--remember", "mine.memory")
    assert document["status"] in ("UNTRUSTED", "INCOMPLETE")
    ledger.write_bytes(whole)
    head.write_bytes(kept)
    status, first = verify(run, ledger, "--remember", "mine.memory")
    assert status == 0
    status, document = verify(run, ledger, "--since", "mine.memory")
    assert (status, document["status"]) == (0, "OK")
    assert document["facts"]["decisions_replayed"] == first["facts"]["decisions_replayed"]  # type: ignore[index]
    assert "taken on trust (--since)" in document["not_checked"][0]  # type: ignore[index]
    assert not any("made again" in line for line in document["checked"])  # type: ignore[attr-defined]
    options = ("--key", "run.pub", "--since", "mine.memory")
    assert ", given what was remembered" in run("verify", ledger, *options).stdout
    assert run("verify", ledger, *options, "--only", "chain").exit_code == 2
    assert run("verify", ledger, *options[:3], "weights.bin").exit_code == 2
