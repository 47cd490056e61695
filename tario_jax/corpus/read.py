"""A sealed corpus, and its sections."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.place import Place
from tario_jax.corpus.stored_section import SEAL_ONLY, Section
from tario_jax.panel import Panel

TABLES = ("panel.tsv", "patients.parquet", "sections.parquet")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A sealed corpus. Sections are in the order of their names."""

    root: Place
    panel: Panel
    kind: str  # "virtual" or "real"
    seal: str
    patients: tuple[dict[str, Any], ...]
    sections: tuple[Section, ...]

    @classmethod
    def open(cls, root: Place | Path | str) -> "Corpus":
        """Opens a sealed corpus; raises `InputError` where it is missing, not finished, or of another version.

        Four small files are read, whatever the number of sections; `check_corpus` looks at all of them.
        """
        root = Place(root)
        try:
            described = layout.read_json(root / "corpus.json")
        except InputError:
            if (root / "corpus.json").exists():
                raise
            raise _not_a_corpus(root) from None
        if described.get("format_version") != layout.FORMAT_VERSION:
            raise InputError(
                f"{root / 'corpus.json'}: format version {described.get('format_version')}; this tario reads "
                f"{layout.FORMAT_VERSION}; an older one is rewritten by 'tario corpus migrate {root} --out=NEW'"
            )
        missing = {"kind", "panel_hash", "seal", "files"} - set(described)
        if missing:
            raise InputError(f"{root / 'corpus.json'}: says nothing of {', '.join(sorted(missing))}; restore it or "
                             "ingest again")  # fmt: skip
        for name in TABLES:
            if name not in described["files"]:
                raise InputError(f"{root / 'corpus.json'}: has no checksum of {name}; restore it or ingest again")
        tables = {name: layout.read_sealed(root / name, described["files"][name]) for name in TABLES}
        panel = Panel.from_text(tables["panel.tsv"].decode(), str(root / "panel.tsv"))
        if panel.hash != described["panel_hash"]:
            raise InputError(f"{root / 'corpus.json'}: 'panel_hash' is {described['panel_hash']}, panel.tsv has "
                             f"{panel.hash}; restore both or ingest again")  # fmt: skip
        patients, sections = (_rows(tables[f"{name}.parquet"]) for name in ("patients", "sections"))
        found = []
        for row in sections:
            record = json.loads(row["record"])
            for name in SEAL_ONLY:
                record.pop(name, None)
            found.append(Section(root / f"sections/{record['section']}", record, row["seal_sha256"], len(panel)))
        found.sort(key=lambda section: section.id)
        return cls(root, panel, described["kind"], described["seal"], tuple(patients), tuple(found))

    def section(self, name: str) -> Section:
        for section in self.sections:
            if section.id == name:
                return section
        known = ", ".join(section.id for section in self.sections[:5])
        raise InputError(f"corpus {self.root}: has no section {name!r}; it holds {known}, …")


def _rows(content: bytes) -> list[dict[str, Any]]:
    """Rows of a parquet file, read on this thread: one of arrow's own may outlive the interpreter and end in abort."""
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False).to_pylist()


def _not_a_corpus(root: Place) -> InputError:
    if root.local is not None and not root.local.is_dir():
        return InputError(f"corpus {root}: no such folder; expected one made by 'tario ingest' or 'tario simulate'")
    if not (root / "ingest.json").exists():
        return InputError(f"corpus {root}: holds no corpus.json; expected a corpus")
    done = len(layout.sealed_names(root))
    return InputError(f"corpus {root}: is not sealed, its ingest was stopped after {done} sections; run the same "
                      "ingest again and it continues")  # fmt: skip
