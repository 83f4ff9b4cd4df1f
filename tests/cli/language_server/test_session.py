"""Each feature of the server, over the protocol, as an editor uses it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException

from gradwarden.policy import format_policy
from tests.cli.language_server.conftest import Editor, applied
from tests.cli.language_server.policies import HEADER, POLICY, SCHEMA

pytestmark = pytest.mark.asyncio(loop_scope="session")

POLICIES = Path(__file__).parents[3] / "policies"

RULES = """\
depth wide { when fine and kind == concept  reach shallow, deep at 0.5  because "well founded" }
suppress opted_out { when not consent  because "no consent" }
waive opted_out { approved by "A"  until 2099-01-01  because "ruling" }
assert shallow_only { never reach deep when kind == surface }
"""


def shown(text: str, place: lsp.Range) -> str:
    """Return what stands in a range, on one line, counted in UTF-16."""
    line = text.split("\n")[place.start.line].encode("utf-16-le")
    return line[place.start.character * 2 : place.end.character * 2].decode("utf-16-le")


# --- findings -----------------------------------------------------------------------------------------------


async def test_findings_have_a_place_a_code_and_help(editor: Editor) -> None:
    text = POLICY + 'suppress s { when kind == "𝄞" or consnet  because "𝄞" }\n'
    uri = editor.open("a", text)
    found = await editor.findings(uri)
    unknown = next(x for x in found if x.code == "GW201")
    assert shown(text, unknown.range) == "consnet"
    assert unknown.severity == lsp.DiagnosticSeverity.Error
    assert unknown.message == "undeclared name `consnet`"
    (help,) = unknown.related_information or ()
    assert help.message == "did you mean `consent`?"
    assert help.location.uri == uri


async def test_findings_follow_each_change_and_go_when_mended(editor: Editor) -> None:
    uri = editor.open("a", POLICY + "depth d { reach shalow }\n")
    assert [x.code for x in await editor.findings(uri)] == ["GW202"]
    version = editor.change(uri, POLICY + RULES)
    assert not [x for x in await editor.findings(uri, version) if x.severity == lsp.DiagnosticSeverity.Error]


async def test_findings_of_texts_that_were_overtaken_are_not_told(editor: Editor) -> None:
    uri = editor.open("a", POLICY)
    for number in range(20):
        version = editor.change(uri, POLICY + f"depth d {{ reach band_{number} }}\n")
    (finding,) = [x for x in await editor.findings(uri, version) if x.code == "GW202"]
    assert "band_19" in finding.message
    await asyncio.sleep(0.3)
    told = [x.version for x in editor.client.published if x.uri == uri and x.version is not None]
    assert told == sorted(told)
    assert len(told) < 10


async def test_an_import_is_read_as_it_is_shown_not_as_it_was_saved(editor: Editor) -> None:
    (editor.folder / "shared.policy").write_text("examples { old : bool }\n")
    text = HEADER + 'import "shared.policy"\nmodel { all_of_it = rest }\ndepth d { when fresh  reach all }\n'
    main = editor.open("main", text)
    assert [x.code for x in await editor.findings(main)] == ["GW201"]
    shared = editor.open("shared", "examples { fresh : bool }\n")
    version = editor.change(main, text + "\n")
    assert await editor.findings(main, version) == []
    editor.change(shared, "examples { fresh : number 0..1 }\n")
    last = editor.change(main, text)
    assert [x.code for x in await editor.findings(main, last)] == ["GW301"]


async def test_a_part_is_checked_in_the_policies_that_import_it(editor: Editor) -> None:
    (editor.folder / "main.policy").write_text(
        HEADER + 'import "part.policy"\nexamples { consent : bool }\nmodel { all_of_it = rest }\n'
    )
    part = editor.open("part", "depth d { when consent  reach all }\n")
    assert await editor.findings(part) == []
    version = editor.change(part, "depth d { when consent  reach deep }\n")
    assert [x.code for x in await editor.findings(part, version)] == ["GW202"]


async def test_a_fault_in_a_file_that_is_not_open_is_told_and_taken_back(editor: Editor) -> None:
    part = editor.folder / "part.policy"
    part.write_text("depth d { when zzz  reach all }\n")
    main = editor.open("main", HEADER + 'import "part.policy"\nmodel { all_of_it = rest }\n')
    assert [x.code for x in await editor.findings(part.as_uri(), None)] == ["GW201"]
    version = editor.change(main, HEADER + "model { all_of_it = rest }\ndepth d { reach all }\n")
    await editor.findings(main, version)
    assert await editor.findings(part.as_uri(), None) == []


async def test_a_text_without_a_file_is_checked(editor: Editor) -> None:
    uri = "untitled:Untitled-1"
    document = lsp.TextDocumentItem(uri, "gradwarden-policy", 1, POLICY + "depth d { reach shalow }\n")
    editor.client.text_document_did_open(lsp.DidOpenTextDocumentParams(document))
    editor.texts[uri] = document.text
    assert [x.code for x in await editor.findings(uri)] == ["GW202"]


# --- reading ------------------------------------------------------------------------------------------------

HOVERS = [
    (
        "let finer = fine\ndepth e { when finer  reach all }\ndepth d { when ‸score > 0  reach all }",
        ["score : number 0..1", "`depth d`", "`depth wide` (through `fine`)", "`depth e` (through `finer`)"],
    ),
    ("depth d { when fine  reach de‸ep }", ["deep = rest", "Granted by `depth wide` (0.5)", "Guarded by"]),
    ("depth d { when f‸ine  reach all }", ["let fine = consent and score >= 0.5", "`depth wide`"]),
    ("depth d { when kind == con‸cept  reach all }", ["A value of `kind`"]),
    ("depth d { when loss‸ > 1  reach all }", ["loss : number 0..10 default 1", "clamped"]),
    (
        "signals { cop‸ies : integer 0..100 default 0 }\nmemorization m { when copies > 8  refuse }",
        ["Measured by the governor itself: the exposures so far", "clusters"],
    ),
    (
        "memorization fi‸sh { when kind == concept  hold out 1 in 4 tokens }",
        ["Holds out 1 in 4 tokens where `kind == concept`."],
    ),
    ("depth d { when phase == war‸mup  reach all }", ["until step 10"]),
    ("depth d { when to‸day > 2026-01-01  reach all }", ["never the machine's clock"]),
    (
        "maintain ke‸pt { drift at most 2%  strength 0.1  within deep  from step 3 }",
        ["Holds bands near what they were: from step 3, within deep, strength 0.1, drift at most 2%."],
    ),
    ("maintain kept { within de‸ep  strength 1 }", ["Maintained by `maintain kept`."]),
    ("depth d { when pat‸ient == patient  reach all }", ["which may lack it"]),
]


@pytest.mark.parametrize(("marked", "expected"), HOVERS, ids=range(len(HOVERS)))
async def test_hover_says_what_a_name_is(editor: Editor, marked: str, expected: list[str]) -> None:
    rules = RULES.replace("when kind == surface }", "when kind == surface and score > 0.5 }")
    where = editor.open_at("a", f"{POLICY}{rules}{marked}\n")
    hover = await editor.client.text_document_hover_async(lsp.HoverParams(**where))
    assert hover is not None
    for part in expected:
        assert part in hover.contents.value


async def test_hover_on_a_rule_says_in_a_sentence_what_it_does(editor: Editor) -> None:
    where = editor.open_at("a", POLICY + RULES.replace("depth wide", "depth wi‸de"))
    hover = await editor.client.text_document_hover_async(lsp.HoverParams(**where))
    assert hover is not None
    assert "Grants shallow 1, deep 0.5 where `fine and kind == concept`." in hover.contents.value
    assert "Because: well founded" in hover.contents.value
    assert shown(editor.texts[editor.uri("a")], hover.range) == "wide"


async def test_hover_between_names_says_nothing(editor: Editor) -> None:
    where = editor.open_at("a", POLICY + "depth d { when fine ‸ reach all }")
    assert await editor.client.text_document_hover_async(lsp.HoverParams(**where)) is None


async def test_definition_leads_to_the_declaration_also_in_another_file(editor: Editor) -> None:
    (editor.folder / "shared.policy").write_text("let here = consent\n")
    where = editor.open_at(
        "main", HEADER + 'import "shared.policy"\n' + SCHEMA + "depth d { when he‸re  reach all }\n"
    )
    (found,) = await editor.client.text_document_definition_async(lsp.DefinitionParams(**where))
    assert found.uri == editor.uri("shared")
    assert (found.range.start.line, found.range.start.character) == (0, 4)


async def test_definition_of_an_import_is_the_file(editor: Editor) -> None:
    (editor.folder / "shared.policy").write_text("\n")
    where = editor.open_at("main", HEADER + 'import "sha‸red.policy"\n' + SCHEMA)
    (found,) = await editor.client.text_document_definition_async(lsp.DefinitionParams(**where))
    assert found.uri == editor.uri("shared")


async def test_definition_of_a_waiver_is_the_rule_it_lifts(editor: Editor) -> None:
    text = POLICY + RULES
    where = editor.open_at("a", text.replace("waive opted", "waive ‸opted"))
    (found,) = await editor.client.text_document_definition_async(lsp.DefinitionParams(**where))
    assert text.split("\n")[found.range.start.line].startswith("suppress opted_out")


async def test_references_and_highlights_are_all_places_of_a_name(editor: Editor) -> None:
    where = editor.open_at("a", (POLICY + RULES).replace("kind :", "ki‸nd :"))
    text = editor.texts[editor.uri("a")]
    for declared, count in ((True, 3), (False, 2)):
        context = lsp.ReferenceContext(include_declaration=declared)
        found = await editor.client.text_document_references_async(
            lsp.ReferenceParams(context=context, **where)
        )
        assert [shown(text, x.range) for x in found] == ["kind"] * count
    marks = await editor.client.text_document_document_highlight_async(lsp.DocumentHighlightParams(**where))
    assert [x.kind for x in marks] == [lsp.DocumentHighlightKind.Write] + [lsp.DocumentHighlightKind.Read] * 2


async def test_symbols_are_the_outline_of_a_policy(editor: Editor) -> None:
    uri = editor.open("a", POLICY + RULES)
    params = lsp.DocumentSymbolParams(lsp.TextDocumentIdentifier(uri))
    found = await editor.client.text_document_document_symbol_async(params)
    names = [x.name for x in found]
    assert names[:4] == ["sample", "examples", "signals", "model"]
    assert names[-4:] == ["depth wide", "suppress opted_out", "waive opted_out", "assert shallow_only"]
    assert [x.name for x in found[3].children] == ["shallow", "deep", "quarantine"]
    assert found[-4].detail == "grants shallow 1, deep 0.5 where `fine and kind == concept`"


async def test_symbols_of_a_broken_text_are_those_that_can_be_read(editor: Editor) -> None:
    uri = editor.open("a", POLICY + "depth d { when ((( }\n" + RULES)
    params = lsp.DocumentSymbolParams(lsp.TextDocumentIdentifier(uri))
    found = await editor.client.text_document_document_symbol_async(params)
    assert [x.name for x in found][-4:] == [
        "depth wide",
        "suppress opted_out",
        "waive opted_out",
        "assert shallow_only",
    ]


async def test_blocks_and_comments_fold_also_in_broken_texts(editor: Editor) -> None:
    uri = editor.open("a", "# one\n# two\npolicy p version 1\nexamples {\n  a : bool\n  b : @@\n}\n")
    params = lsp.FoldingRangeParams(lsp.TextDocumentIdentifier(uri))
    found = await editor.client.text_document_folding_range_async(params)
    assert {(x.start_line, x.end_line) for x in found} == {(3, 5), (0, 1)}


async def test_names_are_coloured_by_what_they_are(editor: Editor) -> None:
    uri = editor.open("a", HEADER + "model { all_of_it = rest }\n")
    params = lsp.SemanticTokensParams(lsp.TextDocumentIdentifier(uri))
    found = await editor.client.text_document_semantic_tokens_full_async(params)
    legend = editor.client.result.capabilities.semantic_tokens_provider.legend.token_types
    tokens = [found.data[n : n + 5] for n in range(0, len(found.data), 5)]
    assert [(x[0], x[1], x[2], legend[x[3]], x[4]) for x in tokens] == [
        (0, 7, 6, "namespace", 1),
        (1, 8, 9, "type", 1),
    ]


# --- writing ------------------------------------------------------------------------------------------------


async def labels(editor: Editor, where: dict[str, Any]) -> list[str]:
    found = await editor.client.text_document_completion_async(lsp.CompletionParams(**where))
    return [x.label for x in found.items] if found else []


async def test_completion_replaces_the_word_that_was_begun(editor: Editor) -> None:
    where = editor.open_at("a", POLICY + "depth d { when con‸ }")
    found = await editor.client.text_document_completion_async(lsp.CompletionParams(**where))
    item = next(x for x in found.items if x.label == "consent")
    assert item.detail == "bool"
    assert applied(editor.texts[editor.uri("a")], [item.text_edit]).endswith("when consent }")


async def test_completion_knows_the_last_text_that_parsed(editor: Editor) -> None:
    uri = editor.open("a", POLICY + RULES)
    await editor.findings(uri)
    broken = POLICY.replace("  deep = rest\n", "  deep = = =\n") + RULES + "depth d { reach "
    editor.change(uri, broken)
    place = lsp.Position(broken.count("\n"), len("depth d { reach "))
    where = {"text_document": lsp.TextDocumentIdentifier(uri), "position": place}
    assert (await labels(editor, where))[:3] == ["shallow", "deep", "quarantine"]


async def test_completion_inside_an_import_lists_files(editor: Editor) -> None:
    (editor.folder / "shared").mkdir()
    (editor.folder / "shared" / "licences.policy").write_text("\n")
    where = editor.open_at("a", HEADER + 'import "‸"\n')
    assert "shared/licences.policy" in await labels(editor, where)


async def test_completion_in_a_comment_offers_nothing(editor: Editor) -> None:
    assert await labels(editor, editor.open_at("a", POLICY + "# when ‸")) == []


async def test_rename_reaches_every_file_that_names_it(editor: Editor) -> None:
    (editor.folder / "shared.policy").write_text("let here = consent\n")
    where = editor.open_at(
        "main", HEADER + 'import "shared.policy"\n' + SCHEMA.replace("consent :", "con‸sent :")
    )
    prepared = await editor.client.text_document_prepare_rename_async(lsp.PrepareRenameParams(**where))
    assert shown(editor.texts[editor.uri("main")], prepared) == "consent"
    edit = await editor.client.text_document_rename_async(lsp.RenameParams(new_name="agreed", **where))
    assert set(edit.changes) == {editor.uri("main"), editor.uri("shared")}
    assert applied("let here = consent\n", edit.changes[editor.uri("shared")]) == "let here = agreed\n"
    main = applied(editor.texts[editor.uri("main")], edit.changes[editor.uri("main")])
    assert main.count("agreed") == 2
    assert "consent" not in main


@pytest.mark.parametrize(("name", "why"), [("when", "word of the language"), ("score", "already the name")])
async def test_rename_to_a_name_that_does_not_fit_says_why(editor: Editor, name: str, why: str) -> None:
    where = editor.open_at("a", POLICY.replace("consent :", "con‸sent :"))
    with pytest.raises(JsonRpcException, match=why):
        await editor.client.text_document_rename_async(lsp.RenameParams(new_name=name, **where))


async def test_rename_of_a_keyword_says_that_there_is_no_name(editor: Editor) -> None:
    where = editor.open_at("a", "po‸licy sample version 1 language 1\nmodel { a = rest }\n")
    with pytest.raises(JsonRpcException, match="no name here"):
        await editor.client.text_document_prepare_rename_async(lsp.PrepareRenameParams(**where))


async def formatted(editor: Editor, uri: str) -> list[Any]:
    options = lsp.FormattingOptions(tab_size=2, insert_spaces=True)
    params = lsp.DocumentFormattingParams(lsp.TextDocumentIdentifier(uri), options)
    return list(await editor.client.text_document_formatting_async(params) or [])


async def test_formatting_gives_the_canonical_layout(editor: Editor) -> None:
    text = POLICY.replace("  ", " ") + RULES.replace("  ", "   ")
    uri = editor.open("a", text)
    assert applied(text, await formatted(editor, uri)) == format_policy(text)


async def test_formatting_leaves_a_broken_text_alone(editor: Editor) -> None:
    assert await formatted(editor, editor.open("a", POLICY + "depth  d { when ((  }")) == []


async def test_quick_fixes_mend_what_is_under_the_cursor(editor: Editor) -> None:
    text = POLICY + "depth d { reach shalow }\n"
    uri = editor.open("a", text)
    (finding,) = [x for x in await editor.findings(uri) if x.code == "GW202"]
    context = lsp.CodeActionContext(diagnostics=[finding])
    params = lsp.CodeActionParams(lsp.TextDocumentIdentifier(uri), finding.range, context)
    (action,) = await editor.client.text_document_code_action_async(params)
    assert (action.title, action.kind) == ("change to `shallow`", lsp.CodeActionKind.QuickFix)
    assert applied(text, action.edit.changes[uri]) == text.replace("shalow", "shallow")
    elsewhere = lsp.Range(lsp.Position(0, 0), lsp.Position(0, 1))
    params = lsp.CodeActionParams(lsp.TextDocumentIdentifier(uri), elsewhere, context)
    assert not await editor.client.text_document_code_action_async(params)


async def test_the_ready_policies_have_no_errors_in_an_editor(editor: Editor) -> None:
    path = POLICIES / "clinical_finetune.policy"
    document = lsp.TextDocumentItem(path.as_uri(), "gradwarden-policy", 1, path.read_text("utf-8"))
    editor.client.text_document_did_open(lsp.DidOpenTextDocumentParams(document))
    editor.texts[path.as_uri()] = document.text
    found = await editor.findings(path.as_uri())
    assert not [x for x in found if x.severity == lsp.DiagnosticSeverity.Error]
