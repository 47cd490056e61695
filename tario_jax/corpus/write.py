"""Sections into a corpus: begun, written section by section, sealed last.

A section exists once its own `seal.json` is there, and a corpus once `corpus.json` is there; both are written last.
A killed ingest therefore leaves nothing half-read, and running it again continues where it stopped.
"""

import concurrent.futures
import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.place import Place
from tario_jax.corpus.read import TABLES, Corpus
from tario_jax.corpus.section import BlockImage, SectionData, Spots, check_section_id
from tario_jax.corpus.sort import check_genes, sorted_detections
from tario_jax.corpus.split import write_split
from tario_jax.corpus.stored_section import SEAL_ONLY
from tario_jax.panel import Panel

Kind = Literal["virtual", "real"]
DENSEST_TILES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)


def begin_corpus(root: Place | Path, panel: Panel, kind: Kind, source: dict[str, Any]) -> None:
    """Notes what goes into the corpus; something else in a folder that holds sections is refused.

    A corpus of real tissue may hold sections of several sources: kind and panel must agree, and all are noted.
    """
    root = Place(root)
    if root.local is not None and root.local.is_file():
        raise InputError(f"{root}: is a file; expected a folder")
    if len(panel) > 1 << 16:
        raise InputError(f"{root}: a panel of {len(panel)} genes; this corpus format holds at most {1 << 16}")
    begun = {"kind": kind, "panel_hash": panel.hash, "source": source, "format_version": layout.FORMAT_VERSION}
    note, before = root / "ingest.json", begun_with(root)
    # a folder that holds something is looked at once more: a job that shares it may have begun it in between
    if before is None and root.below():
        before = begun_with(root)
        if before is None:
            raise InputError(f"{root}: is not empty and not a corpus; expected a new folder")
    if before is not None:
        # a lost source is that of now; but of virtual tissue nothing else says how its sections were made
        different = [name for name, value in begun.items()
                     if before.get(name, value if kind == "real" and name == "source" else None) != value]  # fmt: skip
        if different and holds_sections(root):
            if different == ["source"] and kind == "real":
                also = before.get("also", [])
                begun |= {"source": before["source"], "also": also if source in also else [*also, source]}
            else:
                name = different[0]
                raise InputError(f"{note}: was begun with {name} = {before.get(name)!r}, now {begun[name]!r}; use "
                                 "another folder or delete this one")  # fmt: skip
        elif not different and "also" in before:
            begun["also"] = before["also"]
    if begun != _noted(note):
        layout.write_json(note, begun)  # first: from here on the folder is known as a corpus, whenever it is stopped
    (root / "panel.tsv").write(panel.to_text().encode())


def _noted(note: Place) -> dict[str, Any] | None:
    """None where it is lost or damaged."""
    try:
        return layout.read_json(note)
    except InputError:
        return None


def begun_with(root: Place) -> dict[str, Any] | None:
    """What `ingest.json` notes of a corpus; None for a folder that is none.

    Where it is lost or damaged, or lacks some of it, the seal of a finished corpus tells all but the sources. Raises
    `InputError` where it is damaged and there is no such seal.
    """
    note, seal = root / "ingest.json", root / "corpus.json"
    if not note.exists() and not seal.exists():
        return None
    told, sealed = {}, ("kind", "panel_hash", "format_version")
    try:
        told = layout.read_json(note)
    except InputError:
        if not seal.exists():
            raise
    if all(name in told for name in sealed) or not seal.exists():
        return told
    described = layout.read_json(seal)
    return {name: described[name] for name in sealed if name in described} | told


def holds_sections(root: Place | Path) -> bool:
    """Whether a section is sealed there, be the corpus finished or not."""
    return bool(layout.sealed_names(Place(root)))


def section_is_sealed(root: Place | Path, section_id: str) -> bool:
    return (Place(root) / f"sections/{section_id}/seal.json").exists()


