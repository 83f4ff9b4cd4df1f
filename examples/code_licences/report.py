"""The tables at the end of a run: what the model learned from what, and what held the rest back."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from examples.code_licences.corpus import SourceFile
from examples.code_licences.evidence import Evidence, Influence
from examples.code_licences.licences import FAMILIES, Family


def corpus_table(files: Sequence[SourceFile]) -> Table:
    """Return what was found: files, packages, bytes and special files of each family."""
    table = _table("The corpus", "licence family")
    for heading in ("packages", "files", "KB", "vendored", "generated", "copies", "held out"):
        table.add_column(heading, justify="right")
    for family in FAMILIES:
        members = [file for file in files if file.family == family]
        table.add_row(
            family,
            str(len({file.package for file in members})),
            str(len(members)),
            f"{sum(file.bytes for file in members) / 1000:,.0f}",
            str(sum(file.vendored for file in members)),
            str(sum(file.generated for file in members)),
            str(sum(file.near_duplicate for file in members)),
            str(sum(file.held_out for file in members)),
        )
    return table


def influence_table(
    files: Sequence[SourceFile], evidence: Evidence, before: Mapping[str, float], after: Mapping[str, float]
) -> Table:
    """Return how far each licence shaped each band, and the held-out loss of its files (nats per byte).

    before, after: held-out loss by licence; a licence with no held-out file is not in them.
    """
    table = _table("What the model learned from what (shares of all weight in a band)", "licence")
    for heading in ("files", "seen", "admit", "limit", "refuse", "defer"):
        table.add_column(heading, justify="right")
    for band in evidence.bands:
        table.add_column(band, justify="right", no_wrap=True, min_width=7)
    table.add_column("held-out\nloss", justify="right", no_wrap=True)
    for family, licences in _by_family(files).items():
        rows = {licence: evidence.groups.get(licence, Influence()) for licence in licences}
        shares = {band: sum(_share(evidence, name, band) for name in rows) for band in evidence.bands}
        count = sum(licences.values())
        whole = sum((influence.verdicts for influence in rows.values()), Counter[str]())
        table.add_row(family, *_cells(count, whole, shares.values()), "", style="bold")
        for licence, members in licences.items():
            own = [_share(evidence, licence, band) for band in evidence.bands]
            loss = f"{before[licence]:.2f}→{after[licence]:.2f}" if licence in after else "–"
            table.add_row(f"  {licence}", *_cells(members, rows[licence].verdicts, own), loss)
    return table


def restraint_table(evidence: Evidence, reasons: Mapping[str, str]) -> Table:
    """Return how many examples each rule took part in, with its reason.

    reasons: `because`, by the name of the rule. Assertions are not in it; one is listed where it refused.
    """
    matched = sum((influence.rules for influence in evidence.groups.values()), Counter[str]())
    table = _table("Which rules decided", "rule")
    table.add_column("seen", justify="right")
    table.add_column("because")
    for rule in sorted({*reasons, *matched}, key=lambda name: (-matched[name], name)):
        table.add_row(rule, f"{matched[rule]:,}", reasons.get(rule, "refused: an assertion would not hold"))
    return table


def sentences(
    files: Sequence[SourceFile], evidence: Evidence, before: Mapping[str, float], after: Mapping[str, float]
) -> list[str]:
    """Return the result in words. before, after: held-out loss by licence and `all`, in nats per byte."""
    verdicts = sum((influence.verdicts for influence in evidence.groups.values()), Counter[str]())
    shaped = verdicts["admit"] + verdicts["limit"]
    lines = [
        f"{evidence.committed:,} steps changed the model: {verdicts.total():,} examples were presented, "
        f"{shaped:,} of them shaped something."
    ]
    if evidence.refused:
        lines.append(f"{evidence.refused:,} steps were refused and changed nothing.")
    for family, licences in _by_family(files).items():
        shares = {band: sum(_share(evidence, name, band) for name in licences) for band in evidence.bands}
        what = family.capitalize() if family != "unknown" else "Unclear licences"
        count = sum(licences.values())
        if not count:
            lines.append(f"{what}: no file is installed here.")
        elif any(shares.values()):
            amounts = ", ".join(f"{share:.1%} of {band}" for band, share in shares.items())
            lines.append(f"{what} ({count:,} files) gave {amounts}.")
        else:
            lines.append(f"{what} ({count:,} files) shaped nothing.")
    if "all" in after:
        lines.append(f"Loss on held-out files: {before['all']:.3f} → {after['all']:.3f} nats per byte.")
    return lines


def _table(title: str, first: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column(first, no_wrap=True)
    return table


def _by_family(files: Iterable[SourceFile]) -> dict[Family, Counter[str]]:
    """Return the number of files per licence, for every family, the empty ones too."""
    families: dict[Family, Counter[str]] = defaultdict(Counter)
    for file in files:
        families[file.family][file.license] += 1
    return {
        family: Counter(dict(families[family].most_common())) if family in families else Counter()
        for family in FAMILIES
    }


def _share(evidence: Evidence, licence: str, band: str) -> float:
    return evidence.share(licence, band) if licence in evidence.groups else 0.0


def _cells(files: int, verdicts: Counter[str], shares: Iterable[float]) -> list[str]:
    counts = (verdicts[name] for name in ("admit", "limit", "refuse", "defer"))
    return [
        f"{files:,}",
        f"{verdicts.total():,}",
        *(f"{count:,}" for count in counts),
        *(f"{share:.1%}" for share in shares),
    ]
