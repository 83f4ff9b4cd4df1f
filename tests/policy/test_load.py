"""Loading several policies that import the same files."""

from __future__ import annotations

import pytest

from gradwarden.policy import load, load_policy

SHARED = "examples { kind : one of a, b }\nmodel { deep = rest }\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shared.policy").write_text(SHARED)
    for name in ("one", "two"):
        header = f'policy {name} version 1 language 1\nimport "shared.policy"\n'
        (tmp_path / f"{name}.policy").write_text(header + "depth d { when kind == a reach deep }\n")
    return tmp_path


@pytest.fixture
def parsed(monkeypatch):
    """Return the names of the texts that are parsed, as they are."""
    names = []
    parse = load.parse

    def counting(source):
        names.append(source.name.rpartition("/")[2])
        return parse(source)

    monkeypatch.setattr(load, "parse", counting)
    return names


def test_what_two_policies_import_is_parsed_once(folder, parsed):
    remembered = load.remembering()
    programs = [load_policy(folder / f"{name}.policy", remembered).program for name in ("one", "two", "one")]
    assert parsed == ["one.policy", "shared.policy", "two.policy"]
    assert programs == [load_policy(folder / f"{name}.policy").program for name in ("one", "two", "one")]


def test_a_text_that_changed_is_parsed_again(folder):
    remembered = load.remembering()
    before = load_policy(folder / "one.policy", remembered)
    (folder / "shared.policy").write_text(SHARED.replace("a, b", "b, a"))
    after = load_policy(folder / "one.policy", remembered)
    assert before.program.attributes[0].values == ("a", "b")
    assert after.program.attributes[0].values == ("b", "a")
