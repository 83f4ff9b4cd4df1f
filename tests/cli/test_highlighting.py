"""The colours of policies: the Pygments lexer and the TextMate grammar know every word of the grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
from pygments.token import Comment, Keyword, Literal, Name, Number, Operator, String, Text, Token

from gradwarden.cli.pygments_lexer import BUILTINS, PolicyLexer, kinds_of_words
from gradwarden.policy.checking.types import RESERVED
from gradwarden.policy.syntax.expected import keywords

ROOT = Path(__file__).parents[2]
VSCODE = ROOT / "editors" / "vscode"
TEXTS = sorted([*(ROOT / "policies").rglob("*.policy"), *(ROOT / "tests/corpus/good").rglob("*.policy")])
SUFFIX = ".gradwarden-policy"

SCOPES = {
    Keyword.Declaration: {"keyword.declaration", "storage.modifier"},
    Keyword: {"keyword.control"},
    Keyword.Type: {"support.type"},
    Operator.Word: {"keyword.operator.word"},
    Keyword.Constant: {"constant.language"},
    Name.Builtin: {"variable.language"},
}
"""How the TextMate grammar calls what the lexer calls otherwise."""


@pytest.fixture(scope="module")
def grammar() -> Any:
    return json.loads((VSCODE / "syntaxes" / "policy.tmLanguage.json").read_text("utf-8"))


def patterns(part: Any) -> Iterator[tuple[str, str]]:
    """Yield the name and the pattern of every rule of a TextMate grammar."""
    if isinstance(part, dict):
        for key in ("match", "begin", "end"):
            if key in part:
                yield part.get("name", "").removesuffix(SUFFIX), part[key]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from patterns(inner)


# --- the words ----------------------------------------------------------------------------------------------


def test_the_lexer_knows_every_keyword_of_the_grammar_and_no_other() -> None:
    assert set(kinds_of_words()) - set(BUILTINS) == keywords()
    assert set(BUILTINS) <= RESERVED


def test_the_textmate_grammar_gives_every_keyword_the_same_kind_as_the_lexer(grammar: Any) -> None:
    rules = [
        (x["name"].removesuffix(SUFFIX), x["match"]) for x in grammar["repository"]["keyword"]["patterns"]
    ]
    listed = [word for _, pattern in rules for word in re.findall(r"[a-z]+(?=[|)])", pattern)]
    assert sorted(listed) == sorted(kinds_of_words())
    for word, kind in kinds_of_words().items():
        scopes = {scope for scope, pattern in rules if re.fullmatch(pattern, word)}
        assert len(scopes) == 1, word
        assert scopes <= SCOPES[kind], word


# --- the lexer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_the_lexer_keeps_the_text_and_knows_all_of_it(path: Path) -> None:
    text = path.read_text("utf-8")
    tokens = list(PolicyLexer(stripnl=False, ensurenl=False).get_tokens(text))
    assert "".join(value for _, value in tokens) == text
    assert not [value for kind, value in tokens if kind in (Token.Error, Text)]


def test_words_are_coloured_by_where_they_stand() -> None:
    text = 'depth reach { when model == "x" and has y  reach all at 0.5 }  # so\n'
    found = [(kind, value) for kind, value in PolicyLexer().get_tokens(text) if value.strip()]
    assert (Keyword.Declaration, "depth") in found
    assert (Name.Function, "reach") in found
    assert (Keyword, "reach") in found
    assert (String.Double, '"x"') in found
    assert (Operator.Word, "has") in found
    assert (Number, "0.5") in found
    assert (Comment.Single, "# so") in found


def test_an_attribute_may_have_the_name_of_a_keyword() -> None:
    found = list(
        PolicyLexer().get_tokens("examples {\n  source : string\n  cap    : date 2026-01-01..2027-01-01\n}\n")
    )
    assert (Name.Attribute, "cap") in found
    assert (Keyword.Type, "date") in found
    assert (Literal.Date, "2026-01-01") in found


def test_what_is_not_in_the_language_is_left_uncoloured() -> None:
    assert (Text, "@") in list(PolicyLexer().get_tokens("let a = @\n"))


def test_pygments_finds_the_lexer_by_name_and_by_file() -> None:
    assert get_lexer_by_name("gradwarden-policy").name == PolicyLexer.name
    assert get_lexer_for_filename("clinical.policy").name == PolicyLexer.name


# --- the TextMate grammar -----------------------------------------------------------------------------------


def test_patterns_use_only_what_all_engines_read_alike(grammar: Any) -> None:
    """Python's engine stands in for Oniguruma, which editors use: so nothing on which the two differ."""
    differing = re.compile(r"\\[hHRXKGpPk]|\(\?[<a-z]|[*+?}][+]|\[\[:|&&")
    found = list(patterns(grammar))
    assert len(found) > 15
    for _, pattern in found:
        assert not differing.search(pattern), pattern
        assert re.compile(pattern).match("\0") is None, "a pattern must not match nothing"


def test_every_rule_that_is_included_exists(grammar: Any) -> None:
    included = re.findall(r'"include": "#(\w+)"', json.dumps(grammar))
    assert set(included) == set(grammar["repository"])


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_every_word_of_a_policy_gets_a_colour(path: Path, grammar: Any) -> None:
    single = [pattern for name, pattern in patterns(grammar) if not name.startswith("invalid")]
    for word in re.findall(r'"[^"\n]*"|[^\s{}()\[\],:]+', re.sub(r"#.*", "", path.read_text("utf-8"))):
        assert any(re.match(pattern, word) for pattern in single), word


# --- the extension ------------------------------------------------------------------------------------------


def test_the_extension_points_at_files_that_exist() -> None:
    package = json.loads((VSCODE / "package.json").read_text("utf-8"))
    contributed = package["contributes"]
    (language,) = contributed["languages"]
    (grammar,) = contributed["grammars"]
    assert language["extensions"] == [".policy"]
    assert grammar["language"] == language["id"] == "gradwarden-policy"
    for place in (package["main"], language["configuration"], grammar["path"]):
        assert (VSCODE / place).is_file(), place
    scope = json.loads((VSCODE / grammar["path"]).read_text("utf-8"))["scopeName"]
    assert scope == grammar["scopeName"]
    assert package["dependencies"].keys() == {"vscode-languageclient"}


def test_the_extension_starts_the_server_as_documented() -> None:
    package = json.loads((VSCODE / "package.json").read_text("utf-8"))
    settings = package["contributes"]["configuration"]["properties"]
    assert settings["gradwarden.command"]["default"] == ["gradwarden", "lsp"]
    script = (VSCODE / "client" / "extension.js").read_text("utf-8")
    for command in package["contributes"]["commands"]:
        assert f'"{command["command"]}"' in script


def test_the_language_configuration_knows_words_comments_and_blocks() -> None:
    configuration = json.loads((VSCODE / "language-configuration.json").read_text("utf-8"))
    assert configuration["comments"] == {"lineComment": "#"}
    assert re.fullmatch(configuration["wordPattern"], "phi_stays_2")
    increase = re.compile(configuration["indentationRules"]["increaseIndentPattern"])
    assert increase.match("depth d {")
    assert not increase.match("depth d { reach all }")
    assert not increase.match("# a {")
