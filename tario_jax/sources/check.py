"""Everything that `tario check` looks at: seals and contents by the corpus, registration here."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tario_jax.config import InputError, SplitConfig
from tario_jax.corpus.check import Finding, check_corpus
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import Detections
from tario_jax.corpus.split import split_corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.sources.registration import RegistrationReport, check_detections, check_registration


@dataclasses.dataclass(frozen=True)
class CorpusCheck:
    """What was found, one line a section and subject, and the registrations in numbers."""

    corpus: Corpus
    findings: tuple[Finding, ...]
    registrations: dict[str, RegistrationReport]

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.fault]

    def table(self, longest: int = 60) -> str:
        """For people: every finding; where there are many, the faults and what is of the whole corpus."""
        many = len(self.findings) > longest
        shown = [finding for finding in self.findings if not many or finding.fault or finding.section == "all"]
        lines = [
            f"{finding.section:<20} {finding.subject:<13} "
            + (f"FAULT {finding.fault}" if finding.fault else f"ok    {finding.note}")
            for finding in shown
        ]
        summary = f"{len(self.corpus.sections)} sections, {self.corpus.kind}, seal {self.corpus.seal}"
        return "\n".join([*lines, f"{self.corpus.root}: {summary}, {len(self.faults)} faults"])

    def to_dict(self) -> dict[str, Any]:
        return {
            "corpus": str(self.corpus.root),
            "kind": self.corpus.kind,
            "seal": self.corpus.seal,
            "faults": len(self.faults),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "registration": {name: report.to_dict() for name, report in self.registrations.items()},
        }


def check(corpus: Corpus, say: Callable[[str], None] = print, split: SplitConfig | None = None) -> CorpusCheck:
    """Checks seals, checksums, contents and units, the split, and, of sections that are whole, the registration."""

    def progress(number: int, total: int, what: str = "seals and contents") -> None:
        if number % 20 == 0 and number < total:
            say(f"check: {what} of {number}/{total} sections")

    findings = list(check_corpus(corpus, progress))
    findings.extend(_split(corpus, split or SplitConfig()))
    registrations: dict[str, RegistrationReport] = {}
    damaged = {finding.section for finding in findings if finding.fault}
    for number, section in enumerate(corpus.sections, 1):
        if section.id not in damaged and section.holds("he") and section.record["registration"] != "none":
            report = registration_of(section)
            section.close()  # what it holds of a slide is let go of before the next
            registrations[section.id] = report
            misplaced = report.verdict in ("shifted", "turned", "mirrored")
            findings.append(
                Finding(
                    section.id, "registration", report.line() if misplaced else "", "" if misplaced else report.line()
                )
            )
        progress(number, len(corpus.sections), "registration")
    return CorpusCheck(corpus, tuple(findings), registrations)


def _split(corpus: Corpus, config: SplitConfig) -> list[Finding]:
    """split.tsv is no part of the seal, since its user may edit it: a patient on two sides is found here."""
    if not (corpus.root / "split.tsv").exists() and config == SplitConfig():
        return []
    try:
        split = split_corpus(corpus, config, trains=False)
    except InputError as error:
        return [Finding("all", "split", str(error))]
    sides = f"{len(split.train)} train, {len(split.validation)} validation, {len(split.held_out)} held out"
    if split.on_no_side:
        where = "config.split" if config.train or config.validation or config.held_out else "split.tsv"
        sides += f"; on no side of {where}, {len(split.on_no_side)} patients: {', '.join(split.on_no_side)}"
    return [Finding("all", "split", "", f"sections by {config.by}: {sides}")]


def registration_of(section: Section) -> RegistrationReport:
    """The registration of a stored section: its detections (those in nuclei where known), or its spots' totals.

    H&E and detections are read block by block: a section may be larger than memory.
    """
    he, scale = section.he_blocks(), section.he_um_per_px
    spots = section.spots
    if spots is not None:
        spot_E = np.repeat(np.arange(len(spots)), np.diff(spots.indptr))
        totals_N = np.bincount(spot_E, spots.count_E, len(spots))
        return check_registration(
            he, scale, spots.x_um_N, spots.y_um_N, weights=totals_N, diameter_um=spots.diameter_um
        )
    quality = section.record["quality"]
    field_um = (quality["fov_width_um"], quality["fov_height_um"]) if "fov_width_um" in quality else None
    blocks = section.detection_blocks()
    return check_detections(he, scale, map(_in_nuclei, blocks), field_um=field_um)


def _in_nuclei(found: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Places of those in nuclei, of all where that is not known."""
    inside = slice(None) if found.in_nucleus_D is None else found.in_nucleus_D
    return found.x_um_D[inside], found.y_um_D[inside]
