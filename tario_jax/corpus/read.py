"""A sealed corpus, its sections, and any window of them."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.resample import crop_and_resample
from tario_jax.corpus.section import Detections, Spots
from tario_jax.panel import Panel


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: is not whole JSON ({error}); restore it or ingest again") from None


class Section:
    """One sealed section. Arrays are opened at first use; places are in µm in the section's frame."""

    def __init__(self, folder: Path, genes: int):
        seal_path = folder / "seal.json"
        if not seal_path.exists():
            raise InputError(f"{folder}: is not sealed; run the ingest again to finish it")
        self.folder = folder
        self.seal = read_json(seal_path)
        self.record: dict[str, Any] = self.seal["record"]
        self._genes = genes

    @property
    def id(self) -> str:
        return self.record["section"]

    @property
    def patient(self) -> str:
        return self.record["patient"]

    @property
    def cohort(self) -> str:
        return self.record["cohort"]

    @property
    def width_um(self) -> float:
        return self.record["width_um"]

    @property
    def height_um(self) -> float:
        return self.record["height_um"]

    @property
    def he_um_per_px(self) -> float | None:
        return self.record["he_um_per_px"]

    @property
    def he_origin_px(self) -> tuple[float, float]:
        """Where the stored H&E begins (x, y) in the full-resolution image that it was cut from."""
        quality = self.record["quality"]
        return quality.get("he_origin_x_px", 0.0), quality.get("he_origin_y_px", 0.0)

    def holds(self, name: str) -> bool:
        return (self.folder / name / "zarr.json").exists()

    @functools.cache  # noqa: B019 — a section lives as long as its corpus
    def _array(self, name: str):
        return layout.open_array(self.folder / name)

    @functools.cache  # noqa: B019
    def _whole(self, name: str) -> np.ndarray:
        return layout.read_array(self.folder / name)

    @property
    def gene_totals_G(self) -> np.ndarray:
        """Detections (or spot counts) by gene, int64 [G]."""
        return self._whole("gene_totals")

    @property
    def measured_gene_G(self) -> np.ndarray:
        """Genes that the assay of this section measured, bool [G]."""
        if not self.holds("measured_genes"):
            return np.ones(self._genes, bool)
        return self._whole("measured_genes").astype(bool)

    def he(self) -> np.ndarray:
        """The whole H&E, uint8 [H, W, 3]."""
        if not self.holds("he"):
            raise InputError(f"section {self.id!r}: has no H&E")
        return self._array("he").read().result()

    def he_window(self, x_um: float, y_um: float, side_px: int, um_per_px: float) -> np.ndarray:
        """H&E of a square whose top left corner is (x_um, y_um): uint8 [side_px, side_px, 3], averaged by area.

        Outside of the image it is white.
        """
        if not self.holds("he"):
            raise InputError(f"section {self.id!r}: has no H&E")
        store = self._array("he")
        return crop_and_resample(
            store,
            store.shape,
            self.he_um_per_px,
            x_um,
            y_um,
            side_px,
            um_per_px,
            read=lambda part: part.read().result(),
        )

    def detections(
        self, x_um: float, y_um: float, width_um: float, height_um: float, *, flags: bool = False
    ) -> Detections:
        """Detections with x in [x_um, x_um + width_um) and y likewise, places still in the section's frame (float64).

        flags: read the vendor's nucleus flags and cell ids too, where it gives them.
        """
        if not self.holds("detections/place"):
            raise InputError(f"section {self.id!r}: has no detections")
        side = layout.DETECTION_TILE_UM
        columns, rows = int(np.ceil(self.width_um / side)), int(np.ceil(self.height_um / side))
        column0, column1 = int(max(x_um // side, 0)), int(min(np.ceil((x_um + width_um) / side), columns))
        row0, row1 = int(max(y_um // side, 0)), int(min(np.ceil((y_um + height_um) / side), rows))
        offset = self._whole("detections/offset")
        place, gene = self._array("detections/place"), self._array("detections/gene")
        runs = []
        for row in range(row0, row1):  # the tiles of a row lie side by side: one read each
            ends = offset[row * columns + column0 : row * columns + max(column1, column0) + 1]
            if len(ends) > 1 and ends[-1] > ends[0]:
                run = slice(int(ends[0]), int(ends[-1]))
                runs.append((row, np.diff(ends), run, place[run].read(), gene[run].read()))
        if not runs:
            return Detections(np.zeros(0), np.zeros(0), np.zeros(0, np.int32))
        # float64: beyond 8 mm a float32 place can round onto its tile's edge, and fall between two windows
        corners = np.arange(column0, column1) * side
        x_parts, y_parts = [], []
        for row, in_tile, _, place_read, _ in runs:
            steps = place_read.result().astype(np.float64)
            steps += 0.5
            steps /= layout.PLACE_STEPS_PER_UM
            x_parts.append(steps[:, 0] + np.repeat(corners, in_tile))
            y_parts.append(steps[:, 1] + row * side)
        x, y = np.concatenate(x_parts), np.concatenate(y_parts)
        inside = (x >= x_um) & (x < x_um + width_um) & (y >= y_um) & (y < y_um + height_um)
        genes = np.concatenate([gene_read.result() for *_, gene_read in runs])[inside].astype(np.int32)
        optional = {}
        for field, name in (("in_nucleus_D", "nucleus"), ("cell_D", "cell")):
            if flags and self.holds(f"detections/{name}"):
                stored = self._array(f"detections/{name}")
                reads = [stored[run].read() for _, _, run, _, _ in runs]
                values = np.concatenate([read.result() for read in reads])[inside]
                optional[field] = values.astype(bool) if name == "nucleus" else values
        return Detections(x[inside], y[inside], genes, **optional)

    def all_detections(self) -> Detections:
        # one tile more: the last place of a section may be read a thousandth of a µm beyond its edge
        side = layout.DETECTION_TILE_UM
        return self.detections(0.0, 0.0, self.width_um + side, self.height_um + side, flags=True)

    @functools.cached_property
    def spots(self) -> Spots | None:
        if not self.holds("spots/place"):
            return None
        place = self._whole("spots/place")
        return Spots(
            x_um_N=place[:, 0],
            y_um_N=place[:, 1],
            diameter_um=self.record["spot_diameter_um"],
            indptr=self._whole("spots/indptr"),
            gene_E=self._whole("spots/gene").astype(np.int32),
            count_E=self._whole("spots/count"),
            name_N=tuple(self.record["spot_names"]),
            array_xy_Nx2=self._whole("spots/array") if self.holds("spots/array") else None,
        )

    @functools.cached_property
    def measured(self) -> tuple[np.ndarray, float]:
        """The mask of the imaged area as float32 [rows, columns] and its µm per px; all of the section if unstated."""
        if self.holds("measured"):
            return self._whole("measured").astype(np.float32), self.record["measured_um_per_px"]
        side = self.record["measured_um_per_px"]
        rows, columns = int(np.ceil(self.height_um / side)), int(np.ceil(self.width_um / side))
        covered_y = np.clip(self.height_um / side - np.arange(rows), 0, 1)
        covered_x = np.clip(self.width_um / side - np.arange(columns), 0, 1)
        return np.outer(covered_y, covered_x).astype(np.float32), side

    @functools.cached_property
    def truth(self) -> dict[str, np.ndarray] | None:
        """What the truth of virtual tissue is computed from, for evaluation only; None for real tissue."""
        names = self.record["truth"]
        return {name: layout.read_array(self.folder / "truth" / name) for name in names} if names else None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A sealed corpus. Sections are in the order of their names."""

    root: Path
    panel: Panel
    kind: str  # "virtual" or "real"
    seal: str
    patients: tuple[dict[str, Any], ...]
    sections: tuple[Section, ...]

    @classmethod
    def open(cls, root: Path | str) -> "Corpus":
        """Opens a sealed corpus; raises `InputError` where it is missing, not finished, or of another version."""
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"corpus {root}: no such folder; expected one made by 'tario ingest' or 'tario simulate'")
        note = root / "corpus.json"
        if not note.exists():
            done = len(list((root / "sections").glob("*/seal.json")))
            if not (root / "ingest.json").exists():
                raise InputError(f"corpus {root}: holds no corpus.json; expected a corpus")
            raise InputError(
                f"corpus {root}: is not sealed, its ingest was stopped after {done} sections; "
                "run the same ingest again and it continues"
            )
        described = read_json(note)
        if described.get("format_version") != layout.FORMAT_VERSION:
            raise InputError(
                f"{note}: format version {described.get('format_version')}; this tario reads {layout.FORMAT_VERSION}"
            )
        missing = {"kind", "panel_hash", "seal", "files"} - set(described)
        if missing:
            raise InputError(f"{note}: says nothing of {', '.join(sorted(missing))}; restore it or ingest again")
        for name, expected in described["files"].items():
            if not (root / name).exists() or layout.file_sha256(root / name) != expected:
                raise InputError(f"{root / name}: differs from the corpus seal; restore it or ingest again")
        panel = Panel.read(root / "panel.tsv")
        names = pq.read_table(root / "sections.parquet").column("section").to_pylist()
        sections = tuple(Section(root / "sections" / name, len(panel)) for name in sorted(names))
        patients = tuple(pq.read_table(root / "patients.parquet").to_pylist())
        return cls(root, panel, described["kind"], described["seal"], patients, sections)

    def section(self, name: str) -> Section:
        for section in self.sections:
            if section.id == name:
                return section
        known = ", ".join(section.id for section in self.sections[:5])
        raise InputError(f"corpus {self.root}: has no section {name!r}; it holds {known}, …")