def same_as_sealed(root: Place | Path, panel: Panel, kind: Kind, section: SectionData) -> bool:
    """Whether the sealed section of that name is what `write_section` would write."""
    seal = layout.read_json(Place(root) / f"sections/{section.section_id}/seal.json", layout.SECTION_AGAIN)
    with _arrays(section, panel, Place(root)) as arrays:
        record = json.loads(json.dumps(_record(section, kind, arrays)))
        return seal["record"] == record and seal["content"] == layout.array_sha256(arrays)


def write_section(root: Place | Path, panel: Panel, kind: Kind, section: SectionData) -> str:
    """Writes one section and its seal, and gives the hash of its content.

    Whatever an interrupted write left there is removed first.
    """
    remove_section(root, section.section_id)
    place = Place(root) / f"sections/{section.section_id}"
    with _arrays(section, panel, Place(root)) as arrays:
        for name, array in arrays.items():
            layout.write_array(place / name, array)
        if isinstance(section.he, BlockImage):
            arrays["he"] = layout.stored_image(place / "he")  # hashed as stored: a slide is decoded once
        record, content = _record(section, kind, arrays), layout.array_sha256(arrays)
    if section.truth:
        layout.write_truth(place / "truth.npz", section.truth)
    files = {name: (place / name).sha256() for name in place.below()}
    layout.write_json(
        place / "seal.json",
        {"format_version": layout.FORMAT_VERSION, "panel_hash": panel.hash, "record": record, "content": content,
         "files": files},
    )  # fmt: skip
    return content


def _record(section: SectionData, kind: Kind, arrays: dict[str, layout.Rows]) -> dict[str, Any]:
    return {
        "arrays": sorted(arrays),
        "section": section.section_id,
        "patient": section.patient_id,
        "cohort": section.cohort,
        "kind": kind,
        "width_um": float(section.width_um),
        "height_um": float(section.height_um),
        "he_um_per_px": section.he_um_per_px,
        "measured_um_per_px": float(section.measured_um_per_px),
        "detections": int(arrays["detections/offset"][-1]) if section.detections is not None else 0,
        "spots": len(section.spots) if section.spots is not None else 0,
        "spot_diameter_um": section.spots.diameter_um if section.spots is not None else None,
        "densest": _densest(arrays["detections/offset"], section.width_um) if section.detections is not None else [],
        "truth": section.truth is not None,
        "registration": section.registration,
        "quality": {name: float(value) for name, value in section.quality.items()},
        "patient_columns": dict(section.patient),
        "spot_names": list(section.spots.name_N) if section.spots is not None else [],
    }


def remove_section(root: Place | Path, section_id: str) -> None:
    """Removes one section and its seal."""
    check_section_id(section_id)  # everything below that folder is removed
    place = Place(root) / f"sections/{section_id}"
    (place / "seal.json").remove()  # first: what is half removed is not sealed
    place.remove_below()


