"""The licence a package declares, as one SPDX id and the family it belongs to.

A declaration is read in the order of PEP 639: `License-Expression`, then the licence classifiers, then the
free text of `License`. Expressions are parsed by the `license-expression` library; the family of an id is the
category that ScanCode's LicenseDB, which ships with that library, gives it.

Where an expression leaves a choice (`OR`), the most permissive licence counts; where several licences hold
together (`AND`), the strictest. Of licences equally strict the one written first is named. What cannot be
read is `unknown`, never guessed at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, reduce
from importlib.metadata import PackageMetadata
from typing import Literal

from boolean.boolean import Expression
from license_expression import (
    ExpressionError,
    LicenseSymbol,
    LicenseWithExceptionSymbol,
    Licensing,
    get_license_index,
    get_spdx_licensing,
)

Family = Literal["permissive", "weak copyleft", "strong copyleft", "proprietary", "unknown"]

FAMILIES: tuple[Family, ...] = ("permissive", "weak copyleft", "strong copyleft", "proprietary", "unknown")
"""Every family, from the most permissive to the strictest."""

_FAMILY_OF_CATEGORY: dict[str, Family] = {
    "Public Domain": "permissive",
    "Permissive": "permissive",
    "Copyleft Limited": "weak copyleft",
    "Copyleft": "strong copyleft",
    "Source-available": "proprietary",
    "Free Restricted": "proprietary",
    "Proprietary Free": "proprietary",
    "Commercial": "proprietary",
}

# A classifier that names no version stays a reference of its own (PEP 639 forbids guessing one), except
# `Apache Software License`: the versions before 2.0 have been out of use since 2004.
_OSI = "License :: OSI Approved :: "
_SPDX_OF_CLASSIFIER: dict[str, str] = {
    _OSI + "Apache Software License": "Apache-2.0",
    _OSI + "BSD License": "LicenseRef-BSD",
    _OSI + "Boost Software License 1.0 (BSL-1.0)": "BSL-1.0",
    _OSI + "Common Development and Distribution License 1.0 (CDDL-1.0)": "CDDL-1.0",
    _OSI + "Eclipse Public License 1.0 (EPL-1.0)": "EPL-1.0",
    _OSI + "Eclipse Public License 2.0 (EPL-2.0)": "EPL-2.0",
    _OSI + "GNU Affero General Public License v3": "AGPL-3.0-only",
    _OSI + "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
    _OSI + "GNU General Public License (GPL)": "LicenseRef-GPL",
    _OSI + "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    _OSI + "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    _OSI + "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    _OSI + "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    _OSI + "GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.0-only",
    _OSI + "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    _OSI + "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    _OSI + "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    _OSI + "GNU Library or Lesser General Public License (LGPL)": "LicenseRef-LGPL",
    _OSI + "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    _OSI + "ISC License (ISCL)": "ISC",
    _OSI + "MIT License": "MIT",
    _OSI + "MIT No Attribution License (MIT-0)": "MIT-0",
    _OSI + "Mozilla Public License 1.1 (MPL 1.1)": "MPL-1.1",
    _OSI + "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    _OSI + "Python Software Foundation License": "PSF-2.0",
    _OSI + "The Unlicense (Unlicense)": "Unlicense",
    _OSI + "Zero-Clause BSD (0BSD)": "0BSD",
    _OSI + "zlib/libpng License": "Zlib",
    "License :: CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "License :: Other/Proprietary License": "LicenseRef-Proprietary",
}

_SPDX_OF_TEXT: dict[str, str] = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd": "LicenseRef-BSD",
    "bsd license": "LicenseRef-BSD",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "gpl": "LicenseRef-GPL",
    "gplv3": "GPL-3.0-only",
    "gplv3+": "GPL-3.0-or-later",
    "isc license": "ISC",
    "lgpl": "LicenseRef-LGPL",
    "mit license": "MIT",
    "mpl 2.0": "MPL-2.0",
    "proprietary": "LicenseRef-Proprietary",
    "psf": "PSF-2.0",
}

_FAMILY_OF_REFERENCE: dict[str, Family] = {
    "LicenseRef-BSD": "permissive",
    "LicenseRef-LGPL": "weak copyleft",
    "LicenseRef-GPL": "strong copyleft",
    "LicenseRef-Proprietary": "proprietary",
}


@dataclass(frozen=True, slots=True)
class Licence:
    """What was declared (an SPDX expression), the one SPDX id that governs, and the family of that id."""

    expression: str
    governing: str
    family: Family


UNKNOWN = Licence("unknown", "unknown", "unknown")


def declared_licence(metadata: PackageMetadata) -> Licence:
    """Return the licence that a distribution's metadata declare (core metadata 2.4, PEP 639)."""
    expression = normalise(_field(metadata, "License-Expression"))
    if expression is not UNKNOWN:
        return expression
    text = normalise(_field(metadata, "License"))
    classified = from_classifiers(metadata.get_all("Classifier") or [])
    unversioned = classified.governing in _FAMILY_OF_REFERENCE
    if classified is UNKNOWN or (unversioned and text.family == classified.family):
        return text
    return classified


def _field(metadata: PackageMetadata, name: str) -> str:
    return str((metadata.get_all(name) or [""])[0])


def from_classifiers(classifiers: Iterable[str]) -> Licence:
    """Return what licence classifiers say together; several hold at once, so the strictest governs."""
    known = [_SPDX_OF_CLASSIFIER[c] for c in classifiers if c in _SPDX_OF_CLASSIFIER]
    return normalise(" AND ".join(dict.fromkeys(known)))


def normalise(text: str) -> Licence:
    """Return the licence that an SPDX expression or a common licence name stands for, or `UNKNOWN`."""
    text = _SPDX_OF_TEXT.get(text.strip().lower(), text.strip())
    try:
        expression = _licensing().parse(text)
    except ExpressionError:
        return UNKNOWN
    if expression is None:
        return UNKNOWN
    governing, family = _governing(expression)
    return UNKNOWN if family == "unknown" else Licence(str(expression), governing, family)


def strictest(first: Licence, second: Licence) -> Licence:
    """Return the licence that governs where both hold; the first where they are equally strict."""
    return first if FAMILIES.index(first.family) >= FAMILIES.index(second.family) else second


@cache
def family_of(spdx_id: str) -> Family:
    """Return the family of one SPDX id; `unknown` for an id that no list knows."""
    return _FAMILY_OF_REFERENCE.get(spdx_id) or _scancode_families().get(spdx_id, "unknown")


def _governing(expression: Expression) -> tuple[str, Family]:
    match expression:
        # An exception only adds permissions; the licence itself is what counts.
        case LicenseWithExceptionSymbol():
            return expression.license_symbol.key, family_of(expression.license_symbol.key)
        case LicenseSymbol():
            return expression.key, family_of(expression.key)
    terms = [_governing(term) for term in expression.args]
    stricter = isinstance(expression, _licensing().AND)
    return reduce(lambda a, b: b if _beats(b[1], a[1], stricter) else a, terms)


def _beats(family: Family, other: Family, stricter: bool) -> bool:
    rank, against = FAMILIES.index(family), FAMILIES.index(other)
    return rank > against if stricter else rank < against


@cache
def _licensing() -> Licensing:
    return get_spdx_licensing()


@cache
def _scancode_families() -> dict[str, Family]:
    return {
        entry["spdx_license_key"]: _FAMILY_OF_CATEGORY.get(entry["category"], "unknown")
        for entry in get_license_index()
        if entry.get("spdx_license_key")
    }
