"""Every limit of docs/limits.md is the code's, and exceeding it gives the code that the page names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_model
from torch import nn

from gradwarden.cli.commands.memorized import ids_of
from gradwarden.cli.inputs import read_example
from gradwarden.cli.manifest import PIECE, open_manifest
from gradwarden.cli.signing import load_authorities
from gradwarden.policy import GradwardenError, ModelMap, PolicyError, load_policy, parse_policy
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.program_json import program_from_json
from gradwarden.policy.source import Source
from gradwarden.policy.testing.yaml_text import read_yaml
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import EntryInvalid
from gradwarden.runtime.evidence.dsse import parse_envelope
from gradwarden.runtime.evidence.proof_file import ConsistencyProof, parse_proof
from gradwarden.runtime.evidence.receipt import parse_receipt
from gradwarden.runtime.evidence.statement import tensor_digests
from gradwarden.runtime.evidence.timestamp import check_stamp
from gradwarden.runtime.evidence.trust_policy import parse_trust_policy
from gradwarden.runtime.evidence.witness import open_witness
from gradwarden.runtime.jobs.binder import job_terms
from gradwarden.runtime.ledger import archive
from gradwarden.runtime.ledger.authority import Authority, UnauthorisedError
from gradwarden.runtime.ledger.entries import encode_body
from gradwarden.runtime.ledger.key_changes import Rotation, check_reason
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.merkle import EMPTY_ROOT
from gradwarden.runtime.ledger.note import Checkpoint, parse_note, sign_note
from gradwarden.runtime.memorization.content import ContentIndex
from gradwarden.runtime.records.branches import REWOUND, Branches
from gradwarden.runtime.records.rewinding import going_back
from gradwarden.runtime.weights.stored import StoredWeights
from tests.fuzz.targets import ROOT

PAGE = (ROOT / "docs" / "limits.md").read_text("utf-8")
ROW = re.compile(
    r"^\| (?P<what>.+) \| (?P<limit>[\d,]+) \| (?P<code>\w+) \| `(?P<constant>[\w.]+)` \|$", re.MULTILINE
)
ROWS = [match.groupdict() for match in ROW.finditer(PAGE)]

HEADER = "policy p version 1 language 1\n"
MODEL = "model { deep = rest }\n"
SMALL = {
    "syntax.parse.MAX_TEXT": 200,
    "load.MAX_FILES": 3,
    "checking.check_schema.MAX_ATTRIBUTES": 3,
    "checking.check.MAX_RULES": 3,
    "checking.types.MAX_ENUM_VALUES": 3,
    "checking.walk.MAX_TOTAL": 30,
    "checking.scope.MAX_FAULTS": 3,
    "testing.yaml_text.MAX_CHARACTERS": 100,
    "program_json.MAX_BYTES": 100,
    "model_map.MAX_BYTES": 100,
    "cli.inputs.MAX_EXAMPLE_BYTES": 100,
    "cli.manifest.MAX_LINE": 100,
    "cli.signing.MAX_PEM": 100,
    "cli.commands.memorized.MAX_TEXT": 100,
    "runtime.ledger.authority.MAX_CHANGES": 2,
    "runtime.ledger.archive.MAX_LIST": 200,
    "runtime.evidence.proof_file.MAX_PROOF": 100,
    "runtime.evidence.receipt.MAX_RECEIPT": 100,
    "runtime.evidence.witness.MAX_RECORD": 100,
    "runtime.evidence.dsse.MAX_ENVELOPE": 100,
    "runtime.evidence.statement.MAX_TENSORS": 3,
    "runtime.evidence.trust_policy.MAX_POLICY": 200,
    "runtime.weights.stored.MAX_HEADER": 100,
    "runtime.weights.stored.MAX_TENSORS": 3,
}
"""Limits that are lowered before they are exceeded, since exceeding them as they are takes long."""

Exceed = Callable[[int, Path], Any]


def text(body: Callable[[int], str]) -> Exceed:
    """Check a policy of this body, which exceeds a limit by one."""
    return lambda limit, _: parse_policy(HEADER + MODEL + body(limit))


def _key_changes(count: int, _: Path) -> None:
    """Hand a ledger over once more than is allowed; the ledger says no as `Ledger.rotate` does."""
    place = Checkpoint("origin", 0, EMPTY_ROOT)
    keys = [Signer.generate(f"key-{number}").public for number in range(count + 2)]
    authority = Authority(keys[:1])
    authority.open([keys[0].vkey])
    try:
        for index, (old, new) in enumerate(pairwise(keys)):
            authority.check(Rotation(place, old, new))
            authority.apply(Rotation(place, old, new), index)
    except UnauthorisedError as error:
        raise EntryInvalid(error.message) from error


def _rewinds(count: int, folder: Path) -> None:
    """Go back to the same weights once more than is allowed."""
    model = nn.Linear(2, 2)
    saved = folder / "model.safetensors"
    save_model(model, saved)
    branches, named = Branches(), {"step": 0, "file": saved.name, "digest": file_digest(saved)}
    branches.apply("checkpoint", named)
    for _ in range(count + 1):
        branches.apply(REWOUND, going_back(branches, 0, model, saved))


def _archived(folder: Path, frame: int, name: str) -> Any:
    """Read the list of an archive with one frame of so many bytes; the list itself has more than 200."""
    segment = archive.Segment(name[:200], 0, 1, frame, "0" * 64, ((10, frame),))
    kept = archive.Kept(1, "0" * 64, (bytes(32),), (archive.KeptLine(0, b"", ()),))
    ledger = folder / "run.ledger"
    Path(archive.list_path(ledger)).write_bytes(archive.encode(archive.Archives(folder, (segment,), kept)))
    with ledger.open("w+b") as live:
        return archive.find_archives(ledger, live)


def _certificates(size: int, folder: Path) -> Any:
    """Read a file of certificates that is too large."""
    (folder / "tsa.pem").write_bytes(bytes(size + 1))
    return load_authorities([folder / "tsa.pem"])


def _asked_text(size: int, folder: Path) -> Any:
    """Ask for a text that is too large."""
    (folder / "text").write_bytes(b"x" * (size + 1))
    return ids_of(folder / "text", None)


def _index(size: int, folder: Path) -> Any:
    """Read a content index with a line that is too long, and would be one but for that."""
    line = json.dumps({"id": "x" * size, "sha256": "0" * 64})
    (folder / "index.jsonl").write_text(line)
    return ContentIndex.load(folder / "index.jsonl")


def _chain(count: int, folder: Path) -> Any:
    """Load files that import each other in a row, `count` of them beside the main one."""
    for number in range(count):
        (folder / f"f{number}.policy").write_text(f'import "f{number + 1}.policy"\n')
    (folder / f"f{count}.policy").write_text("")
    (folder / "main.policy").write_text(f'{HEADER}import "f0.policy"\n{MODEL}')
    return load_policy(folder / "main.policy")


def _wide(count: int, folder: Path) -> Any:
    """Load a file that imports `count` others."""
    for number in range(count):
        (folder / f"f{number}.policy").write_text("")
    imports = "".join(f'import "f{number}.policy"\n' for number in range(count))
    (folder / "main.policy").write_text(f"{HEADER}{imports}{MODEL}")
    return load_policy(folder / "main.policy")


def _too_long(limit: int, _: Path) -> Any:
    program = parse_policy(f"{HEADER}{MODEL}examples {{ s : string }}\n").program
    fits, breaks = (decide(program, {"s": "x" * size}, _context()) for size in (limit, limit + 1))
    assert not fits.problems
    raise PolicyError([]) from GradwardenError(breaks.problems[0].code)


def _context() -> Any:
    from gradwarden.policy import Context

    return Context()


def _example(limit: int, folder: Path) -> Any:
    (folder / "example.json").write_text('{"a": "' + "x" * limit + '"}')
    return read_example(folder / "example.json")


def _manifest(limit: int, folder: Path) -> Any:
    (folder / "data.jsonl").write_text('{"a": "' + "x" * limit + '"}\n')
    return list(open_manifest(folder / "data.jsonl", parse_policy(HEADER + MODEL).program).pieces)


def _note(lines: int, text: str = "text") -> bytes:
    return (f"{text}\n\n" + "\N{EM DASH} k AAAAAAA=\n" * lines).encode()


def _path(count: int) -> bytes:
    return b"old 1\n" + b"A" * 43 + (b"=\n" + b"A" * 43) * (count - 1) + b"=\n\nnote\n"


def _envelope(signatures: int) -> bytes:
    document = {"payload": "", "payloadType": "t", "signatures": [{"sig": ""}] * signatures}
    return json.dumps(document).encode()


def _record(limit: int, folder: Path) -> Any:
    log, witness = Signer.generate("log"), Signer.generate("witness")
    head = sign_note(Checkpoint("o" * limit, 0, EMPTY_ROOT).text(), [log]).encode()
    for _ in range(2):  # what the first time writes is too long for the second
        with open_witness(folder / "seen.json", witness, [log.public]) as opened:
            opened.consider(ConsistencyProof(0, (), head), 1)


def _trusted(logs: int) -> bytes:
    keys = (Signer.generate(f"log{number}").public.vkey for number in range(logs))
    return "".join([*(f"log {key}\n" for key in keys), "quorum none\n"]).encode()


def _weights(folder: Path, shapes: dict[str, list[int]]) -> Any:
    """Read a file of weights of one byte each."""
    header = {
        name: {"dtype": "U8", "shape": shape, "data_offsets": [at, at + 1]}
        for at, (name, shape) in enumerate(shapes.items())
    }
    told = json.dumps(header).encode()
    path = folder / "w.safetensors"
    path.write_bytes(len(told).to_bytes(8, "little") + told + bytes(len(shapes)))
    return StoredWeights([path])


def _tensors(limit: int, folder: Path) -> Any:
    place = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": place for number in range(limit + 1)}).encode()
    path = folder / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return tensor_digests(path)


EXCEED: dict[str, Exceed] = {
    "syntax.parse.MAX_TEXT": text(lambda n: "#" * n),
    "load.MAX_FILES": _wide,
    "load.MAX_DEPTH": _chain,
    "syntax.build_expressions.MAX_NESTING": text(lambda n: f"let x = {'(' * n}true{')' * n}"),
    "syntax.build_tokens.MAX_DIGITS": text(lambda n: f"let x = step > {'9' * (n + 1)}"),
    "syntax.build_tokens.MAX_EXPONENT": text(lambda n: f"let x = step > 1e{n + 1}"),
    "checking.check_schema.MAX_NAME": text(lambda n: f"let {'x' * (n + 1)} = true"),
    "checking.check_schema.MAX_ATTRIBUTES": text(
        lambda n: "examples {" + "".join(f"a{i} : bool\n" for i in range(n + 1)) + "}"
    ),
    "checking.check_schema.MAX_BANDS": lambda n, _: parse_policy(
        HEADER + "model {" + "".join(f'b{i} = names "x{i}"\n' for i in range(n + 1)) + "}"
    ),
    "checking.check.MAX_RULES": text(
        lambda n: "".join(f"depth d{i} {{ reach all }}\n" for i in range(n + 1))
    ),
    "checking.types.MAX_ENUM_VALUES": text(
        lambda n: "examples { k : one of " + ", ".join(f"v{i}" for i in range(n + 1)) + " }"
    ),
    "checking.types.MAX_SET_VALUES": text(
        lambda n: "examples { k : set of " + ", ".join(f"v{i}" for i in range(n + 1)) + " }"
    ),
    "checking.types.MAX_PLACES": text(lambda n: f"examples {{ x : number 0..1 places {n + 1} }}"),
    "checking.types.EXACT": text(lambda n: f"examples {{ x : integer 0..{n + 1} }}"),
    "checking.types.MAX_STRING": _too_long,
    "checking.types.MAX_DURATION": text(lambda n: f"let x = today - 2026-01-01 > {n + 1} days"),
    "checking.check_rules.MAX_HELD": text(lambda n: f"memorization m {{ hold out 1 in {n + 1} tokens }}"),
    "paces.MAX_PACE": text(lambda n: f"gradient {{ deep at most 1 in {n + 1} steps }}"),
    "checking.types.MAX_COUNT": text(lambda n: f"retain r {{ at most {n + 1} epochs }}"),
    "checking.walk.MAX_HEIGHT": text(
        lambda n: (
            "let a0 = step > 1\n" + "".join(f"let a{i + 1} = not (a{i} and epoch > {i})\n" for i in range(n))
        )
    ),
    "checking.walk.MAX_SIZE": text(
        lambda n: f"let a = step in [{', '.join(map(str, range(n // 4)))}]\nlet b = a or not a and epoch > 1"
    ),
    "checking.walk.MAX_TOTAL": text(
        lambda n: "".join(f"depth d{i} {{ when step > {i} and epoch > 1  reach all }}\n" for i in range(n))
    ),
    "program.MAX_CEILING": text(lambda n: f"max weight {n // 1_000_000}.000001"),
    "checking.check_rules.MAX_EPSILON": text(
        lambda n: f"privacy p {{ within deep  epsilon {n}.1  delta 1e-6  clip 1 }}"
    ),
    "checking.check_rules.MAX_CLIP": text(
        lambda n: f"privacy p {{ within deep  epsilon 1  delta 1e-6  clip {n}.1 }}"
    ),
    "checking.check_rules.MAX_NOISE": text(
        lambda n: f"privacy p {{ within deep  epsilon 1  delta 1e-6  clip 1  noise at most {n}.1 }}"
    ),
    "checking.check_guards.MAX_NORM": text(lambda n: f"gradient {{ deep at most {n}.1 }}"),
    "syntax.parse.MAX_FAULTS": text(lambda n: "let x = 1e99\n" * (n + 1)),
    "checking.scope.MAX_FAULTS": text(
        lambda n: "".join(f"depth d{i} {{ reach nowhere }}\n" for i in range(n + 1))
    ),
    "testing.yaml_text.MAX_CHARACTERS": lambda n, _: read_yaml(Source("x", "a" * (n + 1))),
    "testing.yaml_text.MAX_DEPTH": lambda n, _: read_yaml(Source("x", "[" * (n + 1) + "]" * (n + 1))),
    "program_json.MAX_BYTES": lambda n, _: program_from_json(" " * (n + 1)),
    "model_map.MAX_BYTES": lambda n, _: ModelMap.from_yaml("#" * (n + 1)),
    "model_map.MAX_DEPTH": lambda n, _: ModelMap.from_yaml("[" * (n + 1) + "]" * (n + 1)),
    "cli.inputs.MAX_EXAMPLE_BYTES": _example,
    "cli.manifest.MAX_LINE": _manifest,
    "cli.signing.MAX_PEM": _certificates,
    "cli.commands.memorized.MAX_TEXT": _asked_text,
    "runtime.memorization.content.MAX_LINE": _index,
    "runtime.ledger.entries.MAX_LINE": lambda n, _: encode_body(
        "refused", {"step": 1, "gate": "commit", "reason": "r", "detail": "x" * n}
    ),
    "runtime.jobs.layout.MOST_RANKS": lambda n, _: job_terms(
        ranks=n + 1, every=1, lag=0, placement="anywhere"
    ),
    "runtime.ledger.authority.MAX_CHANGES": _key_changes,
    "runtime.records.branches.MOST_REWINDS": _rewinds,
    "runtime.ledger.archive.MAX_LIST": lambda n, folder: _archived(folder, 10, "x" * n),
    "runtime.ledger.archive.MAX_FRAME": lambda n, folder: _archived(folder, n + 1, "run.archive"),
    "runtime.ledger.key_changes.MAX_REASON": lambda n, _: check_reason("x" * (n + 1)),
    "runtime.ledger.note.MAX_NOTE": lambda n, _: parse_note(_note(1, "x" * n)),
    "runtime.ledger.note.MAX_SIGNATURES": lambda n, _: parse_note(_note(n + 1)),
    "runtime.evidence.proof_file.MAX_PROOF": lambda n, _: parse_proof(b"old 1\n\n" + b"x" * n),
    "runtime.evidence.receipt.MAX_RECEIPT": lambda n, _: parse_receipt(b" " * (n + 1)),
    "runtime.evidence.proof_file.MAX_PATH": lambda n, _: parse_proof(_path(n + 1)),
    "runtime.evidence.witness.MAX_RECORD": _record,
    "runtime.evidence.dsse.MAX_ENVELOPE": lambda n, _: parse_envelope(_envelope(1) + b" " * n),
    "runtime.evidence.dsse.MAX_SIGNATURES": lambda n, _: parse_envelope(_envelope(n + 1)),
    "runtime.evidence.statement.MAX_TENSORS": _tensors,
    "runtime.weights.stored.MAX_HEADER": lambda n, folder: _weights(folder, {"a" * n: [1]}),
    "runtime.weights.stored.MAX_TENSORS": lambda n, folder: _weights(
        folder, {f"t{number}": [1] for number in range(n + 1)}
    ),
    "runtime.weights.stored.MAX_DIMENSIONS": lambda n, folder: _weights(folder, {"a": [1] * (n + 1)}),
    "runtime.evidence.timestamp.MAX_STAMP": lambda n, _: check_stamp(bytes(n + 1), b"", []),
    "runtime.evidence.trust_policy.MAX_POLICY": lambda n, _: parse_trust_policy(_trusted(1) + b"#" * n),
    "runtime.evidence.trust_policy.MAX_DEFINED": lambda n, _: parse_trust_policy(_trusted(n + 1)),
}


def _home(constant: str) -> tuple[Any, str]:
    module, name = constant.rsplit(".", 1)
    top = "gradwarden" if module.startswith(("cli.", "runtime.")) else "gradwarden.policy"
    return import_module(f"{top}.{module}"), name


def test_the_page_lists_every_limit_that_is_tested() -> None:
    assert [row["constant"] for row in ROWS] == list(EXCEED)
    assert len(re.findall(r"^\| (?!what|---)", PAGE, re.MULTILINE)) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["constant"])
def test_the_documented_number_is_the_code_s(row: dict[str, str]) -> None:
    module, name = _home(row["constant"])
    assert int(row["limit"].replace(",", "")) == getattr(module, name)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["constant"])
def test_exceeding_it_gives_the_documented_code(
    row: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = row["constant"]
    module, name = _home(constant)
    if constant in SMALL:
        monkeypatch.setattr(module, name, SMALL[constant])
        if constant == "checking.types.MAX_ENUM_VALUES":  # imported by name where it is used
            monkeypatch.setattr("gradwarden.policy.checking.check_schema.MAX_ENUM_VALUES", SMALL[constant])
        if constant == "checking.walk.MAX_TOTAL":
            monkeypatch.setattr("gradwarden.policy.checking.check_conditions.MAX_TOTAL", SMALL[constant])
    with pytest.raises(GradwardenError) as caught:
        EXCEED[constant](getattr(module, name), tmp_path)
    assert row["code"] in _codes(caught.value)


def _codes(error: GradwardenError) -> set[str]:
    cause = {error.__cause__.message} if isinstance(error.__cause__, GradwardenError) else set()
    return {error.code, *cause, *(d.code for d in getattr(error, "diagnostics", ()))}


def test_the_numbers_in_the_prose_are_the_code_s() -> None:
    from gradwarden.cli.manifest import MAX_CELLS
    from gradwarden.policy.checking.scope import MAX_COMPARED
    from gradwarden.policy.errors import COMPARED
    from gradwarden.policy.testing.yaml_text import MAX_FAULTS

    prose = " ".join(PAGE.split())
    assert f"words of at most {COMPARED} characters, and until {MAX_COMPARED:,} pairs" in prose
    assert f"pieces of at most {PIECE:,} records" in prose
    assert f"names would exceed {MAX_CELLS:,}. Of a YAML text {MAX_FAULTS} faults are told." in prose
