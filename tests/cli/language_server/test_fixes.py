"""Quick fixes: each that is offered mends its finding."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradwarden.cli.language_server.fixes import applied, fixes
from gradwarden.cli.language_server.workspace import Workspace
from gradwarden.policy import PolicyError, parse_policy
from tests.cli.language_server.policies import POLICY, opened

CORPUS = Path(__file__).parents[2] / "corpus" / "bad"


def offers(workspace: Workspace, folder: Path, code: str) -> dict[str, str]:
    """Return the fixes of the findings with a code: what they say they do, and the text after them."""
    uri = (folder / "sample.policy").as_uri()
    (view,) = workspace.views(uri)
    found = [x for x in view.found if x.diagnostic.code == code]
    assert found, [x.diagnostic.code for x in view.found]
    text = view.files[0].source.text
    return {fix.title: applied(text, fix.edits) for x in found for fix in fixes(workspace, view, x)}


MENDED = [
    ("GW201", "depth d { when consnet  reach all }", "depth d { when consent  reach all }"),
    ("GW202", "depth d { reach shalow }", "depth d { reach shallow }"),
    ("GW208", "depth d { when kind == concpt  reach all }", "depth d { when kind == concept  reach all }"),
    ("GW208", 'depth d { when kind == "C-3"  reach all }', 'depth d { when kind == "C-2"  reach all }'),
    ("GW101", "supress s { when consent }", "suppress s { when consent }"),
    ("GW101", "depth d { when kind = concept  reach all }", "depth d { when kind == concept  reach all }"),
    ("GW102", "depth d { when consent && fine  reach all }", "depth d { when consent and fine  reach all }"),
    ("GW102", "depth d { when !consent  reach all }", "depth d { when not consent  reach all }"),
    ("GW103", 'suppress s { because "no\n}', 'suppress s { because "no"\n}'),
    ("GW201", "depth d { when pii in tags  reach all }", "depth d { when tags contains pii  reach all }"),
    ("GW201", "depth d { when concept  reach all }", "depth d { when kind == concept  reach all }"),
    (
        "GW304",
        'depth d { when patient == "x"  reach all }',
        'depth d { when has patient and patient == "x"  reach all }',
    ),
    (
        "GW304",
        'depth d { when consent or not patient == "x"  reach all }',
        'depth d { when consent or not (has patient and patient == "x")  reach all }',
    ),
    ("GW304", "retain r { until erase_on }", "retain r { when has erase_on  until erase_on }"),
    (
        "GW304",
        "retain r { when consent or fine  until erase_on }",
        "retain r { when (consent or fine) and has erase_on  until erase_on }",
    ),
    ("GW502", "suppress s { when fine }", 'suppress s { when fine  because "…" }'),
    ("GW502", "suppress s {\n  when fine\n}", 'suppress s {\n  when fine\n  because "…"\n}'),
    ("GW502", "suppress s {\n  when fine  # so\n}", 'suppress s {\n  when fine  # so\n  because "…"\n}'),
    (
        "GW302",
        'depth d { when has erase_on and erase_on < "2026-01-01"  reach all }',
        "depth d { when has erase_on and erase_on < 2026-01-01  reach all }",
    ),
]


@pytest.mark.parametrize(("code", "broken", "mended"), MENDED)
def test_a_fault_is_mended_as_its_help_says(tmp_path: Path, code: str, broken: str, mended: str) -> None:
    workspace = opened(tmp_path, sample=f"{POLICY}{broken}\n")
    assert f"{POLICY}{mended}\n" in [
        " ".join(x.split(" ")) for x in offers(workspace, tmp_path, code).values()
    ]


def test_a_finding_that_cannot_be_mended_has_no_fix(tmp_path: Path) -> None:
    workspace = opened(tmp_path, sample=f"{POLICY}depth d {{ when zzz  reach all }}\n")
    assert offers(workspace, tmp_path, "GW201") == {}


def test_an_edit_that_breaks_something_else_is_not_offered(tmp_path: Path) -> None:
    broken = "let Fine = consent\ndepth d { when fine  reach all }\n"  # `fine` is declared already
    assert offers(opened(tmp_path, sample=POLICY + broken), tmp_path, "GW206") == {}


@pytest.mark.parametrize("path", sorted(CORPUS.glob("[a-m]*.policy")), ids=lambda path: path.stem)
def test_every_fix_offered_in_the_corpus_leaves_less_to_mend(path: Path) -> None:
    workspace = Workspace()
    workspace.open(path.as_uri(), path.read_bytes().decode("utf-8", "replace"), 1)
    (view,) = workspace.views(path.as_uri())
    for finding in view.found[:6]:
        for fix in fixes(workspace, view, finding):
            if any(edit.span.source != view.files[0].source for edit in fix.edits):
                continue  # an edit of a file that is imported
            text = applied(view.files[0].source.text, fix.edits)
            same = [x for x in findings_of(text, path) if x == finding.diagnostic.message]
            before = [x for x in view.found if x.diagnostic.message == finding.diagnostic.message]
            assert len(same) < len(before)


def findings_of(text: str, path: Path) -> list[str]:
    try:
        return [x.message for x in parse_policy(text, str(path), path.parent).warnings]
    except PolicyError as error:
        return [x.message for x in error.diagnostics]
