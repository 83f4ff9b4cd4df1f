"""No file, however odd, gets anything but a clean answer: no traceback, no internal error, a known status."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.cli.app import cli
from tests.cli.conftest import POLICY
from tests.cli.test_test import TESTS

COMMANDS = {
    "check": ("x.policy", ["check", "x.policy"]),
    "fmt": ("x.policy", ["fmt", "--diff", "x.policy"]),
    "test": ("x_test.yaml", ["test", "x_test.yaml"]),
    "explain a json": ("x.json", ["explain", "sample.policy", "--example", "x.json"]),
    "explain a yaml": ("x.yaml", ["explain", "sample.policy", "--example", "x.yaml"]),
    "explain a program": ("p.json", ["explain", "p.json", "--example", "one.json"]),
    "plan a jsonl": ("x.jsonl", ["plan", "sample.policy", "--data", "x.jsonl"]),
    "plan a csv": ("x.csv", ["plan", "sample.policy", "--data", "x.csv"]),
    "plan a parquet": ("x.parquet", ["plan", "sample.policy", "--data", "x.parquet"]),
    "a model map": ("x.yaml", ["check", "sample.policy", "--model-map", "x.yaml"]),
    "log": ("x.ledger", ["log", "x.ledger"]),
    "verify": ("x.ledger", ["verify", "x.ledger", "--key", "run.pub"]),
    "proof": ("x.ledger", ["proof", "x.ledger", "--entry", "0"]),
    "export": ("x.ledger", ["export", "tiles", "x.ledger", "out"]),
    "verify-proof": ("x.proof", ["verify-proof", "x.proof", "--key", "run.pub"]),
    "witness": (
        "x.proof",
        ["witness", "x.proof", "--key", "run.pub", "--sign", "w.key", "--record", "w.json"],
    ),
    "a record": (
        "w.json",
        ["witness", "y.proof", "--key", "run.pub", "--sign", "w.key", "--record", "w.json"],
    ),
    "timestamp": ("x.note", ["timestamp", "x.note"]),
    "verify-attestation": ("x.json", ["verify-attestation", "x.json", "--key", "run.pub"]),
    "a trust policy": ("x.trust", ["verify", "sample.policy", "--trust", "x.trust"]),
    "a public key": ("x.pub", ["verify", "sample.policy", "--key", "x.pub"]),
    "a private key": ("x.key", ["build", "sample.policy", "-o", "out.json", "--sign", "x.key"]),
}

REQUEST = (
    "old 0\n\nexample.com/log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n"
    "\N{EM DASH} run ASd/+wAAAAA=\n"
).encode()

SEEDS = [
    POLICY.encode(),
    TESTS.encode(),
    b'{"kind": "a", "lines": 1, "topic": ["y"]}\n',
    b"kind,lines,topic\na,1,x;y\n",
    b'{"body":{},"index":0,"kind":"opened","prev":"' + b"0" * 64 + b'"}\n',
    b"run+01277ffb+AZg6KJYLjo9TCftHkpp2chrR84gBlF17u6Q190JV5BS2\n",
    b"PAR1\x15\x04\x15",
    b"log a+00000000+AQ==\nwitness b c+00000000+BA==\ngroup g all b\nquorum g\n",
    REQUEST,
    b"c2sp.org/tlog-proof@v1\nextra YWJj\nindex 0\n" + REQUEST.removeprefix(b"old 0\n"),
    b'{"format":"gradwarden/witness/1","logs":{"a":"b"},"witness":"w+00000000+AAAA"}\n',
    b'{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AAAA"}]}\n',
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A well-formed file of some kind with a few bytes replaced, or any bytes at all."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=80))
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        content[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(content)


@pytest.mark.parametrize("name", COMMANDS)
def test_any_bytes_get_a_clean_answer(name: str, here: Path, policy: Path) -> None:
    (here / "one.json").write_text('{"kind": "a", "lines": 1, "topic": []}')
    CliRunner().invoke(cli, ["keygen", "run"])
    CliRunner().invoke(cli, ["keygen", "w", "--witness"])
    (here / "y.proof").write_bytes(REQUEST)
    file, arguments = COMMANDS[name]

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(damaged())
    def holds(content: bytes) -> None:
        (here / file).write_bytes(content)
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code in (0, 1, 2)
        assert "GW999" not in result.stderr
        assert "Traceback" not in result.output

    holds()


@pytest.mark.parametrize(
    ("file", "content", "arguments"),
    [
        ("x.policy", b"policy x version 1\n" + b"let a = " + b"(" * 5000, ["check", "x.policy"]),
        ("x.policy", b"policy x version 1\n" + b"#" * 2_000_000, ["check", "x.policy"]),
        ("x.json", b"[" * 100_000, ["explain", "sample.policy", "--example", "x.json"]),
        ("x.json", b'{"kind": ' + b"9" * 5000 + b"}", ["explain", "sample.policy", "--example", "x.json"]),
        ("x.yaml", b"{a: " * 100_000, ["explain", "sample.policy", "--example", "x.yaml"]),
        ("x.jsonl", b'{"kind": ' + b"[" * 200_000, ["plan", "sample.policy", "--data", "x.jsonl"]),
        ("x.csv", b"kind\n" + b'"' + b"x" * 300_000, ["plan", "sample.policy", "--data", "x.csv"]),
        ("x.ledger", b"x" * 200_000, ["log", "x.ledger"]),
        ("p.json", b"[" * 100_000, ["explain", "p.json", "--example", "x.json"]),
    ],
)
def test_size_and_nesting_are_bounded(
    here: Path, policy: Path, file: str, content: bytes, arguments: list[str]
) -> None:
    (here / file).write_bytes(content)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code in (1, 2) or (result.exit_code == 0 and "invalid" in result.stdout)
    assert "GW999" not in result.stderr


def test_names_with_control_characters_do_not_drive_the_terminal(here: Path) -> None:
    (here / "a\x1b[31m.policy").write_text("policy \x1b[31m")
    result = CliRunner().invoke(cli, ["check", "."], color=False)
    assert "\x1b" not in result.output


@pytest.mark.parametrize("options", [[], ["--format", "json"], ["--format", "sarif"], ["--format", "github"]])
def test_a_file_whose_name_is_not_text_is_checked_all_the_same(here: Path, options: list[str]) -> None:
    name = b"\xff.policy".decode("utf-8", "surrogateescape")
    (here / name).write_text("nonsense")
    result = CliRunner().invoke(cli, ["check", ".", *options])
    assert result.exit_code == 1
    assert "GW999" not in result.stderr
