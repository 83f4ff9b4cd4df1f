"""`gradwarden calendar`: as text, JSON and iCalendar, by the policy's text and over a data set."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import icalendar
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.cli.options import today
from gradwarden.policy.comparing.icalendar_text import Event, calendar_text
from tests.cli.conftest import Run

POLICY = """\
policy sample version 2 language 1
examples { minor : bool  source : string  erase : date optional }
signals { loss : number 0..10 default 1 }
model { shallow = top 50%  deep = rest }
depth everything { reach all }
suppress minors { when minor  because "minors; by law" }
waive minors { when source == "court"  approved by "A. Yu, judge"  until 2027-01-01  because "ruling" }
retain press { when source == "press"  from 2026-07-01 }
retain request { when has erase  until erase }
curriculum gradual { before step 500 reach shallow }
memorization learned { when loss < 0.1  refuse }
"""
START = ("--from", "2026-01-01")

RECORDS: list[dict[str, Any]] = [
    {"id": 1, "minor": False, "source": "web"},
    {"id": 2, "minor": False, "source": "press"},
    {"id": 3, "minor": True, "source": "court"},
    {"id": 4, "minor": True, "source": "web", "erase": "2026-03-01"},
    {"id": 5, "minor": False, "source": "web", "erase": "2026-03-01"},
    {"id": 6, "minor": False, "source": "web", "erase": "2026-03-01"},
    {"id": 7, "minor": False, "source": "press", "erase": "2026-04-01"},
    {"id": 8, "minor": False, "source": "web", "erase": "2025-12-31"},
    {"id": 9, "minor": "yes", "source": "web"},
]


@pytest.fixture
def dated(here: Path) -> Path:
    path = here / "dated.policy"
    path.write_text(POLICY, "utf-8")
    return path


def write(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + "nonsense\n")
    elif path.suffix == ".csv":
        rows = [f"{r['id']},{r['minor']},{r['source']},{r.get('erase', '')}\n" for r in RECORDS]
        path.write_text("id,minor,source,erase\n" + "".join(rows) + "short\n")
    else:
        import pyarrow as pa
        from pyarrow import parquet

        days = [datetime.date.fromisoformat(r["erase"]) if "erase" in r else None for r in RECORDS]
        columns = {"minor": [r["minor"] is True for r in RECORDS], "source": [r["source"] for r in RECORDS]}
        columns["source"][-1] = None
        parquet.write_table(pa.table({**columns, "erase": days}), path)
    return path


def document(run: Run, *arguments: object) -> dict[str, Any]:
    result = run("calendar", *arguments, *START, "--format", "json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_date_with_what_changes_on_it(run: Run, dated: Path) -> None:
    result = run("calendar", dated, *START)
    assert result.exit_code == 0
    for line in (
        "sample version 2, from 2026-01-01 on",
        "2026-07-01",
        "  embargo of `press` ends (wider: all bands)",
        "  waiver of `minors` lapses: `minors` applies again (narrower: all bands)",
        "  retain `request`: today >= erase",
        "  a stage of `gradual` ends (wider: deep)",
        "  `minors` until 2027-01-01 (in 365 days), approved by A. Yu, judge: "
        "lifts nothing from then on (proved on its condition)",
    ):
        assert line in result.stdout.splitlines()


def test_json_has_the_dates_the_steps_and_a_witness(run: Run, dated: Path) -> None:
    found = document(run, dated)
    assert [entry["date"] for entry in found["dates"]] == ["2026-07-01", "2027-01-01"]
    assert [entry["step"] for entry in found["steps"]] == [500]
    assert (found["epochs"], found["method"], found["to"]) == ([], "solver", None)
    [change] = found["dates"][1]["changes"]
    assert (change["kind"], change["rule"], change["ends"]) == ("waive", "minors", True)
    assert (change["wider"], change["narrower"]) == ([], ["shallow", "deep"])
    assert found["dates"][1]["witness"]["example"]["minor"] is True
    [lapse] = found["waivers"]
    assert (lapse["rule"], lapse["days"], lapse["proof"]) == ("minors", 365, "intervals")


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.parquet"])
def test_examples_are_counted_on_their_own_days_too(run: Run, dated: Path, name: str) -> None:
    found = document(run, dated, "--data", write(dated.with_name(name)), "--step", "500")
    assert (found["records"], found["invalid"]) == ((9, 1) if name.endswith("parquet") else (10, 2))
    march, april, july, january = found["dates"]
    assert [entry["date"] for entry in found["dates"]] == [
        *("2026-03-01", "2026-04-01", "2026-07-01", "2027-01-01")
    ]
    assert (march["examples"], march["newly_refused"], march["ends"]) == (2, 2, {})
    assert (march["narrower"], march["begins"]) == ({"deep": 2, "shallow": 2}, {"request": 2})
    assert (april["directions"]["other"], april["newly_refused"]) == (1, 0)  # embargoed, then expired as well
    assert (july["examples"], july["newly_learned"], july["ends"]) == (1, 1, {"press": 1})
    assert (january["examples"], january["restored"]) == (1, {"minors": 1})


def test_counts_are_told_in_words(run: Run, dated: Path) -> None:
    data = write(dated.with_name("data.jsonl"))
    result = run("calendar", dated, "--data", data, *START, "--to", "2026-03-31")
    assert result.stdout.splitlines()[1:6] == [
        "over data.jsonl: 10 records, of which 2 invalid, never learned".replace("data.jsonl", str(data)),
        "",
        "2026-03-01  2 examples change",
        "  2 narrower, 2 newly refused",
        "  narrower: shallow 2",
    ]
    assert "2026-04-01" not in result.stdout


def test_the_context_of_a_count_is_the_users(run: Run, dated: Path) -> None:
    data = write(dated.with_name("data.jsonl"))
    assert document(run, dated, "--data", data, "--set", "loss=0")["dates"] == []
    result = run("calendar", dated, "--data", data, "--set", "los=0")
    assert (result.exit_code, "did you mean `loss`?" in result.stderr) == (2, True)


def test_a_waiver_that_lasts_too_long_is_a_finding(run: Run, dated: Path) -> None:
    assert run("calendar", dated, *START, "--max-waiver", "365").exit_code == 0
    result = run("calendar", dated, *START, "--max-waiver", "364", "--format", "json")
    assert result.exit_code == 1
    assert [f["code"] for f in json.loads(result.stdout)["findings"]] == ["GW490"]
    assert "lasts 365 days from 2026-01-01, more than 364" in result.stderr


def test_a_waiver_that_outlives_its_lapse_is_a_finding(run: Run, dated: Path) -> None:
    run("build", dated, "-o", "p.json")
    text = Path("p.json").read_text().replace('"until":20819', '"until":20818')
    assert text != Path("p.json").read_text()
    Path("late.json").write_text(text)
    result = run("calendar", "late.json", *START)
    assert result.exit_code == 1
    assert "GW491" in result.stderr
    assert "can still lift the rule after that day" in result.stderr


def test_the_first_day_is_today_unless_given(run: Run, dated: Path) -> None:
    result = run("calendar", dated, "--to", "9999-12-31", "--format", "json")
    found = json.loads(result.stdout)
    assert (found["from"], found["from_is_today"]) == (str(today()), True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "2026-02-01", "--to", "2026-01-01"], "`--from 2026-02-01` is after `--to 2026-01-01`"),
        (["--from", "soon"], "`soon` is not a date"),
        (["--data", "none.jsonl"], "no such file"),
        (["--data", "data.xlsx"], "told by its ending"),
        (["--max-waiver", "-1"], "-1"),
        (["--format", "xml"], "xml"),
    ],
)
def test_misuse_is_told(run: Run, dated: Path, arguments: list[str], message: str) -> None:
    result = run("calendar", dated, *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True)


# --- iCalendar ----------------------------------------------------------------------------------------------


def test_the_calendar_is_read_back_by_another_library(run: Run, dated: Path) -> None:
    result = run("calendar", dated, *START, "--format", "ics")
    events = icalendar.Calendar.from_ical(result.stdout_bytes).walk("VEVENT")
    assert [event["DTSTART"].dt for event in events] == [
        datetime.date(2026, 7, 1),
        datetime.date(2027, 1, 1),
    ]
    assert str(events[1]["SUMMARY"]) == "sample: waiver of `minors` lapses: `minors` applies again"
    assert {event["DTSTAMP"].dt for event in events} == {datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}
    again = run("calendar", dated, *START, "--format", "ics")
    assert again.stdout_bytes == result.stdout_bytes


def test_an_event_keeps_its_identity_when_the_list_is_made_later(run: Run, dated: Path) -> None:
    def identities(first: str) -> dict[datetime.date, str]:
        text = run("calendar", dated, "--from", first, "--format", "ics").stdout_bytes
        events = icalendar.Calendar.from_ical(text).walk("VEVENT")
        return {event["DTSTART"].dt: str(event["UID"]) for event in events}

    early, late = identities("2026-01-01"), identities("2026-10-01")
    assert len(set(early.values())) == 2
    assert late == {day: uid for day, uid in early.items() if day.year == 2027}


def test_an_event_keeps_its_identity_when_its_words_change(
    run: Run, dated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed() -> list[tuple[str, str]]:
        text = run("calendar", dated, *START, "--format", "ics").stdout_bytes
        events = icalendar.Calendar.from_ical(text).walk("VEVENT")
        return [(str(event["UID"]), str(event["SUMMARY"])) for event in events]

    certain = listed()
    monkeypatch.setattr("gradwarden.policy.comparing.calendar.has_solver", lambda: False)
    possible = listed()
    assert [uid for uid, _ in possible] == [uid for uid, _ in certain]
    assert [words for _, words in possible] == [f"{words} (may change)" for _, words in certain]


@pytest.mark.parametrize("text", ["x" * 200, "é" * 90, "a,b;c\\" * 40, "\U0001f600" * 40])
def test_long_lines_are_folded_between_characters(text: str) -> None:
    event = Event("key", datetime.date(2026, 1, 1), text)
    written = calendar_text("name", [event], datetime.datetime(2026, 1, 1)).encode()
    assert max(map(len, written.split(b"\r\n"))) in (73, 74, 75)
    [read] = icalendar.Calendar.from_ical(written).walk("VEVENT")
    assert str(read["SUMMARY"]) == text


def test_counts_make_events_too(run: Run, dated: Path) -> None:
    data = write(dated.with_name("data.jsonl"))
    result = run("calendar", dated, "--data", data, *START, "--format", "ics")
    first, *_ = icalendar.Calendar.from_ical(result.stdout_bytes).walk("VEVENT")
    assert (str(first["SUMMARY"]), first["DTSTART"].dt) == (
        "sample: 2 decisions change",
        datetime.date(2026, 3, 1),
    )
    assert "newly refused" in str(first["DESCRIPTION"])


texts = st.text(max_size=120) | st.text('a;,\\n\n\r\t :"é\U0001f600', max_size=200)


@given(st.lists(st.tuples(texts, st.dates(datetime.date(1900, 1, 1)), texts), max_size=3))
def test_any_text_survives_escaping_and_folding(drawn: list[tuple[str, datetime.date, str]]) -> None:
    events = [Event(f"{i}", day, summary, text) for i, (summary, day, text) in enumerate(drawn)]
    written = calendar_text("name", events, datetime.datetime(2026, 1, 2, 3, 4, 5)).encode()
    lines = written.split(b"\r\n")
    assert lines.pop() == b""
    assert all(len(line) <= 75 and b"\n" not in line and b"\r" not in line for line in lines)
    read = icalendar.Calendar.from_ical(written).walk("VEVENT")
    assert len(read) == len(events)
    for event, back in zip(events, read, strict=True):
        assert back["DTSTART"].dt == event.day
        assert str(back["SUMMARY"]) == spaced(event.summary)
        assert str(back.get("DESCRIPTION", "")) == spaced(event.description)


def spaced(text: str) -> str:
    """Control characters but line ends are not allowed in such texts: they become spaces."""
    import unicodedata

    text = text.replace("\r\n", "\n")
    return "".join(" " if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)
