"""A section as evaluation sees it: its bins or spots, what was measured there, and what is predicted."""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.sparse

from tario_jax.evaluate.moments import Rows
from tario_jax.evaluate.moran import Layout

MIN_TOTAL_BIN_UM = 36.0


def least_total(min_total: int, pitch_um: float, layout: Layout) -> int:
    """Counts that a bin needs in the composition form: `min_total` is that of 36 µm bins, and of any spot."""
    share = (pitch_um / MIN_TOTAL_BIN_UM) ** 2 if layout == "square" else 1.0
    return max(1, round(min_total * share))


Truth = tuple[np.ndarray, np.ndarray]  # T and V: the true rate, and what the H&E can tell of it, [N, P] each


@dataclasses.dataclass(frozen=True)
class SectionBins:
    """The measured side: N bins that count (or spots), P genes of the panel."""

    section_id: str
    patient_id: str
    cohort: str
    x_um_N: np.ndarray  # centres
    y_um_N: np.ndarray
    pitch_um: float  # between neighbouring places
    layout: Layout
    counts: scipy.sparse.csr_array  # [N, P]
    features_NxF: np.ndarray  # of the surroundings, from features.section_features
    nuclear_density_N: np.ndarray
    measured_gene_P: np.ndarray  # bool
    share_N: np.ndarray | None = None  # measured share of each bin, at most 1; None: all of each

    def __len__(self) -> int:
        return len(self.x_um_N)

    @property
    def where(self) -> tuple:
        """The arguments of `moran.neighbour_weights`."""
        return self.x_um_N, self.y_um_N, self.pitch_um, self.layout

    def least_total(self, min_total: int) -> int:
        return least_total(min_total, self.pitch_um, self.layout)

    def counts_of(self, gene: int) -> np.ndarray:
        """Of one gene, [N]."""
        return self.counts[:, [gene]].toarray().ravel()


@dataclasses.dataclass(frozen=True)
class SectionSource:
    """How to come by a section, piece by piece and only when a piece is wanted.

    measured: its bins; rates: predicted ones, [n, P] a strip of bins, expected detections of what was measured of each;
    None where there is no prediction: r = 0 where it is held out. truth: T and V on virtual tissue, else None.
    """

    section_id: str
    patient_id: str
    cohort: str
    measured: Callable[[], SectionBins]
    rates: Callable[[], Rows] | None = None
    truth: Callable[[], Truth] | None = None
    key: str = ""  # of everything that `measured` depends on
    truth_key: str = ""  # and `truth`, beyond that
    rates_key: str = ""  # of everything that `rates` depends on
    large: bool = False  # no other is read beside it
    ranked: "SectionSource | None" = None  # the same section in the bins that genes are ranked on; None: in these
