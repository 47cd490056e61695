"""Sections of a corpus to embeddings: predicted from their H&E alone, and measured where they were."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.kept import by_turns
from tario_jax.evaluate.patients.looks import look_of, no_look
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.stored_bins import StoredBins
from tario_jax.evaluate.patients.vectors import (
    MEASURED,
    PREDICTED,
    WHOLE,
    Embedded,
    Who,
    of_counts,
    of_rates,
    without_tissue,
)
from tario_jax.model.model import Tario
from tario_jax.predict.cover import Cover
from tario_jax.predict.predictor import Predictor, diverged
from tario_jax.tokens.batch import Batch

_AT_ONCE = 16  # sections of a file
_OTHER = "give another --out for"


def embed_corpus(
    predictor: Predictor, corpus: Corpus, out: Path, *, overlap: float, bin_um: float | None = None,
    region_um: float | None = None, sections: Sequence[str] = (), measured: bool = False,
    part: tuple[int, int] = (1, 1), say: Callable[[str], None] = print,
) -> EmbeddingStore:  # fmt: skip
    """Adds all sections of a corpus, or those that are named, that are not there yet.

    region_um: side of the squares of a section that have rows of their own too; measured: also what was detected; part:
    (k, n) for the k-th of n processes. Raises `InputError` for sections that are unknown, or have nothing to embed,
    and for what the model may not predict.
    """
    predictor.refuse_tissue(str(corpus.root), corpus.kind)
    if not 0 <= overlap < 1:
        raise InputError(f"overlap of windows is {overlap:g}; expected 0 <= overlap < 1")
    chosen = [corpus.section(name) for name in sections] or list(corpus.sections)
    work = [(section, kind) for section in chosen for kind in (PREDICTED, *((MEASURED,) if measured else ()))
            if (section.holds("he") if kind == PREDICTED else section.has_counts)]  # fmt: skip
    useless = {section.id for section in chosen}.difference(section.id for section, _ in work)
    what = "no H&E, and nothing was measured" if measured else "no H&E; what was measured is embedded by --measured"
    if not work:
        raise InputError(f"{corpus.root}: its sections have {what}")
    if sections and useless:
        raise InputError(f"{min(useless)}: has {what}; leave it out")
    about = {"checkpoint": predictor.checkpoint, "model": predictor.provenance.config.name, "overlap": overlap,
             "trained_on": predictor.trained_on, "bin_um": bin_um or predictor.provenance.bin_um,
             "region_um": region_um, "tissue": corpus.kind}  # fmt: skip
    store = EmbeddingStore.begun(out, predictor.panel, about)
    held = store.held()
    refuse_others(store, held, work, corpus, _OTHER)
    _refuse_other_genes(predictor, corpus, store, [section for section, kind in work if kind == MEASURED])
    left = by_turns([one for one in work if (one[0].id, one[1]) not in held], part)
    say(f"embed: {len(left)} of {len(work)} sections are not there yet")
    empty = 0
    for first in range(0, len(left), _AT_ONCE):
        held, rows = store.held(), []  # other processes may have done some meanwhile
        refuse_others(store, held, left[first : first + _AT_ONCE], corpus, _OTHER)
        some = [one for one in left[first : first + _AT_ONCE] if (one[0].id, one[1]) not in held]
        rows += _predicted(predictor, corpus, [section for section, kind in some if kind == PREDICTED], bin_um, overlap,
                           region_um, store.folder)  # fmt: skip
        for section, kind in some:
            if kind == MEASURED:
                rows += _measured(predictor, corpus, section, region_um)
                section.close()
        told = {(row.section, row.kind) for row in rows}
        nothing = [without_tissue(_who(predictor, section), kind, len(predictor.panel), _width(predictor))
                   for section, kind in some if (section.id, kind) not in told]  # fmt: skip
        empty += len(nothing)
        store.add(rows + nothing)
        say(f"embed: {min(first + _AT_ONCE, len(left))}/{len(left)}")
    if empty:
        say(f"embed: {empty} of them hold no tissue, or nothing was detected there")
    return store


def refuse_others(store: EmbeddingStore, held: dict[tuple[str, str], str], work: list[tuple[Section, str]],
                  corpus: Corpus, fix: str) -> None:  # fmt: skip
    """Raises `InputError` for a section that is not the one of that name which the store holds."""
    for section, kind in work:
        if held.get((section.id, kind), _seal(section)) != _seal(section):
            raise InputError(f"{store.folder}: holds another section called {section.id!r}, of another corpus or as it "
                             f"was before it was ingested again; {fix} {corpus.root}")  # fmt: skip


def _refuse_other_genes(predictor: Predictor, corpus: Corpus, store: EmbeddingStore,
                        sections: list[Section]) -> None:  # fmt: skip
    """Measured expression is shares of all that was measured: shares of other genes are not to be compared."""
    if not sections:
        return
    before, known = _first_measured(store), [(one.id, _known_genes(predictor, corpus, one)) for one in sections]
    first, first_G = known[0] if before is None else (before.section, np.isfinite(before.expression_G))
    for name, known_G in known:
        if (known_G != first_G).any():
            raise InputError(f"{name}: measured {known_G.sum()} genes of the model's panel, and {first} "
                             f"{first_G.sum()}, not the same ones: their shares do not compare; embed sections of each "
                             "panel (--sections) into an --out of its own")  # fmt: skip


def _first_measured(store: EmbeddingStore) -> Embedded | None:
    for part in store.parts():
        if rows := store.rows(MEASURED, parts=(part,), vectors=("expression",)):
            return rows[0]
    return None


def _known_genes(predictor: Predictor, corpus: Corpus, section: Section) -> np.ndarray:
    """Genes of the model's panel that a section measured, bool [G]."""
    in_corpus_G = corpus.panel.positions(predictor.panel.symbols)
    return (in_corpus_G >= 0) & section.measured_gene_G[in_corpus_G]


