"""What the assay does to a section: efficiency by field of view, lost pools of genes, dim edges, background.

None of it shows in the H&E, and V knows nothing of it, not even of the dim edges, which always lie at multiples of
FIELD_OF_VIEW_UM: they take 2 % of all detections.
"""

import dataclasses

import numpy as np

from tario_jax.virtual.genes import POOLS

FIELD_OF_VIEW_UM = 256.0
FIELD_SD = 0.06  # of a field of view's log efficiency
LOST_POOL_CHANCE = 0.04  # of each field of view
LOST_POOL_LEFT = 0.25  # of the detections of a lost pool
EDGE_UM = 6.0  # along each side of a field of view …
EDGE_LEFT = 0.75  # … this share is detected
BACKGROUND_SHARE = 0.06  # of all detections: they lie anywhere
UNIFORM_BACKGROUND = 0.5  # of the background: the same for every gene and negative probe, expressed or not
NEGATIVE_PROBES = 50


@dataclasses.dataclass(frozen=True)
class Assay:
    """Efficiencies of one section; F fields of view."""

    section_um: float
    efficiency_F: np.ndarray  # float64 [F], of mean about 1
    lost_pool_F: np.ndarray  # int [F]; −1 where none is lost

    @property
    def fields_per_side(self) -> int:
        return int(np.ceil(self.section_um / FIELD_OF_VIEW_UM))

    def field_of(self, x_um_N: np.ndarray, y_um_N: np.ndarray) -> np.ndarray:
        """Number of the field of view that holds each place, int [N]."""
        side = self.fields_per_side
        column_N = np.clip((x_um_N // FIELD_OF_VIEW_UM).astype(np.int64), 0, side - 1)
        row_N = np.clip((y_um_N // FIELD_OF_VIEW_UM).astype(np.int64), 0, side - 1)
        return row_N * side + column_N

    def efficiency(self, x_um_N: np.ndarray, y_um_N: np.ndarray) -> np.ndarray:
        """Share of the expected detections that a cell at each place yields, float32 [N], lost pools apart."""
        along_x, along_y = x_um_N % FIELD_OF_VIEW_UM, y_um_N % FIELD_OF_VIEW_UM
        edge_N = np.minimum.reduce([along_x, FIELD_OF_VIEW_UM - along_x, along_y, FIELD_OF_VIEW_UM - along_y])
        dim_N = np.where(edge_N < EDGE_UM, EDGE_LEFT, 1.0)
        return (self.efficiency_F[self.field_of(x_um_N, y_um_N)] * dim_N).astype(np.float32)


def draw_assay(section_um: float, rng: np.random.Generator) -> Assay:
    fields = int(np.ceil(section_um / FIELD_OF_VIEW_UM)) ** 2
    efficiency_F = np.exp(FIELD_SD * rng.standard_normal(fields) - 0.5 * FIELD_SD**2)
    lost_F = np.where(rng.random(fields) < LOST_POOL_CHANCE, rng.integers(POOLS, size=fields), -1)
    return Assay(section_um, efficiency_F, lost_F)


def background(total_G: np.ndarray, is_null_G: np.ndarray) -> tuple[np.ndarray, float]:
    """Expected background detections over the section of each gene, float64 [G], where its cells expect total_G, and of
    a negative probe: half of the background of other genes than null ones is the same for all of them and for probes.

    That of the null genes is all in proportion to their totals: their share is the same where there is no cell.
    """
    strays_G = BACKGROUND_SHARE * total_G
    uniform = UNIFORM_BACKGROUND * float(strays_G[~is_null_G].mean())
    return np.where(is_null_G, strays_G, (1 - UNIFORM_BACKGROUND) * strays_G + uniform), uniform
