"""A source into a corpus: section by section, with progress, resumable."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from tario_jax.config import InputError
from tario_jax.corpus.place import Place, plainly
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import unnamed_patients
from tario_jax.corpus.write import (
    add_patient,
    begin_corpus,
    begun_with,
    described_patients,
    holds_sections,
    known_seals,
    remove_section,
    same_as_sealed,
    seal_corpus,
    sealed_sections,
    section_is_sealed,
    write_section,
)
from tario_jax.panel import Panel
from tario_jax.sources.ingested import Ingested


def panel_to_take(root: Place | Path | str, file: Path | None) -> Panel | None:
    """The panel that a further source is mapped onto: the corpus's, else the file's; None where the source's serves.

    Raises `InputError` where the file is missing, no panel, or not that of a corpus which holds sections.
    """
    root, named = Place(root), None
    if file is not None:
        try:
            named = Panel.from_text(file.read_text(encoding="utf-8"), f"--panel={file}")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--panel={file}: cannot be read: {plainly(error)}; expected a table with the column "
                             "'symbol'") from None  # fmt: skip
    if not holds_sections(root):
        return named
    begun = (begun_with(root) or {}).get("panel_hash")
    if begun is None:
        raise InputError(f"{root / 'ingest.json'}: does not say which panel the corpus was begun with; restore it")
    held = _panel_there(root / "panel.tsv")
    if held is None or begun != held.hash:
        if named is not None and named.hash == begun:
            return named  # which is written there again
        raise InputError(f"{root / 'panel.tsv'}: is not the panel with the hash {begun}, with which the corpus was "
                         "begun; restore it, or give a copy of it with --panel=FILE")  # fmt: skip
    if named is not None and named.hash != held.hash:
        raise InputError(f"--panel={file}: {len(named)} genes with the hash {named.hash}; {root} holds sections of "
                         f"{len(held)} genes, hash {held.hash}: leave --panel out, or use another --out")  # fmt: skip
    return held


def _panel_there(place: Place) -> Panel | None:
    """None where it is lost or damaged."""
    try:
        content = place.read()
    except FileNotFoundError:
        return None
    with contextlib.suppress(UnicodeDecodeError, InputError):
        return Panel.from_text(content.decode(), str(place))
    return None


def ingest(source: Ingested, root: Place | Path, say: Callable[[str], None] = print) -> Corpus:
    """Writes every section of `source` into a corpus at `root` and seals it; sections already sealed are kept.

    Every section is read, also one that is there: the account is whole only then, and one that came from other files
    (or of another patient) is refused with `InputError` in place of being taken for this one. Nothing is written
    before the first section could be read. Where it ends in an `InputError`, a corpus that was sealed is sealed again
    with the sections that are whole.
    """
    began, root = time.monotonic(), Place(root)
    was_sealed, before = (root / "corpus.json").exists(), frozenset(known_seals(root))
    try:
        _write_sections(source, root, say, began)
    except InputError:
        if was_sealed and not (root / "corpus.json").exists():
            with contextlib.suppress(InputError):  # the first reason is the one to be told
                _tell_gone(before, seal_corpus(root, source.panel, "real"), say)  # what is whole stays a corpus
        raise
    corpus = seal_corpus(root, source.panel, "real")
    say(source.report.table())
    _tell_gone(before, corpus, say)
    unnamed: tuple[str, ...] = ()
    with contextlib.suppress(InputError):  # a split.tsv that cannot be read is told by 'tario check', and by training
        unnamed = unnamed_patients(corpus)
    if unnamed:
        say(f"note: {root / 'split.tsv'} names no side of {', '.join(unnamed)}: they neither train nor are measured; "
            "add a line of patient, tab and train, validation or held_out, or run 'tario corpus split' again with "
            "--replace")  # fmt: skip
    return corpus


def _tell_gone(before: frozenset[str], corpus: Corpus, say: Callable[[str], None]) -> None:
    """Of sections that the corpus held before, and holds no more."""
    gone = sorted(before - {section.id for section in corpus.sections})
    if gone:
        say(f"note: {corpus.root}: {', '.join(gone)}, which the corpus held, has no whole folder there any more and is "
            "left out; ingest it again if it shall be in")  # fmt: skip


def _write_sections(source: Ingested, root: Place, say: Callable[[str], None], began: float) -> None:
    for number, section in enumerate(source.sections, 1):
        if number == 1:
            seals = sealed_sections(root, known_seals(root))
            patients = described_patients(root, seals)
            name_of = {seal["content"]: name for name, seal in seals.items()}
        section_id = section.section_id
        there = section_is_sealed(root, section_id)
        if not there:  # before anything is touched
            add_patient(patients, root, section_id, section.patient_id, section.cohort, section.patient)
        if number == 1:
            begin_corpus(root, source.panel, "real", {"source": source.report.source})
        if there and not same_as_sealed(root, source.panel, "real", section):
            raise InputError(
                f"{root}: holds a section {section_id!r} of other files, of another patient or read with other "
                f"flags or by another version of tario; use another --out, or delete {root / 'sections' / section_id}"
            )
        if not there:
            (root / "corpus.json").remove()  # a corpus that grows is not sealed meanwhile
            content = write_section(root, source.panel, "real", section)
            twin = name_of.setdefault(content, section_id)
            if twin != section_id:
                remove_section(root, section_id)  # known only now that it is written
                raise InputError(f"{root}: sections {twin!r} and {section_id!r} hold the same data; {section_id!r} is "
                                 "not taken; leave it out, or ingest it into another --out")  # fmt: skip
        state = "is there already" if there else f"written, {time.monotonic() - began:.0f} s"
        say(f"ingest: {number}/{source.number} sections  {section_id}  {state}")


def account(source: Ingested, corpus: Corpus) -> dict:
    """What was kept and dropped, and what came of it, as JSON values."""
    return {
        "corpus": str(corpus.root), "seal": corpus.seal, "kind": corpus.kind, "genes": len(corpus.panel),
        "panel_hash": corpus.panel.hash, "sections": [section.id for section in corpus.sections],
        "report": source.report.to_dict(),
    }  # fmt: skip
