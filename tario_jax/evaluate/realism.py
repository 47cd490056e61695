"""Virtual tissue beside real tissue: quantiles of stain, nuclei and counts, and where they part.

Real tissue is public excerpts in one folder: breast sections of her2st (H&E and spots), an Aperio slide of skin, and
small windows of a Xenium and of a CosMx run.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import DataConfig, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.resample import box_means
from tario_jax.corpus.section import SectionData
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate import dispersion, histology
from tario_jax.evaluate.bins import grid_counts, grid_places
from tario_jax.evaluate.dispersion import GeneFigures, gene_figures, joined, matched
from tario_jax.evaluate.histology import TILE_UM, TISSUE_SHARE, TileFigures, measure_image
from tario_jax.evaluate.moran import Layout, morans_i, neighbour_weights
from tario_jax.sources.cosmx import read_cosmx
from tario_jax.sources.images import read_ome_tiff
from tario_jax.sources.spots import read_spots
from tario_jax.sources.xenium import read_xenium

QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90)
MOST_SECTIONS, MOST_LARGE = 40, 4
SEED = 3
LARGE_UM = 1600.0  # from this width on, a section holds enough places at the pitch of spots
BIN_UM = 18.0
LEAST_MEASURED = DataConfig.min_measured
PITCH_UM, SPOT_UM = 200.0, 100.0
SPOT_BIN_UM = SPOT_UM * np.sqrt(np.pi) / 2  # a square of the spot's area
LEAST_SPOT_TOTAL = 100
COSMX_UM_PER_PX = 0.18  # of the first public lung data (He et al. 2022); its files state none

HER2ST, APERIO, COSMX, XENIUM = "HER2ST", "Aperio", "CosMx", "Xenium"
FOLDERS = {HER2ST: "her2st", APERIO: "slides", COSMX: "cosmx_lung12", XENIUM: "xenium_excerpt"}
DIFFERS = {
    HER2ST: "images of fresh-frozen breast, two patients, in strong JPEG compression: thick and dark sections, whose "
    "haematoxylin is bluer than scikit-image's vector and leaves little for eosin",
    APERIO: "one slide of skin in paraffin, with keratin and ink; it weighs as much in `real` as all of her2st",
}
COUNTS_DIFFER = {
    COSMX: "a corner of two fields of view of lung, genes chosen for a panel",
    XENIUM: "a window of one run, genes chosen for a panel",
    HER2ST: "captured and sequenced: depth varies from spot to spot",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure: its quantiles (QUANTILES) on virtual and on real tissue, over tiles or over genes."""

    subject: str  # "stain and nuclei", or the assay that counts are compared with
    figure: str
    unit: str
    virtual: tuple[float, ...]
    real: tuple[float, ...]
    number: tuple[int, int]  # of virtual and real tiles or genes
    parts: dict[str, tuple[float, ...]]  # quantiles of each real source, where there are several
    judged: bool  # a virtual median outside is a fault

    @property
    def inside(self) -> bool:
        """Whether the virtual median lies within 10 and 90 % of real tissue, and of one of its sources: between two
        sources that lie apart there is no tissue."""
        found = self.real, *self.parts.values()
        lies = [values[0] <= self.virtual[2] <= values[-1] for values in found]
        return lies[0] and (len(lies) == 1 or any(lies[1:]))


@dataclasses.dataclass(frozen=True)
class Realism:
    """Every figure of a virtual corpus beside real tissue, and how the assays differ."""

    corpus: str
    sections: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def outside(self) -> tuple[Row, ...]:
        """The figures of stain and nuclei whose virtual median no real tissue would show."""
        return tuple(row for row in self.rows if row.judged and not row.inside)

    def table(self) -> str:
        heads = "".join(f"{f'{q:.0%}':>9}" for q in QUANTILES)
        lines = [f"realism of {self.corpus}: {len(self.sections)} sections beside real tissue"]
        subject = ""
        for row in self.rows:
            if row.subject != subject:
                subject = row.subject
                over = "tiles" if row.judged else "genes"
                lines += ["", f"{subject:<34}{'of':<10}{over:>8}{heads}"]
            title = f"{row.figure}, {row.unit}" if row.unit else row.figure
            # counts depend on the assay: there it is said, here it is a fault
            verdict = "inside" if row.inside else "OUTSIDE" if row.judged else "outside"
            lines.append(f"{title:<34}{'virtual':<10}{row.number[0]:>8,}{_cells(row.virtual)}  {verdict}")
            lines.append(f"{'':<34}{'real':<10}{row.number[1]:>8,}{_cells(row.real)}")
            lines += [f"{'':<34}{'  ' + name:<18}{_cells(values)}" for name, values in row.parts.items()]
        judged = [row for row in self.rows if row.judged]
        lines += ["", *(f"note: {note}" for note in self.notes)]
        lines.append(f"virtual median within the real 10-90 %, of all and of one source: "
                     f"{len(judged) - len(self.outside)} of {len(judged)} figures of stain and nuclei")  # fmt: skip
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        rows = [dataclasses.asdict(row) | {"inside": row.inside} for row in self.rows]
        return {
            "corpus": self.corpus, "sections": list(self.sections), "quantiles": list(QUANTILES),
            "judged": sum(row.judged for row in self.rows), "judged_outside": len(self.outside),
            "outside": [row.figure for row in self.outside], "rows": rows, "notes": list(self.notes),
            "table": self.table(),
        }  # fmt: skip


