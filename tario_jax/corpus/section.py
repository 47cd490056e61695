"""A section in memory: what every source yields and what the corpus stores.

All places are in µm in the section's own frame: x to the right, y downwards, origin at the top left corner of the
H&E image (or of the measured area where there is no H&E).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import scipy.spatial

from tario_jax.config import InputError

PLAUSIBLE_UM_PER_PX = (0.1, 1.2)
"""Of an H&E: outside of it, a scan is more likely misread than real."""
Registration = Literal["same_section_after", "same_section_before", "adjacent", "none"]
LARGEST_UM = 100_000.0
"""Of a section's side: a slide is 75 mm long, so what is larger is in other units, or has a place that is none."""
COARSER = 1.1
"""Than asked, and still as asked: scanners of "0.25 µm" are of 0.22 to 0.275."""


@dataclasses.dataclass(frozen=True)
class BlockImage:
    """An H&E image that is read block by block and is never in memory as a whole: `image[top:bottom, left:right]`.

    read: uint8 [rows, columns, 3] of two slices, both with start and stop, within the image and not empty.
    """

    height_px: int
    width_px: int
    read: Callable[[slice, slice], np.ndarray]
    dtype = np.dtype(np.uint8)
    ndim = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height_px, self.width_px, 3

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        spans = [span.indices(size) for span, size in zip(part, self.shape[:2], strict=True)]
        rows, columns = (slice(start, max(start, stop)) for start, stop, _ in spans)
        shape = rows.stop - rows.start, columns.stop - columns.start, 3
        if 0 in shape:
            return np.zeros(shape, np.uint8)
        block = self.read(rows, columns)
        if (block.shape, block.dtype) != (shape, self.dtype):
            raise RuntimeError(f"a block of {block.dtype} {block.shape} was read; expected uint8 {shape}")
        return block


@dataclasses.dataclass(frozen=True)
class Detections:
    """Transcripts at sub-micron places; D detections.

    gene_D are positions in the corpus panel. in_nucleus_D and cell_D are optional flags of the vendor.
    """

    x_um_D: np.ndarray  # float32 or float64 [D]
    y_um_D: np.ndarray
    gene_D: np.ndarray  # int32 [D]
    in_nucleus_D: np.ndarray | None = None  # bool [D]
    cell_D: np.ndarray | None = None  # int32 [D], 0 = in no cell

    def __len__(self) -> int:
        return len(self.gene_D)

    def __iter__(self) -> Iterator["Detections"]:
        """As `DetectionBlocks`: one block."""
        yield self

    def map(self, change: Callable[["Detections"], "Detections"]) -> "Detections":
        return change(self)

    def gathered(self) -> "Detections":
        return self


@dataclasses.dataclass(frozen=True)
class DetectionBlocks:
    """Detections that are never all in memory: each iteration reads them anew, block by block, in the file's order.

    `read()` begins such an iteration. All blocks hold the same optional arrays. `map` changes every block when its
    turn comes, and may drop rows; an adapter that renumbers genes is
    `blocks.map(lambda block: dataclasses.replace(block, gene_D=position_G[block.gene_D]))`.
    """

    read: Callable[[], Iterator[Detections]]

    def __iter__(self) -> Iterator[Detections]:
        return self.read()

    def map(self, change: Callable[[Detections], Detections]) -> "DetectionBlocks":
        return DetectionBlocks(lambda: map(change, self.read()))

    def gathered(self) -> Detections:
        """All of them in memory, for sections that are known to be small."""
        blocks = list(self)
        arrays = [[getattr(block, field.name) for block in blocks] for field in dataclasses.fields(Detections)]
        return Detections(*(None if parts[0] is None else np.concatenate(parts) for parts in arrays))


@dataclasses.dataclass(frozen=True)
class PlacedSpots:
    """Where the N spots of a spot platform lie."""

    x_um_N: np.ndarray  # float64 [N], centre
    y_um_N: np.ndarray
    diameter_um: float
    indptr: np.ndarray  # int64 [N + 1], of the entries of `Spots`

    def __len__(self) -> int:
        return len(self.x_um_N)

    @property
    def square_um(self) -> float:
        """Side of the square of a spot's area."""
        return float(np.sqrt(np.pi) * self.diameter_um / 2)

    @functools.cached_property
    def pitch_um(self) -> float:
        """Median distance of a spot to its nearest neighbour; 1 for a spot alone."""
        if len(self) < 2:
            return 1.0
        places = np.stack([self.x_um_N, self.y_um_N], 1)
        distance, _ = scipy.spatial.cKDTree(places).query(places, k=2)
        return float(np.median(distance[:, 1]))


