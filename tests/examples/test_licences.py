"""Licences as packages declare them become one SPDX id and a family."""

from email.message import Message

import pytest

from examples.code_licences.licences import (
    UNKNOWN,
    declared_licence,
    family_of,
    from_classifiers,
    normalise,
    strictest,
)

OSI = "License :: OSI Approved :: "


def package(*classifiers: str, expression: str = "", text: str = "") -> Message:
    metadata = Message()
    if expression:
        metadata["License-Expression"] = expression
    if text:
        metadata["License"] = text
    for classifier in classifiers:
        metadata["Classifier"] = classifier
    return metadata


@pytest.mark.parametrize(
    ("text", "governing", "family"),
    [
        ("MIT", "MIT", "permissive"),
        ("mit", "MIT", "permissive"),
        ("Apache 2.0", "Apache-2.0", "permissive"),
        ("BSD", "LicenseRef-BSD", "permissive"),
        ("GPL-2.0+", "GPL-2.0-or-later", "strong copyleft"),
        ("MIT OR GPL-3.0-only", "MIT", "permissive"),
        ("GPL-3.0-only OR MPL-2.0", "MPL-2.0", "weak copyleft"),
        ("MIT AND GPL-3.0-only", "GPL-3.0-only", "strong copyleft"),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", "MPL-2.0", "weak copyleft"),
        ("(GPL-3.0-only OR MIT) AND BSD-3-Clause", "MIT", "permissive"),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", "BSD-3-Clause", "permissive"),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0", "permissive"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only", "strong copyleft"),
        ("Imaginary-1.0 OR MIT", "MIT", "permissive"),
    ],
)
def test_an_expression_is_governed_by_its_best_choice_and_its_strictest_part(text, governing, family):
    licence = normalise(text)
    assert (licence.governing, licence.family) == (governing, family)


@pytest.mark.parametrize(
    "text", ["", "  ", "Imaginary-1.0", "MIT AND Imaginary-1.0", "((", "see LICENSE file", "OR"]
)
def test_what_cannot_be_read_is_unknown(text):
    assert normalise(text) is UNKNOWN


def test_the_expression_field_comes_before_classifiers():
    metadata = package(OSI + "GNU General Public License v3 (GPLv3)", expression="MIT")
    assert declared_licence(metadata).governing == "MIT"


def test_classifiers_come_before_free_text():
    metadata = package(OSI + "MIT License", text="GPLv3")
    assert declared_licence(metadata).governing == "MIT"


def test_free_text_names_the_version_that_a_classifier_leaves_open():
    assert declared_licence(package(OSI + "BSD License")).governing == "LicenseRef-BSD"
    metadata = package(OSI + "BSD License", text="BSD 2-Clause License")
    assert declared_licence(metadata).governing == "BSD-2-Clause"


def test_free_text_of_another_family_does_not_override_an_open_classifier():
    metadata = package(OSI + "GNU General Public License (GPL)", text="MIT")
    assert declared_licence(metadata).family == "strong copyleft"


def test_several_classifiers_hold_together():
    both = from_classifiers(
        [OSI + "MIT License", OSI + "GNU General Public License v2 (GPLv2)", "Topic :: Text"]
    )
    assert both.governing == "GPL-2.0-only"


def test_a_package_that_declares_nothing_is_unknown():
    assert (
        declared_licence(package("License :: OSI Approved", text="Copyright (c) 2001 (all of us)")) is UNKNOWN
    )


def test_the_strictest_of_two_licences_governs_and_the_first_where_equal():
    mit, bsd, gpl = normalise("MIT"), normalise("BSD-2-Clause"), normalise("GPL-3.0-only")
    assert strictest(mit, gpl) is gpl
    assert strictest(gpl, mit) is gpl
    assert strictest(mit, bsd) is mit
    assert strictest(gpl, UNKNOWN) is UNKNOWN


def test_source_available_licences_are_proprietary():
    assert family_of("BUSL-1.1") == "proprietary"