def _cells(values: tuple[float, ...]) -> str:
    return "".join(f"{f'{v:,.0f}' if abs(v) >= 100 else f'{v:.1f}' if abs(v) >= 10 else f'{v:.3f}':>9}" for v in values)


def measure_realism(corpus: Corpus, real: Path, say: Callable[[str], None] = print) -> Realism:
    """Measures up to 40 sections of a virtual corpus, a fixed choice, and everything in the folder of real tissue.

    Sections of at least 1.6 mm are compared with spots, at the pitch of spots, and the others with everything else;
    without large ones, spots are compared with adjacent bins. Raises `InputError` for a corpus of real tissue, for
    sections smaller than a tile of 200 µm, and where real tissue is missing.
    """
    if corpus.kind != "virtual":
        raise InputError(f"corpus {corpus.root}: realism is asked of virtual tissue; this is {corpus.kind} tissue")
    for folder in FOLDERS.values():
        if not (real / folder).is_dir():
            raise InputError(f"real tissue {real}: has no folder {folder}; expected {', '.join(FOLDERS.values())}")
    sections, large = choose_sections(corpus)
    known = _read_real(real, say)
    tiles: list[TileFigures] = []
    counted: dict[str, list[Counted]] = {name: [] for name in known.counted}
    for number, section in enumerate(sections, 1):
        tiles.append(measure_image(section.he(), section.he_um_per_px, section.id))
        counts = _square_counts(section, len(corpus.panel), BIN_UM, BIN_UM)
        for name, shape in known.window_shape.items():
            counted[name] += [_count(block, BIN_UM, "square") for block in _blocks(counts, shape)]
        if not large:
            grid = _square_counts(section, len(corpus.panel), SPOT_BIN_UM, SPOT_BIN_UM)
            counted[HER2ST].append(_count(grid, SPOT_BIN_UM, "spots"))
        if number % 4 == 0 or number == len(sections):
            say(f"realism: {number}/{len(sections)} virtual sections")
    for section in large:
        grid = _square_counts(section, len(corpus.panel), PITCH_UM, SPOT_BIN_UM)
        counted[HER2ST].append(_count(grid, PITCH_UM, "spots"))
    if not sum(map(len, tiles)):
        raise InputError(f"corpus {corpus.root}: no tile of {TILE_UM:.0f} µm is {TISSUE_SHARE:.0%} tissue")
    rows = _tile_rows(tiles, known.tiles)
    for name, parts in counted.items():
        rows += _count_rows(name, parts, known.counted[name], corpus)
    notes = [f"{name}: {DIFFERS[name]}" for name in (HER2ST, APERIO)]
    notes += [_note(name, counted[name], known.counted[name]) for name in counted]
    notes.append(_spots_note(large))
    notes += [f"{row.subject}, {row.figure}: the virtual median is {_cells(row.virtual[2:3]).strip()}, the real one "
              f"{_cells(row.real[2:3]).strip()}" for row in rows if not row.inside]  # fmt: skip
    return Realism(str(corpus.root), tuple(s.id for s in (*sections, *large)), tuple(rows), tuple(notes))


def choose_sections(corpus: Corpus) -> tuple[list[Section], list[Section]]:
    """(sections, large sections) of a corpus that are measured: the same for the same corpus, in its order."""
    rng = np.random.Generator(np.random.Philox(SEED))
    chosen = []
    large_S = np.array([min(s.width_um, s.height_um) >= LARGE_UM for s in corpus.sections])
    for wanted, most in ((~large_S, MOST_SECTIONS), (large_S, MOST_LARGE)):
        numbers = np.flatnonzero(wanted)
        if len(numbers) > most:
            numbers = np.sort(rng.choice(numbers, most, replace=False))
        chosen.append([corpus.sections[number] for number in numbers])
    return (chosen[0] or chosen[1]), chosen[1]


@dataclasses.dataclass(frozen=True)
class Counted:
    """Genes of one section or window, with how much was seen there."""

    genes: GeneFigures
    panel: int
    bins: int
    typical_total: float  # median of detections (or counts) a bin
    total_moran: float  # Moran's I of the totals


