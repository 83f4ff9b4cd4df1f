"""What a policy compiles to: the same program in whatever order and over whatever files it is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy import PolicyError, compile_policy, load_policy, parse_policy
from gradwarden.policy.model_map import Layer, ModelMap, Parameter
from gradwarden.policy.program import And, ClockValue, Compare, Constant, Flag, Not, Number, Program
from gradwarden.policy.program_check import program_faults
from tests.policy.strategies_text import HEADER, declarations, text_of

HEAD = "policy p version 1 language 1\nexamples { consent : bool  kind : one of a, b }\n"
MODEL = "model { shallow = top 50%  deep = rest }\n"


def compiled(text: str) -> Program:
    return compile_policy(parse_policy(HEAD + MODEL + text))


@given(declarations(), st.data())
def test_the_order_of_declarations_does_not_matter(parts: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(parts))
    assert (
        compile_policy(parse_policy(text_of(shuffled))).digest
        == compile_policy(parse_policy(text_of(parts))).digest
    )


@given(parts=declarations(), data=st.data())
def test_spreading_declarations_over_files_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("policies")
    homes = [data.draw(st.sampled_from(["main", "a", "b"])) for _ in parts]
    written = {
        name: [p for p, home in zip(parts, homes, strict=True) if home == name] for name in ("main", "a", "b")
    }
    (folder / "sub").mkdir()
    (folder / "sub" / "a.policy").write_text("\n".join(written["a"]))
    (folder / "b.policy").write_text("\n".join(['import "sub/a.policy"', *written["b"]]))
    imports = data.draw(st.permutations(['import "sub/a.policy"', 'import "./b.policy"']))
    (folder / "main.policy").write_text("\n".join([HEADER, *imports, *written["main"]]))
    loaded = compile_policy(load_policy(folder / "main.policy"))
    assert loaded.digest == compile_policy(parse_policy(text_of(parts))).digest


@given(declarations())
def test_compiled_programs_are_sound(parts: list[str]) -> None:
    assert not list(program_faults(compile_policy(parse_policy(text_of(parts)))))


def test_the_order_of_bands_matters() -> None:
    one = parse_policy("policy p version 1\nmodel { a = blocks 0..1  b = blocks 2..3 }")
    two = parse_policy("policy p version 1\nmodel { b = blocks 2..3  a = blocks 0..1 }")
    assert one.program.band_names == ("a", "b")
    assert two.program.band_names == ("b", "a")
    assert one.program.digest != two.program.digest


def test_the_order_of_selectors_and_list_members_does_not_matter() -> None:
    one = parse_policy('policy p version 1\nmodel { a = names "x.*", blocks 0..1, names "y"  b = rest }')
    two = parse_policy('policy p version 1\nmodel { a = blocks 0..1, names "y", names "x.*"  b = rest }')
    assert one.program.digest == two.program.digest
    assert compiled("depth d { when kind in [a, b]  reach all }") == compiled(
        "depth d { when kind in [b, a, b]  reach all }"
    )


def test_reach_names_bands_and_weights_and_all_leaves_quarantine_out() -> None:
    text = 'policy p version 1\nmax weight 2\nmodel { a = top 50%  b = rest  quarantine = names "q" }\n'
    policy = parse_policy(text + "depth x { reach all at 2, b at 0.25 }\ndepth y { reach quarantine }")
    weights = {grant.name: grant.weights for grant in policy.program.grants}
    assert weights == {"x": (2_000_000, 250_000, 0), "y": (0, 0, 1_000_000)}


def test_limits_leave_bands_they_do_not_name_at_the_ceiling() -> None:
    text = 'policy p version 1\nmax weight 2\nmodel { a = top 50%  b = rest  quarantine = names "q" }\n'
    text += "suppress cap { cap b at 0.5 }\nsuppress no { }\nsuppress away { route to quarantine }\n"
    text += (
        "privacy p { within a epsilon 1 delta 0.1 clip 1 }\ncurriculum c { before step 3 reach a, b at 0.5 }"
    )
    caps = {
        limit.name: [clause.caps for clause in limit.clauses] for limit in parse_policy(text).program.limits
    }
    assert caps == {
        "cap": [(2_000_000, 500_000, 2_000_000)],
        "no": [(0, 0, 0)],
        "away": [(0, 0, 2_000_000)],
        "p": [(2_000_000, 0, 0), (0, 0, 0)],
        "c": [(2_000_000, 500_000, 0)],
    }


def test_retain_lowers_to_one_clause_per_end() -> None:
    program = compiled(
        "retain r { when consent  until 1970-01-11  from 1970-01-02  at most 3 exposures  at most 2 epochs }"
    )
    today = ClockValue("today")
    assert [(clause.effect, clause.when, clause.defers) for clause in program.limits[0].clauses] == [
        ("expired", And((Flag("consent"), Compare("ge", today, Number(10)))), False),
        ("embargoed", And((Flag("consent"), Compare("lt", today, Number(1)))), True),
        ("exposures_spent", And((Flag("consent"), Compare("ge", ClockValue("exposures"), Number(3)))), False),
        ("epochs_spent", And((Flag("consent"), Compare("ge", ClockValue("epoch"), Number(2)))), False),
    ]


def test_exactly_one_phase_holds_also_where_steps_and_epochs_mix() -> None:
    text = "phases { a until step 5  b until epoch 2  c until step 9  d }\n"
    text += "".join(f"depth in_{name} {{ when phase == {name}  reach all }}\n" for name in "abcd")
    program = compiled(text)
    for step in range(12):
        for epoch in range(4):
            holding = [grant.name for grant in program.grants if _holds(grant.when, step, epoch)]
            assert len(holding) == 1
            expected = "a" if step < 5 else "b" if epoch < 2 else "c" if step < 9 else "d"
            assert holding == [f"in_{expected}"]


def _holds(condition: object, step: int, epoch: int) -> bool:
    match condition:
        case And(terms):
            return all(_holds(term, step, epoch) for term in terms)
        case Compare(op, ClockValue(name), Number(value)):
            clock = {"step": step, "epoch": epoch}[name]
            return clock >= value if op == "ge" else clock < value
        case _:
            raise AssertionError(condition)


def test_numbers_are_compared_on_the_finer_scale() -> None:
    rules = "depth d { when x > 0.5  reach all }\ndepth e { when x > 0.125  reach all }"
    schema = "policy p version 1\nexamples { x : number 0..1 places 2 }\nmodel { a = rest }\n"
    policy = parse_policy(schema + rules)
    shown = [repr(grant.when) for grant in policy.program.grants]
    assert "Number(value=50)" in shown[0]
    assert "Number(value=10)" in shown[1]
    assert "Number(value=125)" in shown[1]


def test_named_conditions_are_written_out_and_constants_folded() -> None:
    lets = "let a = consent and true\nlet b = not (not a or false)\n"
    program = compiled(lets + "depth d { when b and a  reach all }\nassert x { never reach deep }")
    assert program.grants[0].when == Flag("consent")
    assert program.assertions[0].when == Constant(True)
    assert compiled("depth d { when not not not consent  reach all }").grants[0].when == Not(Flag("consent"))


def test_waivers_are_named_after_their_rule_in_the_order_of_their_content() -> None:
    rule = "suppress s { }\n"
    one = 'waive s { approved by "A" until 2026-01-01 because "x" }\n'
    two = 'waive s { approved by "B" until 2025-01-01 because "x" }\n'
    program = compiled(rule + one + two)
    assert [(w.name, w.approved_by) for w in program.waivers] == [("waive:s", "B"), ("waive:s#2", "A")]
    assert compiled(two + one + rule) == program
    assert compiled(rule + one + two + one) == program


def test_decimals_are_canonical() -> None:
    program = compiled(
        "privacy p { within deep epsilon 3.00 delta 1e-6 clip 10 }\ngradient { deep at most 1.50 }"
    )
    assert program.limits[0].privacy is not None
    terms = program.limits[0].privacy
    assert (terms.epsilon, terms.delta, terms.clip) == ("3", "0.000001", "10")
    assert program.gradient_caps[0].norm == "1.5"


def test_a_model_map_binds_the_bands() -> None:
    layers = (
        Layer("embed", None, 1_000_000, (Parameter("embed.weight", (4, 2)),)),
        Layer("head", None, 0, (Parameter("head.weight", (2, 4)),)),
    )
    model_map = ModelMap("tiny", layers)
    program = compile_policy(parse_policy(HEAD + MODEL + "depth d { reach all }"), model_map)
    assert [band.parameters for band in program.bands] == [("head.weight",), ("embed.weight",)]
    assert program.model_map == model_map.digest
    with pytest.raises(PolicyError):
        compile_policy(parse_policy("policy p version 1\nmodel { a = top 50% }"), model_map)


def test_files_are_read_once_and_listed_main_first(tmp_path: Path) -> None:
    (tmp_path / "a.policy").write_text('import "b.policy"\nsuppress a { }')
    (tmp_path / "b.policy").write_text("suppress b { }")
    main = tmp_path / "main.policy"
    main.write_text('policy p version 1\nimport "b.policy"\nimport "a.policy"\n' + MODEL)
    policy = load_policy(main)
    assert [Path(name).name for name in policy.files] == ["main.policy", "b.policy", "a.policy"]
    assert (policy.name, policy.version) == ("p", 1)
    assert policy.rules["b"].source.name.endswith("b.policy")


def test_files_that_import_each_other_are_found_on_any_way(tmp_path: Path) -> None:
    (tmp_path / "a.policy").write_text('import "b.policy"')
    (tmp_path / "b.policy").write_text('import "a.policy"')
    main = tmp_path / "main.policy"
    main.write_text('policy p version 1\nimport "b.policy"\nimport "a.policy"\n' + MODEL)
    with pytest.raises(PolicyError, match=r"`b\.policy` -> `a\.policy` -> `b\.policy`"):
        load_policy(main)


def test_imports_are_bounded_in_number_and_depth(tmp_path: Path) -> None:
    for index in range(300):
        (tmp_path / f"wide{index}.policy").write_text("")
        (tmp_path / f"deep{index}.policy").write_text(f'import "deep{index + 1}.policy"')
    for kind, text in (
        ("wide", "\n".join(f'import "wide{index}.policy"' for index in range(300))),
        ("deep", 'import "deep0.policy"'),
    ):
        main = tmp_path / f"{kind}.policy"
        main.write_text(f"policy p version 1\n{MODEL}{text}")
        with pytest.raises(PolicyError) as caught:
            load_policy(main)
        assert {diagnostic.code for diagnostic in caught.value.diagnostics} == {"GW105"}


def test_a_file_may_not_import_itself(tmp_path: Path) -> None:
    main = tmp_path / "main.policy"
    main.write_text('policy p version 1\nimport "main.policy"\n' + MODEL)
    with pytest.raises(PolicyError, match="circle"):
        load_policy(main)


def test_a_text_imports_only_from_a_folder_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "m.policy").write_text(MODEL)
    text = 'policy p version 1\nimport "m.policy"\n'
    with pytest.raises(PolicyError, match="not in a file"):
        parse_policy(text)
    assert parse_policy(text, directory=tmp_path).program.band_names == ("shallow", "deep")


def test_checking_a_policy_imports_neither_torch_nor_numpy() -> None:
    path = Path(__file__).parent.parent / "corpus" / "good" / "clinical.policy"
    code = (
        f"import sys; from gradwarden.policy import load_policy; load_policy({str(path)!r}).program.digest; "
    )
    code += "sys.exit(len({'torch', 'numpy', 'jsonschema'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
