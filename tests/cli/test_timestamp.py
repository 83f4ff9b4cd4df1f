"""`gradwarden timestamp`, and `verify --tsa`, with an authority that openssl plays."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from gradwarden.runtime.jobs.layout import log_path
from gradwarden.runtime.ledger.keys import Signer
from tests.cli.conftest import Run
from tests.cli.test_verify import Record, program, record
from tests.runtime.jobs.simulated import sealed_job

__all__ = ["program", "record"]

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

CONFIG = """
[req]
distinguished_name = name
prompt = no
x509_extensions = stamping
[name]
CN = clock.example
[stamping]
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[tsa]
default_tsa = own
[own]
serial = serial
signer_cert = tsa.pem
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha512
ess_cert_id_alg = sha256
"""


class Authority:
    """A time-stamping authority in a folder, whose certificate is `tsa.pem`."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        (folder / "tsa.cnf").write_text(CONFIG)
        (folder / "serial").write_text("01\n")
        key = {"rsa": ["rsa:2048"], "ec": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]}[kind]
        self.openssl(
            "req", "-x509", "-newkey", *key, "-nodes", "-keyout", "tsa.key", "-out", "tsa.pem",
            "-days", "2", "-config", "tsa.cnf",
        )  # fmt: skip

    def openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def answer(self, request: str, response: str = "reply.tsr") -> str:
        self.openssl("ts", "-reply", "-queryfile", request, "-out", response, "-config", "tsa.cnf")
        return response


@pytest.fixture(params=["rsa", "ec"])
def authority(request: pytest.FixtureRequest, here: Path) -> Authority:
    return Authority(here, request.param)


