"""What an attestation of a governed run says, and that it cannot be made to say anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model, save_file

from gradwarden.runtime.errors import ProofError
from gradwarden.runtime.evidence.attestation_check import (
    AttestationReport,
    check_attestation,
    compare_ledger,
)
from gradwarden.runtime.evidence.dsse import parse_envelope, sign_envelope
from gradwarden.runtime.evidence.proof_file import InclusionProof, parse_proof
from gradwarden.runtime.evidence.prover import last_head, prove_inclusion
from gradwarden.runtime.evidence.statement import (
    PAYLOAD_TYPE,
    make_statement,
    predicate_schema,
    tensor_digests,
)
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.note import parse_note, sign_note
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules
from tests.runtime.conftest import POLICY

PRIVATE = POLICY + (
    "privacy quiet { when kind == d and has who  within shallow  epsilon 2  delta 1e-5  clip 1.0  unit who }"
)


@pytest.fixture
def run(lab: Any) -> Any:
    """A governed run under a privacy rule, whose last weights are `model.safetensors`."""
    plan = JointPlan.for_steps(privacy_rules(lab.program(PRIVATE)), 0.01, 3)
    governor = lab.governor(PRIVATE, privacy=plan, normaliser=4.0)
    for _ in range(2):
        lab.step(governor, [lab.example("p")])
    governor.checkpoint(lab.folder / "early.safetensors")
    lab.step(governor, [lab.example("p")])
    governor.checkpoint(lab.folder / "model.safetensors")
    governor.close()
    return lab


@pytest.fixture
def statement(run: Any) -> dict[str, Any]:
    weights = run.folder / "model.safetensors"
    report = run.verify(weights=weights)
    assert report.ok
    made = make_statement(run.path(), weights, last_head(run.path()), report.facts, "self-attested")
    loaded: dict[str, Any] = json.loads(made)
    return loaded


def signed(statement: dict[str, Any], signer: Signer) -> bytes:
    return sign_envelope(json.dumps(statement).encode(), PAYLOAD_TYPE, [signer])


def check(run: Any, statement: dict[str, Any], *weights: Path) -> AttestationReport:
    return check_attestation(signed(statement, run.signer), Trust([run.signer.public]), weights)


def codes(report: AttestationReport) -> list[str]:
    return [fault.code for fault in report.faults]


def test_it_says_what_the_ledger_says(run: Any, statement: dict[str, Any]) -> None:
    weights = run.folder / "model.safetensors"
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    first, *tensors = statement["subject"]
    assert first == {
        "name": "model.safetensors",
        "digest": {"sha256": sha256(weights.read_bytes()).hexdigest()},
    }
    stored = load_file(weights)
    assert {subject["name"]: subject["digest"]["sha256"] for subject in tensors} == {
        f"model.safetensors#{name}": sha256(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in stored.items()
    }
    predicate = statement["predicate"]
    [opened], committed = run.bodies("opened"), run.bodies("committed")
    assert [policy["digest"]["sha256"] for policy in predicate["policies"]] == [opened["policy"]["digest"]]
    assert predicate["steps"] == {"total": 3, "committed": 3, "refused": 0}
    [spent] = predicate["privacy"]
    assert (spent["rule"], spent["unit"], spent["delta"]) == ("quiet", "who", "1e-05")
    assert spent["epsilonSpent"] == committed[-1]["privacy"]["quiet"]["epsilon"]
    assert spent["steps"] == 3
    assert predicate["checkpoint"]["step"] == 3

    report = check(run, statement, weights)
    assert (codes(report), report.matched) == ([], {str(weights): "file"})
    assert list(compare_ledger(report, run.path(), run.verify().facts)) == []


def test_the_same_tensors_in_another_file_are_found(run: Any, statement: dict[str, Any]) -> None:
    stored = load_file(run.folder / "model.safetensors")
    moved = run.folder / "moved.safetensors"
    save_file(stored, moved, metadata={"format": "pt", "title": "the same"})
    assert check(run, statement, moved).matched == {str(moved): "tensors"}
    name = next(iter(stored))
    for other in ({**stored, name: stored[name] + 1}, {n: t for n, t in stored.items() if n != name}, {}):
        save_file(other, moved)
        assert codes(check(run, statement, moved)) == ["wrong_subject"]
    early = run.folder / "early.safetensors"
    assert codes(check(run, statement, early)) == ["wrong_subject"]


def test_only_the_signature_of_a_given_key_counts(run: Any, statement: dict[str, Any]) -> None:
    stranger = Signer.generate("run")
    report = check_attestation(signed(statement, stranger), Trust([run.signer.public]))
    assert (codes(report), report.statement) == (["untrusted"], None)
    both = check_attestation(signed(statement, stranger), Trust([stranger.public]))
    assert codes(both) == ["unknown_key"]


def test_an_attester_need_not_be_trusted_with_ledgers(run: Any, statement: dict[str, Any]) -> None:
    lab, trust = Signer.generate("lab"), Trust([run.signer.public])
    assert codes(check_attestation(signed(statement, lab), trust, attesters=[lab.public])) == []
    assert codes(check_attestation(signed(statement, run.signer), trust, attesters=[lab.public])) == [
        "untrusted"
    ]
    proof = parse_proof(statement["predicate"]["checkpoint"]["proof"].encode())
    forged = sign_note(parse_note(proof.note).text, [lab]).encode()
    assert isinstance(proof, InclusionProof)
    text = InclusionProof(proof.index, proof.path, forged, proof.line).encode().decode()
    statement["predicate"]["checkpoint"]["proof"] = text
    report = check_attestation(signed(statement, lab), trust, attesters=[lab.public])
    assert codes(report) == ["unknown_key"]


Lie = Callable[[dict[str, Any], Any], object]


def another_root(predicate: dict[str, Any], _run: Any) -> object:
    return predicate["ledger"]["root"].update(sha256="00" * 32)


def another_ledger(predicate: dict[str, Any], _run: Any) -> object:
    return predicate["ledger"].update(origin="gradwarden/else")


def another_step(predicate: dict[str, Any], _run: Any) -> object:
    return predicate["checkpoint"].update(step=2)


def another_entry(predicate: dict[str, Any], run: Any) -> object:
    proof = prove_inclusion(run.path(), 0, last_head(run.path()))
    return predicate["checkpoint"].update(proof=proof.encode().decode())


def another_file(predicate: dict[str, Any], _run: Any) -> object:
    return predicate["checkpoint"]["digest"].update(sha256="00" * 32)


def a_changed_path(predicate: dict[str, Any], _run: Any) -> object:
    text = predicate["checkpoint"]["proof"]
    lines = text.split("\n")
    lines[3] = lines[3].swapcase()
    return predicate["checkpoint"].update(proof="\n".join(lines))


def no_proof(predicate: dict[str, Any], _run: Any) -> object:
    return predicate["checkpoint"].update(proof="\ud800")


def a_missing_field(predicate: dict[str, Any], _run: Any) -> object:
    return predicate.pop("privacy")


def a_wrong_type(predicate: dict[str, Any], _run: Any) -> object:
    return predicate.update(steps=3)


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (another_root, "wrong_claim"),
        (another_ledger, "wrong_claim"),
        (another_step, "wrong_claim"),
        (another_entry, "wrong_claim"),
        (another_file, "wrong_claim"),
        (a_changed_path, "wrong_path"),
        (no_proof, "wrong_path"),
        (a_missing_field, "wrong_shape"),
        (a_wrong_type, "wrong_shape"),
    ],
)
def test_a_lie_about_weights_or_head_shows_without_the_ledger(
    run: Any, statement: dict[str, Any], lie: Lie, code: str
) -> None:
    lie(statement["predicate"], run)
    assert codes(check(run, statement)) == [code]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("privacy", []),
        ("steps", {"total": 3, "committed": 2, "refused": 1}),
        ("decisions", {}),
        ("policies", [{"name": "x", "version": 1, "digest": {"sha256": "00" * 32}, "fromStep": 0}]),
        ("run", "else"),
        ("bands", ["all"]),
        ("modelMap", None),
        ("effectiveSteps", [{"first": 0, "last": 1}]),
    ],
)
def test_a_lie_about_the_run_shows_with_the_ledger(
    run: Any, statement: dict[str, Any], field: str, value: object
) -> None:
    statement["predicate"][field] = value
    report = check(run, statement)
    assert codes(report) == []
    [fault] = compare_ledger(report, run.path(), run.verify().facts)
    assert (fault.code, f"`{field}`" in fault.message) == ("wrong_claim", True)


def test_it_says_which_steps_led_to_the_weights_of_a_run_that_went_back(lab: Any) -> None:
    with lab.governor() as governor:
        for step in range(4):
            lab.step(governor, lab.batch("ab"), seed=step)
            governor.checkpoint(lab.folder / f"{step}.safetensors")
        load_model(governor.model, lab.folder / "1.safetensors")
        governor.rewind(lab.folder / "1.safetensors")
        lab.step(governor, lab.batch("ab"), seed=9)
        governor.checkpoint(lab.folder / "end.safetensors")
        lab.step(governor, lab.batch("ab"), seed=10)  # after the weights that are attested
    weights = lab.folder / "end.safetensors"
    facts = lab.verify(weights=weights).facts
    statement = json.loads(make_statement(lab.path(), weights, last_head(lab.path()), facts, "self-attested"))
    predicate = statement["predicate"]
    assert predicate["effectiveSteps"] == [{"first": 0, "last": 1}, {"first": 4, "last": 4}]
    report = check(lab, statement, weights)
    assert list(compare_ledger(report, lab.path(), facts)) == []
    del predicate["effectiveSteps"]  # as earlier versions made it
    report = check(lab, statement, weights)
    assert (codes(report), list(compare_ledger(report, lab.path(), facts))) == ([], [])


def test_fields_that_are_not_known_are_passed_over(run: Any, statement: dict[str, Any]) -> None:
    statement["predicate"]["later"] = {"a": 1}
    statement["later"] = 2
    statement["subject"][0]["uri"] = "pkg:generic/model"
    report = check(run, statement, run.folder / "model.safetensors")
    assert codes(report) == []
    assert list(compare_ledger(report, run.path(), run.verify().facts)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"subject": []},
        {"subject": [{"name": "a"}]},
    ],
)
def test_other_statements_are_not_taken_for_ours(
    run: Any, statement: dict[str, Any], change: dict[str, Any]
) -> None:
    report = check(run, {**statement, **change})
    assert codes(report)[0] in ("wrong_type", "wrong_shape")
    assert report.statement is None
    other = sign_envelope(json.dumps(statement).encode(), "text/plain", [run.signer])
    assert codes(check_attestation(other, Trust([run.signer.public]))) == ["wrong_type"]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in JSON data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((value, key), *places(inner))]


@settings(suppress_health_check=list(HealthCheck), max_examples=150)
@given(st.data())
def test_no_signed_statement_is_more_than_reported(
    run: Any, statement: dict[str, Any], data: st.DataObject
) -> None:
    changed = json.loads(json.dumps(statement))
    for _ in range(data.draw(st.integers(1, 2))):
        found = places(changed)
        container, key = found[data.draw(st.integers(0, len(found) - 1))]
        scalars = st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800")
        container[key] = data.draw(
            scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(), scalars)
        )
    report = check(run, changed, run.folder / "model.safetensors")
    assert all(fault.message for fault in report.faults)
    if report.statement is not None:
        list(compare_ledger(report, run.path(), run.verify().facts))


@given(st.binary(max_size=60), st.integers(0, 80))
def test_files_that_hold_no_tensors_have_none(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int
) -> None:
    path = tmp_path_factory.mktemp("odd") / "odd.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    for content in (data, length.to_bytes(8, "little") + data, length.to_bytes(8, "little") + header + data):
        path.write_bytes(content)
        assert all(len(digest) == 64 for digest in tensor_digests(path).values())


def test_an_attestation_of_another_ledger_is_told(run: Any, statement: dict[str, Any]) -> None:
    governor = run.governor(name="other")
    run.step(governor, [run.example("p")])
    governor.checkpoint(run.folder / "other.safetensors")
    governor.close()
    report = check(run, statement)
    [fault] = compare_ledger(report, run.path("other"), run.verify("other").facts)
    assert "another one" in fault.message


def test_a_run_without_weights_has_nothing_to_attest(lab: Any) -> None:
    governor = lab.governor()
    lab.step(governor, [lab.example("p")])
    governor.close()
    with pytest.raises(ProofError, match="names no checkpoint"):
        make_statement(lab.path(), lab.path(), last_head(lab.path()), lab.verify().facts, "self-attested")


def test_what_is_made_fits_the_published_schema(run: Any, statement: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(predicate_schema())
    Draft202012Validator(predicate_schema()).validate(statement["predicate"])
    envelope = parse_envelope(signed(statement, run.signer))
    assert envelope.payload_type == "application/vnd.in-toto+json"