@dataclasses.dataclass(frozen=True)
class _Real:
    tiles: dict[str, list[TileFigures]]  # by source
    counted: dict[str, list[Counted]]  # by assay
    window_shape: dict[str, tuple[int, int]]  # columns and rows of bins, of the assays in square bins


def _read_real(real: Path, say: Callable[[str], None]) -> _Real:
    tiles: dict[str, list[TileFigures]] = {HER2ST: [], APERIO: []}
    counted: dict[str, list[Counted]] = {COSMX: [], XENIUM: [], HER2ST: []}
    shape: dict[str, tuple[int, int]] = {}
    folder = real / FOLDERS[HER2ST]
    letters = sorted({path.name[0] for path in folder.glob("*_selection.tsv")})
    her2st = read_spots(folder, patients=tuple((letter, "BRCA") for letter in letters), min_spot_total=LEAST_SPOT_TOTAL)
    for data in her2st.sections:
        say(f"realism: {HER2ST} {data.section_id}")
        tiles[HER2ST].append(measure_image(data.he, data.he_um_per_px, data.section_id))
        spots = data.spots
        weights = neighbour_weights(spots.x_um_N, spots.y_um_N, spots.pitch_um, "spots")
        counted[HER2ST].append(_counted(spots.dense(len(her2st.panel)), weights))
    slides = sorted((real / FOLDERS[APERIO]).glob("*.svs"))
    if not slides:
        raise InputError(f"real tissue {real / FOLDERS[APERIO]}: no Aperio slide; expected *.svs")
    for path in slides:
        say(f"realism: {APERIO} {path.name}")
        tiles[APERIO].append(measure_image(*read_aperio(path), path.name))
    whose = {"patient_id": "real", "cohort": "real"}
    for name, read in (
        (COSMX, read_cosmx(real / FOLDERS[COSMX], um_per_px=COSMX_UM_PER_PX, **whose)),
        (XENIUM, read_xenium(real / FOLDERS[XENIUM], **whose)),
    ):
        say(f"realism: {name}")
        for data in read.sections:
            window, shape[name] = _window(data, len(read.panel))
            counted[name].append(window)
    return _Real(tiles, counted, shape)


def read_aperio(path: Path) -> tuple[np.ndarray, float]:
    """An Aperio slide's finest level, uint8 [H, W, 3], and its µm per px, which its description states as MPP."""
    pixels = read_ome_tiff(path)[0]
    import tifffile  # of the extra `io`; read_ome_tiff says so where it is missing

    with tifffile.TiffFile(path) as file:
        stated = re.search(r"\bMPP = ([0-9.]+)", file.pages[0].description)
    if stated is None:
        raise InputError(f"{path}: states no 'MPP = …' in its description; expected an Aperio slide")
    return pixels, float(stated[1])


def _window(data: SectionData, genes: int) -> tuple[Counted, tuple[int, int]]:
    """A real window in bins of 18 µm that are at least 90 % measured, and its (columns, rows)."""
    columns, rows = (int(np.ceil(side_um / BIN_UM)) for side_um in (data.width_um, data.height_um))
    counts_NxG = grid_counts(data.detections.gathered(), genes, columns, rows, BIN_UM, BIN_UM)
    x_um_N, y_um_N = grid_places(columns, rows, BIN_UM)
    mask = np.ones((rows, columns)) if data.measured is None else data.measured.astype(np.float32)
    mask_um = BIN_UM if data.measured is None else data.measured_um_per_px
    inside_N = np.minimum(data.width_um - x_um_N, data.height_um - y_um_N) >= (LEAST_MEASURED - 0.5) * BIN_UM
    kept_N = inside_N & (box_means(mask, mask_um, x_um_N, y_um_N, BIN_UM) >= LEAST_MEASURED)
    weights = neighbour_weights(x_um_N[kept_N], y_um_N[kept_N], BIN_UM, "square")
    kept_RxC = kept_N.reshape(rows, columns)
    shape = int(kept_RxC.any(0).sum()), int(kept_RxC.any(1).sum())
    return _counted(counts_NxG[kept_N], weights), shape


def _counted(counts_NxG: np.ndarray, weights) -> Counted:
    total_N = counts_NxG.sum(1, dtype=np.float64)
    return Counted(gene_figures(counts_NxG, weights), counts_NxG.shape[1], len(counts_NxG), float(np.median(total_N)),
                   float(morans_i(total_N[:, None], weights)[0]))  # fmt: skip


def _square_counts(section: Section, genes: int, pitch_um: float, side_um: float) -> np.ndarray:
    """Counts of a virtual section on a grid of at most 28 × 28 squares, float32 [rows, columns, G]."""
    columns, rows = (min(int(size_um / pitch_um + 1e-6), 28) for size_um in (section.width_um, section.height_um))
    found = section.detections(0.0, 0.0, columns * pitch_um, rows * pitch_um)
    return grid_counts(found, genes, columns, rows, pitch_um, side_um).reshape(rows, columns, genes)


