"""A fine-tuning names the run that it goes on from, before its first step and once."""

from __future__ import annotations

from typing import Any

import pytest

from gradwarden.runtime.errors import HeadMismatch, LedgerError
from gradwarden.runtime.records.base_run import describe_base, is_base


@pytest.fixture
def base(lab: Any) -> Any:
    with lab.governor(name="base") as governor:
        lab.step(governor, lab.batch("ab"))
        governor.checkpoint(lab.folder / "base.safetensors")
    return lab.path("base")


def test_the_base_is_named_by_its_signed_head_and_its_weights(lab: Any, base: Any) -> None:
    with lab.governor() as governor:
        governor.derive(base)
        lab.step(governor, lab.batch("ab"))
    [named] = lab.bodies("derived")
    assert named == describe_base(base)
    assert named["weights"] == lab.bodies("checkpoint", "base")[0]["digest"]
    report = lab.verify()
    assert report.ok
    assert report.facts["base"] == named
    assert lab.verify("base").facts["base"] is None
    assert is_base(base, named["origin"], named)
    assert not is_base(lab.path(), named["origin"], named)
    assert not is_base(base, "elsewhere", named)


def test_no_base_is_named_later_or_twice(lab: Any, base: Any) -> None:
    with lab.governor() as governor:
        lab.step(governor, lab.batch("ab"))
        with pytest.raises(LedgerError, match="before the first step"):
            governor.derive(base)
    entry = ("derived", describe_base(base))
    for number, place in enumerate(["step", "committed"]):

        def name(entries: list[tuple[str, dict[str, Any]]], place: str = place) -> None:
            at = [kind for kind, _ in entries].index(place)
            entries[at:at] = [entry] * (2 if place == "step" else 1)

        codes = [finding.code for finding in lab.forge(name, target=f"forged {number}").findings]
        assert "wrong_base" in codes


def test_a_base_that_was_altered_is_not_named(base: Any) -> None:
    base.write_bytes(base.read_bytes().replace(b'"epoch":0', b'"epoch":1', 1))
    with pytest.raises(HeadMismatch):
        describe_base(base)
