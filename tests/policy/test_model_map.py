"""Model maps as data: reading, writing, and the binding of bands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy.errors import PolicyError
from gradwarden.policy.model_map import Layer, ModelMap, Parameter, bind, matches
from gradwarden.policy.program import Band, Selector


def stack(blocks: int) -> ModelMap:
    """Return the map of a GPT-like stack with a tied embedding and an adapter in every block."""
    return ModelMap(
        "GPT",
        (
            Layer("wte", None, 1_000_000, (Parameter("wte.weight", (50, 8), ("head.weight",)),)),
            *(
                Layer(
                    f"h.{i}",
                    i,
                    (blocks - 1 - i) * 1_000_000 // blocks,
                    (Parameter(f"h.{i}.w", (8, 8)), Parameter(f"h.{i}.adapter.a", (8, 2))),
                )
                for i in range(blocks)
            ),
            Layer("norm", None, 0, (Parameter("norm.weight", (8,)),)),
        ),
    )


def top(amount: int) -> Selector:
    return Selector("top", amount)


def codes(error: PolicyError) -> list[str]:
    return [diagnostic.code for diagnostic in error.diagnostics]


REST = Selector("rest")


def test_a_quarter_of_twelve_blocks_is_the_last_three_and_what_follows_them() -> None:
    bands = (
        Band("shallow", (top(250_000),)),
        Band("middle", (Selector("next", 500_000),)),
        Band("deep", (REST,)),
    )
    shallow, middle, deep = bind(bands, stack(12))
    assert {name.split(".")[1] for name in shallow.parameters} == {"9", "10", "11", "weight"}
    assert "norm.weight" in shallow.parameters
    assert {name.split(".")[1] for name in middle.parameters} == {"3", "4", "5", "6", "7", "8"}
    assert "wte.weight" in deep.parameters
    assert len(deep.parameters) == 1 + 3 * 2


@given(st.integers(1, 40), st.integers(1, 999_999))
def test_every_parameter_is_bound_once_whatever_the_fraction(blocks: int, amount: int) -> None:
    bound = bind((Band("shallow", (top(amount),)), Band("deep", (REST,))), stack(blocks))
    names = [name for band in bound for name in band.parameters]
    assert sorted(names) == sorted(p.name for p in stack(blocks).parameters)
    inside = {name for name in bound[0].parameters if name.endswith(".w")}
    assert len(inside) == sum(k * 1_000_000 < amount * blocks for k in range(blocks))


def test_names_choose_before_blocks_and_blocks_before_fractions() -> None:
    bands = (
        Band("shallow", (top(500_000),)),
        Band("second", (Selector("blocks", lo=3, hi=3),)),
        Band("deep", (REST,)),
        Band("quarantine", (Selector("names", patterns=("*.adapter.*",)),)),
    )
    shallow, second, deep, quarantine = bind(bands, stack(4))
    assert quarantine.parameters == tuple(f"h.{i}.adapter.a" for i in range(4))
    assert second.parameters == ("h.3.w",)
    assert shallow.parameters == ("h.2.w", "norm.weight")
    assert deep.parameters == ("h.0.w", "h.1.w", "wte.weight")


def test_a_pattern_finds_a_tied_parameter_under_any_of_its_names() -> None:
    bands = (Band("head", (Selector("names", patterns=("head.*",)),)), Band("deep", (REST,)))
    assert bind(bands, stack(2))[0].parameters == ("wte.weight",)


def test_fractions_that_add_up_to_the_whole_include_the_input() -> None:
    bands = (Band("shallow", (top(400_000),)), Band("deep", (Selector("next", 600_000),)))
    assert "wte.weight" in bind(bands, stack(3))[1].parameters


def test_every_fault_of_a_binding_is_reported_at_once() -> None:
    bands = (
        Band("one", (Selector("names", patterns=("h.0.*", "h.1.w")),)),
        Band("two", (Selector("names", patterns=("h.1.*",)),)),
        Band("nothing", (Selector("names", patterns=("typo.*",)),)),
        Band("far", (Selector("blocks", lo=2, hi=9),)),
    )
    with pytest.raises(PolicyError) as caught:
        bind(bands, stack(3))
    assert sorted(codes(caught.value)) == ["GW403", "GW404", "GW405", "GW406"]
    text = str(caught.value)
    assert "`h.1.w` is in several bands: `one`, `two`" in text
    assert "parameters `wte.weight`, `norm.weight` are in no band" in text
    assert "band `nothing` has no parameters" in text


def test_yaml_gives_back_an_equal_map_with_the_same_digest() -> None:
    original = replace(stack(3), model="on: yes")
    again = ModelMap.from_yaml(original.to_yaml())
    assert again == original
    assert again.digest == original.digest


def test_the_digest_changes_with_any_part_of_the_map() -> None:
    base = stack(2)
    first = base.layers[0]
    others = [
        replace(base, model="other"),
        replace(base, layers=base.layers[1:]),
        replace(base, layers=(replace(first, depth=999_999), *base.layers[1:])),
        replace(
            base,
            layers=(replace(first, parameters=(Parameter("wte.weight", (50, 8)),)), *base.layers[1:]),
        ),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("format: [", "GW400", "map.yaml:2:1"),
        ("- 1\n- 2\n", "GW401", "not a model map"),
        ("format: gradwarden/model-map/1\nmodel: m\nlayers: []\n", "GW401", "layers"),
        ("a: &x [1]\nb: *x\n", "GW400", "aliases are not allowed"),
        ("model: a\nmodel: b\n", "GW400", "`model` is repeated"),
        (stack(1).to_yaml().replace("depth: 0", "depth: 1000001", 1), "GW401", "1000001"),
        (stack(1).to_yaml().replace("norm.weight", "wte.weight"), "GW402", "`wte.weight` twice"),
        (stack(1).to_yaml() + "extra: 1\n", "GW401", "extra"),
        ("[" * 5000, "GW400", "not valid YAML"),
        ("\x00", "GW400", "not valid YAML"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(text: str, code: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        ModelMap.from_yaml(text, "map.yaml")
    assert codes(caught.value)[0] == code
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("adapter.*", "adapter.0.weight", True),
        ("adapter.*", "x.adapter.0", False),
        ("*.bias", "h.0.bias", True),
        ("h.?.w", "h.1.w", True),
        ("h.?.w", "h.10.w", False),
        ("", "", True),
        ("*", "anything", True),
        ("a[b]", "a[b]", True),
        ("A", "a", False),
        ("*a*a*a*a*a*a*b", "a" * 5000, False),
    ],
)
def test_patterns_cover_whole_names(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected
