"""Embeddings on disk: new patients are added beside the old ones, which are not computed again.

    NAME.embeddings/
      embeddings.json        format, model, panel and what was asked: all rows have it in common
      panel.tsv
      parts/*.parquet        a row a section, or a region of one; a file is absent or whole, and says what it is of

Several processes may add to one folder; what two of them add of one section is the same, and read once.
"""

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tario_jax.config import InputError
from tario_jax.evaluate.patients.vectors import WHOLE, Embedded
from tario_jax.panel import Panel
from tario_jax.whole_file import PARTIAL, write_whole

FORMAT, FORMAT_VERSION = "tario embeddings", 5
_READ = (4, FORMAT_VERSION)  # files of rows of version 4 do not say what they are of
FILE = "embeddings.json"
_WORDS = ("patient", "cohort", "section", "seal", "region", "kind")
_PLAIN = {"seen": pa.bool_(), "bins": pa.int64(), "detections": pa.float64(), "um_per_px": pa.float64()}
_VECTORS = {"expression": "G", "log_expression": "G", "state": "r", "spread": "r", "texture": "F", "acquisition": "A"}
_OF = b"rows of"  # in the metadata of a file of rows
# of which rows of another value would lie in another space
_ALIKE = ("panel_hash", "checkpoint", "bin_um", "overlap", "region_um", "tissue")


class EmbeddingStore:
    """Rows of many patients, of one model."""

    def __init__(self, folder: Path):
        """Raises `InputError` where the folder holds no embeddings, or those of another version."""
        self.folder = folder
        self._held_of: dict[str, dict[tuple[str, str], str]] = {}  # by file: one that is there does not change
        try:
            self.about: dict[str, Any] = json.loads((folder / FILE).read_text())
            found = self.about["format"], self.about["format_version"]
        except FileNotFoundError:
            raise InputError(f"{folder}: holds no embeddings; 'tario embed' makes them") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{folder / FILE}: is damaged; restore it, or embed again") from None
        if found not in [(FORMAT, version) for version in _READ]:
            raise InputError(f"{folder}: is {found[0]}, version {found[1]}; this tario reads versions "
                             f"{' and '.join(map(str, _READ))} of {FORMAT}; embed again")  # fmt: skip
        try:
            self.panel = Panel.from_text((folder / "panel.tsv").read_text(), str(folder / "panel.tsv"))
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{folder / 'panel.tsv'}: is missing or damaged; restore it, or embed again") from None
        if self.panel.hash != self.about.get("panel_hash"):
            raise InputError(f"{folder}: its panel.tsv is not that of its {FILE}; restore it, or embed again")

    @classmethod
    def begun(cls, folder: Path, panel: Panel, about: dict[str, Any]) -> "EmbeddingStore":
        """A new one, or that which is there. Raises `InputError` where that is of another model, or asked otherwise."""
        about = about | {"panel_hash": panel.hash}
        if not (folder / FILE).exists():
            if folder.exists() and any(map(_is_anothers, folder.iterdir())) and not (folder / FILE).exists():
                raise InputError(f"{folder}: is there already, and holds no embeddings; give another --out")
            (folder / "parts").mkdir(parents=True, exist_ok=True)
            write_whole(folder / "panel.tsv", panel.to_text())
            whole = {"format": FORMAT, "format_version": FORMAT_VERSION} | about
            write_whole(folder / FILE, json.dumps(whole, indent=1))
        store = cls(folder)
        differs = [name for name in _ALIKE if store.about.get(name) != about.get(name)]
        if differs:
            name = differs[0]
            raise InputError(f"{folder}: holds embeddings with {name.replace('_', ' ')} {store.about.get(name)}, and "
                             f"this has {about.get(name)}; give another --out")  # fmt: skip
        return store

    def add(self, rows: Sequence[Embedded]) -> None:
        """All rows of some sections, as one file."""
        if not rows:
            return
        columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in _WORDS}
        columns |= {name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in _PLAIN.items()}
        for name, axis in _VECTORS.items():
            values = np.stack([getattr(row, f"{name}_{axis}") for row in rows])
            flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        memory, of = io.BytesIO(), {name: self.about.get(name) for name in _ALIKE}
        pq.write_table(pa.table(columns, metadata={_OF: json.dumps(of)}), memory, compression="zstd")
        name = hashlib.sha256(
            "\n".join(f"{row.section}/{row.seal}/{row.region}/{row.kind}" for row in rows).encode()
        ).hexdigest()
        write_whole(self.folder / "parts" / f"{name[:16]}.parquet", memory.getvalue())

    def held(self) -> dict[tuple[str, str], str]:
        """Sections that are there, with their kinds: their seals."""
        found: dict[tuple[str, str], str] = {}
        for path in self._parts():
            if path.name not in self._held_of:
                table = self._read(path, ["section", "kind", "seal"])
                section, kind, seal = (table[name].to_pylist() for name in ("section", "kind", "seal"))
                self._held_of[path.name] = dict(zip(zip(section, kind, strict=True), seal, strict=True))
            found |= self._held_of[path.name]
        return found

    def parts(self) -> dict[str, int]:
        """Name and bytes of each file of rows: a file is never changed, one of the same name holds the same."""
        return {path.name: path.stat().st_size for path in self._parts()}

    def patients_of(self, part: str) -> dict[tuple[str, str], bool]:
        """(patient, kind) of whole sections of a file, in its order, of those that hold tissue: whether it was seen."""
        names = ("patient", "kind", "region", "detections", "seen")
        table = self._read(self.folder / "parts" / part, list(names))
        rows = zip(*(table[name].to_pylist() for name in names), strict=True)
        return {(patient, kind): seen for patient, kind, region, detections, seen in rows
                if region == WHOLE and detections}  # fmt: skip

    def patient_of_section(self) -> dict[str, str]:
        """Of all sections that are here."""
        found: dict[str, str] = {}
        for path in self._parts():
            table = self._read(path, ["section", "patient"])
            found |= dict(zip(table["section"].to_pylist(), table["patient"].to_pylist(), strict=True))
        return found

    def patient_of_maps(self, about: dict[str, Any]) -> str:
        """Whose section maps (`MapStore.about`) are taken for: that of their name, or, of a slide that was predicted as
        a file, of its name without the suffix, as `tario ingest` calls it. "" where neither is here."""
        known, name = self.patient_of_section(), about["section"]
        return known.get(name) or ("slide" in about["place"] and known.get(Path(name).stem)) or ""

    def rows(self, kind: str, *, regions: bool = False, patients: Collection[str] | None = None,
             parts: Iterable[str] | None = None,
             vectors: Collection[str] = tuple(_VECTORS)) -> list[Embedded]:  # fmt: skip
        """Of whole sections, or of regions, in the order of their sections; those without tissue are none.

        patients: of these alone; parts: of these files alone; vectors: others are not read, and come empty.
        """
        found = []
        for path in self._parts() if parts is None else [self.folder / "parts" / name for name in sorted(parts)]:
            table = self._read(path, [*_WORDS, *_PLAIN, *(name for name in _VECTORS if name in vectors)])
            whose = (table[name].to_pylist() for name in ("kind", "region", "patient", "detections"))
            wanted = [of == kind and (region != WHOLE) == regions and (patients is None or patient in patients)
                      and detections > 0 for of, region, patient, detections in zip(*whose, strict=True)]  # fmt: skip
            table = table.filter(pa.array(wanted, pa.bool_()))
            if not len(table):
                continue
            nothing = np.zeros((len(table), 0), np.float32)
            vectors_read = [_matrix(table[name]) if name in vectors else nothing for name in _VECTORS]
            plain = zip(*(table[name].to_pylist() for name in (*_WORDS, *_PLAIN)), strict=True)
            found += [Embedded(*words, *(of[number] for of in vectors_read)) for number, words in enumerate(plain)]
        once = {(row.section, row.region): row for row in found}
        return [once[place] for place in sorted(once)]

    def _parts(self) -> list[Path]:
        return sorted((self.folder / "parts").glob("*.parquet"))

    def _read(self, path: Path, columns: list[str] | None) -> pa.Table:
        try:
            with pa.OSFile(str(path)) as file:
                table = pq.read_table(file, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: is damaged ({' '.join(str(error).split())[:100]}); remove it, and embed again: "
                             "what it held alone is computed") from None  # fmt: skip
        self._refuse_rows_of_another(path, table.schema.metadata or {})
        return table

    def _refuse_rows_of_another(self, path: Path, metadata: dict[bytes, bytes]) -> None:
        """A file may have come from another folder, or from a process that began this one at the same moment."""
        if _OF not in metadata and self.about["format_version"] < FORMAT_VERSION:
            return
        of = json.loads(metadata.get(_OF, b"{}"))
        for name in _ALIKE:
            if name not in of or of[name] != self.about.get(name):
                said = f"are of {name.replace('_', ' ')} {of[name]}" if name in of else "do not say what they are of"
                raise InputError(f"{path}: its rows {said}, and {self.folder} is of {name.replace('_', ' ')} "
                                 f"{self.about.get(name)}; take it out of the folder")  # fmt: skip


def _is_anothers(path: Path) -> bool:
    """Whether a file was not left by a process that had not named what it makes: one that was killed, or is at it."""
    if path.name == "parts" and path.is_dir():
        return any(path.iterdir())
    return path.name != "panel.tsv" and not (path.name.startswith(".") and path.name.endswith(PARTIAL))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Float32 [R, length]."""
    whole = column.combine_chunks()
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(len(whole), -1)
