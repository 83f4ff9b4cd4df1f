"""Renaming keeps a policy the same up to the name, or is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.cli.language_server.rename import RenameRefusedError, Renaming, find, rename, renamed
from gradwarden.cli.language_server.workspace import Workspace, place_of
from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.syntax.names import Kind, Symbol
from tests.cli.language_server.policies import HEADER, POLICY, opened
from tests.policy.strategies_text import declarations, text_of

NEW = "zz_renamed"
NAMED = re.compile(r"(waive|pace):(\w+)")
"""The name of what is named after a rule or a band."""


def place(folder: Path, stem: str = "sample") -> str:
    return place_of((folder / f"{stem}.policy").as_uri())


def texts_after(workspace: Workspace, renaming: Renaming, name: str) -> dict[str, str]:
    return {
        Path(file).stem: renamed(workspace.buffers[file].text, spans, name)
        for file, spans in renaming.spans.items()
    }


def _canonical(value: Any, names: dict[str, str]) -> Any:
    """Return program data with names put for others, lists of parts in an order that names do not set."""
    match value:
        case dict():
            return {key: _canonical(part, names) for key, part in value.items()}
        case list():
            parts = [_canonical(part, names) for part in value]
            ordered = all(isinstance(part, int | float) for part in parts)
            return parts if ordered else sorted(parts, key=lambda part: json.dumps(part, sort_keys=True))
        case str():
            return NAMED.sub(lambda x: f"{x[1]}:{names.get(x[2], x[2])}", names.get(value, value))
        case _:
            return value


def _program(text: str, names: dict[str, str]) -> Any:
    return _canonical(json.loads(compile_policy(parse_policy(text)).to_json()), names)


@settings(max_examples=8)
@given(declarations(), st.data())
def test_renaming_keeps_the_program_up_to_the_name_and_can_be_taken_back(
    parts: list[str], data: st.DataObject
) -> None:
    text = text_of(parts)
    folder = Path("/nowhere")
    workspace = opened(folder, sample=text)
    (view,) = workspace.views((folder / "sample.policy").as_uri())
    symbols = sorted({x.symbol for x in view.names if x.symbol.kind != "value"}, key=str)
    symbol = data.draw(st.sampled_from([x for x in symbols if x.name != "quarantine"]))
    changed = texts_after(workspace, rename(workspace, place(folder), symbol, NEW), NEW)["sample"]
    assert changed != text
    assert _program(changed, {}) == _program(text, {symbol.name: NEW})
    other = opened(folder, sample=changed)
    back = rename(other, place(folder), Symbol(symbol.kind, NEW), symbol.name)
    assert texts_after(other, back, symbol.name)["sample"] == text


def test_every_use_is_renamed_also_inside_quotes(tmp_path: Path) -> None:
    text = POLICY + 'suppress s { when phase == "main" or phase in [main]  because "main" }\n'
    workspace = opened(tmp_path, sample=text)
    changed = texts_after(
        workspace, rename(workspace, place(tmp_path), Symbol("phase", "main"), "late"), "late"
    )
    assert changed["sample"].endswith('when phase == "late" or phase in [late]  because "main" }\n')
    assert "until step 10  late }" in changed["sample"]


def test_files_that_share_a_name_are_renamed_together(tmp_path: Path) -> None:
    (tmp_path / "shared.policy").write_text("let fine = consent\n")
    main = 'import "shared.policy"\nexamples { consent : bool }\nmodel { a = rest }\n'
    main += "depth d { when fine  reach a }\n"
    workspace = opened(
        tmp_path,
        one=HEADER + main,
        two=HEADER + main,
        shared="let fine = consent  # not saved\n",
        apart=HEADER + "examples { consent : bool }\nmodel { a = rest }\ndepth d { when consent  reach a }\n",
    )
    found = rename(workspace, place(tmp_path, "one"), Symbol("attribute", "consent"), "agreed")
    changed = texts_after(workspace, found, "agreed")
    assert changed["shared"] == "let fine = agreed  # not saved\n"
    assert "examples { agreed : bool }" in changed["one"]
    assert "examples { agreed : bool }" in changed["two"]
    assert set(changed) == {"one", "two", "shared"}
    only_one = find(workspace, place(tmp_path, "one"), Symbol("rule", "d"))
    assert set(texts_after(workspace, only_one, "x")) == {"one"}


@pytest.mark.parametrize(
    ("kind", "old", "new", "why"),
    [
        ("attribute", "consent", "Consent", "not a name"),
        ("attribute", "consent", "two words", "not a name"),
        ("attribute", "consent", "x" * 65, "at most 64 characters"),
        ("attribute", "consent", "when", "a word of the language"),
        ("attribute", "consent", "id", "identity of an example"),
        ("attribute", "consent", "loss", "already the name of a signal at sample.policy:11:11"),
        ("condition", "fine", "low", "already the name of an entropy band"),
        ("band", "deep", "shallow", "already the name of a band"),
        ("band", "deep", "all", "a word of the language"),
        ("band", "deep", "quarantine", "a meaning of its own"),
        ("band", "quarantine", "aside", "a meaning of its own"),
        ("phase", "main", "warmup", "already the name of a phase"),
        ("phase", "main", "until", "a word of the language"),
        ("rule", "r", "s", "already the name of a rule"),
        # `surface` would no longer be the value that stands on the left of `==`
        ("attribute", "consent", "surface", "read as something else"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(
    tmp_path: Path, kind: Kind, old: str, new: str, why: str
) -> None:
    rules = 'depth r { when surface == kind  reach shallow }\nsuppress s { when not consent  because "x" }\n'
    workspace = opened(tmp_path, sample=POLICY + rules)
    with pytest.raises(RenameRefusedError, match=why):
        rename(workspace, place(tmp_path), Symbol(kind, old), new)


def test_values_are_not_renamed_since_records_carry_them(tmp_path: Path) -> None:
    workspace = opened(tmp_path, sample=POLICY)
    with pytest.raises(RenameRefusedError, match="records carry"):
        rename(workspace, place(tmp_path), Symbol("value", "concept", "kind"), "idea")


def test_nothing_is_renamed_while_a_file_does_not_parse(tmp_path: Path) -> None:
    workspace = opened(tmp_path, sample=POLICY + "depth d { when ( consent  reach all }\n")
    with pytest.raises(RenameRefusedError, match=r"`sample\.policy` does not parse"):
        rename(workspace, place(tmp_path), Symbol("attribute", "consent"), "agreed")


def test_a_name_that_another_importer_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared.policy").write_text("examples { consent : bool }\n")
    body = 'import "shared.policy"\nmodel { a = rest }\ndepth d { when consent  reach a }\n'
    (tmp_path / "other.policy").write_text(f"{HEADER}{body}examples {{ agreed : bool }}\n")
    workspace = opened(tmp_path, sample=HEADER + body)
    with pytest.raises(RenameRefusedError, match=r"already the name of an attribute at other\.policy"):
        rename(workspace, place(tmp_path), Symbol("attribute", "consent"), "agreed")