def _blocks(counts_RxCxG: np.ndarray, shape: tuple[int, int]) -> list[np.ndarray]:
    """The grid cut into blocks of (columns, rows), so that virtual tissue is seen through the real window."""
    columns, rows = min(shape[0], counts_RxCxG.shape[1]), min(shape[1], counts_RxCxG.shape[0])
    return [
        counts_RxCxG[row : row + rows, column : column + columns]
        for row in range(0, counts_RxCxG.shape[0] - rows + 1, rows)
        for column in range(0, counts_RxCxG.shape[1] - columns + 1, columns)
    ]


def _count(counts_RxCxG: np.ndarray, pitch_um: float, layout: Layout) -> Counted:
    rows, columns, genes = counts_RxCxG.shape
    weights = neighbour_weights(*grid_places(columns, rows, pitch_um), pitch_um, layout)
    return _counted(counts_RxCxG.reshape(rows * columns, genes), weights)


def quantiles(values_K: np.ndarray, weights_K: np.ndarray) -> tuple[float, ...]:
    """QUANTILES of weighted values; NaN and values without weight are left out."""
    kept_K = np.isfinite(values_K) & (weights_K > 0)
    if not kept_K.any():
        return (float("nan"),) * len(QUANTILES)
    found = np.quantile(values_K[kept_K], QUANTILES, weights=weights_K[kept_K], method="inverted_cdf")
    return tuple(float(value) for value in found)


def _tile_rows(virtual: list[TileFigures], real: dict[str, list[TileFigures]]) -> list[Row]:
    """Stain and nuclei. Each real source weighs the same, however many tiles it has."""
    virtual_TxF = np.concatenate([image.values_TxF for image in virtual])
    source = {name: np.concatenate([image.values_TxF for image in images]) for name, images in real.items()}
    real_TxF = np.concatenate(list(source.values()))
    weights_T = np.concatenate([np.full(len(values), 1 / max(len(values), 1)) for values in source.values()])
    rows = []
    for column, (figure, unit) in enumerate(histology.FIGURES.items()):
        parts = {name: quantiles(values[:, column], np.ones(len(values))) for name, values in source.items()}
        rows.append(Row(
            "stain and nuclei", figure, unit, quantiles(virtual_TxF[:, column], np.ones(len(virtual_TxF))),
            quantiles(real_TxF[:, column], weights_T), (len(virtual_TxF), len(real_TxF)), parts, judged=True,
        ))  # fmt: skip
    return rows


def _count_rows(name: str, virtual: list[Counted], real: list[Counted], corpus: Corpus) -> list[Row]:
    """Counts, over genes of the same mean count."""
    virtual_genes, real_genes = (joined([one.genes for one in some]) for some in (virtual, real))
    weights_V, matched_R = matched(virtual_genes, real_genes)
    if not matched_R.any():
        raise InputError(f"corpus {corpus.root}: no gene has as many counts a bin as those of {name}; "
                         "expected deeper or larger virtual sections")  # fmt: skip
    number = int((weights_V > 0).sum()), int(matched_R.sum())
    return [
        Row(f"counts beside {name}", figure, "", quantiles(virtual_genes.values_Kx3[:, column], weights_V),
            quantiles(real_genes.values_Kx3[:, column], matched_R.astype(np.float64)), number, {}, judged=False)
        for column, figure in enumerate(dispersion.FIGURES)
    ]  # fmt: skip


def _note(name: str, virtual: list[Counted], real: list[Counted]) -> str:
    what = f"spots of {SPOT_UM:g} µm" if name == HER2ST else f"bins of {BIN_UM:g} µm"

    def said(counted: list[Counted]) -> str:
        bins = sorted({one.bins for one in counted})
        number = f"{bins[0]}" if len(bins) == 1 else f"{bins[0]} to {bins[-1]}"
        typical = np.median([one.typical_total for one in counted])
        moran = np.nanmedian([one.total_moran for one in counted])
        return (f"{counted[0].panel:,} genes, {typical:,.0f} counts in a typical one, {number} in a field, Moran's I "
                f"of totals {moran:.2f}")  # fmt: skip

    return f"{name}, {what}: {said(real)}; virtual: {said(virtual)}; {COUNTS_DIFFER[name]}"


def _spots_note(large: list[Section]) -> str:
    real = "real sections are 4 to 5 mm wide and go from fat to tumour, which raises Moran's I"
    if large:
        return f"spots: virtual squares of a spot's area, at the spots' pitch, in {len(large)} large sections; {real}"
    return (f"spots: virtual squares of a spot's area side by side, since no section is {LARGE_UM / 1000:g} mm wide: "
            f"neighbours are half as far; {real}")  # fmt: skip
