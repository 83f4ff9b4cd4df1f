"""The tests that docs/masks.md names exist, each trap has one, and its rule for one's own class is right."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from gradwarden.policy.program import Band
from gradwarden.runtime.masks import make_engine
from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "masks.md").read_text("utf-8")
PATHS, TRAPS = (
    PAGE.split(f"## {title}\n")[1].split("\n## ")[0] for title in ("What takes which path", "Traps")
)


def named() -> list[tuple[str, str]]:
    """Return every file and test that the two tables name."""
    found = []
    for section, default in (
        (PATHS, "tests/runtime/models/"),
        (TRAPS, "tests/runtime/masks/test_traps.py::"),
    ):
        for path, name in re.findall(r"`((?:[\w/]+\.py::)?)(test_\w+)`", section):
            whole = path if path.startswith("tests/") else default + path
            found.append((whole.removesuffix("::"), name))
    return sorted(set(found))


@pytest.mark.parametrize(("path", "name"), named())
def test_the_tests_named_exist(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)


def test_each_trap_has_a_row_with_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", TRAPS, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 17))
    assert all("test_" in tests for _, tests in rows)


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def test_the_rule_of_the_page_makes_its_class_fast() -> None:
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "gain_rule" in b)
    model = nn.Sequential(Gain(), nn.Linear(3, 2))
    bands = (Band("all", (), tuple(name for name, _ in model.named_parameters())),)
    program = type("Program", (), {"bands": bands})
    names = {"make_engine": make_engine, "model": model, "program": program, "Gain": Gain}
    exec(compile(block, "docs/masks.md", "exec"), names)
    masks = names["masks"]
    masks.arm(torch.tensor([[1.0], [0.5], [0.0]]))
    masks.backward(model(torch.randn(3, 4, 3)).pow(2).flatten(1).mean(1), 1.0)
    assert masks.name == "fused"
    assert set(masks.paths.values()) == {"fast"}
