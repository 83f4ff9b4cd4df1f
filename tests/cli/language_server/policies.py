"""Policies to edit: a text with a cursor in it, and a workspace that has it open."""

from __future__ import annotations

from pathlib import Path

from gradwarden.cli.language_server.workspace import Workspace

CURSOR = "‸"

HEADER = "policy sample version 1 language 1\n"

SCHEMA = """\
examples {
  kind : one of surface, concept, "C-2"
  tags : set of pii, minor
  consent : bool
  score : number 0..1
  entropy : number 0..8 bits/byte
  patient : string optional
  erase_on : date optional
}
signals { loss : number 0..10 default 1 }
model {
  shallow = top 25%
  deep = rest
  quarantine = names "adapter.*"
}
phases { warmup until step 10  main }
let fine = consent and score >= 0.5
band low = entropy < 3 bits/byte
"""

POLICY = HEADER + SCHEMA


def cut(marked: str) -> tuple[str, int]:
    """Return a text without the cursor in it, and where that was."""
    offset = marked.index(CURSOR)
    return marked.replace(CURSOR, "", 1), offset


def opened(folder: Path, **texts: str) -> Workspace:
    """Return a workspace in which texts are open, by the stem of their files, which need not exist."""
    workspace = Workspace([folder])
    for stem, text in texts.items():
        workspace.open((folder / f"{stem}.policy").as_uri(), text, 1)
    return workspace
