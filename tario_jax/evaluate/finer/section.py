"""One virtual section read at 36, 18 and 9 µm and cell by cell: correlations of every gene with counts and with truth.

Places are the bins of each side; cells of known outlines (`cells`: the nuclei as they are in the frame of the
detections, as a vendor's segmentation of the same section would give them); and cells whose nuclei were found in the
H&E (`nuclei`). Each cell is its nucleus grown by 3 µm. Its truth is what is expected of the cell itself, its counts are
what was detected in its area.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tario_jax.config import EvaluateConfig
from tario_jax.corpus.section import Detections
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.bins import BINS_UM, grid_counts, grid_places, whole_bins
from tario_jax.evaluate.finer.nucleus_match import NucleusScore, match_places
from tario_jax.evaluate.metrics import FORMS, correlations
from tario_jax.evaluate.section_bins import least_total
from tario_jax.predict.cell_areas import cell_counts, cell_tiles, cells_at
from tario_jax.predict.cells import GROW_UM, areas_of, rates_from_bins
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.nuclei import find_nuclei
from tario_jax.predict.outlines import Outlines
from tario_jax.predict.predictor import Predictor
from tario_jax.virtual.cell_truth import cell_truth_rates, he_shift_um, nucleus_rings, stored_cells
from tario_jax.virtual.section import truth_rates


class Read(NamedTuple):
    """What was measured at the places of one kind, what is true there, and what each reader says; N places, G genes."""

    place: str
    size_um: float  # side of the square of the mean area
    counts_NxG: np.ndarray
    true_NxG: np.ndarray
    reachable_NxG: np.ndarray
    by_reader: dict[str, np.ndarray]  # rates, [N, G]; `density` [N, 1]


class _Subject(NamedTuple):
    """A section, what was detected in it, its maps by the side of the bins in µm, and positions of the genes, [G]."""

    section: Section
    found: Detections
    maps: dict[float, GeneMaps]
    in_model: np.ndarray
    in_corpus: np.ndarray


def measure_section(predictor: Predictor, section: Section, in_model: np.ndarray, in_corpus: np.ndarray,
                    config: EvaluateConfig) -> dict[str, np.ndarray]:  # fmt: skip
    """r of every gene as `place/reader/target/form` → float32 [G], and `nuclei` → (found, true, matched).

    in_model, in_corpus: positions of the genes in both panels. Targets: `counts` and `truth`. Readers: `model`;
    `bins` and `queries`, its two ways to read a cell; `density`, its own total for every gene; `coarse`, its rates at
    36 µm spread evenly; `reachable`, V; `measured`, the counts against the truth.
    """
    found = section.all_detections()
    maps = {bin_um: predictor.predict_section(section, tissue="virtual", bin_um=bin_um, overlap=config.overlap)
            for bin_um in BINS_UM}  # fmt: skip
    of, scores = _Subject(section, found, maps, in_model, in_corpus), {}
    for read in _bins(of):
        scores |= _correlations(read, config.min_total)
    nuclei = find_nuclei(section)
    cells = stored_cells(section.truth)
    drawn_um_Nx2 = np.stack([cells.x_um_N, cells.y_um_N], 1) + he_shift_um(section.truth)
    nucleus_N = match_places(nuclei.centre_um_Nx2, drawn_um_Nx2)
    score = NucleusScore.of(nucleus_N, len(cells))
    known = Outlines.of(nucleus_rings(cells))
    truth = tuple(rates[:, in_corpus] for rates in cell_truth_rates(section.truth))
    for place, outlines, cell_N in (("cells", known, np.arange(len(cells))), ("nuclei", nuclei, nucleus_N)):
        read = _cells(place, predictor, of, outlines, cell_N, truth, config.overlap)
        scores |= _correlations(read, config.min_total)
    return scores | {"nuclei": np.array([score.found, score.true, score.matched])}


def _bins(of: _Subject) -> Iterator[Read]:
    section, found, maps, in_model, in_corpus = of
    coarsest = maps[BINS_UM[0]]
    for bin_um in BINS_UM:
        columns, rows = whole_bins(section, bin_um)
        counts_NxG = grid_counts(found, len(section.measured_gene_G), columns, rows, bin_um)[:, in_corpus]
        x_um_N, y_um_N = grid_places(columns, rows, bin_um)
        true, reachable = (rates.reshape(columns * rows, -1)[:, in_corpus]
                           for rates in truth_rates(section.truth, bin_um))  # fmt: skip
        by_reader = {"model": _at(maps[bin_um], x_um_N, y_um_N)[:, in_model]}
        by_reader["density"] = _at(maps[bin_um], x_um_N, y_um_N).sum(1, keepdims=True)
        if bin_um < coarsest.size_um:
            share = (bin_um / coarsest.size_um) ** 2
            by_reader["coarse"] = share * _at(coarsest, x_um_N, y_um_N)[:, in_model]
        yield Read(f"{bin_um:g}", bin_um, counts_NxG, true, reachable, by_reader)


def _cells(place: str, predictor: Predictor, of: _Subject, outlines: Outlines, cell_N: np.ndarray,
           truth: tuple[np.ndarray, np.ndarray], overlap: float) -> Read:  # fmt: skip
    """cell_N: the true cell that each of N outlines is, or −1: then it is predicted and measured, and not scored.
    truth: what is expected of each true cell and what can be reached of that, [cells, G] each."""
    section, found, maps, in_model, in_corpus = of
    areas = {bin_um: areas_of(outlines, section, GROW_UM, bin_um) for bin_um in (BINS_UM[0], BINS_UM[-1])}
    area_um2_N = areas[BINS_UM[-1]].area_um2_N
    held = cells_at(cell_tiles(outlines, section.width_um, section.height_um, GROW_UM), found.x_um_D, found.y_um_D)
    counts_NxG = cell_counts(held, found.gene_D, len(outlines), len(section.measured_gene_G))[:, in_corpus]
    kept = np.flatnonzero((cell_N >= 0) & (area_um2_N > 0))
    x_um_N, y_um_N = outlines.centre_um_Nx2[kept].T
    queries_NxG, size_um = np.zeros((0, len(predictor.panel)), np.float32), 0.0
    if len(kept):  # where no nucleus is that of a cell, nothing is asked, and r is not defined
        queries_NxG = predictor.predict_squares(section, x_um_N, y_um_N, np.sqrt(area_um2_N[kept]), tissue="virtual",
                                                overlap=overlap)  # fmt: skip
        size_um = float(np.sqrt(area_um2_N[kept].mean()))
    bins_NxG, coarse_NxG = (rates_from_bins(areas[bin_um], maps[bin_um])[kept] for bin_um in (BINS_UM[-1], BINS_UM[0]))
    by_reader = {"queries": queries_NxG[:, in_model], "bins": bins_NxG[:, in_model], "coarse": coarse_NxG[:, in_model],
            "density": queries_NxG.sum(1, keepdims=True)}  # fmt: skip
    true_NxG, reachable_NxG = (rates[cell_N[kept]] for rates in truth)
    return Read(place, size_um, counts_NxG[kept], true_NxG, reachable_NxG, by_reader)


def _at(maps: GeneMaps, x_um_N: np.ndarray, y_um_N: np.ndarray) -> np.ndarray:
    """Rates of the bins that hold these places; beyond the last bin, of that one."""
    column_B, row_B = (np.floor(place / maps.size_um).astype(int) for place in (maps.x_um_N, maps.y_um_N))
    number_YxX = np.full((row_B.max() + 1, column_B.max() + 1), -1)
    number_YxX[row_B, column_B] = np.arange(len(row_B))
    column_N = np.minimum((x_um_N / maps.size_um).astype(int), number_YxX.shape[1] - 1)
    row_N = np.minimum((y_um_N / maps.size_um).astype(int), number_YxX.shape[0] - 1)
    return maps.rates_NxG[number_YxX[row_N, column_N]]


def _correlations(read: Read, min_total: int) -> dict[str, np.ndarray]:
    """r of each reader with the counts and with the truth, in both forms; `density` has no composition of its own."""
    total_N = read.counts_NxG.sum(1, dtype=np.float64)
    enough_N = total_N >= least_total(min_total, read.size_um, "square")
    targets = {"counts": (read.counts_NxG, total_N), "truth": (read.true_NxG, read.true_NxG.sum(1, dtype=np.float64))}
    r = {}
    for reader, rates_NxG in (read.by_reader | {"reachable": read.reachable_NxG, "measured": read.counts_NxG}).items():
        rates_total_N = rates_NxG.sum(1, dtype=np.float64)
        for target, (values_NxG, values_total_N) in targets.items():
            if (reader, target) == ("measured", "counts"):
                continue
            by_form = correlations(values_NxG, values_total_N, np.broadcast_to(rates_NxG, values_NxG.shape),
                                   rates_total_N, enough_N, of_rates=target == "truth")  # fmt: skip
            for form, r_G in zip(FORMS, by_form, strict=True):
                none = (reader, form) == ("density", "composition")
                known_G = np.where(np.isnan(r_G), r_G, 0.0) if none else r_G
                r[f"{read.place}/{reader}/{target}/{form}"] = known_G.astype(np.float32)
    return r
