"""Is a corpus still what its seals say?"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import COARSER, PLAUSIBLE_UM_PER_PX
from tario_jax.corpus.stored_section import Section
from tario_jax.corpus.write import describe_corpus

_AGAIN = "restore it, or delete {} and run the same command again"
COARSEST_PREVIEW_UM_PER_PX = 20.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line about one section: what was looked at, and what is wrong with it ('' where nothing is)."""

    section: str
    subject: str
    fault: str
    note: str = ""


def check_corpus(corpus: Corpus, progress: Callable[[int, int], None] | None = None) -> Iterator[Finding]:
    """Verifies the corpus seal, then checksums, contents and units of every section; yields what it found.

    Contents and units of a section are looked at only where its files are what was sealed.
    """
    yield _seal(corpus)
    for number, section in enumerate(corpus.sections):
        whole = _checksums(section)
        yield whole
        if not whole.fault:
            yield _contents(corpus, section)
            yield _units(section)
        if progress is not None:
            progress(number + 1, len(corpus.sections))


def _seal(corpus: Corpus) -> Finding:
    """corpus.json against what its own sections give, and whether what the corpus was begun with can be read."""
    note = corpus.root / "corpus.json"
    stated = layout.read_json(note)
    try:
        seals = {section.id: section.seal for section in corpus.sections}
    except InputError as error:
        return Finding("all", "seal", str(error))
    expected = describe_corpus(corpus.root, corpus.panel, corpus.kind, seals)
    for name in sorted(set(stated) | set(expected)):
        if stated.get(name) != expected.get(name):
            return Finding("all", "seal", f"{note}: its {name!r} is not what its sections give; delete it and run the "
                                          "same ingest again")  # fmt: skip
    begun = corpus.root / "ingest.json"
    if begun.exists():  # of a corpus that lost it the seal tells all but the sources
        try:
            layout.read_json(begun)
        except InputError as error:
            return Finding("all", "seal", str(error))
    return Finding("all", "seal", "", corpus.seal)


def _checksums(section: Section) -> Finding:
    try:
        files = section.seal["files"]
    except InputError as error:
        return Finding(section.id, "checksums", str(error))
    for name, expected in files.items():
        path = section.place / name
        if not path.exists():
            return Finding(section.id, "checksums", f"{path}: is missing; {_AGAIN.format(section.place)}")
        if path.sha256() != expected:
            return Finding(section.id, "checksums", f"{path}: its bytes differ from the seal; "
                                                    f"{_AGAIN.format(section.place)}")  # fmt: skip
    return Finding(section.id, "checksums", "", f"{len(files)} files")


def _contents(corpus: Corpus, section: Section) -> Finding:
    if section.seal["panel_hash"] != corpus.panel.hash:
        return Finding(section.id, "contents", f"was written for panel {section.seal['panel_hash']}")
    if section.record["kind"] != corpus.kind:
        return Finding(section.id, "contents", f"is {section.record['kind']} in a {corpus.kind} corpus")
    try:
        counted = section.count_genes()
        if section.has_spots:
            counted += np.bincount(section.spots.gene_E, section.spots.count_E, len(counted)).astype(np.int64)
            section.close()  # some hundred MB of a slide, and all sections are asked
    except (ValueError, InputError) as error:
        return Finding(section.id, "contents", str(error).splitlines()[0])
    if not np.array_equal(counted, section.gene_totals_G):
        return Finding(
            section.id, "contents", f"{counted.sum()} counts; gene_totals says {section.gene_totals_G.sum()}"
        )
    return Finding(section.id, "contents", "", f"{counted.sum()} counts")


def _units(section: Section) -> Finding:
    scale = section.he_um_per_px
    low, high = PLAUSIBLE_UM_PER_PX
    forced = bool(section.record["quality"].get("he_um_per_px_forced"))
    if scale is None:
        return Finding(section.id, "units", "", "no H&E")
    preview = bool(section.record["quality"].get("he_is_preview"))
    if preview:  # the vendor's reduced picture, as its source said: coarse, but no misread scale
        high = COARSEST_PREVIEW_UM_PER_PX
    if not (low <= scale <= high * COARSER or forced):  # a level of a slide is taken that is about as fine as asked
        return Finding(section.id, "units", f"H&E at {scale:g} µm per px; expected {low} to {high}")
    height_px, width_px = section.he_shape_px
    for name, pixels, extent_um in (("width", width_px, section.width_um), ("height", height_px, section.height_um)):
        if abs(pixels * scale - extent_um) > max(2.0, 0.01 * extent_um):
            return Finding(
                section.id, "units", f"H&E {name} {pixels} px = {pixels * scale:.1f} µm; stated {extent_um:.1f} µm"
            )
    if section.has_spots:
        spots = section.placed_spots
        inside = (spots.x_um_N > 0) & (spots.x_um_N < section.width_um)
        inside &= (spots.y_um_N > 0) & (spots.y_um_N < section.height_um)
        if not inside.all():
            return Finding(section.id, "units", f"{int((~inside).sum())} spots lie outside the H&E")
    return Finding(section.id, "units", "", f"{scale:g} µm per px" + ", the vendor's reduced picture" * preview)