@dataclasses.dataclass(frozen=True)
class Spots(PlacedSpots):
    """Measured spots; counts in CSR by spot (E entries).

    Spot i holds genes gene_E[indptr[i]:indptr[i+1]] (positions in the panel) with counts count_E of the same range.
    """

    gene_E: np.ndarray  # int32 [E]
    count_E: np.ndarray  # int32 [E], > 0
    name_N: tuple[str, ...] = ()
    array_xy_Nx2: np.ndarray | None = None  # int32, array coordinates where the platform has them

    def dense(self, genes: int) -> np.ndarray:
        """Counts as float32 [N, genes]."""
        counts_NxG = np.zeros((len(self), genes), np.float32)
        spot_E = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        np.add.at(counts_NxG, (spot_E, self.gene_E), self.count_E)
        return counts_NxG


def check_section_id(name: str) -> None:
    """A section's name becomes a folder of the corpus. Raises `InputError` for one that would lie elsewhere."""
    if not name.strip(".") or any(letter in "/\\" or letter.isspace() or not letter.isprintable() for letter in name):
        raise InputError(f"section {name!r}: a section's name becomes a folder's; expected letters, digits, '-', '_' "
                         "and '.', and not dots alone")  # fmt: skip


def check_sides(where: str, width_um: float, height_um: float) -> None:
    """Raises `InputError` for a section that spans no area, or more than any slide."""
    if not (0 < width_um <= LARGEST_UM and 0 < height_um <= LARGEST_UM):
        raise InputError(f"{where}: spans {width_um:.6g} × {height_um:.6g} µm; expected an area of at most "
                         f"{LARGEST_UM / 1000:g} mm a side; are places in µm, and is one of them astray?")  # fmt: skip


def check_whose(where: str, patient_id: str, cohort: str) -> None:
    """Raises `InputError` for a patient or a cohort of a name that tables would not hold as it is."""
    for what, name in (("patient", patient_id), ("cohort", cohort)):
        # split.tsv has a patient a line; and 'P1 ' beside 'P1' would be one person on two sides of a split
        if name != name.strip() or not name.isprintable():
            raise InputError(f"{where}: {what} {name!r}; expected a name without spaces around it, and in one line")


@dataclasses.dataclass(frozen=True)
class SectionData:
    """One region of tissue, as a source yields it."""

    section_id: str
    patient_id: str
    cohort: str
    width_um: float
    height_um: float
    he_um_per_px: float | None = None  # of `he`
    he: np.ndarray | BlockImage | None = None  # uint8 [H, W, 3]
    detections: Detections | DetectionBlocks | None = None
    spots: Spots | None = None
    measured: np.ndarray | None = None  # bool [rows, columns] mask of the imaged area; None: all of it
    measured_um_per_px: float = 4.0  # of `measured`
    measured_gene_G: np.ndarray | None = None  # bool [G]; None: the whole panel
    registration: Registration = "none"
    quality: dict[str, float] = dataclasses.field(default_factory=dict)  # control counts, dropped by reason, …
    patient: dict[str, str] = dataclasses.field(default_factory=dict)  # further columns of the patients' table
    truth: dict[str, np.ndarray] | None = None  # of virtual tissue: what its truth is computed from; never trained on

    def __post_init__(self):
        where = f"section {self.section_id!r}"
        check_section_id(self.section_id)
        if not self.patient_id:
            raise InputError(f"{where}: no patient; name one, since patients are the unit of splitting")
        check_whose(where, self.patient_id, self.cohort)
        check_sides(where, self.width_um, self.height_um)
        if (self.he is None) != (self.he_um_per_px is None):
            raise InputError(f"{where}: H&E and its µm per px belong together")
        if self.he is not None and (self.he.dtype != np.uint8 or self.he.ndim != 3 or self.he.shape[2] != 3):
            raise InputError(f"{where}: H&E is {self.he.dtype} {self.he.shape}; expected uint8 [H, W, 3]")
        if self.detections is None and self.spots is None and self.he is None:
            raise InputError(f"{where}: neither H&E nor detections nor spots")
