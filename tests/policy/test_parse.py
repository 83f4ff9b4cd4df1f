"""Reading policy texts: hostile input gets diagnostics, never an exception, a hang or a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy import PolicyError, load_policy, parse_policy
from gradwarden.policy.source import Source
from gradwarden.policy.syntax.parse import MAX_FAULTS, MAX_TEXT, parse

CORPUS = Path(__file__).parent.parent / "corpus"
GOOD = [path.read_text("utf-8") for path in sorted(CORPUS.glob("good/*.policy"))]
HEAD = "policy p version 1 language 1\nmodel { body = rest }\n"


def codes(text: str) -> list[str]:
    """The codes of the errors of a text; none where it is a policy."""
    try:
        parse_policy(text)
    except PolicyError as error:
        return [diagnostic.code for diagnostic in error.diagnostics]
    return []


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    codes(text)
    codes(HEAD + text)


@given(st.sampled_from(GOOD), st.data())
def test_a_mutilated_policy_is_a_policy_or_a_policy_error(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        patch = data.draw(
            st.one_of(
                st.text(max_size=8),
                st.sampled_from(
                    ["{", "}", "(", '"', "#", " in ", "at most", "9" * 50, "1e-9", "-", "not ", "has "]
                ),
                st.just(text[start:end] * 2),
            )
        )
        text = text[:start] + patch + text[end:]
    codes(text)


@given(
    st.lists(
        st.sampled_from(
            [
                *("policy", "depth", "{", "}", "(", ")", "when", "not", "and", "in", "has", "at", "most"),
                *("3", "1.5", "2026-01-01", "x", ",", ":", "=", "==", "[", "]", "..", "#", "-"),
            ]
        )
    )
)
def test_any_sequence_of_words_is_a_policy_or_a_policy_error(words: list[str]) -> None:
    codes(HEAD + " ".join(words))


@given(st.sampled_from(GOOD), st.integers(0, 3000))
def test_spans_of_faults_lie_inside_the_text(text: str, cut: int) -> None:
    _, faults = parse(Source("t", text[: min(cut, len(text))]))
    for fault in faults:
        assert fault.span is not None
        assert 0 <= fault.span.start <= fault.span.end <= len(text) + 1


@pytest.mark.parametrize("nest", ["(", "not ", "-", "not (", "has x implies ", "true or (", "1 + (", "2 * -"])
def test_deep_nesting_is_reported_not_followed(nest: str) -> None:
    found = codes(HEAD + "depth d { when " + nest * 20_000 + "x  reach all }")
    assert found
    assert set(found) <= {"GW101", "GW102", "GW104", "GW106", "GW114"}


@pytest.mark.parametrize("operator", [" and ", " or "])
def test_long_conjunctions_are_fine(operator: str) -> None:
    terms = operator.join(f"x == {n}" for n in range(2_000))
    assert codes(HEAD + f"examples {{ x : integer 0..9999 }} depth d {{ when {terms}  reach all }}") == []


def test_conditions_that_name_each_other_cannot_grow_without_bound() -> None:
    lets = "let a0 = step > 1 and epoch > 1\n" + "".join(
        f"let a{i + 1} = (a{i} or step == {i}) and (a{i} or epoch == {i})\n" for i in range(60)
    )
    assert set(codes(HEAD + lets + "depth d { when a60  reach all }")) == {"GW471"}
    rules = "".join(f"depth d{i} {{ when a12 and step > {i}  reach all }}\n" for i in range(300))
    assert set(codes(HEAD + lets[: lets.index("let a12")] + "let a12 = a8\n" + rules)) <= {"GW471"}


def test_a_text_over_the_limit_is_refused() -> None:
    assert codes("#" * (MAX_TEXT + 1)) == ["GW105"]


def test_a_text_full_of_faults_reports_the_first_hundred() -> None:
    found = codes(HEAD + "depth { }\nsuppress x { wen }\n" * 500)
    assert found.count("GW114") == 1
    assert len(found) <= MAX_FAULTS + 1


def test_every_broken_declaration_is_reported_at_its_place() -> None:
    text = HEAD + "depth a { reach }\ndepth b { reach all }\nlet c =\nsuppress d { when }\nasert e { }\n"
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)
    assert [d.span.line for d in caught.value.diagnostics if d.span] == [3, 6, 6, 7]


def test_names_are_still_looked_up_beside_a_broken_rule() -> None:
    text = HEAD + "depth a { reach }\ndepth b { when nme  reach all }\n"
    assert codes(text) == ["GW101", "GW201"]


def test_names_are_not_reported_where_their_declaration_may_be_broken() -> None:
    text = HEAD + "examples { a : nmber 0..1 }\ndepth b { when a > 0.5  reach all }\n"
    assert codes(text) == ["GW101"]


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("supress d { when x }", "did you mean `suppress`?"),
        ("depth d { wen x  reach all }", "did you mean `when`?"),
        ("depth d { when x = 3  reach all }", "did you mean `==`?"),
        ("depth d { when x && y  reach all }", "write `and`"),
        ("depth d { when x == 'a'  reach all }", "double quotes"),
        ("depth d { when x\nsuppress e { }", "a `}` is missing before it"),
    ],
)
def test_a_remedy_is_suggested(text: str, suggestion: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(HEAD + text)
    assert suggestion in str(caught.value)


def test_messages_do_not_name_grammar_terminals() -> None:
    for text in (
        "{",
        "}",
        "policy",
        "depth 3",
        "let a",
        "examples { a",
        "depth d { when",
        "3",
        "model { a = top 3",
    ):
        with pytest.raises(PolicyError) as caught:
            parse_policy(text)
        for word in ("RBRACE", "LPAR", "NUMBER", "FIELD", "STRING", "IN_", "__", "$END", "Token"):
            assert word not in str(caught.value)


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    text = HEAD + 'depth d { reach all }  # end\nsuppress s { when step > 3\n because "x" }\n'
    path = tmp_path / "p.policy"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_policy(path).program == parse_policy(text).program
    assert parse_policy("\ufeff" + text).program == parse_policy(text).program


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"policy p version 1\xff", "GW110"),
        (b"\xff\xfep\x00o\x00", "GW110"),
        (b"policy p\x00 version 1", "GW111"),
        ("policy p version 1 # \u202e".encode(), "GW111"),
        (b"x" * (MAX_TEXT + 1), "GW105"),
        (b"", "GW213"),
    ],
)
def test_bytes_that_are_no_policy_text_are_refused(tmp_path: Path, data: bytes, code: str) -> None:
    path = tmp_path / "p.policy"
    path.write_bytes(data)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert [d.code for d in caught.value.diagnostics] == [code]


def test_what_is_not_a_readable_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.policy", Path("\x00"), tmp_path / ("n" * 400)):
        with pytest.raises(PolicyError) as caught:
            load_policy(path)
        assert [d.code for d in caught.value.diagnostics] == ["GW112"]


def test_lone_surrogates_are_refused() -> None:
    assert codes("policy p version 1 # \ud800") == ["GW111"]