def _who(predictor: Predictor, section: Section) -> Who:
    seen = section.patient in predictor.provenance.seen_patients
    return Who(section.patient, section.cohort, section.id, _seal(section), seen)


def _width(predictor: Predictor) -> int:
    """r"""
    return predictor.provenance.config.model.gene_dim


def _seal(section: Section) -> str:
    return section.seal_sha256[:16]


@dataclasses.dataclass
class _Open:
    """A section whose windows are on their way."""

    section: Section
    cover: Cover
    bins: StoredBins
    left: int  # windows


def _predicted(predictor: Predictor, corpus: Corpus, sections: Sequence[Section], bin_um: float | None, overlap: float,
               region_um: float | None, folder: Path) -> Iterator[Embedded]:  # fmt: skip
    """Batches are filled across sections: a small one has fewer windows than a batch has rows. folder: where what is
    predicted of a section waits."""
    waiting: list[tuple[_Open, int]] = []
    with contextlib.ExitStack() as opened:
        for section in sections:
            cover = predictor.cover(section, tissue=corpus.kind, bin_um=None if section.has_spots else bin_um,
                                    overlap=overlap, turned=True)  # fmt: skip
            if waiting and waiting[0][0].cover.layout != cover.layout:  # as spots beside bins
                yield from _told(predictor, waiting, region_um)
                waiting = []
            bins = opened.enter_context(StoredBins(cover, len(predictor.panel), _width(predictor), folder))
            one = _Open(section, cover, bins, len(cover.corners))
            waiting += [(one, number) for number in range(len(cover.corners))]
            while len(waiting) >= predictor.rows:
                yield from _told(predictor, waiting[: predictor.rows], region_um)
                del waiting[: predictor.rows]
        if waiting:
            yield from _told(predictor, waiting, region_um)


def _told(predictor: Predictor, windows: list[tuple[_Open, int]], region_um: float | None) -> Iterator[Embedded]:
    """Adds a batch of windows to their sections; rows of those that are complete."""
    batch = windows[0][0].cover.batch([one.cover.read(number) for one, number in windows], predictor.rows)
    rates_BxQxG, state_BxQxr = jax.device_get(predictor.call_on(rates_and_states, batch))
    for row, (one, number) in enumerate(windows):
        placed = one.cover.placed(batch, row, number)
        if not np.isfinite(rates_BxQxG[row, placed.slot_n, : len(predictor.panel)]).all():
            raise diverged(one.section.id)
        one.bins.add(number, placed, rates_BxQxG[row], state_BxQxr[row])
        one.left -= 1
        if not one.left:
            yield from _rows(predictor, one, region_um)


def _rows(predictor: Predictor, one: _Open, region_um: float | None) -> Iterator[Embedded]:
    places = one.cover.places
    with one.bins as bins:
        for region, some_N in _regions(places.x_um_N, places.y_um_N, region_um):
            look = look_of(one.section) if region == WHOLE else no_look()
            found = of_rates(_who(predictor, one.section), region, lambda some, of=some_N: bins.rows(of[some]),
                             bins.total_N[some_N], look)  # fmt: skip
            if found is not None:
                yield found


def rates_and_states(model: Tario, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Expected detections [B, Q, G], and what the decoder hands to the gene table [B, Q, r]; a window a row."""
    predicted = model(batch)
    window_BxQ = jnp.zeros(predicted.log_total_BxQ.shape, jnp.int32)
    return model.rates_of(predicted, batch.measured_gene_BxWxG, window_BxQ), predicted.gene_BxQxr.astype(jnp.float32)


def _measured(predictor: Predictor, corpus: Corpus, section: Section,
              region_um: float | None) -> Iterator[Embedded]:  # fmt: skip
    """Detections, or counts of spots, of the genes of the model's panel."""
    if section.has_spots:
        spots = section.spots
        of_spot = np.repeat(np.arange(len(spots.x_um_N)), np.diff(spots.indptr))
        x_um, y_um, gene, count = spots.x_um_N[of_spot], spots.y_um_N[of_spot], spots.gene_E, spots.count_E
    else:
        found = section.all_detections()
        x_um, y_um, gene, count = found.x_um_D, found.y_um_D, found.gene_D, np.ones(len(found.gene_D))
    genes = len(predictor.panel)
    position_of = np.array([predictor.panel.index.get(symbol, -1) for symbol in corpus.panel.symbols])
    known_G = _known_genes(predictor, corpus, section)
    position = position_of[gene]
    ours = position >= 0
    position, count, x_um, y_um = position[ours], count[ours], x_um[ours], y_um[ours]
    for region, some in _regions(x_um, y_um, region_um):
        count_G = np.bincount(position[some], weights=count[some], minlength=genes)
        if (row := of_counts(_who(predictor, section), region, count_G, known_G, _width(predictor))) is not None:
            yield row


def _regions(x_um: np.ndarray, y_um: np.ndarray, side_um: float | None) -> Iterator[tuple[str, np.ndarray]]:
    """All places as one, then those of each square, which is named by its corner in µm."""
    yield WHOLE, np.arange(len(x_um))
    if side_um is None:
        return
    column, row = (np.floor(at / side_um).astype(int) for at in (x_um, y_um))
    for r, c in np.unique(np.stack([row, column], 1), axis=0):
        yield f"{c * side_um:g},{r * side_um:g}", np.flatnonzero((row == r) & (column == c))
