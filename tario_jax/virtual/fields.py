"""Random streams and smooth random fields of a virtual section."""

import dataclasses
from enum import IntEnum

import numpy as np
from scipy import sparse

NODES_PER_AXIS = 6  # nodes within reach of a point: ± 3 standard deviations of the kernel


class Stream(IntEnum):
    """What a random number is for. Each has a counter range of its own, so one more draw shifts nothing else."""

    PATIENT = 0
    ARCHITECTURE = 1
    CELLS = 2
    HIDDEN = 3
    STAIN = 4
    DETECTIONS = 5
    REDRAW = 6
    GENE = 7
    EFFECT = 8
    ASSAY = 9
    NULL = 10


def generator(seed: int, number: int, stream: Stream, section: int = 0) -> np.random.Generator:
    """The generator of one purpose within one section of patient `number`, whatever else is simulated."""
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, section, int(stream)]))


@dataclasses.dataclass(frozen=True)
class FieldBasis:
    """White noise on nodes of pitch `sigma_um`, spread by a Gaussian kernel: fields of N(0, 1) at every place.

    The field is Σ w_n ξ_n with Σ w_n² = 1, and correlation close to exp(−d² / (4 sigma²)) at distance d.
    """

    sigma_um: float
    section_um: float

    @property
    def nodes(self) -> int:
        """Nodes of one axis: three beyond each border."""
        return int(np.ceil(self.section_um / self.sigma_um)) + NODES_PER_AXIS + 1

    def noise(self, rng: np.random.Generator, fields: int) -> np.ndarray:
        """float32 [nodes (y), nodes (x), fields]."""
        return rng.standard_normal((self.nodes, self.nodes, fields), np.float32)

    def _axis(self, place_um_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nodes in reach of each place on one axis, int [N, 6], and their weights, float32 [N, 6]."""
        place_N = np.clip(place_um_N, 0, self.section_um) / self.sigma_um + NODES_PER_AXIS // 2
        first_N = np.floor(place_N).astype(np.int64) - NODES_PER_AXIS // 2 + 1
        node_Nx6 = first_N[:, None] + np.arange(NODES_PER_AXIS)
        weight_Nx6 = np.exp(-0.5 * (place_N[:, None] - node_Nx6) ** 2)
        return node_Nx6, (weight_Nx6 / np.sqrt((weight_Nx6**2).sum(1, keepdims=True))).astype(np.float32)

    def at(self, x_um_N: np.ndarray, y_um_N: np.ndarray, noise_YxXxF: np.ndarray) -> np.ndarray:
        """The fields at N places, float32 [N, F]."""
        node_x, weight_x = self._axis(x_um_N)
        node_y, weight_y = self._axis(y_um_N)
        node_NxK = (node_y[:, :, None] * self.nodes + node_x[:, None, :]).reshape(len(x_um_N), -1)
        weight_NxK = (weight_y[:, :, None] * weight_x[:, None, :]).reshape(len(x_um_N), -1)
        row_pointer = np.arange(len(x_um_N) + 1) * node_NxK.shape[1]
        spread = sparse.csr_array(
            (weight_NxK.ravel(), node_NxK.ravel(), row_pointer), shape=(len(x_um_N), self.nodes**2)
        )
        return spread @ noise_YxXxF.reshape(self.nodes**2, -1)

    def on_grid(self, step_um: float, noise_YxXxF: np.ndarray) -> np.ndarray:
        """The fields at the centres of a grid, float32 [rows, columns, F]."""
        centre_um = (np.arange(int(np.ceil(self.section_um / step_um))) + 0.5) * step_um
        node, weight = self._axis(centre_um)
        spread = np.zeros((len(centre_um), self.nodes), np.float32)
        spread[np.arange(len(centre_um))[:, None], node] = weight
        # einsum without BLAS: the same bits whatever the number of BLAS threads
        across = np.einsum("xn,ynf->yxf", spread, noise_YxXxF)
        return np.einsum("ym,mxf->yxf", spread, across)


def sample_grid(grid_YxX: np.ndarray, step_um: float, x_um_N: np.ndarray, y_um_N: np.ndarray) -> np.ndarray:
    """The grid's value in the cell of the grid that holds each place; places outside read the border."""
    row_N = np.clip((y_um_N / step_um).astype(np.int64), 0, grid_YxX.shape[0] - 1)
    column_N = np.clip((x_um_N / step_um).astype(np.int64), 0, grid_YxX.shape[1] - 1)
    return grid_YxX[row_N, column_N]
