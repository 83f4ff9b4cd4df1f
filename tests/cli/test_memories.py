"""What is made of a memory, with a hash that fits, ends in a verdict or a message: never in our error."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden.cli.judging import on_trust
from gradwarden.runtime.errors import MemoryFileError
from gradwarden.runtime.verification.job_memory import FORMAT as JOB_FORMAT
from gradwarden.runtime.verification.job_verify import verify_job
from gradwarden.runtime.verification.memory import FORMAT, write_memory
from gradwarden.runtime.verification.verify import verify_ledger
from tests.campaign.genuine import RUN, genuine, joined
from tests.cli.conftest import Run
from tests.runtime.jobs.simulated import Job

FOREIGN: tuple[Any, ...] = (
    *(None, True, 0, -1, 7, 2**53, 2**64 - 1, -(2**63), 1.5, 1e308, "", "x", "AAAA", "00" * 32),
    *([], {}, [0], [None], ["x", "y"], {"x": 1}),
    *({"=": "int", "of": "0xffffffffffffffffffff"}, {"=": "float", "of": "nan"}, {"=": "tuple", "of": []}),
    *({"=": "Counter", "of": [["x", "y"]]}, {"=": "dict", "of": [[{"=": "tuple", "of": []}, 1]]}),
    *({"=": "deque", "of": [0, []]}, {"=": "bytes", "of": "AAAA"}, {"=": "numbering", "of": []}),
    *({"=": "array", "of": ["<i8", ""]}, {"=": "array", "of": ["|O", "AAAAAAAAAAA="]}),
    {"=": "array", "of": ["08", "AAAA"]},
    *({"=": "set", "of": [[1]]}, {"=": "PendingStep", "of": {}}, {"=": "Saved", "of": {}}),
)
"""Values of every kind that a memory may hold, where they make no sense."""


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container within a value, with each of its keys."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield value, key
        yield from places(item)


def mutated(value: Any, chance: random.Random) -> Any:
    """Change a value in one to three places: of what it holds, or near its top."""
    for _ in range(chance.randint(1, 3)):
        found = list(places(value))
        container, key = chance.choice(found[:40] if chance.random() < 0.3 else found)
        match chance.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container[key], int):
                container[key] += chance.choice((-1, 1, 5, -1000, 10**6))
            case 2:
                source, other = chance.choice(found)
                container[key] = orjson.loads(orjson.dumps(source[other]))
            case 3 if isinstance(container[key], str):
                container[key] = container[key][: chance.randrange(len(container[key]) + 1)] + "0"
            case _:
                container[key] = chance.choice(FOREIGN)
    return value


@cache
def memories(folder: Path) -> dict[str, tuple[tuple[str, ...], str, bytes]]:
    """Return commands that verify something, each with the form of a memory of its beginning, and that."""
    RUN.public.save(folder / "run.pub")
    found = {}
    for name in ("plain", "private"):
        lines = genuine(name).lines
        path = folder / f"{name}.ledger"
        path.write_bytes(joined(lines[: len(lines) * 2 // 3]))
        memory = verify_ledger(path, [RUN.public], remember=True).memory
        assert memory is not None
        memory.write(folder / "memory")
        path.write_bytes(joined(lines))
        found[name] = ("verify", str(path)), FORMAT, data(folder / "memory")
    job = Job(folder / "job", RUN)
    job.run(4)
    whole = verify_job(job.folder, [RUN.public], remember=True).memory
    assert whole is not None
    whole.write(folder / "memory")
    job.run(2)
    job.seal()
    found["job"] = ("verify", str(job.folder)), JOB_FORMAT, data(folder / "memory")
    return found


def data(memory: Path) -> bytes:
    return memory.read_bytes().partition(b"\n")[2]


@pytest.mark.parametrize("of", ["plain", "private", "job"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), told=st.sampled_from(["text", "json"]))
def test_no_memory_ends_in_an_internal_error(
    run: Run, tmp_path_factory: pytest.TempPathFactory, of: str, seed: int, told: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "memories"
    folder.mkdir(exist_ok=True)
    command, form, whole = memories(folder)[of]
    write_memory(folder / "memory", form, mutated(orjson.loads(whole), random.Random(seed)))
    asked = (*command, "--key", folder / "run.pub", "--rotate-every", "9", "--format", told)
    result = run(*asked, "--since", folder / "memory")
    assert "GW999" not in result.output, result.output
    assert result.exit_code in (0, 1, 2)


def test_an_unchanged_memory_is_gone_on_from(run: Run, tmp_path: Path) -> None:
    for command, form, whole in memories(tmp_path).values():
        write_memory(tmp_path / "memory", form, orjson.loads(whole))
        result = run(*command, "--key", tmp_path / "run.pub", "--since", tmp_path / "memory")
        assert (result.exit_code, ", given what was remembered" in result.stdout) == (0, True)


def test_a_memory_in_an_older_form_is_told(run: Run, tmp_path: Path) -> None:
    for command, form, whole in memories(tmp_path).values():
        older = form[:-1] + "1"
        write_memory(tmp_path / "memory", older, orjson.loads(whole))
        result = run(*command, "--key", tmp_path / "run.pub", "--since", tmp_path / "memory")
        assert (result.exit_code, "in another form" in result.stderr) == (2, True)


def test_where_nothing_is_remembered_that_is_said(run: Run, tmp_path: Path) -> None:
    RUN.public.save(tmp_path / "run.pub")
    lines = genuine("plain").lines
    ledger = tmp_path / "run.ledger"
    ledger.write_bytes(joined([*lines[:5], *lines[6:]]))
    result = run("verify", ledger, "--key", tmp_path / "run.pub", "--remember", tmp_path / "memory")
    assert result.exit_code == 1
    assert "warning[GW606]: nothing is remembered of this verification" in result.stderr
    assert not (tmp_path / "memory").exists()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (KeyError("root"), MemoryFileError),
        (click.exceptions.Exit(1), click.exceptions.Exit),
        (MemoryError(), MemoryError),
    ],
)
def test_what_fails_with_a_memory_is_blamed_on_it_unless_it_says_itself_what_is_wrong(
    fault: Exception, told: type[Exception]
) -> None:
    with pytest.raises(told), on_trust(Path("memory")):
        raise fault
    with pytest.raises(type(fault)), on_trust(None):
        raise fault
