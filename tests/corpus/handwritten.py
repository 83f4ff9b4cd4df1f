# ruff: noqa: E501 - one case a line reads better than one argument a line
"""Cases whose decisions were worked out by hand from docs/language.md, a construct or a law at a time.

`python -m tests.corpus.generate` writes them to `conformance/handwritten.jsonl`. Nothing here is computed by
an evaluator. A decision is written `VERDICT WEIGHT…`, one weight per band; what is left out is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any


@dataclass(frozen=True)
class Group:
    """A policy and the cases that are decided under it."""

    name: str
    text: str
    cases: tuple[dict[str, Any], ...]
    imports: dict[str, str] = field(default_factory=dict)


def case(
    name: str,
    example: dict[str, Any],
    decision: str,
    *,
    rules: str = "",
    causes: str = "",
    stage: str | None = None,
    advisory: str = "",
    waived: str = "",
    obligations: str = "",
    problems: str = "",
    **context: Any,
) -> dict[str, Any]:
    """Return a case. Pairs are written `a:b` (`pace:deep:paced` is a pair, too); a cause without a rule is `:not_granted`."""
    verdict, *weights = decision.split()
    return {
        "name": name,
        "example": example,
        "context": {
            "step": 0,
            "epoch": 0,
            "today": "2026-03-01",
            "exposures": 0,
            "signals": {},
            "spent": [],
            **context,
        },
        "expect": {
            "verdict": verdict,
            "weights": [int(Decimal(weight) * 1_000_000) for weight in weights],
            "rules": rules.split(),
            "advisory": advisory.split(),
            "waived": waived.split(),
            "obligations": _pairs(obligations),
            "causes": _pairs(causes),
            "stage": stage,
            "problems": _pairs(problems),
        },
    }


def _pairs(text: str) -> list[list[str]]:
    return [pair.rsplit(":", 1) for pair in text.split()]


def group(name: str, text: str, *cases: dict[str, Any], imports: dict[str, str] | None = None) -> Group:
    return Group(name, f"policy {name} version 1 language 1\n{text}", cases, imports or {})


ONE = "model { deep = rest }\n"
TWO = "model { shallow = top 25%  deep = rest }\n"
THREE = "model { shallow = top 25%  middle = next 50%  deep = rest }\n"
QUARANTINE = 'model { shallow = top 25%  deep = rest  quarantine = names "adapter.*" }\n'
ALL = "depth base { reach all }\n"


def holds(name: str, example: dict[str, Any], **context: Any) -> dict[str, Any]:
    """A case in which the only grant, `d`, matches and gives the only band everything."""
    return case(name, example, "admit 1", rules="d", **context)


def fails(name: str, example: dict[str, Any], **context: Any) -> dict[str, Any]:
    """A case in which the only grant, `d`, does not match."""
    return case(name, example, "refuse 0", causes=":not_granted", stage="depth", **context)


def invalid(name: str, example: dict[str, Any], problems: str, **context: Any) -> dict[str, Any]:
    return case(name, example, "invalid 0", problems=problems, stage="schema", **context)


def test(name: str, schema: str, condition: str, *cases: dict[str, Any]) -> Group:
    """A policy with one grant, `d`, under a condition."""
    return group(name, f"{schema}{ONE}depth d {{ when {condition}  reach deep }}", *cases)


COMBINING: Sequence[Group] = (
    group(
        "default_deny",
        "examples { k : one of a, b }\n" + TWO + "depth d { when k == a  reach shallow at 0.5 }",
        case("granted", {"k": "a"}, "limit 0.5 0", rules="d"),
        case("nothing grants", {"k": "b"}, "refuse 0 0", causes=":not_granted", stage="depth"),
    ),
    group(
        "grants_take_the_greatest",
        "examples { x : bool y : bool }\n"
        + TWO
        + "depth a { when x  reach shallow, deep at 0.25 }\ndepth b { when y  reach shallow at 0.5, deep at 0.75 }",
        case("a alone", {"x": True, "y": False}, "limit 1 0.25", rules="a"),
        case("b alone", {"x": False, "y": True}, "limit 0.5 0.75", rules="b"),
        case("both: greatest per band", {"x": True, "y": True}, "limit 1 0.75", rules="a b"),
    ),
    group(
        "limits_take_the_least",
        "examples { x : bool y : bool }\n"
        + TWO
        + ALL
        + 'suppress a { when x  cap shallow at 0.5, deep at 0.75  because "a" }\n'
        + 'suppress b { when y  cap deep at 0.25  because "b" }',
        case("none", {"x": False, "y": False}, "admit 1 1", rules="base"),
        case("a alone", {"x": True, "y": False}, "limit 0.5 0.75", rules="a base", causes="a:capped"),
        case(
            "b leaves what it does not name",
            {"x": False, "y": True},
            "limit 1 0.25",
            rules="b base",
            causes="b:capped",
        ),
        case(
            "both: least per band",
            {"x": True, "y": True},
            "limit 0.5 0.25",
            rules="a b base",
            causes="a:capped b:capped",
        ),
    ),
    group(
        "a_limit_beats_every_grant",
        "examples { consent : bool vip : bool }\n"
        + TWO
        + ALL
        + "depth more { when vip  reach all }\n"
        + 'suppress opted_out { when not consent  because "withdrawn" }',
        case("with consent", {"consent": True, "vip": True}, "admit 1 1", rules="base more"),
        case(
            "two grants do not outweigh it",
            {"consent": False, "vip": True},
            "refuse 0 0",
            rules="base more opted_out",
            causes="opted_out:suppressed",
            stage="suppress",
        ),
    ),
    group(
        "a_prohibition_is_named_before_a_missing_grant",
        "examples { x : bool }\n"
        + ONE
        + 'depth d { when false  reach all }\nsuppress s { when x  because "x" }',
        case(
            "both", {"x": True}, "refuse 0", rules="s", causes="s:suppressed :not_granted", stage="suppress"
        ),
        case("only the grant is missing", {"x": False}, "refuse 0", causes=":not_granted", stage="depth"),
    ),
    group(
        "max_weight",
        "max weight 2\nexamples { x : bool y : bool }\n"
        + TWO
        + 'depth d { reach all at 2 }\nsuppress s { when x  cap deep at 1.5  because "s" }\n'
        + "assert quiet { at most 1.75 in deep when y }",
        case("amplified", {"x": False, "y": False}, "admit 2 2", rules="d"),
        case("a cap above one", {"x": True, "y": True}, "admit 2 1.5", rules="d s", causes="s:capped"),
        case(
            "the assertion allows less",
            {"x": False, "y": True},
            "refuse 0 0",
            rules="d quiet",
            causes="quiet:assertion",
            stage="assert",
        ),
    ),
    group(
        "reach_without_at_is_one_whatever_the_ceiling",
        "max weight 4\n" + TWO + "depth d { reach shallow, deep at 4 }",
        case("one and four", {}, "admit 1 4", rules="d"),
    ),
    group(
        "all_and_a_band_beside_it",
        QUARANTINE + "depth d { reach all at 0.25, deep at 0.5 }",
        case(
            "all leaves quarantine out, a named band keeps its own weight", {}, "limit 0.25 0.5 0", rules="d"
        ),
    ),
    group(
        "quarantine_does_not_turn_admit_into_limit",
        QUARANTINE + "depth d { reach all }\n",
        case("closed quarantine", {}, "admit 1 1 0", rules="d"),
    ),
    group(
        "only_quarantine_is_open",
        QUARANTINE + "depth d { reach quarantine }\n",
        case("learned in removable capacity alone", {}, "limit 0 0 1", rules="d"),
    ),
    group(
        "route_to_quarantine",
        "examples { danger : bool }\n"
        + QUARANTINE
        + 'depth d { reach all, quarantine at 0.5 }\nsuppress r { when danger  route to quarantine  because "dual use" }',
        case("not routed", {"danger": False}, "admit 1 1 0.5", rules="d"),
        case(
            "routed",
            {"danger": True},
            "limit 0 0 0.5",
            rules="d r",
            causes="r:quarantined",
            obligations="quarantine:r",
        ),
    ),
    group(
        "route_to_a_quarantine_that_nothing_grants",
        "examples { danger : bool }\n"
        + QUARANTINE
        + 'depth d { reach all }\nsuppress r { when danger  route to quarantine  because "dual use" }',
        case(
            "nothing is left",
            {"danger": True},
            "refuse 0 0 0",
            rules="d r",
            causes="r:quarantined",
            obligations="quarantine:r",
            stage="suppress",
        ),
    ),
    group(
        "plain_suppress_closes_quarantine_too",
        "examples { danger : bool }\n"
        + QUARANTINE
        + 'depth d { reach all, quarantine }\nsuppress r { when danger  because "no" }',
        case(
            "closed", {"danger": True}, "refuse 0 0 0", rules="d r", causes="r:suppressed", stage="suppress"
        ),
    ),
    group(
        "advisory_rules_change_nothing",
        "examples { x : bool }\nsignals { g : number 0..1 default 0 }\n"
        + ONE
        + "depth base { reach all at 0.5 }\nadvisory depth more { when x  reach all }\n"
        + 'advisory suppress less { when x  because "x" }\n'
        + "advisory modulate scaled { when x  scale deep by g from 0 to 0 }\n"
        + "advisory assert claim { always refuse when x }",
        case("silent", {"x": False}, "limit 0.5", rules="base"),
        case("listed", {"x": True}, "limit 0.5", rules="base", advisory="claim less more scaled"),
    ),
    group(
        "hard_is_the_default",
        "examples { x : bool }\n" + ONE + ALL + 'hard suppress s { when x  because "x" }',
        case("enforced", {"x": True}, "refuse 0", rules="base s", causes="s:suppressed", stage="suppress"),
    ),
    group(
        "the_smallest_weight",
        ONE + "depth d { reach deep at 0.000001 }",
        case("a millionth is learned", {}, "limit 0.000001", rules="d"),
    ),
    group(
        "a_grant_of_zero_is_no_grant",
        ONE + "depth d { reach deep at 0 }",
        case("matches and gives nothing", {}, "refuse 0", rules="d", causes=":not_granted", stage="depth"),
    ),
)

MODULATE: Sequence[Group] = (
    group(
        "modulate_is_linear",
        "signals { g : number 0..1 default 0 }\n"
        + ONE
        + ALL
        + "modulate m { scale deep by g from 1 to 0.25 }",
        case("default", {}, "admit 1", rules="base m"),
        case("low end", {}, "admit 1", rules="base m", signals={"g": 0}),
        case("middle", {}, "limit 0.625", rules="base m", signals={"g": 0.5}),
        case("high end", {}, "limit 0.25", rules="base m", signals={"g": 1}),
        case("clamped above", {}, "limit 0.25", rules="base m", signals={"g": 7}),
        case("clamped below", {}, "admit 1", rules="base m", signals={"g": -7}),
    ),
    group(
        "modulate_rounds_down",
        "signals { g : integer 0..3 default 0 }\n"
        + ONE
        + "depth base { reach deep at 0.333333 }\nmodulate m { scale deep by g from 0 to 1 }",
        # the factor is a third, 0.333333 rounded down; 333333 * 333333 / 10**6 = 111110.888889
        case("factor and weight are rounded down", {}, "limit 0.111110", rules="base m", signals={"g": 1}),
        # two thirds are 0.666666; 333333 * 666666 / 10**6 = 222221.777778
        case("two thirds", {}, "limit 0.222221", rules="base m", signals={"g": 2}),
        case("whole", {}, "limit 0.333333", rules="base m", signals={"g": 3}),
        case("nothing", {}, "refuse 0", rules="base m", stage="modulate", signals={"g": 0}),
    ),
    group(
        "a_falling_factor_is_rounded_down_too",
        "signals { g : integer 0..3 default 0 }\n" + ONE + ALL + "modulate m { scale deep by g from 1 to 0 }",
        # 1000000 - 1000000/3 = 666666.67, floor 666666
        case("a third down", {}, "limit 0.666666", rules="base m", signals={"g": 1}),
        case("two thirds down", {}, "limit 0.333333", rules="base m", signals={"g": 2}),
        case("all the way down", {}, "refuse 0", rules="base m", stage="modulate", signals={"g": 3}),
    ),
    group(
        "the_least_factor_wins",
        "examples { x : bool }\nsignals { g : number 0..1 default 0 h : number 0..1 default 0 }\n"
        + TWO
        + ALL
        + "modulate a { scale deep by g from 1 to 0.5, deep by h from 1 to 0.2 }\nmodulate b { when x  scale deep by g from 0.4 to 0.4 }",
        case("h is lower", {"x": False}, "limit 1 0.2", rules="a base", signals={"g": 1, "h": 1}),
        case("g is lower", {"x": False}, "limit 1 0.5", rules="a base", signals={"g": 1}),
        case("b is lower", {"x": True}, "limit 1 0.4", rules="a b base"),
    ),
    group(
        "a_factor_scales_what_the_cap_leaves",
        "signals { g : number 0..1 default 0.5 }\n"
        + ONE
        + ALL
        + 'suppress s { cap deep at 0.5  because "s" }\nmodulate m { scale deep by g from 0 to 1 }',
        case("half of a half", {}, "limit 0.25", rules="base m s", causes="s:capped"),
    ),
    group(
        "a_signal_of_one_value",
        "signals { g : integer 5..5 default 5 }\n"
        + ONE
        + ALL
        + "modulate m { scale deep by g from 1 to 0.25 }",
        case("the lesser factor", {}, "limit 0.25", rules="base m"),
    ),
    group(
        "an_amplified_weight_is_scaled",
        "max weight 2\nsignals { g : number 0..1 default 0 }\n"
        + ONE
        + "depth d { reach deep at 2 }\nmodulate m { scale deep by g from 0.6 to 0.4 }",
        case("still above one", {}, "admit 1.2", rules="d m"),
        case("below one", {}, "limit 0.8", rules="d m", signals={"g": 1}),
    ),
    group(
        "signals_are_rounded_to_their_places",
        "signals { g : number 0..1 places 1 default 0 }\n"
        + ONE
        + ALL
        + "modulate m { scale deep by g from 0 to 1 }",
        case("0.26 is 0.3", {}, "limit 0.3", rules="base m", signals={"g": 0.26}),
        case("0.25 is 0.2, ties to even", {}, "limit 0.2", rules="base m", signals={"g": 0.25}),
        case("0.75 is 0.8, ties to even", {}, "limit 0.8", rules="base m", signals={"g": 0.75}),
    ),
)

RETAIN: Sequence[Group] = (
    group(
        "until_is_exclusive",
        ONE + ALL + "retain r { until 2026-03-02 }",
        case("the day before", {}, "admit 1", rules="base", today="2026-03-01"),
        case(
            "on the day",
            {},
            "refuse 0",
            rules="base r",
            causes="r:expired",
            stage="retain",
            today="2026-03-02",
        ),
        case("after", {}, "refuse 0", rules="base r", causes="r:expired", stage="retain", today="2027-01-01"),
    ),
    group(
        "from_defers",
        ONE + ALL + "retain r { from 2026-03-02 }",
        case(
            "the day before",
            {},
            "defer 0",
            rules="base r",
            causes="r:embargoed",
            stage="retain",
            today="2026-03-01",
        ),
        case("on the day", {}, "admit 1", rules="base", today="2026-03-02"),
    ),
    group(
        "until_an_attribute",
        "examples { erase : date optional }\n" + ONE + ALL + "retain r { when has erase  until erase }",
        case("absent", {}, "admit 1", rules="base"),
        case("null is absent", {"erase": None}, "admit 1", rules="base"),
        case("tomorrow", {"erase": "2026-03-02"}, "admit 1", rules="base"),
        case(
            "today", {"erase": "2026-03-01"}, "refuse 0", rules="base r", causes="r:expired", stage="retain"
        ),
        case(
            "the first day there is",
            {"erase": "0001-01-01"},
            "refuse 0",
            rules="base r",
            causes="r:expired",
            stage="retain",
        ),
        case("the last day there is", {"erase": "9999-12-31"}, "admit 1", rules="base"),
    ),
    group(
        "at_most_exposures",
        ONE + ALL + "retain r { at most 2 exposures }",
        case("none yet", {}, "admit 1", rules="base"),
        case("one", {}, "admit 1", rules="base", exposures=1),
        case("two", {}, "refuse 0", rules="base r", causes="r:exposures_spent", stage="retain", exposures=2),
        case(
            "three", {}, "refuse 0", rules="base r", causes="r:exposures_spent", stage="retain", exposures=3
        ),
    ),
    group(
        "at_most_epochs",
        ONE + ALL + "retain r { at most 1 epochs }",
        case("epoch 0", {}, "admit 1", rules="base"),
        case("epoch 1", {}, "refuse 0", rules="base r", causes="r:epochs_spent", stage="retain", epoch=1),
    ),
    group(
        "several_clauses_of_one_retain",
        ONE + ALL + "retain r { at most 1 epochs  at most 1 exposures  from 2026-03-01  until 2026-03-03 }",
        case("within all", {}, "admit 1", rules="base"),
        case(
            "all spent: causes in the order until, from, exposures, epochs",
            {},
            "refuse 0",
            rules="base r",
            causes="r:expired r:exposures_spent r:epochs_spent",
            stage="retain",
            today="2026-03-03",
            exposures=1,
            epoch=1,
        ),
        case(
            "too early",
            {},
            "defer 0",
            rules="base r",
            causes="r:embargoed",
            stage="retain",
            today="2026-02-28",
        ),
        case(
            "too early and used up: time alone will not lift it",
            {},
            "refuse 0",
            rules="base r",
            causes="r:embargoed r:exposures_spent",
            stage="retain",
            today="2026-02-28",
            exposures=1,
        ),
    ),
    group(
        "an_embargo_without_a_grant_is_no_deferral",
        ONE + "depth d { when false  reach all }\nretain r { from 2026-03-02 }",
        case("refused", {}, "refuse 0", rules="r", causes="r:embargoed :not_granted", stage="retain"),
    ),
    group(
        "an_embargo_beside_a_prohibition_is_no_deferral",
        ONE + ALL + 'retain r { from 2026-03-02 }\nsuppress s { because "s" }',
        case(
            "refused", {}, "refuse 0", rules="base r s", causes="r:embargoed s:suppressed", stage="suppress"
        ),
    ),
    group(
        "an_embargo_and_a_modulation_to_zero_is_no_deferral",
        "signals { g : number 0..1 default 0 }\n"
        + ONE
        + ALL
        + "retain r { from 2026-03-02 }\nmodulate m { scale deep by g from 0 to 1 }",
        case("nothing would be left", {}, "refuse 0", rules="base m r", causes="r:embargoed", stage="retain"),
        case(
            "something would",
            {},
            "defer 0",
            rules="base m r",
            causes="r:embargoed",
            stage="retain",
            signals={"g": 1},
        ),
    ),
    group(
        "a_leap_day",
        ONE + ALL + "retain r { until 2028-02-29 }",
        case("before", {}, "admit 1", rules="base", today="2028-02-28"),
        case("on", {}, "refuse 0", rules="base r", causes="r:expired", stage="retain", today="2028-02-29"),
    ),
)

WAIVERS: Sequence[Group] = (
    group(
        "a_waiver_lapses_on_its_day",
        "examples { court : bool }\n"
        + ONE
        + ALL
        + 'suppress s { because "s" }\n'
        + 'waive s { when court  approved by "A"  until 2026-03-02  because "ruling" }',
        case("waived", {"court": True}, "admit 1", rules="base", waived="s", today="2026-03-01"),
        case(
            "lapsed on the day",
            {"court": True},
            "refuse 0",
            rules="base s",
            causes="s:suppressed",
            stage="suppress",
            today="2026-03-02",
        ),
        case(
            "not for this example",
            {"court": False},
            "refuse 0",
            rules="base s",
            causes="s:suppressed",
            stage="suppress",
        ),
    ),
    group(
        "several_waivers",
        "examples { a : bool b : bool }\n"
        + ONE
        + ALL
        + 'suppress s { because "s" }\n'
        + 'waive s { when a  approved by "A"  until 2026-03-02  because "a" }\n'
        + 'waive s { when b  approved by "B"  until 2026-04-01  because "b" }',
        case("the first", {"a": True, "b": False}, "admit 1", rules="base", waived="s"),
        case("the second", {"a": False, "b": True}, "admit 1", rules="base", waived="s"),
        case(
            "the first has lapsed, the second holds",
            {"a": True, "b": True},
            "admit 1",
            rules="base",
            waived="s",
            today="2026-03-02",
        ),
        case(
            "the first has lapsed",
            {"a": True, "b": False},
            "refuse 0",
            rules="base s",
            causes="s:suppressed",
            stage="suppress",
            today="2026-03-02",
        ),
    ),
    group(
        "a_waiver_of_a_rule_that_does_not_match",
        "examples { x : bool }\n"
        + ONE
        + ALL
        + 'suppress s { when x  because "s" }\nwaive s { approved by "A"  until 2027-01-01  because "a" }',
        case("nothing to lift", {"x": False}, "admit 1", rules="base"),
        case("lifted", {"x": True}, "admit 1", rules="base", waived="s"),
    ),
    group(
        "a_waiver_lifts_one_rule_alone",
        ONE
        + ALL
        + 'suppress s { because "s" }\nretain r { until 2026-01-01 }\nwaive s { approved by "A"  until 2027-01-01  because "a" }',
        case(
            "the other holds", {}, "refuse 0", rules="base r", waived="s", causes="r:expired", stage="retain"
        ),
    ),
    group(
        "waivers_of_every_kind_of_limit",
        "signals { loss : number 0..10 default 1 }\n"
        + ONE
        + ALL
        + "retain r { at most 1 exposures }\nmemorization m { when loss < 0.5  refuse }\n"
        + "curriculum c { before step 5 reach deep at 0 }\n"
        + "".join(f'waive {n} {{ approved by "A"  until 2027-01-01  because "a" }}\n' for n in "rmc"),
        case("all lifted", {}, "admit 1", rules="base", waived="c m r", exposures=3, signals={"loss": 0}),
        case(
            "lapsed",
            {},
            "refuse 0",
            rules="base c m r",
            causes="c:not_open m:memorized r:exposures_spent",
            stage="retain",
            exposures=3,
            signals={"loss": 0},
            today="2027-01-01",
        ),
    ),
    group(
        "a_guard_caps_exposures",
        "signals { loss : number 0..10 default 1 }\n"
        + ONE
        + ALL
        + "memorization m { when loss < 0.5  at most 2 exposures }",
        case("too few", {}, "admit 1", rules="base", exposures=1, signals={"loss": 0}),
        case("the condition does not hold", {}, "admit 1", rules="base", exposures=2),
        case(
            "enough",
            {},
            "refuse 0",
            rules="base m",
            causes="m:exposures_spent",
            stage="memorization",
            exposures=2,
            signals={"loss": 0},
        ),
    ),
    group(
        "a_guard_holds_out_tokens",
        "examples { x : bool }\n"
        + ONE
        + ALL
        + "memorization a { when x  hold out 1 in 4 tokens }\n"
        + "memorization b { when x  hold out 1 in 2 tokens }\n"
        + "advisory memorization c { hold out 1 in 2 tokens }",
        case(
            "weights stay, and each rule obliges",
            {"x": True},
            "admit 1",
            rules="a b base",
            advisory="c",
            causes="a:held_out b:held_out",
            obligations="hold_out:a hold_out:b",
        ),
        case("an advisory rule obliges to nothing", {"x": False}, "admit 1", rules="base", advisory="c"),
    ),
    group(
        "an_advisory_rule_that_is_waived",
        ONE
        + ALL
        + 'advisory suppress s { because "s" }\nwaive s { approved by "A"  until 2027-01-01  because "a" }',
        case("listed as waived", {}, "admit 1", rules="base", waived="s"),
    ),
)

PRIVACY: Sequence[Group] = (
    group(
        "privacy_confines",
        "examples { phi : bool patient : string }\n"
        + TWO
        + ALL
        + "privacy p { when phi  within shallow  epsilon 3  delta 1e-6  clip 1.0  unit patient }",
        case("public", {"phi": False, "patient": "a"}, "admit 1 1", rules="base"),
        case(
            "private",
            {"phi": True, "patient": "a"},
            "limit 1 0",
            rules="base p",
            causes="p:confined",
            obligations="privacy:p",
        ),
        case(
            "the budget is spent",
            {"phi": True, "patient": "a"},
            "refuse 0 0",
            rules="base p",
            causes="p:confined p:budget_spent",
            obligations="privacy:p",
            stage="privacy",
            spent=["p"],
        ),
        case("spent for others", {"phi": False, "patient": "a"}, "admit 1 1", rules="base", spent=["p"]),
    ),
    group(
        "two_privacy_rules",
        "examples { a : bool b : bool }\n"
        + THREE
        + ALL
        + "privacy p { when a  within shallow, middle  epsilon 3  delta 1e-6  clip 1 }\n"
        + "privacy q { when b  within middle, deep  epsilon 1  delta 1e-6  clip 1 }",
        case(
            "both leave what both name",
            {"a": True, "b": True},
            "limit 0 1 0",
            rules="base p q",
            causes="p:confined q:confined",
            obligations="privacy:p privacy:q",
        ),
        case(
            "one is spent",
            {"a": True, "b": True},
            "refuse 0 0 0",
            rules="base p q",
            causes="p:confined q:confined q:budget_spent",
            obligations="privacy:p privacy:q",
            stage="privacy",
            spent=["q"],
        ),
    ),
    group(
        "disjoint_privacy_rules_leave_nothing",
        TWO
        + ALL
        + "privacy p { within shallow  epsilon 3  delta 1e-6  clip 1 }\nprivacy q { within deep  epsilon 3  delta 1e-6  clip 1 }",
        case(
            "nothing",
            {},
            "refuse 0 0",
            rules="base p q",
            causes="p:confined q:confined",
            obligations="privacy:p privacy:q",
            stage="privacy",
        ),
    ),
    group(
        "advisory_privacy",
        TWO + ALL + "advisory privacy p { within shallow  epsilon 3  delta 1e-6  clip 1 }",
        case("recorded alone, and no obligation", {}, "admit 1 1", rules="base", advisory="p", spent=["p"]),
    ),
    group(
        "privacy_within_quarantine_and_more",
        QUARANTINE
        + "depth d { reach all, quarantine }\nprivacy p { within quarantine, shallow  epsilon 3  delta 1e-6  clip 1 }",
        case("both stay open", {}, "limit 1 0 1", rules="d p", causes="p:confined", obligations="privacy:p"),
    ),
)

MEMORIZATION: Sequence[Group] = (
    group(
        "memorization_refuses",
        "signals { loss : number 0..10 default 1 }\n"
        + ONE
        + ALL
        + "memorization m { when loss < 0.1  refuse }",
        case("the default", {}, "admit 1", rules="base"),
        case("at the bound", {}, "admit 1", rules="base", signals={"loss": 0.1}),
        case(
            "recited",
            {},
            "refuse 0",
            rules="base m",
            causes="m:memorized",
            stage="memorization",
            signals={"loss": 0.05},
        ),
        case(
            "clamped to zero",
            {},
            "refuse 0",
            rules="base m",
            causes="m:memorized",
            stage="memorization",
            signals={"loss": -1},
        ),
    ),
    group(
        "memorization_caps_and_routes",
        "signals { loss : number 0..10 default 1 }\n"
        + QUARANTINE
        + "depth d { reach all, quarantine }\nmemorization c { when loss < 0.5  cap deep at 0.25 }\n"
        + "memorization r { when loss < 0.1  route to quarantine }",
        case("capped", {}, "limit 1 0.25 1", rules="c d", causes="c:capped", signals={"loss": 0.3}),
        case(
            "routed",
            {},
            "limit 0 0 1",
            rules="c d r",
            causes="c:capped r:quarantined",
            obligations="quarantine:r",
            signals={"loss": 0},
        ),
    ),
)

CURRICULUM: Sequence[Group] = (
    group(
        "curriculum_by_steps",
        TWO
        + ALL
        + "curriculum c {\n  before step 5 reach shallow\n  from step 5 before step 10 reach shallow, deep at 0.5\n}",
        case("first stage", {}, "limit 1 0", rules="base c", causes="c:not_open", step=4),
        case("second stage begins", {}, "limit 1 0.5", rules="base c", causes="c:not_open", step=5),
        case("second stage ends", {}, "limit 1 0.5", rules="base c", causes="c:not_open", step=9),
        case("times without a stage are not limited", {}, "admit 1 1", rules="base", step=10),
    ),
    group(
        "stopped_by_a_curriculum_alone_is_deferred",
        "examples { deep_only : bool }\n"
        + TWO
        + "depth d { reach deep }\ndepth e { when not deep_only  reach shallow }\ncurriculum c { before step 5 reach shallow }",
        case(
            "deferred", {"deep_only": True}, "defer 0 0", rules="c d", causes="c:not_open", stage="curriculum"
        ),
        case("limited", {"deep_only": False}, "limit 1 0", rules="c d e", causes="c:not_open"),
        case("open later", {"deep_only": True}, "limit 0 1", rules="d", step=5),
    ),
    group(
        "during_includes_both_ends",
        ONE + ALL + "curriculum c { during step 10..20 reach deep at 0.5 }",
        case("before", {}, "admit 1", rules="base", step=9),
        case("first", {}, "limit 0.5", rules="base c", causes="c:not_open", step=10),
        case("last", {}, "limit 0.5", rules="base c", causes="c:not_open", step=20),
        case("after", {}, "admit 1", rules="base", step=21),
    ),
    group(
        "during_epochs_and_days",
        ONE
        + ALL
        + "curriculum c { during epoch 1..1 reach deep at 0.5 }\ncurriculum e { during 2026-03-02..2026-03-03 reach deep at 0.25 }",
        case("neither", {}, "admit 1", rules="base"),
        case("the epoch", {}, "limit 0.5", rules="base c", causes="c:not_open", epoch=1),
        case("the days", {}, "limit 0.25", rules="base e", causes="e:not_open", today="2026-03-03"),
        case(
            "both: the least cap",
            {},
            "limit 0.25",
            rules="base c e",
            causes="c:not_open e:not_open",
            epoch=1,
            today="2026-03-02",
        ),
    ),
    group(
        "all_times_of_a_stage_must_hold",
        ONE + ALL + "curriculum c { from epoch 1 before 2026-03-02 reach deep at 0.5 }",
        case("only the day", {}, "admit 1", rules="base"),
        case("only the epoch", {}, "admit 1", rules="base", epoch=1, today="2026-03-02"),
        case("both", {}, "limit 0.5", rules="base c", causes="c:not_open", epoch=1),
    ),
    group(
        "overlapping_stages_of_one_curriculum",
        TWO + ALL + "curriculum c {\n  before step 5 reach shallow\n  before step 10 reach shallow, deep\n}",
        case("both hold", {}, "limit 1 0", rules="base c", causes="c:not_open c:not_open"),
        case("one holds", {}, "admit 1 1", rules="base c", causes="c:not_open", step=7),
    ),
    group(
        "a_curriculum_with_a_condition",
        "examples { x : bool }\n" + ONE + ALL + "curriculum c { when x  before step 5 reach deep at 0.5 }",
        case("not about it", {"x": False}, "admit 1", rules="base"),
        case("about it", {"x": True}, "limit 0.5", rules="base c", causes="c:not_open"),
    ),
    group(
        "a_stage_opens_quarantine_only_by_name",
        QUARANTINE
        + "depth d { reach all, quarantine }\ncurriculum c {\n  before step 5 reach all\n  during step 5..9 reach all, quarantine\n}",
        case("all is every band but quarantine", {}, "admit 1 1 0", rules="c d", causes="c:not_open"),
        case("named", {}, "admit 1 1 1", rules="c d", causes="c:not_open", step=5),
    ),
    group(
        "phases",
        "phases { warm until step 5  main until epoch 2  last }\n"
        + ONE
        + ALL
        + "curriculum c { in warm reach deep at 0.1  in main reach deep at 0.2  in last reach deep at 0.3 }",
        case("the first", {}, "limit 0.1", rules="base c", causes="c:not_open", step=4),
        case("the second", {}, "limit 0.2", rules="base c", causes="c:not_open", step=5),
        case(
            "the second ends with an epoch",
            {},
            "limit 0.3",
            rules="base c",
            causes="c:not_open",
            step=5,
            epoch=2,
        ),
        case(
            "a phase waits for those before it",
            {},
            "limit 0.1",
            rules="base c",
            causes="c:not_open",
            step=4,
            epoch=9,
        ),
    ),
)

ASSERTIONS: Sequence[Group] = (
    group(
        "never_reach",
        "examples { x : bool y : bool }\n"
        + TWO
        + 'depth d { reach shallow }\ndepth e { when y  reach deep }\nassert a { never reach deep when x  because "x" }',
        case("not about it", {"x": False, "y": True}, "admit 1 1", rules="d e"),
        case("holds", {"x": True, "y": False}, "limit 1 0", rules="d"),
        case(
            "broken: all bands are closed",
            {"x": True, "y": True},
            "refuse 0 0",
            rules="a d e",
            causes="a:assertion",
            stage="assert",
        ),
    ),
    group(
        "a_limit_may_mend_an_assertion",
        "examples { x : bool }\n"
        + TWO
        + ALL
        + 'assert a { never reach deep }\nsuppress s { when x  cap deep at 0  because "s" }',
        case("broken", {"x": False}, "refuse 0 0", rules="a base", causes="a:assertion", stage="assert"),
        case("mended", {"x": True}, "limit 1 0", rules="base s", causes="s:capped"),
    ),
    group(
        "always_refuse",
        "examples { x : bool y : bool }\n"
        + ONE
        + "depth d { when y  reach all }\nassert a { always refuse when x }",
        case(
            "holds where nothing is granted",
            {"x": True, "y": False},
            "refuse 0",
            causes=":not_granted",
            stage="depth",
        ),
        case("broken", {"x": True, "y": True}, "refuse 0", rules="a d", causes="a:assertion", stage="assert"),
        case("not about it", {"x": False, "y": True}, "admit 1", rules="d"),
    ),
    group(
        "at_most_is_inclusive",
        "examples { x : bool }\nsignals { g : number 0..1 default 0.5 }\n"
        + ONE
        + "depth d { reach deep }\nmodulate m { scale deep by g from 0 to 1 }\nassert a { at most 0.5 in deep }",
        case("equal", {"x": True}, "limit 0.5", rules="d m"),
        case(
            "a millionth more",
            {"x": True},
            "refuse 0",
            rules="a d m",
            causes="a:assertion",
            stage="assert",
            signals={"g": 0.500001},
        ),
    ),
    group(
        "always_private",
        "examples { phi : bool routed : bool none : bool }\n"
        + TWO
        + "depth d { when not none  reach all }\nprivacy p { when routed  within shallow  epsilon 3  delta 1e-6  clip 1 }\n"
        + "assert a { always private when phi }",
        case(
            "a privacy rule applies",
            {"phi": True, "routed": True, "none": False},
            "limit 1 0",
            rules="d p",
            causes="p:confined",
            obligations="privacy:p",
        ),
        case(
            "none applies",
            {"phi": True, "routed": False, "none": False},
            "refuse 0 0",
            rules="a d",
            causes="a:assertion",
            stage="assert",
        ),
        case(
            "nothing is learned",
            {"phi": True, "routed": False, "none": True},
            "refuse 0 0",
            causes=":not_granted",
            stage="depth",
        ),
    ),
    group(
        "advisory_privacy_does_not_satisfy_an_assertion",
        TWO
        + ALL
        + "advisory privacy p { within shallow  epsilon 3  delta 1e-6  clip 1 }\nassert a { always private }",
        case("broken", {}, "refuse 0 0", rules="a base", advisory="p", causes="a:assertion", stage="assert"),
    ),
    group(
        "implies",
        "examples { x : bool y : bool }\n" + ONE + ALL + "assert a { x implies y }",
        case("false implies anything", {"x": False, "y": False}, "admit 1", rules="base"),
        case("true and true", {"x": True, "y": True}, "admit 1", rules="base"),
        case(
            "broken",
            {"x": True, "y": False},
            "refuse 0",
            rules="a base",
            causes="a:assertion",
            stage="assert",
        ),
    ),
    group(
        "a_failed_assertion_is_never_deferred",
        "examples { x : bool }\n" + ONE + ALL + "retain r { from 2026-03-02 }\nassert a { x implies not x }",
        case("deferred", {"x": False}, "defer 0", rules="base r", causes="r:embargoed", stage="retain"),
        case(
            "refused, and the embargo is named",
            {"x": True},
            "refuse 0",
            rules="a base r",
            causes="r:embargoed a:assertion",
            stage="retain",
        ),
    ),
    group(
        "several_assertions_fail_in_order",
        ONE + ALL + "assert b { always refuse }\nassert a { never reach deep }",
        case(
            "sorted by name",
            {},
            "refuse 0",
            rules="a b base",
            causes="a:assertion b:assertion",
            stage="assert",
        ),
    ),
)

CONDITIONS: Sequence[Group] = (
    test(
        "truth",
        "examples { x : bool }\n",
        "x == true",
        holds("true", {"x": True}),
        fails("false", {"x": False}),
    ),
    test(
        "not_false",
        "examples { x : bool }\n",
        "x != false",
        holds("true", {"x": True}),
        fails("false", {"x": False}),
    ),
    test(
        "binding",
        "examples { a : bool b : bool c : bool }\n",
        "a or b and not c",
        holds("and binds tighter than or", {"a": True, "b": False, "c": True}),
        holds("not binds tightest", {"a": False, "b": True, "c": False}),
        fails("neither", {"a": False, "b": True, "c": True}),
    ),
    test(
        "implies_groups_to_the_right",
        "examples { a : bool b : bool c : bool }\n",
        "a implies b implies c",
        holds("a implies (b implies c)", {"a": False, "b": True, "c": False}),
        fails("all but the last", {"a": True, "b": True, "c": False}),
        holds("b is false", {"a": True, "b": False, "c": False}),
    ),
    test(
        "implies_binds_loosest",
        "examples { a : bool b : bool c : bool }\n",
        "a or b implies c",
        fails("(a or b) implies c", {"a": True, "b": False, "c": False}),
        holds("with c", {"a": True, "b": False, "c": True}),
        holds("neither a nor b", {"a": False, "b": False, "c": False}),
    ),
    test(
        "has_guards",
        "examples { n : integer 0..9 optional }\n",
        "has n and n > 3",
        holds("present and greater", {"n": 4}),
        fails("present and not", {"n": 3}),
        fails("absent", {}),
        fails("null", {"n": None}),
    ),
    test(
        "not_has_or",
        "examples { n : integer 0..9 optional }\n",
        "not has n or n > 3",
        holds("absent", {}),
        holds("greater", {"n": 9}),
        fails("not", {"n": 0}),
    ),
    test(
        "has_implies",
        "examples { s : string optional }\n",
        'has s implies s == "a"',
        holds("absent", {}),
        holds("equal", {"s": "a"}),
        fails("other", {"s": "b"}),
        fails("the empty string is present", {"s": ""}),
    ),
    test(
        "an_absent_bool",
        "examples { x : bool optional }\n",
        "has x and not x",
        holds("present and false", {"x": False}),
        fails("present and true", {"x": True}),
        fails("absent is not false", {}),
    ),
    test(
        "strings_are_case_sensitive",
        "examples { s : string }\n",
        's == "Abc"',
        holds("same", {"s": "Abc"}),
        fails("other case", {"s": "abc"}),
        fails("with a space", {"s": "Abc "}),
    ),
    test(
        "string_differs",
        "examples { s : string }\n",
        's != "a"',
        holds("other", {"s": ""}),
        fails("same", {"s": "a"}),
    ),
    test(
        "string_in_list",
        "examples { s : string }\n",
        's in ["a", ""]',
        holds("a", {"s": "a"}),
        holds("empty", {"s": ""}),
        fails("b", {"s": "b"}),
    ),
    test(
        "string_not_in_list",
        "examples { s : string }\n",
        's not in ["a"]',
        holds("b", {"s": "b"}),
        fails("a", {"s": "a"}),
    ),
    test(
        "starts_with",
        "examples { s : string }\n",
        's starts with "ab"',
        holds("prefix", {"s": "abc"}),
        holds("whole", {"s": "ab"}),
        fails("shorter", {"s": "a"}),
        fails("inside", {"s": "xab"}),
    ),
    test(
        "ends_with",
        "examples { s : string }\n",
        's ends with "ab"',
        holds("suffix", {"s": "xab"}),
        fails("inside", {"s": "abx"}),
    ),
    test(
        "contains",
        "examples { s : string }\n",
        's contains "ab"',
        holds("inside", {"s": "xaby"}),
        fails("apart", {"s": "axb"}),
    ),
    test(
        "every_string_contains_the_empty_one",
        "examples { s : string }\n",
        's contains ""',
        holds("empty", {"s": ""}),
        holds("any", {"s": "x"}),
    ),
    test(
        "glob_star",
        "examples { s : string }\n",
        's like "src/*.py"',
        holds("one", {"s": "src/a.py"}),
        holds("the star crosses folders", {"s": "src/a/b.py"}),
        holds("the star may be empty", {"s": "src/.py"}),
        fails("the whole string must match", {"s": "src/a.pyc"}),
        fails("a dot is a dot", {"s": "src/a_py"}),
    ),
    test(
        "glob_question_mark",
        "examples { s : string }\n",
        's like "a?c"',
        holds("one", {"s": "abc"}),
        holds("one character outside the first plane", {"s": "a\N{PILE OF POO}c"}),
        fails("none", {"s": "ac"}),
        fails("two", {"s": "abbc"}),
    ),
    test(
        "glob_backtracks",
        "examples { s : string }\n",
        's like "*ab*ab?"',
        holds("the last pair", {"s": "abxababc"}),
        fails("nothing after", {"s": "ababab"}),
    ),
    test(
        "glob_overlap",
        "examples { s : string }\n",
        's like "aba*aba"',
        holds("apart", {"s": "abaaba"}),
        fails("parts may not overlap", {"s": "ababa"}),
    ),
    test(
        "glob_brackets_are_plain",
        "examples { s : string }\n",
        's like "[a]"',
        holds("itself", {"s": "[a]"}),
        fails("no class", {"s": "a"}),
    ),
    test(
        "glob_star_matches_line_ends",
        "examples { s : string }\n",
        's like "a*b"',
        holds("line end", {"s": "a\nb"}),
        fails("after", {"s": "a\nb\n"}),
    ),
    test(
        "glob_of_nothing",
        "examples { s : string }\n",
        's like ""',
        holds("empty", {"s": ""}),
        fails("something", {"s": " "}),
    ),
    test(
        "glob_stars_alone",
        "examples { s : string }\n",
        's like "**"',
        holds("empty", {"s": ""}),
        holds("any", {"s": "x"}),
    ),
    test(
        "unicode_is_compared_by_code_points",
        "examples { s : string }\n",
        's == "é"',
        holds("composed", {"s": "\u00e9"}),
        fails("decomposed is another string", {"s": "e\u0301"}),
    ),
    test(
        "escapes",
        "examples { s : string }\n",
        r's == "a\"b\\c\n\t"',
        holds("the characters", {"s": 'a"b\\c\n\t'}),
        fails("the text", {"s": r"a\"b\\c\n\t"}),
    ),
    test(
        "a_string_is_counted_in_characters",
        "examples { s : string }\n",
        's ends with "é"',
        holds("65,536 characters", {"s": "é" * 65_536}),
        invalid("65,537 characters", {"s": "é" * 65_537}, "s:too_long"),
    ),
    test(
        "enumerations",
        'examples { k : one of a, b, "C-2" }\n',
        'k in [b, "C-2"]',
        holds("b", {"k": "b"}),
        holds("quoted", {"k": "C-2"}),
        fails("a", {"k": "a"}),
    ),
    test(
        "a_quoted_name_is_the_same_value",
        "examples { k : one of a, b }\n",
        'k == "a"',
        holds("a", {"k": "a"}),
        fails("b", {"k": "b"}),
    ),
    test(
        "the_value_may_come_first",
        "examples { k : one of a, b }\n",
        "a == k",
        holds("a", {"k": "a"}),
        fails("b", {"k": "b"}),
    ),
    test(
        "enum_differs",
        "examples { k : one of a, b }\n",
        "k != a",
        holds("b", {"k": "b"}),
        fails("a", {"k": "a"}),
    ),
    test(
        "enum_not_in",
        "examples { k : one of a, b, c }\n",
        "k not in [a, b]",
        holds("c", {"k": "c"}),
        fails("b", {"k": "b"}),
    ),
    test(
        "sets",
        "examples { t : set of x, y, z }\n",
        "t contains x",
        holds("member", {"t": ["y", "x"]}),
        fails("empty", {"t": []}),
        fails("others", {"t": ["y", "z"]}),
        holds("repeated members count once", {"t": ["x", "x"]}),
    ),
    test(
        "has_any",
        "examples { t : set of x, y, z }\n",
        "t has any [x, y]",
        holds("one", {"t": ["y"]}),
        fails("none", {"t": ["z"]}),
        fails("empty", {"t": []}),
    ),
    test(
        "has_all",
        "examples { t : set of x, y, z }\n",
        "t has all [x, y]",
        holds("both", {"t": ["y", "x", "z"]}),
        fails("one", {"t": ["y"]}),
    ),
    test(
        "an_absent_set",
        "examples { t : set of x, y optional }\n",
        "has t and not t contains x",
        holds("empty", {"t": []}),
        fails("absent", {}),
        fails("member", {"t": ["x"]}),
    ),
    test(
        "number_comparisons",
        "examples { n : number -1..1 places 2 }\n",
        "n >= 0.25 and n < 0.5",
        holds("lower end", {"n": 0.25}),
        fails("upper end", {"n": 0.5}),
        fails("below", {"n": 0.24}),
        holds("an integer is a number", {"n": 0.4}),
    ),
    test(
        "ranges_include_both_ends",
        "examples { n : integer 0..9 }\n",
        "n in 3..5",
        holds("low", {"n": 3}),
        holds("high", {"n": 5}),
        fails("below", {"n": 2}),
        fails("above", {"n": 6}),
    ),
    test(
        "not_in_range",
        "examples { n : integer 0..9 }\n",
        "n not in 3..5",
        holds("below", {"n": 2}),
        fails("inside", {"n": 4}),
    ),
    test(
        "numbers_in_a_list",
        "examples { n : number 0..9 places 1 }\n",
        "n in [1, 2.5]",
        holds("one", {"n": 1}),
        holds("decimal", {"n": 2.5}),
        fails("between", {"n": 2}),
    ),
    test(
        "a_finer_constant",
        "examples { n : number 0..9 places 1 }\n",
        "n > 2.449",
        holds("2.5", {"n": 2.5}),
        fails("2.4", {"n": 2.4}),
    ),
    test(
        "a_constant_between_two_values",
        "examples { n : integer 0..9 }\n",
        "n == 2.5",
        fails("two", {"n": 2}),
        fails("three", {"n": 3}),
    ),
    test(
        "values_are_rounded_half_to_even",
        "examples { n : number 0..9 places 1 }\n",
        "n == 0.2",
        holds("0.25 is 0.2", {"n": 0.25}),
        fails("0.35 is not", {"n": 0.35}),
        holds("0.15625 is 0.2", {"n": 0.15625}),
    ),
    test(
        "rounding_may_leave_the_range",
        "examples { n : number 0..1 places 1 }\n",
        "n == 1",
        holds("1.05 in double arithmetic is 10.5, even 10", {"n": 1.05}),
        invalid("1.06", {"n": 1.06}, "n:out_of_range"),
    ),
    test(
        "arithmetic",
        "examples { a : integer -5..5 b : integer -5..5 }\n",
        "a * b - 2 * a + 1 == 0",
        holds("1 * 1 - 2 + 1", {"a": 1, "b": 1}),
        holds("-1 * 3 + 2 + 1", {"a": -1, "b": 3}),
        fails("zero", {"a": 0, "b": 5}),
    ),
    test(
        "minus_binds_tightest",
        "examples { a : integer -5..5 }\n",
        "-a * 2 > 3",
        holds("-(-2) * 2", {"a": -2}),
        fails("1", {"a": 1}),
    ),
    test(
        "subtraction_groups_to_the_left",
        "examples { a : integer 0..9 }\n",
        "9 - a - 3 == 1",
        holds("(9 - 5) - 3", {"a": 5}),
        fails("9 - (5 - 3)", {"a": 1}),
    ),
    test(
        "a_product_of_decimals",
        "examples { n : number 0..1 places 2 }\n",
        "n * n >= 0.25",
        holds("half", {"n": 0.5}),
        fails("0.49", {"n": 0.49}),
    ),
    test(
        "units",
        "examples { h : number 0..8 bits/byte }\n",
        "h * 2 <= 6 bits/byte",
        holds("3", {"h": 3}),
        fails("3.000001", {"h": 3.000001}),
    ),
    test(
        "the_largest_numbers",
        "examples { n : integer -9007199254740991..9007199254740991 }\n",
        "n >= 9007199254740991",
        holds("equal", {"n": 9007199254740991}),
        fails("one less", {"n": 9007199254740990}),
        fails("least", {"n": -9007199254740991}),
        invalid("one more", {"n": 9007199254740992}, "n:out_of_range"),
    ),
    test(
        "nine_places",
        "examples { n : number 0..1 places 9 }\n",
        "n > 0.5",
        holds("a billionth more", {"n": 0.500000001}),
        fails("half", {"n": 0.5}),
    ),
    test(
        "negative_zero",
        "examples { n : number -1..1 }\n",
        "n == 0",
        holds("-0.0", {"n": -0.0}),
        holds("-1e-9 rounds to zero", {"n": -1e-9}),
    ),
    test(
        "clocks",
        "",
        "step >= 5 and epoch == 1 and exposures < 2",
        holds("all", {}, step=5, epoch=1, exposures=1),
        fails("step", {}, step=4, epoch=1),
        fails("epoch", {}, step=5),
        fails("exposures", {}, step=5, epoch=1, exposures=2),
    ),
    test(
        "the_last_step",
        "",
        "step == 2147483647",
        holds("equal", {}, step=2147483647),
        fails("one less", {}, step=2147483646),
    ),
    test(
        "calculated_clocks", "", "step - 2 * epoch == 1", holds("5 - 4", {}, step=5, epoch=2), fails("0", {})
    ),
    test(
        "today",
        "",
        "today in 2026-03-01..2026-03-02",
        holds("first", {}, today="2026-03-01"),
        holds("last", {}, today="2026-03-02"),
        fails("after", {}, today="2026-03-03"),
    ),
    test(
        "dates",
        "examples { d : date }\n",
        "today - d > 30 days",
        holds("31 days", {"d": "2026-01-29"}),
        fails("30 days", {"d": "2026-01-30"}),
        fails("the future", {"d": "2027-01-01"}),
    ),
    test(
        "weeks",
        "examples { d : date }\n",
        "d + 2 * 1 week <= today",
        holds("14 days", {"d": "2026-02-15"}),
        fails("13 days", {"d": "2026-02-16"}),
    ),
    test(
        "a_difference_of_durations",
        "examples { a : date b : date }\n",
        "(today - a) - (today - b) == 1 day",
        holds("a is a day earlier", {"a": "2026-01-01", "b": "2026-01-02"}),
        fails("same", {"a": "2026-01-01", "b": "2026-01-01"}),
    ),
    test(
        "dates_in_a_list",
        "examples { d : date }\n",
        "d in [2026-03-01, 2028-02-29]",
        holds("leap day", {"d": "2028-02-29"}),
        fails("other", {"d": "2026-03-02"}),
    ),
    test(
        "before_1970",
        "examples { d : date }\n",
        "d < 1970-01-01",
        holds("the day before", {"d": "1969-12-31"}),
        fails("the day", {"d": "1970-01-01"}),
        holds("the first", {"d": "0001-01-01"}),
    ),
    test(
        "named_conditions",
        "examples { a : bool b : bool }\nlet either = a or b\nlet neither = not either\n",
        "neither",
        holds("neither", {"a": False, "b": False}),
        fails("one", {"a": True, "b": False}),
    ),
    test(
        "a_named_condition_keeps_its_group",
        "examples { a : bool b : bool c : bool }\nlet either = a or b\n",
        "either and c",
        fails("(a or b) and c", {"a": True, "b": False, "c": False}),
        holds("with c", {"a": True, "b": False, "c": True}),
    ),
    test(
        "entropy_bands",
        "examples { h : number 0..8 bits/byte }\nband low = h < 3.0 bits/byte\nband regular = h in 3.0..5.5 bits/byte\n",
        "band regular or low and h > 2",
        holds("in regular", {"h": 3}),
        holds("at its end", {"h": 5.5}),
        holds("low and above two", {"h": 2.5}),
        fails("low", {"h": 2}),
        fails("above", {"h": 5.500001}),
    ),
    test(
        "phase",
        "phases { warm until step 5  main }\n",
        "phase == warm",
        holds("warm", {}, step=4),
        fails("main", {}, step=5),
    ),
    test(
        "phase_in",
        "phases { a until step 5  b until step 9  c }\n",
        "phase in [a, c]",
        holds("a", {}),
        fails("b", {}, step=8),
        holds("c", {}, step=9),
    ),
    test(
        "phase_differs",
        "phases { a until epoch 1  b }\n",
        "phase != a",
        fails("a", {}),
        holds("b", {}, epoch=1),
    ),
    test(
        "signals",
        "signals { g : number 0..1 places 2 default 0.5 }\n",
        "g >= 0.5",
        holds("the default", {}),
        fails("less", {}, signals={"g": 0.49}),
        holds("rounded", {}, signals={"g": 0.498}),
        holds("clamped", {}, signals={"g": 100}),
    ),
    test(
        "words_of_the_language_as_names",
        "examples { source : string model : bool cap : integer 0..9 }\n",
        'source == "x" and model and cap == 3',
        holds("all", {"source": "x", "model": True, "cap": 3}),
        fails("cap", {"source": "x", "model": True, "cap": 4}),
    ),
    test(
        "lists_may_end_with_a_comma",
        "examples { n : integer 0..9 }\n",
        "n in [1, 2,]",
        holds("two", {"n": 2}),
        fails("three", {"n": 3}),
    ),
)

SCHEMA: Sequence[Group] = (
    test(
        "invalid_examples",
        "examples { b : bool d : date k : one of x, y n : integer 0..9 s : string t : set of u, v }\n",
        "true",
        holds("valid", {"b": True, "d": "2026-03-01", "k": "x", "n": 1, "s": "", "t": []}),
        invalid("nothing there", {}, "b:missing d:missing k:missing n:missing s:missing t:missing"),
        invalid(
            "null is absent", {"b": None, "d": "2026-03-01", "k": "x", "n": 1, "s": "", "t": []}, "b:missing"
        ),
        invalid(
            "undeclared",
            {"b": True, "d": "2026-03-01", "k": "x", "n": 1, "s": "", "t": [], "zz": 1, "a": 2},
            "a:unknown_attribute zz:unknown_attribute",
        ),
        holds(
            "an undeclared null is absent",
            {"b": True, "d": "2026-03-01", "k": "x", "n": 1, "s": "", "t": [], "zz": None},
        ),
        invalid(
            "wrong types",
            {"b": 1, "d": 5, "k": 2, "n": "1", "s": 3, "t": "u"},
            "b:wrong_type d:wrong_type k:wrong_type n:wrong_type s:wrong_type t:wrong_type",
        ),
        invalid(
            "a boolean is no number",
            {"b": True, "d": "2026-03-01", "k": "x", "n": True, "s": "", "t": []},
            "n:wrong_type",
        ),
        invalid(
            "a number is no boolean",
            {"b": 0, "d": "2026-03-01", "k": "x", "n": 1, "s": "", "t": []},
            "b:wrong_type",
        ),
        invalid(
            "out of range",
            {"b": True, "d": "2026-03-01", "k": "x", "n": 10, "s": "", "t": []},
            "n:out_of_range",
        ),
        invalid(
            "unknown values",
            {"b": True, "d": "2026-03-01", "k": "X", "n": 1, "s": "", "t": ["u", "w"]},
            "k:unknown_value t:unknown_value",
        ),
        invalid(
            "a member of the wrong type is worse than an unknown one",
            {"b": True, "d": "2026-03-01", "k": "x", "n": 1, "s": "", "t": ["w", 3]},
            "t:wrong_type",
        ),
        invalid(
            "days that do not exist",
            {"b": True, "d": "2026-02-29", "k": "x", "n": 1, "s": "", "t": []},
            "d:wrong_type",
        ),
        invalid(
            "dates have one form",
            {"b": True, "d": "2026-3-1", "k": "x", "n": 1, "s": "", "t": []},
            "d:wrong_type",
        ),
        invalid(
            "a date with a time is no date",
            {"b": True, "d": "2026-03-01T00:00:00", "k": "x", "n": 1, "s": "", "t": []},
            "d:wrong_type",
        ),
        invalid(
            "a mapping is no set",
            {"b": True, "d": "2026-03-01", "k": "x", "n": 1, "s": "", "t": {"u": 1}},
            "t:wrong_type",
        ),
    ),
    test(
        "a_range_of_dates",
        "examples { d : date 2026-01-01..2026-12-31 }\n",
        "true",
        holds("first", {"d": "2026-01-01"}),
        holds("last", {"d": "2026-12-31"}),
        invalid("before", {"d": "2025-12-31"}, "d:out_of_range"),
        invalid("after", {"d": "2027-01-01"}, "d:out_of_range"),
    ),
    test(
        "integers_are_rounded",
        "examples { n : integer 0..9 }\n",
        "n == 2",
        holds("2.0", {"n": 2.0}),
        holds("2.5 to even", {"n": 2.5}),
        fails("3.5 to even", {"n": 3.5}),
        invalid("9.6", {"n": 9.6}, "n:out_of_range"),
        fails("-0.4 is 0", {"n": -0.4}),
    ),
    test(
        "optional_faults",
        "examples { n : integer 0..9 optional }\n",
        "not has n",
        holds("absent", {}),
        fails("present", {"n": 1}),
        invalid("a present value must fit", {"n": 10}, "n:out_of_range"),
    ),
    group(
        "several_blocks",
        "examples { a : bool }\n" + ONE + "examples { b : bool }\ndepth d { when a and b  reach deep }",
        holds("both", {"a": True, "b": True}),
        invalid("b is required", {"a": True}, "b:missing"),
    ),
    group(
        "imports",
        'import "shared/schema.policy"\n' + ONE + "depth d { when permissive  reach deep }",
        holds("mit", {"license": "mit"}),
        fails("gpl", {"license": "gpl"}),
        case(
            "a rule of the imported file",
            {"license": "none"},
            "refuse 0",
            rules="s",
            causes="s:suppressed :not_granted",
            stage="suppress",
        ),
        imports={
            "shared/schema.policy": 'import "names.policy"\nexamples { license : one of mit, gpl, none }\nsuppress s { when license == none  because "no licence" }\n',
            "shared/names.policy": "let permissive = license == mit\n",
        },
    ),
    group(
        "guards_change_no_decision",
        ONE + ALL + "starvation deep { after 10 steps halt }\ngradient { deep at most 1.0 }",
        case("admitted", {}, "admit 1", rules="base"),
    ),
    group(
        "a_pace_opens_a_band_in_one_step_of_so_many",
        "examples { x : bool }\n"
        + TWO
        + "depth base { reach deep }\ndepth more { when x  reach shallow }\n"
        + "gradient { deep at most 1 in 3 steps  deep at most 0.5 }",
        case("step 0 is one of them", {"x": True}, "admit 1 1", rules="base more"),
        case(
            "not the next",
            {"x": True},
            "limit 1 0",
            rules="base more pace:deep",
            causes="pace:deep:paced",
            step=1,
        ),
        case(
            "nor the one before",
            {"x": True},
            "limit 1 0",
            rules="base more pace:deep",
            causes="pace:deep:paced",
            step=2,
        ),
        case("the next of them", {"x": True}, "admit 1 1", rules="base more", step=3),
        case(
            "what it alone stops is deferred",
            {"x": False},
            "defer 0 0",
            rules="base pace:deep",
            causes="pace:deep:paced",
            stage="pace",
            step=4,
        ),
        case("and let through in its turn", {"x": False}, "limit 0 1", rules="base", step=6),
    ),
    group(
        "a_pace_is_a_limit_like_others",
        "examples { x : bool }\n"
        + TWO
        + ALL
        + 'suppress s { when x  cap deep at 0.5  because "x" }\nsuppress t { when x  cap shallow at 0  because "x" }\n'
        + "gradient { deep at most 1 in 2 steps }",
        case(
            "the least cap counts", {"x": True}, "limit 0 0.5", rules="base s t", causes="s:capped t:capped"
        ),
        case(
            "the gates come in their order",
            {"x": True},
            "defer 0 0",
            rules="base pace:deep s t",
            causes="pace:deep:paced s:capped t:capped",
            stage="pace",
            step=7,
        ),
        case(
            "without a cap",
            {"x": False},
            "limit 1 0",
            rules="base pace:deep",
            causes="pace:deep:paced",
            step=7,
        ),
    ),
    group(
        "semantics_change_no_decision",
        TWO.replace("}", " semantics detach }") + "depth d { reach shallow }\n",
        case("closed is closed", {}, "limit 1 0", rules="d"),
    ),
    group(
        "maintained_bands_change_no_decision",
        TWO
        + ALL
        + 'suppress s { when step > 5  cap deep at 0.5  because "later" }\n'
        + "maintain m { within deep  strength 0.01  drift at most 2.5%  rehearse base at least 50% }\n"
        + "advisory maintain n { within shallow  drift at most 100%  from step 3 }",
        case("admitted, and no rule of it is named", {}, "admit 1 1", rules="base"),
        case("nor once both are in force", {}, "limit 1 0.5", rules="base s", causes="s:capped", step=6),
    ),
    group(
        "everything_at_once",
        "max weight 2\nexamples { kind : one of surface, concept phi : bool patient : string erase : date optional }\n"
        + "signals { g : number 0..1 default 0 }\n"
        + QUARANTINE
        + "depth s { when kind == surface  reach shallow }\n"
        + "depth c { when kind == concept  reach all, deep at 2, quarantine at 0.5 }\n"
        + "retain r { when has erase  until erase }\n"
        + "privacy p { when phi  within shallow  epsilon 3  delta 1e-6  clip 1  unit patient }\n"
        + "curriculum u { before step 10 reach shallow, deep at 1.5, quarantine }\n"
        + "modulate m { when kind == concept  scale deep by g from 1 to 0 }\n"
        + "assert a { never reach deep when phi }",
        case(
            "a concept",
            {"kind": "concept", "phi": False, "patient": ""},
            "admit 1 2 0.5",
            rules="c m",
            step=10,
        ),
        case(
            "early",
            {"kind": "concept", "phi": False, "patient": ""},
            "admit 1 1.5 0.5",
            rules="c m u",
            causes="u:not_open",
        ),
        # half of the lesser of 2 and 1.5
        case(
            "early and modulated",
            {"kind": "concept", "phi": False, "patient": ""},
            "limit 1 0.75 0.5",
            rules="c m u",
            causes="u:not_open",
            signals={"g": 0.5},
        ),
        case(
            "private",
            {"kind": "concept", "phi": True, "patient": "x"},
            "limit 1 0 0",
            rules="c m p",
            causes="p:confined",
            obligations="privacy:p",
            step=10,
        ),
        case(
            "erased",
            {"kind": "surface", "phi": False, "patient": "", "erase": "2026-03-01"},
            "refuse 0 0 0",
            rules="r s",
            causes="r:expired",
            stage="retain",
            step=10,
        ),
        case("surface", {"kind": "surface", "phi": False, "patient": ""}, "limit 1 0 0", rules="s", step=10),
    ),
)

GROUPS: Sequence[Group] = (
    *COMBINING,
    *MODULATE,
    *RETAIN,
    *WAIVERS,
    *PRIVACY,
    *MEMORIZATION,
    *CURRICULUM,
    *ASSERTIONS,
    *CONDITIONS,
    *SCHEMA,
)
