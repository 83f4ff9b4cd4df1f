"""Verbs with keys in a device."""

from __future__ import annotations

from pathlib import Path

from tests import softhsm
from tests.cli.conftest import Run


@softhsm.needed
def test_verbs_make_and_use_keys_in_a_device(run: Run, policy: Path, here: Path) -> None:
    softhsm.make_token()
    (here / "pin").write_text(softhsm.PIN)
    (here / policy).write_text("policy a version 1\nexamples { x : bool }\nmodel { all_of_it = rest }\n")
    at = f"{softhsm.uri('ward-run')}&pin-source={here}/pin"
    assert "made the private key in the token `ward`" in run("keygen", "ward-run", "--pkcs11", at).stdout
    assert "has the private key already" in run("keygen", "again", "--pkcs11", at).stdout
    assert not (here / "ward-run.key").exists()
    signing = ("--sign", "ward-run.pub", "--pkcs11", at)
    assert run("build", policy, "-o", "a.json", *signing).exit_code == 0
    assert run("verify", "a.json", "--key", "ward-run.pub").exit_code == 0
    refused = run("build", policy, "-o", "b.json", *signing, "--signer-command", "false")
    assert refused.exit_code == 2
    assert "one of the two" in refused.stderr
