"""Writes a benchmark's figures with the machine, the versions and the date they hold for."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def write_results(
    name: str, figures: Mapping[str, Any], packages: Sequence[str] = (), folder: Path = FOLDER
) -> Path:
    """Write `<folder>/<name>.json` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.json"
    document = {"machine": machine(packages), "figures": figures}
    target.write_text(json.dumps(document, indent=2) + "\n")
    root = FOLDER.parents[1]
    print(f"written: {target.relative_to(root) if target.is_relative_to(root) else target}")
    return target


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return the processor, core count, Python, package versions and the time in UTC."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {package: _version(package) for package in ("gradwarden", "numpy", *packages)},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
