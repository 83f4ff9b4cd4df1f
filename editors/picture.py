"""Draws `docs/images/editor.svg`: what the language server says about a policy, as an editor shows it.

Run from the root of the checkout: python -m editors.picture
"""

from __future__ import annotations

from pathlib import Path

from lsprotocol import types as lsp
from rich.columns import Columns
from rich.console import Console, Group
from rich.markdown import Markdown
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

from gradwarden.cli.language_server.answers import Answers
from gradwarden.cli.language_server.findings import to_lsp
from gradwarden.cli.language_server.positions import lines_of
from gradwarden.cli.language_server.workspace import Workspace
from gradwarden.cli.pygments_lexer import PolicyLexer

TARGET = Path("docs/images/editor.svg")
URI = "file:///policies/clinic.policy"
COLOURS = {1: "red", 2: "yellow", 3: "cyan"}
WIDTH = 116

POLICY = """\
policy clinic version 1 language 1

examples {
  kind     : one of guideline, trial, anecdote
  consent  : bool
  phi      : bool  # protected health information
  agreed   : number 0..1
  erase_on : date optional
}

model {
  shallow = top 25%
  deep    = rest
}

let sound = kind in [guideline, trial] and agreed >= 0.8

depth taught { when sound and not phi  reach shallow, deep at 0.5 }
suppress private { when phi and not consnet  because "no consent" }
retain until_erased { until erase_on }
"""


class Offline:
    """Stands for the connection to an editor that can show everything."""

    encoding = "utf-16"

    def can(self, *_path: str) -> bool:
        return True


def main() -> None:
    workspace = Workspace()
    workspace.open(URI, POLICY, 1)
    answers = Answers(Offline(), workspace)  # type: ignore[arg-type]  # all that answers use of a connection
    console = Console(record=True, width=WIDTH, file=open("/dev/null", "w"))  # noqa: SIM115 - nothing is written
    console.print(_text(workspace))
    hover = Panel(
        Markdown(_hover(answers, "taught")), title="hover on `taught`", border_style="blue", width=57
    )
    console.print(Columns([hover, Group(_completion(answers), _fixes(answers))]))
    TARGET.parent.mkdir(exist_ok=True)
    console.save_svg(str(TARGET), title="clinic.policy")


def _text(workspace: Workspace) -> Group:
    """The policy in its colours, with each finding below its line."""
    (view,) = workspace.views(URI)
    below: dict[int, list[Text]] = {}
    for finding in view.found:
        shown = to_lsp(finding.diagnostic, workspace, "utf-16")
        start, end = shown.range.start, shown.range.end
        colour = COLOURS[int(shown.severity or 1)]
        mark = " " * (start.character + 5) + "~" * max(1, end.character - start.character)
        help = f" · {shown.related_information[0].message}" if shown.related_information else ""
        below.setdefault(start.line, []).append(
            Text(f"{mark} {shown.code}: {shown.message}{help}", style=colour)
        )
    syntax = Syntax(POLICY, PolicyLexer(), theme="monokai", background_color="default")
    parts: list[Text] = []
    for number, line in enumerate(syntax.highlight(POLICY.rstrip("\n")).split("\n")):
        parts += [Text(f"{number + 1:3}  ", style="dim") + line, *below.get(number, [])]
    return Group(*parts)


def _position(word: str) -> lsp.Position:
    return lines_of(POLICY).position(POLICY.index(word))


def _hover(answers: Answers, word: str) -> str:
    hover = answers.hover(lsp.HoverParams(lsp.TextDocumentIdentifier(URI), _position(word)))
    assert hover is not None
    assert isinstance(hover.contents, lsp.MarkupContent)
    return hover.contents.value


def _completion(answers: Answers) -> Panel:
    place = lines_of(POLICY).position(POLICY.index("trial] and"))
    found = answers.complete(lsp.CompletionParams(lsp.TextDocumentIdentifier(URI), place))
    assert found is not None
    shown = [Text(f"{item.label}") for item in found.items]
    return Panel(Group(*shown), title="completion in `kind in [guideline, …`", border_style="green", width=57)


def _fixes(answers: Answers) -> Panel:
    whole = lsp.Range(lsp.Position(0, 0), lsp.Position(99, 0))
    context = lsp.CodeActionContext(diagnostics=[])
    found = answers.code_actions(lsp.CodeActionParams(lsp.TextDocumentIdentifier(URI), whole, context))
    shown = [Text(action.title) for action in found]
    return Panel(Group(*shown), title="quick fixes", border_style="magenta", width=57)


if __name__ == "__main__":
    main()