def described_patients(root: Place | Path, seals: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Rows of the patients' table by patient. Raises `InputError` where two sections describe one otherwise."""
    patients: dict[str, dict[str, str]] = {}
    for name, seal in seals.items():
        record = seal["record"]
        add_patient(patients, root, name, record["patient"], record["cohort"], record["patient_columns"])
    return patients


def add_patient(
    patients: dict[str, dict[str, str]], root: Place | Path, section_id: str, patient_id: str, cohort: str,
    columns: Mapping[str, str],
) -> None:  # fmt: skip
    """Adds whose a section is to those described before. Raises `InputError` where they say otherwise of the patient.

    Who may be learnt from, and in which cohort, hangs on it: of two descriptions neither is taken.
    """
    row = {"patient": patient_id, "cohort": cohort, **columns}
    before = patients.setdefault(patient_id, row)
    if before != row:
        raise InputError(f"{root}: patient {patient_id!r} is described as {before} and as {row} (section "
                         f"{section_id!r}); expected one description; correct --patient, --cohort or the table that "
                         "says so")  # fmt: skip


def seal_corpus(root: Place | Path, panel: Panel, kind: Kind, split: dict[str, str] | None = None) -> Corpus:
    """Gathers the sealed sections into tables and writes the corpus seal.

    `split` maps patients to train, validation or held_out and becomes `split.tsv`, which a user may edit: it is not
    part of the seal. Raises `InputError` where there is no section, one section stands under two names, a patient is
    described in two ways, or another ingest wrote onto another panel meanwhile.
    """
    root = Place(root)
    seals = sealed_sections(root)
    if not seals:
        raise InputError(f"{root}: no section was written; expected at least one")
    _check_one_panel(root, panel, kind, seals)
    by_content: dict[str, str] = {}
    for name, seal in seals.items():
        other = by_content.setdefault(seal["content"], name)
        if other != name:
            raise InputError(f"{root}: sections {other!r} and {name!r} hold the same data; remove one of them: "
                             f"{root / 'sections' / name}, and run the same ingest again")  # fmt: skip
    records = [seal["record"] for seal in seals.values()]
    patients = described_patients(root, seals)
    nested = ("quality", "patient_columns", *SEAL_ONLY, "arrays", "densest")
    rows = [
        {name: value for name, value in record.items() if name not in nested}
        | {"record": json.dumps({name: record[name] for name in record if name not in SEAL_ONLY}, sort_keys=True),
           "seal_sha256": (root / f"sections/{record['section']}/seal.json").sha256()}
        for record in records
    ]  # fmt: skip
    names = sorted({name for row in patients.values() for name in row})
    _write_table(root / "sections.parquet", rows)
    _write_table(root / "patients.parquet", [{name: row.get(name) for name in names} for row in patients.values()])
    if split is not None:
        write_split(root, {patient: side for patient, side in split.items() if patient in patients})
    layout.write_json(root / "corpus.json", describe_corpus(root, panel, kind, seals))
    if layout.sealed_names(root) != list(seals):  # of another job, whose tables were just written over: all of them
        return seal_corpus(root, panel, kind, split)
    return Corpus.open(root)


def _check_one_panel(root: Place, panel: Panel, kind: Kind, seals: dict[str, dict[str, Any]]) -> None:
    """Two ingests that begin at once both find the folder empty: genes are numbered by one panel, or not at all."""
    held = Panel.from_text((root / "panel.tsv").read().decode(), str(root / "panel.tsv")).hash
    if held != panel.hash:
        raise InputError(f"{root / 'panel.tsv'}: has the hash {held}, this ingest's panel {panel.hash}: another ingest "
                         "began here meanwhile; use another folder, one ingest after the other")  # fmt: skip
    for name, seal in seals.items():
        found = seal["record"]["kind"], seal["panel_hash"]
        if found != (kind, panel.hash):
            raise InputError(f"{root / 'sections' / name}: is {found[0]}, of a panel with the hash {found[1]}; "
                             f"expected {kind}, {panel.hash}; remove it, ingest it again after the others")  # fmt: skip


def sealed_sections(root: Place, sha256_of: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The seals of all sealed sections by name, in order.

    Raises `InputError` for one that cannot be read, or is not what `sha256_of` says where it names the section.
    """
    names, known = layout.sealed_names(root), sha256_of or {}

    def read(name: str) -> dict[str, Any]:
        place = root / f"sections/{name}/seal.json"
        if name in known:
            return json.loads(layout.read_sealed(place, known[name], layout.SECTION_AGAIN))
        return layout.read_json(place, layout.SECTION_AGAIN)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # in a bucket every read is a journey
        return dict(zip(names, pool.map(read, names), strict=True))


def known_seals(root: Place) -> dict[str, str]:
    """Checksums of the seals of a sealed corpus's sections, by section: when it grows it is sealed anew, and an altered
    seal with it unless it is held against them. Empty where it is not sealed, or its table of sections, which is made
    anew, is damaged."""
    try:
        described = layout.read_json(root / "corpus.json")
        table = layout.read_sealed(root / "sections.parquet", described["files"]["sections.parquet"])
    except (InputError, KeyError, TypeError, NotADirectoryError):
        return {}
    rows = pq.read_table(io.BytesIO(table)).to_pylist()
    return {row["section"]: row["seal_sha256"] for row in rows if "seal_sha256" in row}


def _write_table(place: Place, rows: list[dict[str, Any]]) -> None:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    place.write(content.getvalue())


def describe_corpus(root: Place, panel: Panel, kind: str, seals: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `corpus.json` says of a corpus; `seals` are those of its sections by name, in the order of the names."""
    digest = hashlib.sha256(f"{kind} {panel.hash}\n".encode())
    for name, seal in seals.items():
        described = {key: seal["record"][key] for key in sorted(seal["record"])}
        digest.update(f"{name} {seal['content']} {described}\n".encode())
    return {
        "format_version": layout.FORMAT_VERSION,
        "kind": kind,
        "panel_hash": panel.hash,
        "genes": len(panel),
        "units": {"place": "um", "he": "uint8 RGB", "y": "down"},
        "sections": len(seals),
        "patients": len({seal["record"]["patient"] for seal in seals.values()}),
        "seal": digest.hexdigest()[:16],
        "files": {name: (root / name).sha256() for name in TABLES},
    }


@contextlib.contextmanager
def _arrays(section: SectionData, panel: Panel, root: Place) -> Iterator[dict[str, layout.Rows]]:
    """What the seal covers, by path below the section's folder. Those of detections may lie on a disk meanwhile."""
    where = f"section {section.section_id!r}"
    arrays: dict[str, layout.Rows] = {}
    totals_G = np.zeros(len(panel), np.int64)
    with contextlib.ExitStack() as spilled:
        if section.he is not None:
            arrays["he"] = section.he
        if section.measured is not None:
            arrays["measured"] = section.measured.astype(np.uint8)
        if section.measured_gene_G is not None:
            arrays["measured_genes"] = section.measured_gene_G.astype(np.uint8)
        if section.detections is not None:
            found, counted_G = spilled.enter_context(
                sorted_detections(section.detections, len(panel), section.width_um, section.height_um, where,
                                  spill_into=root.local)
            )  # fmt: skip
            arrays |= found
            totals_G += counted_G
        if section.spots is not None:
            check_genes(section.spots.gene_E, len(panel), where)
            arrays |= _spots(section.spots)
            totals_G += np.bincount(section.spots.gene_E, section.spots.count_E, len(panel)).astype(np.int64)
        arrays["gene_totals"] = totals_G
        if section.measured_gene_G is not None and totals_G[~section.measured_gene_G.astype(bool)].any():
            gene = int(np.flatnonzero((totals_G > 0) & ~section.measured_gene_G.astype(bool))[0])
            raise InputError(f"{where}: holds counts of {panel.symbols[gene]!r}, a gene that it is said not to measure")
        yield arrays


def _densest(offset: np.ndarray, width_um: float) -> list[list[float]]:
    """[tiles a side, detections, x_um, y_um] of the densest square of so many tiles: what a window may have to hold."""
    columns = int(np.ceil(width_um / layout.DETECTION_TILE_UM))
    integral = np.zeros(((len(offset) - 1) // columns + 1, columns + 1), np.int64)
    integral[1:, 1:] = np.diff(offset).reshape(-1, columns).cumsum(0).cumsum(1)
    found = []
    for tiles in DENSEST_TILES:
        down, across = (min(tiles, size - 1) for size in integral.shape)
        held = integral[down:, across:] - integral[:-down, across:] - integral[down:, :-across]
        held += integral[:-down, :-across]
        row, column = np.unravel_index(held.argmax(), held.shape)
        corner_um = (float(at) * layout.DETECTION_TILE_UM for at in (column, row))
        found.append([tiles, int(held.max()), *corner_um])
    return found


def _spots(spots: Spots) -> dict[str, np.ndarray]:
    arrays = {
        "spots/place": np.stack([spots.x_um_N, spots.y_um_N], 1).astype(np.float64),
        "spots/indptr": spots.indptr.astype(np.int64),
        "spots/gene": spots.gene_E.astype(np.uint16),
        "spots/count": spots.count_E.astype(np.int32),
    }
    if spots.array_xy_Nx2 is not None:
        arrays["spots/array"] = spots.array_xy_Nx2.astype(np.int32)
    return arrays
