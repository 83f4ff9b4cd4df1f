"""Runs `gradwarden verify` as anyone else would: another process, public key, no torch, no secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples.run_files import RunFiles


def verify(files: RunFiles, ledger: Path | None = None) -> tuple[bool, str]:
    """Return whether the ledger holds, and what `gradwarden verify` printed.

    ledger: a copy to look at in place of the run's own. Raises RuntimeError where the verifier could not run.
    """
    arguments = _arguments(files, ledger)
    done = subprocess.run(
        [sys.executable, "-m", "gradwarden.cli", *arguments], capture_output=True, text=True, check=False
    )
    printed = (done.stdout + done.stderr).strip()
    if done.returncode not in (0, 1):
        raise RuntimeError(f"`gradwarden {' '.join(arguments)}` exited with {done.returncode}: {printed}")
    return done.returncode == 0, printed


def write_report(files: RunFiles) -> bool:
    """Write the run's report, with licences for groups; return whether its ledger holds.

    Raises RuntimeError where no report could be made.
    """
    groups = [
        "--groups",
        str(files.folder / "manifest.jsonl"),
        "--by",
        "license",
        "--secret",
        str(files.secret),
    ]
    arguments = [
        "report",
        str(files.ledger),
        "--key",
        str(files.public_key),
        *groups,
        "-o",
        str(files.report),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "gradwarden.cli", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"`gradwarden report` exited with {done.returncode}: {done.stderr.strip()}")
    return done.returncode == 0


def command_line(files: RunFiles, ledger: Path | None = None) -> str:
    """Return what a person would type for the same."""
    return " ".join(["gradwarden", *_arguments(files, ledger)])


def _arguments(files: RunFiles, ledger: Path | None) -> list[str]:
    return [
        *("verify", str(ledger or files.ledger)),
        *("--key", str(files.public_key)),
        *("--policy", str(files.program)),
        *("--checkpoint-weights", str(files.weights)),
    ]