@pytest.fixture
def stamped(run: Run, here: Path, record: Record, authority: Authority) -> Path:
    """A sealed ledger, and `kept.note`, its head, with a stamp beside it."""
    ledger = record()
    shutil.copy(f"{ledger}.head", here / "kept.note")
    assert run("timestamp", "kept.note").exit_code == 0
    reply = authority.answer("kept.note.tsq")
    done = run("timestamp", "kept.note", "--response", reply, "--tsa", "tsa.pem", "--format", "json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["authority"] == "CN=clock.example"
    return ledger


def verify(run: Run, *options: object) -> tuple[int, dict[str, object]]:
    result = run("verify", "run.ledger", "--key", "run.pub", "--tsa", "tsa.pem", "--format", "json", *options)
    return result.exit_code, json.loads(result.stdout)


def test_a_stamped_head_says_when_the_entries_existed(
    run: Run, stamped: Path, here: Path, authority: Authority
) -> None:
    status, document = verify(run, "--checkpoint", "kept.note")
    assert (status, document["status"]) == (0, "OK")
    facts = document["facts"]
    assert isinstance(facts, dict)
    (stamp,) = facts["timestamps"]
    assert (stamp["authority"], stamp["entries"]) == ("CN=clock.example", facts["signed_entries"])
    assert f"the first {stamp['entries']} entries existed at {stamp['time']}" in str(document["checked"])
    # and openssl agrees
    authority.openssl("ts", "-verify", "-data", "kept.note", "-in", "kept.note.tsr", "-CAfile", "tsa.pem")


def test_the_head_beside_the_ledger_may_be_the_stamped_one(run: Run, stamped: Path, here: Path) -> None:
    shutil.move(here / "kept.note.tsr", f"{stamped}.head.tsr")
    status, document = verify(run)
    assert (status, document["status"]) == (0, "OK")
    assert "existed at" in str(document["checked"])


def test_a_stamp_of_something_else_does_not_hold(
    run: Run, stamped: Path, here: Path, authority: Authority
) -> None:
    (here / "other").write_text("other")
    authority.openssl("ts", "-query", "-data", "other", "-sha256", "-cert", "-out", "other.tsq")
    authority.answer("other.tsq")
    refused = run("timestamp", "kept.note", "--response", "reply.tsr", "--tsa", "tsa.pem")
    assert (refused.exit_code, "exists already" in refused.stderr) == (2, True)
    (here / "kept.note.tsr").unlink()
    refused = run("timestamp", "kept.note", "--response", "reply.tsr", "--tsa", "tsa.pem")
    assert (refused.exit_code, "of other bytes" in refused.stderr) == (1, True)
    assert not (here / "kept.note.tsr").exists()
    shutil.copy(here / "reply.tsr", here / "kept.note.tsr")
    status, document = verify(run, "--checkpoint", "kept.note")
    assert (status, document["status"]) == (1, "UNTRUSTED")
    assert "timestamp_invalid" in str(document["findings"])


@pytest.mark.parametrize("authority", ["ec"], indirect=True)
def test_a_stamp_of_a_head_that_is_not_this_ledgers_says_nothing_of_it(
    run: Run, stamped: Path, here: Path, record: Record
) -> None:
    for path in (stamped, Path(f"{stamped}.head")):
        path.unlink()

    def rewrite(_number: int, body: dict[str, object]) -> None:
        body["epoch"] = 1

    record(lie=rewrite)
    status, document = verify(run, "--checkpoint", "kept.note")
    assert (status, document["status"]) == (1, "FORK")
    facts = document["facts"]
    assert isinstance(facts, dict)
    assert facts["timestamps"] == []
    assert "existed at" not in str(document["checked"])


def test_a_stamp_by_another_authority_does_not_hold(run: Run, stamped: Path, here: Path) -> None:
    (here / "far").mkdir()
    Authority(here / "far", "ec")
    shutil.copy(here / "far" / "tsa.pem", here / "tsa.pem")
    status, document = verify(run, "--checkpoint", "kept.note")
    assert (status, document["status"]) == (1, "UNTRUSTED")


def test_a_stamp_that_was_asked_for_and_is_missing_is_misuse(run: Run, stamped: Path, here: Path) -> None:
    (here / "kept.note.tsr").unlink()
    for options in ([], ["--checkpoint", "kept.note"]):
        result = run("verify", stamped, "--key", "run.pub", "--tsa", "tsa.pem", *options)
        assert (result.exit_code, ".tsr` is missing" in result.stderr) == (2, True)
    for options in (["--tsa", "tsa.pem"], ["--response", "reply.tsr"]):
        result = run("timestamp", "kept.note", *options)
        assert (result.exit_code, "give both" in result.stderr) == (2, True)
    result = run("timestamp", "kept.note", "--response", "reply.tsr", "--tsa", "run.pub")
    assert (result.exit_code, "no certificates" in result.stderr) == (2, True)


@pytest.mark.parametrize("authority", ["ec"], indirect=True)
def test_a_stamp_of_the_log_of_logs_dates_what_it_binds_of_each_rank(
    run: Run, here: Path, signer: Signer, authority: Authority
) -> None:
    sealed_job(here / "job", signer)
    signer.public.save(here / "run.pub")
    asked = ("verify", "job", "--key", "run.pub", "--tsa", "tsa.pem", "--format", "json")
    missing = run(*asked)
    assert (missing.exit_code, "job.ledger.head.tsr` is missing" in missing.stderr) == (2, True)
    head = here / "job" / "job.ledger.head"
    assert run("timestamp", head).exit_code == 0
    reply = authority.answer(f"{head}.tsq")
    assert run("timestamp", head, "--response", reply, "--tsa", "tsa.pem").exit_code == 0
    result = run(*asked)
    told = json.loads(result.stdout)
    (stamp,) = told["facts"]["timestamps"]
    assert (result.exit_code, stamp["authority"]) == (0, "CN=clock.example")
    assert stamp["entries"] == told["facts"]["signed_entries"]
    assert stamp["ranks"] == {
        rank: member["bound_entries"] for rank, member in told["facts"]["members"].items()
    }
    assert any(
        "of the log of logs" in line and "of 3 ranks that they bind" in line for line in told["checked"]
    )
    shutil.copy(head, here / "kept.note")
    shutil.move(f"{head}.tsr", here / "kept.note.tsr")
    assert run(*asked, "--checkpoint", "kept.note").exit_code == 0
    sealed_job(here / "other", signer)
    of_another = json.loads(run("verify", "other", *asked[2:], "--checkpoint", "kept.note").stdout)
    log_path(here / "other").unlink()
    of_none = json.loads(run("verify", "other", *asked[2:], "--checkpoint", "kept.note").stdout)
    assert [one["facts"]["timestamps"] for one in (of_another, of_none)] == [[], []]
    (here / "kept.note.tsr").write_bytes((here / "kept.note.tsr").read_bytes()[:-9])
    result = run(*asked, "--checkpoint", "kept.note")
    assert (result.exit_code, json.loads(result.stdout)["findings"][0]["code"]) == (1, "timestamp_invalid")
