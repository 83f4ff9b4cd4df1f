"""`gradwarden attest` and `gradwarden verify-attestation`: weights tied to a ledger that was verified."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gradwarden.cli.commands.attest import _refuse_ledger
from gradwarden.runtime.evidence.dsse import sign_envelope
from gradwarden.runtime.evidence.statement import PAYLOAD_TYPE
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.verification.verify import VerifyReport
from tests.cli.conftest import Run
from tests.cli.test_verify import program, record

__all__ = ["program", "record"]

Record = Callable[..., Path]


def tensors(**content: bytes) -> bytes:
    """A safetensors file of vectors of bytes."""
    header, data = {}, b""
    for name, raw in content.items():
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "U8", "shape": [len(raw)], "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


WEIGHTS = tensors(deep=b"abc", shallow=b"defg")


@pytest.fixture
def ledger(record: Record, here: Path, signer: Signer) -> Path:
    signer.save(here / "run.key")
    return record(weights=WEIGHTS)


def attest(run: Run, *options: object) -> Any:
    return run(
        "attest", "run.ledger", "--checkpoint-weights", "weights.bin", "--sign", "run.key",
        "-o", "model.intoto.json", *options,
    )  # fmt: skip


def check(run: Run, *options: object) -> tuple[int, dict[str, Any]]:
    result = run("verify-attestation", "model.intoto.json", "--key", "run.pub", "--format", "json", *options)
    return result.exit_code, json.loads(result.stdout)


def codes(document: dict[str, Any]) -> list[str]:
    return [fault["code"] for fault in document["faults"]]


def test_weights_are_attested_and_checked_without_the_ledger(run: Run, ledger: Path, here: Path) -> None:
    done = attest(run, "--policy", "governed.policy")
    assert done.exit_code == 0
    assert "self-attested, by run" in done.stdout
    ledger.unlink()
    checked = run(
        "verify-attestation", "model.intoto.json", "--key", "run.pub", "--checkpoint-weights", "weights.bin"
    )
    assert checked.exit_code == 0
    assert checked.stdout.startswith("OK model.intoto.json: the attestation holds\n")
    assert "weights.bin is the file attested" in checked.stdout
    assert "policies, steps and privacy: on the attester's word (--ledger)" in checked.stdout
    _, document = check(run)
    assert [subject["digest"]["sha256"] for subject in document["statement"]["subject"]] == [
        sha256(content).hexdigest() for content in (WEIGHTS, b"abc", b"defg")
    ]


def test_with_the_ledger_everything_is_compared(run: Run, ledger: Path, record: Record) -> None:
    attest(run)
    assert check(run, "--ledger", ledger)[0] == 0
    told = run("verify-attestation", "model.intoto.json", "--key", "run.pub", "--ledger", ledger).stdout
    assert "policies, steps and privacy: on run.ledger, which was verified" in told.replace(
        f"{ledger}", "run.ledger"
    )
    ledger.write_bytes(ledger.read_bytes().replace(b'"2.5"', b'"2.4"', 1))
    status, document = check(run, "--ledger", ledger)
    assert (status, codes(document)[0]) == (1, "TAMPERED")
    for path in (ledger, Path(f"{ledger}.head")):
        path.unlink()

    def rewrite(_number: int, body: dict[str, object]) -> None:
        body["epoch"] = 1

    record(lie=rewrite, weights=WEIGHTS)
    status, document = check(run, "--ledger", ledger)
    assert (status, codes(document)) == (1, ["wrong_claim"])


def test_steps_that_an_attester_leaves_out_are_told(
    run: Run, ledger: Path, here: Path, signer: Signer
) -> None:
    attest(run)
    asked = ("verify-attestation", "model.intoto.json", "--key", "run.pub", "--ledger", ledger)
    told = run(*asked).stdout
    assert ("steps that led to the weights: " in told, "not said" in told) == (True, False)
    statement = check(run)[1]["statement"]
    del statement["predicate"]["effectiveSteps"]
    without = sign_envelope(json.dumps(statement).encode(), PAYLOAD_TYPE, [signer])
    (here / "model.intoto.json").write_bytes(without)
    older = run(*asked)
    assert (older.exit_code, "steps that led to the weights: not said" in older.stdout) == (0, True)


def test_other_weights_are_not_those_attested(run: Run, ledger: Path, here: Path) -> None:
    attest(run)
    (here / "moved.bin").write_bytes(tensors(shallow=b"defg", deep=b"abc"))
    status, document = check(run, "--checkpoint-weights", "moved.bin")
    assert (status, document["weights"]) == (0, {"moved.bin": "tensors"})
    for content in (tensors(deep=b"abd", shallow=b"defg"), tensors(deep=b"abc"), b"no tensors", b""):
        (here / "other.bin").write_bytes(content)
        status, document = check(run, "--checkpoint-weights", "other.bin")
        assert (status, codes(document)) == (1, ["wrong_subject"])


def test_nothing_is_attested_that_does_not_hold(run: Run, ledger: Path, record: Record, here: Path) -> None:
    def refused(*options: object) -> str:
        result = attest(run, *options)
        assert result.exit_code == 1
        assert "NOT ATTESTED" in result.stderr
        assert not (here / "model.intoto.json").exists()
        return str(result.stderr)

    whole = ledger.read_bytes()
    ledger.write_bytes(whole.replace(b'"2.5"', b'"2.4"', 1))
    assert "error[TAMPERED]" in refused()
    ledger.write_bytes(whole)
    Signer.generate("other").public.save(here / "other.pub")
    assert "error[UNTRUSTED]" in refused("--key", "other.pub")
    (here / "weights.bin").write_bytes(b"other")
    assert "error[weights_mismatch]" in refused()
    for path in (ledger, Path(f"{ledger}.head")):
        path.unlink()
    record(sealed=False)
    assert "error[INCOMPLETE]" in refused()


def test_an_attestation_carries_its_witnesses(run: Run, ledger: Path) -> None:
    run("keygen", "ann", "--witness")
    run("witness", ledger, "--key", "run.pub", "--sign", "ann.key", "--record", "ann.json", "-o", "ann.note")
    unwitnessed = attest(run, "--witness", "ann.pub")
    assert (unwitnessed.exit_code, "error[unwitnessed]" in unwitnessed.stderr) == (1, True)
    attest(run)
    status, document = check(run, "--witness", "ann.pub")
    assert (status, codes(document)) == (1, ["unwitnessed"])
    assert "witnessed, by run" in attest(run, "--head", "ann.note", "--witness", "ann.pub").stdout
    status, document = check(run, "--witness", "ann.pub")
    assert (status, len(document["witnessed_by"])) == (0, 1)
    assert document["statement"]["predicate"]["verification"]["assurance"] == "witnessed"
    assert check(run, "--origin", "gradwarden/else")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["attest", "run.ledger", "--sign", "run.key", "-o", "x"], "--checkpoint-weights"),
        (
            ["attest", "missing", "--checkpoint-weights", "weights.bin", "--sign", "run.key", "-o", "x"],
            "missing",
        ),
        (["attest", "run.ledger", "--checkpoint-weights", ".", "--sign", "run.key", "-o", "x"], "no file"),
        (
            ["attest", "run.ledger", "--checkpoint-weights", "weights.bin", "--sign", "run.pub", "-o", "x"],
            "GW700",
        ),
        (["verify-attestation", "weights.bin", "--key", "run.pub"], "GW612"),
        (["verify-attestation", "missing", "--key", "run.pub"], "missing"),
        (["verify-attestation", "a.json", "--key", "run.pub", "--checkpoint-weights", "missing"], "missing"),
        (["verify-attestation", "a.json", "--key", "run.pub", "--ledger", "missing"], "missing"),
    ],
)
def test_misuse_is_told(run: Run, ledger: Path, here: Path, arguments: list[str], told: str) -> None:
    attest(run)
    (here / "model.intoto.json").rename(here / "a.json")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert "GW999" not in result.stderr


def test_evidence_never_needs_torch(run: Run, ledger: Path) -> None:
    """Every verb that makes or checks evidence, in one process."""
    run("keygen", "ann", "--witness")
    key, weights = ["--key", "run.pub"], ["--checkpoint-weights", "weights.bin"]
    cosigned = ["--checkpoint", "ann.note", "--witness", "ann.pub"]
    commands = [
        ["proof", "run.ledger", "--entry", "3", "-o", "3.tlog-proof"],
        ["verify-proof", "3.tlog-proof", *key],
        ["witness", "run.ledger", *key, "--sign", "ann.key", "--record", "ann.json", "-o", "ann.note"],
        ["verify", "run.ledger", *key, *cosigned],
        ["export", "tiles", "run.ledger", "log"],
        ["attest", "run.ledger", *weights, "--sign", "run.key", "-o", "a.json"],
        ["verify-attestation", "a.json", *key, *weights, "--ledger", "run.ledger"],
    ]
    script = (
        "import sys\nfrom gradwarden.cli.app import cli\n"
        f"for command in {commands!r}:\n"
        "    try:\n        cli(command)\n"
        "    except SystemExit as end:\n        assert end.code == 0, end.code\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_a_warning_is_no_reason_why_nothing_is_attested(capsys: pytest.CaptureFixture[str]) -> None:
    """Only errors say why a ledger does not verify."""
    findings = (Finding("stale_sidecar", 3, "an older head", "warning"), Finding("altered", 4, "other bytes"))
    report = VerifyReport("TAMPERED", False, findings)
    assert _refuse_ledger(Path("run.ledger"), report, "text") == 1
    told = capsys.readouterr().err
    assert "error[altered]: entry 4: other bytes" in told
    assert "stale_sidecar" not in told
