"""A newcomer finds every room: the map of files names each folder, and each file that lies in none."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT

MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Where things are")[2]
NAMED = {name for words in re.findall(r"`([^`]+)`", MAP) for name in re.findall(r"\w+", words)}
HOLD_NO_CODE = {"schemas", "templates", "__pycache__"}


def _rooms(top: str) -> Iterator[str]:
    for path in (ROOT / top).iterdir():
        if path.is_dir() and path.name not in HOLD_NO_CODE:
            yield path.name
        if path.suffix == ".py" and not path.stem.startswith("_"):
            yield path.stem


@pytest.mark.parametrize("top", ["policy", "runtime"])
def test_the_map_names_every_folder_and_every_file_outside_them(top: str) -> None:
    assert sorted(set(_rooms(top)) - NAMED) == []


def test_the_map_names_the_folders_of_the_command_line_and_of_layers() -> None:
    assert {"commands", "language_server", "layers"} <= NAMED
