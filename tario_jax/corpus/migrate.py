"""An older corpus into one of this format: read as it was written, written as today."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.place import Place
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import Detections, SectionData, Spots
from tario_jax.corpus.split import read_split
from tario_jax.corpus.write import (
    begin_corpus,
    described_patients,
    known_seals,
    same_as_sealed,
    seal_corpus,
    sealed_sections,
    write_section,
)
from tario_jax.panel import Panel

OLDEST = 2


def migrate(old: Place | Path | str, new: Place | Path | str, say: Callable[[str], None] = print) -> Corpus:
    """Writes the sections of a corpus of format 2 into a new one and leaves the old one; run again, it continues.

    Raises `InputError` where the old one is not sealed, or of a version that needs no migration or knows none, and
    where the new one holds another section of one name.
    """
    old, new = Place(old), Place(new)
    described = layout.read_json(old / "corpus.json")
    version = described.get("format_version")
    if version != OLDEST:
        told = "it needs none" if version == layout.FORMAT_VERSION else f"expected {OLDEST}"
        raise InputError(f"{old / 'corpus.json'}: format version {version} is not migrated: {told}")
    panel = Panel.from_text((old / "panel.tsv").read().decode(), str(old / "panel.tsv"))
    begun = layout.read_json(old / "ingest.json")
    begin_corpus(new, panel, described["kind"], begun["source"])
    names = sorted({name.split("/")[1] for name in described["files"] if name.startswith("sections/")})
    there = sealed_sections(new, known_seals(new))
    for name in sorted(there.keys() & set(names)):  # all before the first is written: what is there stays sealed
        if not same_as_sealed(new, panel, described["kind"], _section_of_2(old / f"sections/{name}")):
            raise InputError(f"{new}: holds another section {name!r} than {old}; use another --out")
    described_patients(new, there | {name: layout.read_json(old / f"sections/{name}/seal.json") for name in names})
    split: dict[str, str] = {}
    for place in (old / "split.tsv", new / "split.tsv"):  # who stands on a side of the new one stays there
        if place.exists():
            split |= {patient: side for side, patients in read_split(place).items() for patient in patients}
    for number, name in enumerate(names, 1):
        if name not in there:
            (new / "corpus.json").remove()  # a corpus that grows is not sealed meanwhile
            write_section(new, panel, described["kind"], _section_of_2(old / f"sections/{name}"))
        if number % 20 == 0 or number == len(names):
            say(f"migrate: {number}/{len(names)} sections")
    for source in begun.get("also", []):  # a corpus of several
        begin_corpus(new, panel, described["kind"], source)
    return seal_corpus(new, panel, described["kind"], split or None)


def _section_of_2(place: Place) -> SectionData:
    seal = layout.read_json(place / "seal.json")
    for name, expected in seal["files"].items():
        if not (place / name).exists() or (place / name).sha256() != expected:
            raise InputError(f"{place / name}: differs from its seal; restore it before the corpus is migrated")
    record: dict[str, Any] = seal["record"]
    held = {name.rpartition("/")[0] for name in seal["files"] if name.endswith("/zarr.json")}

    def array(name: str) -> np.ndarray | None:
        return _array_of_2(place / name) if name in held else None

    detections = spots = None
    if "detections/place" in held:
        side = layout.DETECTION_TILE_UM
        tile_D = np.repeat(np.arange(len(array("detections/offset")) - 1), np.diff(array("detections/offset")))
        row_D, column_D = np.divmod(tile_D, int(np.ceil(record["width_um"] / side)))
        place_um_Dx2 = (array("detections/place") + 0.5) / layout.PLACE_STEPS_PER_UM
        nucleus_D = array("detections/nucleus")
        detections = Detections(
            place_um_Dx2[:, 0] + column_D * side, place_um_Dx2[:, 1] + row_D * side,
            array("detections/gene").astype(np.int32), None if nucleus_D is None else nucleus_D.astype(bool),
            array("detections/cell"),
        )  # fmt: skip
    if "spots/place" in held:
        place_um_Nx2 = array("spots/place")
        spots = Spots(place_um_Nx2[:, 0], place_um_Nx2[:, 1], record["spot_diameter_um"], array("spots/indptr"),
                      array("spots/gene").astype(np.int32), array("spots/count"), tuple(record["spot_names"]),
                      array("spots/array"))  # fmt: skip
    measured, measured_genes = array("measured"), array("measured_genes")
    return SectionData(
        record["section"], record["patient"], record["cohort"], record["width_um"], record["height_um"],
        record["he_um_per_px"], array("he"), detections, spots, None if measured is None else measured.astype(bool),
        record["measured_um_per_px"], None if measured_genes is None else measured_genes.astype(bool),
        record["registration"], record["quality"], record["patient_columns"],
        {name: array(f"truth/{name}") for name in record["truth"]} or None,
    )  # fmt: skip


def _array_of_2(place: Place) -> np.ndarray:
    """In format 2 chunks of zeros were not stored."""
    try:
        return ts.open({"driver": "zarr3", "kvstore": place.kvstore}, open=True, read=True).result().read().result()
    except (ValueError, RuntimeError, OSError) as error:
        raise layout.damaged(place, error) from None
