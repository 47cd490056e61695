"""What a source hands over: a panel, sections one at a time, and an account of every row of the vendor's file."""

import dataclasses
from collections.abc import Iterator

from tario_jax.config import InputError
from tario_jax.corpus.section import SectionData, check_section_id, check_whose
from tario_jax.panel import Panel

ALL_SECTIONS = ""  # the section of a tally that counts over all of them


@dataclasses.dataclass
class Tally:
    """Rows of one kind in the vendor's file: `read` = kept + what was dropped, by reason."""

    what: str  # detections, counts, spots, genes
    section: str
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)

    def drop(self, reason: str, number: int) -> None:
        if number:
            self.dropped[reason] = self.dropped.get(reason, 0) + int(number)

    def close(self, kept: int) -> None:
        """Sets what was kept. A sum that does not come out is an error of this program, not of the file."""
        self.kept = int(kept)
        lost = self.read - self.kept - sum(self.dropped.values())
        if lost:
            raise RuntimeError(f"{self.section}: {lost} of {self.read} {self.what} are neither kept nor dropped")


@dataclasses.dataclass
class IngestReport:
    """Kept and dropped by reason. Filled while sections are read, so it is complete when the last one was.

    `notes` are sentences that a user must have seen: an assumed unit, genes that were summed, a symbol of two genes.
    """

    source: str
    path: str
    tallies: list[Tally] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def open(self, what: str, section: str, read: int) -> Tally:
        tally = Tally(what, section, int(read))
        self.tallies.append(tally)
        return tally

    def tally(self, what: str, section: str = ALL_SECTIONS) -> Tally:
        """The tally of `what` in `section`. Raises `KeyError` before that section is read."""
        for tally in self.tallies:
            if (tally.what, tally.section) == (what, section):
                return tally
        raise KeyError((what, section))

    def table(self) -> str:
        """The account for people: a line for each tally, its reasons indented below it, then the notes."""
        lines = [f"{self.source}: {self.path}", f"{'section':<20}  {'of':<10}  {'in file':>14}  {'kept':>14}  dropped"]
        for tally in self.tallies:
            total = sum(tally.dropped.values())
            section = tally.section or "all sections"
            lines.append(f"{section:<20}  {tally.what:<10}  {tally.read:>14,}  {tally.kept:>14,}  {total:,}")
            lines += [
                f"{'':<66}  {number:,}  {reason}"
                for reason, number in sorted(tally.dropped.items(), key=lambda item: -item[1])
            ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def to_dict(self) -> dict:
        """The same as plain JSON values."""
        return dataclasses.asdict(self)


def check_names(section_id: str, patient_id: str, cohort: str) -> None:
    """Raises `InputError` for names that `SectionData` would refuse: before files are read, which may take an hour."""
    try:
        check_section_id(section_id)
    except InputError as error:
        raise InputError(f"{error}; give one with --section") from None
    check_whose("--patient, --cohort", patient_id, cohort)


@dataclasses.dataclass
class Ingested:
    """Sections of one source, lazily: an image is read when its section's turn comes."""

    panel: Panel
    sections: Iterator[SectionData]
    number: int  # of sections
    report: IngestReport
