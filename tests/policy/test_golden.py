"""Golden policies: what each good one compiles to, and what is said about each bad one.

`UPDATE_GOLDEN=1 pytest tests/policy/test_golden.py` writes the expected files anew; read the difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from gradwarden.policy import Diagnostic, PolicyError, compile_policy, load_policy
from gradwarden.policy.program_json import program_from_json, program_to_data

CORPUS = Path(__file__).parent.parent / "corpus"
GOOD = sorted((CORPUS / "good").glob("*.policy"))
BAD = sorted((CORPUS / "bad").glob("*.policy"))
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"


def _expect(path: Path, actual: str) -> None:
    if UPDATE:
        path.write_text(actual, "utf-8")
    assert path.read_text("utf-8") == actual


def _rendered(diagnostics: Iterable[Diagnostic], folder: Path) -> str:
    """The findings as a reader in the corpus folder would see them."""
    text = "\n\n".join(diagnostic.render() for diagnostic in diagnostics)
    return text.replace(f"{folder}{os.sep}", "").replace("\x00", "␀") + "\n"


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_policy_compiles_to_its_golden_program_without_a_warning(path: Path) -> None:
    policy = load_policy(path)
    program = compile_policy(policy)
    assert not policy.warnings
    text = json.dumps(program_to_data(program), indent=2, ensure_ascii=False) + "\n"
    _expect(path.with_suffix(".json"), text)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_golden_program_reads_back_equal(path: Path) -> None:
    program = compile_policy(load_policy(path))
    assert program_from_json(program.to_json()) == program


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_policy_gets_its_golden_diagnostics(path: Path) -> None:
    try:
        found = load_policy(path).warnings
    except PolicyError as error:
        found = error.diagnostics
    assert found
    _expect(path.with_suffix(".expected"), _rendered(found, path.parent))


def test_the_bad_corpus_is_large_and_each_text_shows_something_of_its_own() -> None:
    assert len(BAD) >= 45
    texts = [path.with_suffix(".expected").read_text("utf-8") for path in BAD]
    assert len(set(texts)) == len(texts)
