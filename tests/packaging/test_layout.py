"""The distribution holds every module and data file, imports go one way, and the light half stays light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]


def test_every_folder_with_modules_is_a_listed_package() -> None:
    found = {
        path.parent
        for top in ("policy", "runtime", "cli", "grammars", "policies")
        for path in (ROOT / top).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert {ROOT / FOLDERS[name] for name in PACKAGES} == found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package: str) -> None:
    top = ROOT / FOLDERS[".".join(package.split(".")[:2])]
    assert (top / "py.typed").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "import gradwarden.policy; gradwarden.policy.load_policy; gradwarden.policy.compile_policy",
        "from gradwarden.policy.evaluation import admission, batch, evaluate, replay",
        "import gradwarden.runtime; gradwarden.runtime.Ledger; gradwarden.runtime.Signer",
        "from gradwarden.runtime.verification import drift_measure, memory, run_replay, verify",
        "import gradwarden.runtime.verification.weights_check",
        "import gradwarden.cli, gradwarden.runtime.evidence.tally",
    ],
)
def test_the_light_half_never_imports_torch(statement: str) -> None:
    program = f"{statement}\nimport sys; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_checks_a_chain_loads_nothing_that_replays_a_run() -> None:
    program = "from gradwarden.runtime.verification import verify\nimport sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name for name in result.stdout.split() if name.startswith("gradwarden.")}
    assert "gradwarden.runtime.ledger.chain" in loaded
    assert not {name for name in loaded if "evaluation" in name.split(".")} - {
        "gradwarden.policy.evaluation",
        "gradwarden.policy.evaluation.lookup",
    }
    assert "gradwarden.runtime.verification.run_replay" not in loaded


def test_every_dependency_earns_its_place_in_the_docs() -> None:
    listed = (ROOT / "docs" / "dependencies.md").read_text()
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(d for group in extras.values() for d in group)]
    names = {d.split(">")[0].split("[")[0].strip() for d in wanted} - {"gradwarden"}
    missing = {name for name in names if name not in listed and not name.startswith("types-")}
    assert not missing
