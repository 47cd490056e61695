"""Rates of every gene from the H&E alone, for a section or an image, blended over windows."""

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import scipy.ndimage
import scipy.spatial
from jax.sharding import Mesh

from tario_jax.config import BATCH_AXES, DataConfig, InputError, MeshConfig
from tario_jax.corpus.read import Section
from tario_jax.model.build import build
from tario_jax.parallel.mesh import batch_shardings, make_mesh, traced_on
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.tissue import ImageSection
from tario_jax.tokens.batch import make_layout, square_bins_per_tile, tokenise
from tario_jax.tokens.capacity import densest_spots
from tario_jax.tokens.window import Bins, read_window
from tario_jax.train.checkpoint import Checkpoints, find_checkpoint
from tario_jax.train.provenance import Provenance
from tario_jax.train.state import to_devices


class Predictor:
    """A trained model, ready to predict. Made by `load`."""

    def __init__(self, provenance: Provenance, parameters, calibration, *, allow_virtual_model: bool = False):
        self.provenance = provenance
        self.panel = provenance.panel
        self.allow_virtual_model = allow_virtual_model
        config = provenance.config
        self._mesh = _prediction_mesh()
        built = build(config.model, len(self.panel), config.data.patch_px, content=not config.data.one_shot)
        self._shardings = shardings = built.shardings(self._mesh)
        self._parameters, self._calibration = jax.device_put((parameters, calibration), shardings)

        def rates(parameters, calibration, batch):
            return built.merge(parameters, calibration).rates(batch)

        self._rates = jax.jit(traced_on(self._mesh, rates), in_shardings=(*shardings, batch_shardings(self._mesh)))

    def of_step(self, parameters, calibration) -> "Predictor":
        """Another checkpoint of the same run, predicting with what is compiled already."""
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other._parameters, other._calibration = jax.device_put((parameters, calibration), self._shardings)
        return other

    @property
    def trained_on(self) -> str:
        """Kind of tissue that the model learnt from: virtual or real."""
        return self.provenance.trained_on

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the parameters and the panel: what was predicted with one is not mistaken for another's."""
        digest = hashlib.sha256(self.panel.hash.encode())
        for leaf in jax.tree.leaves((self._parameters, self._calibration)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    def predict(
        self, image: np.ndarray, um_per_px: float, *, bin_um: float | None = None, tissue: str = "real",
        overlap: float = 0.5, force: bool = False, progress: Callable[[int, int], None] | None = None,
    ) -> GeneMaps:  # fmt: skip
        """Gene maps of an H&E image.

        image: uint8 RGB [H, W, 3]; um_per_px: its scale, 0.1 to 1.2 unless `force`; bin_um: side of the bins, that of
        training by default; tissue: "real", or "virtual" for an image of virtual tissue. An image is real tissue unless
        it is said to be virtual, and a model of virtual tissue predicts real tissue only if it was loaded with
        allow_virtual_model=True; progress(done, all) is called as windows are predicted. Raises `InputError`.
        """
        section = ImageSection(image, um_per_px, genes=len(self.panel), force=force)
        return self.predict_section(section, tissue=tissue, bin_um=bin_um, overlap=overlap, progress=progress)

    def predict_section(
        self, section: Section | ImageSection, *, tissue: str, bin_um: float | None = None, overlap: float = 0.5,
        progress: Callable[[int, int], None] | None = None,
    ) -> GeneMaps:  # fmt: skip
        """Gene maps of a section of the corpus (its spots where it has some, else square bins) from its H&E alone.

        A place that several windows hold gets their mean, weighed towards the middle of a window.
        """
        data = self._data(section, tissue, overlap)
        if bin_um is not None and section.spots is not None:
            raise InputError(f"{section.id}: is measured in spots, which are predicted as they are; leave out bin_um")
        bin_um = self.provenance.bin_um if bin_um is None else bin_um
        data = dataclasses.replace(data, bin_um=bin_um)
        places = _SpotPlaces(section, data) if section.spots is not None else _BinPlaces(section, data)
        rates_NxG = self._rates_of(section, places, data, overlap, progress)
        names = section.spots.name_N if section.spots is not None else ()
        return GeneMaps(section.id, self.panel, places.x_um_N, places.y_um_N, places.size_um, rates_NxG,
                        section.he_full_um_per_px, self.trained_on, tissue, names, section.he_origin_px)  # fmt: skip

    def predict_squares(
        self, section: Section | ImageSection, x_um_N: np.ndarray, y_um_N: np.ndarray, side_um_N: np.ndarray, *,
        tissue: str, overlap: float = 0.5, progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Expected detections of every gene in squares of any side around any places, float32 [N, G].

        A query carries its place and its size, so each square is one query; no two may have the same centre. Raises
        `InputError` as `predict_section`.
        """
        data = self._data(section, tissue, overlap)
        places = _SquarePlaces(section, x_um_N, y_um_N, side_um_N, data)
        return self._rates_of(section, places, data, overlap, progress)

    def _data(self, section: Section | ImageSection, tissue: str, overlap: float) -> DataConfig:
        """The data config of prediction. Raises `InputError` for what the model may not be asked."""
        if tissue not in ("virtual", "real"):
            raise InputError(f"tissue is {tissue!r}; expected 'virtual' or 'real'")
        if self.trained_on == "virtual" and tissue == "real" and not self.allow_virtual_model:
            raise InputError(
                f"{section.id}: is real tissue, and this model was trained on virtual tissue and knows no biology; "
                "use --allow-virtual-model (allow_virtual_model=True) if you only want to see it run"
            )
        if not 0 <= overlap < 1:
            raise InputError(f"overlap of windows is {overlap:g}; expected 0 <= overlap < 1")
        return dataclasses.replace(self.provenance.config.data, bin_um=self.provenance.bin_um, bin_mixture=(),
                                   windows_per_row=1, sequence="window", groups=((1, 1.0),))  # fmt: skip

    def _rates_of(self, section, places, data: DataConfig, overlap: float,
                  progress: Callable[[int, int], None] | None) -> np.ndarray:  # fmt: skip
        """Rates at places, float32 [N, G]: the mean over the windows that hold each, weighed towards their middle."""
        layout = make_layout(data, len(self.panel), bins_per_tile=places.per_tile, largest_bin_um=places.size_um,
                             count_capacity=1)  # fmt: skip
        rows = self._rows(data)
        summed_NxG = np.zeros((len(places.x_um_N), len(self.panel)), np.float32)
        weights_N = np.zeros(len(places.x_um_N), np.float64)
        corners = places.corners(overlap)
        unused = np.random.default_rng(0)  # one group: no order is drawn
        for first in range(0, len(corners), rows):
            some = corners[first : first + rows]
            windows = [self._window(section, places, corner, data) for corner in some]
            batch = tokenise([[window] for window in windows] + [[]] * (rows - len(some)), data, layout,
                             np.ones((rows, 1), int), [[unused]] * rows)  # fmt: skip
            rates = np.asarray(self._rates(self._parameters, self._calibration, to_devices(batch, self._mesh)))
            for row, (x_um, y_um) in enumerate(some):
                valid = batch.bin_measured_BxTxN[row].ravel() > 0
                x, y = batch.bin_xy_um_BxTxNx2[row].reshape(-1, 2)[valid].astype(np.float64).T
                number = places.number(x + x_um, y + y_um)
                weight = _towards_middle(x, y, data.window_um)
                summed_NxG[number] += weight[:, None] * rates[row, valid, : len(self.panel)]
                weights_N[number] += weight
            if progress is not None:
                progress(min(first + rows, len(corners)), len(corners))
        if not weights_N.all():
            raise InputError(f"{section.id}: {int((weights_N == 0).sum())} places lie in no window; lower the overlap")
        summed_NxG /= weights_N[:, None].astype(np.float32)
        if not np.isfinite(summed_NxG).all():
            raise InputError(
                f"{section.id}: the model's rates are not numbers: its training diverged; see its metrics.jsonl, "
                "and train again with a lower optim.learning_rate"
            )
        return summed_NxG

    def _window(self, section, places, corner: tuple[float, float], data: DataConfig):
        window = read_window(section, *corner, data, with_counts=False)
        bins = places.bins(*corner) if isinstance(places, _SquarePlaces) else window.bins
        # the model predicts its own panel, whatever the section measured
        return dataclasses.replace(window, bins=bins, measured_gene_G=np.ones(len(self.panel), bool))

    def _rows(self, data: DataConfig) -> int:
        parts = int(np.prod([self._mesh.shape[axis] for axis in BATCH_AXES]))
        return max(parts, data.rows // parts * parts)


def load(path: Path | str, *, allow_virtual_model: bool = False) -> Predictor:
    """The newest checkpoint of a workdir as a `Predictor`. Raises `InputError` where there is none."""
    return load_step(*find_checkpoint(path), allow_virtual_model=allow_virtual_model)


def load_step(
    workdir: Path, step: int, *, allow_virtual_model: bool = False, like: Predictor | None = None
) -> Predictor:
    """A certain checkpoint, which is whole. like: one of the same run, whose compiled program is used again."""
    with Checkpoints(workdir) as checkpoints:
        provenance = checkpoints.provenance(step)
        config = provenance.config
        built = build(config.model, len(provenance.panel), config.data.patch_px, content=not config.data.one_shot)
        parameters, calibration = checkpoints.model(step, built, _prediction_mesh())
    if like is not None and like.provenance == provenance:
        return like.of_step(parameters, calibration)
    return Predictor(provenance, parameters, calibration, allow_virtual_model=allow_virtual_model)


def _prediction_mesh() -> Mesh:
    """All devices that are here, whatever the mesh of training was."""
    return make_mesh(MeshConfig())


class _BinPlaces:
    """Square bins of a section, row by row: those of which at least `min_measured` lies on it."""

    def __init__(self, section, data: DataConfig):
        self._data = data
        self._columns, self._rows = (
            int((extent + (1 - data.min_measured) * data.bin_um) / data.bin_um + 1e-6)
            for extent in (section.width_um, section.height_um)
        )
        shares = (
            np.minimum(extent / data.bin_um - np.arange(number), 1.0)
            for extent, number in ((section.height_um, self._rows), (section.width_um, self._columns))
        )
        # a bin in the corner may lack too much though its row and its column do not
        row, column = np.nonzero(np.outer(*shares) >= data.min_measured - 1e-6)
        if not len(row):
            raise InputError(
                f"{section.id}: is {section.width_um:.0f} x {section.height_um:.0f} µm; expected at least one bin of "
                f"{data.bin_um:g} µm"
            )
        self._number_YxX = np.full((self._rows, self._columns), -1)
        self._number_YxX[row, column] = np.arange(len(row))
        self.x_um_N, self.y_um_N = (column + 0.5) * data.bin_um, (row + 0.5) * data.bin_um
        self.size_um, self.per_tile = data.bin_um, square_bins_per_tile(data)

    def corners(self, overlap: float) -> list[tuple[float, float]]:
        """Corners of windows on the bins' grid that cover the section."""
        held = int(self._data.window_um / self._data.bin_um + 1e-6)
        step = max(1, round(held * (1 - overlap)))

        def starts(number: int) -> list[int]:
            if number <= held:
                return [-((held - number) // 2)]  # the section lies in the middle of its only window
            return sorted({*range(0, number - held, step), number - held})

        bin_um = self._data.bin_um
        return [(x * bin_um, y * bin_um) for y in starts(self._rows) for x in starts(self._columns)]

    def number(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """Numbers of the bins with these centres."""
        bin_um = self._data.bin_um
        return self._number_YxX[(y_um // bin_um).astype(int), (x_um // bin_um).astype(int)]


class _SpotPlaces:
    """The spots of a section."""

    def __init__(self, section: Section, data: DataConfig):
        spots = section.spots
        self._px_um = section.he_um_per_px
        # a window begins on a whole px, as in training: up to one px to the left of where a spot would have it
        self._reach_um = data.window_um - spots.diameter_um - self._px_um - 1e-3
        if self._reach_um <= 0:
            raise InputError(
                f"{section.id}: spots of {spots.diameter_um:g} µm do not fit windows of {data.window_um:g} µm"
            )
        self._data, self._diameter_um = data, spots.diameter_um
        self.x_um_N, self.y_um_N = spots.x_um_N, spots.y_um_N
        self.size_um = float(np.sqrt(np.pi) * spots.diameter_um / 2)
        self.per_tile = densest_spots(spots.x_um_N, spots.y_um_N, data.tile_um)

    def corners(self, overlap: float) -> list[tuple[float, float]]:
        """Corners of windows that hold every spot whole; windows without a spot are left out."""
        side, radius = self._data.window_um, self._diameter_um / 2
        step = min(side * (1 - overlap), self._reach_um)
        found = []
        for x, y in _covering(self.x_um_N, self.y_um_N, radius, side, self._px_um, step):
            held = (self.x_um_N >= x + radius) & (self.x_um_N <= x + side - radius)
            held &= (self.y_um_N >= y + radius) & (self.y_um_N <= y + side - radius)
            if held.any():
                found.append((x, y))
        return found

    def number(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """Numbers of the spots at these places."""
        distance = np.hypot(x_um[:, None] - self.x_um_N, y_um[:, None] - self.y_um_N)
        return distance.argmin(1)


class _SquarePlaces:
    """Squares around given places, each of a side of its own."""

    def __init__(self, section, x_um_N: np.ndarray, y_um_N: np.ndarray, side_um_N: np.ndarray, data: DataConfig):
        self.x_um_N, self.y_um_N, self._side_um_N = x_um_N, y_um_N, side_um_N
        self._data, self._px_um = data, section.he_um_per_px
        self.size_um = float(side_um_N.max())
        # half of the largest square beyond the place, on both sides
        self._reach_um = data.window_um - self.size_um - self._px_um - 1e-3
        if self._reach_um <= 0:
            raise InputError(f"{section.id}: a square of {self.size_um:.0f} µm does not fit windows of "
                             f"{data.window_um:g} µm")  # fmt: skip
        self.per_tile = _most_in_a_tile(x_um_N, y_um_N, data.tile_um)
        self._tree = scipy.spatial.cKDTree(np.stack([x_um_N, y_um_N], 1))

    def corners(self, overlap: float) -> list[tuple[float, float]]:
        """Corners of windows that hold every square whole; windows without one are left out."""
        side_um = self._data.window_um
        covered = _covering(self.x_um_N, self.y_um_N, self.size_um / 2, side_um, self._px_um,
                            min(side_um * (1 - overlap), self._reach_um))  # fmt: skip
        return [corner for corner in covered if len(self._inside(*corner))]

    def _inside(self, x_um: float, y_um: float) -> np.ndarray:
        half_N, side_um = self._side_um_N / 2, self._data.window_um
        inside_N = (self.x_um_N >= x_um + half_N) & (self.x_um_N <= x_um + side_um - half_N)
        inside_N &= (self.y_um_N >= y_um + half_N) & (self.y_um_N <= y_um + side_um - half_N)
        return np.flatnonzero(inside_N)

    def bins(self, x_um: float, y_um: float) -> Bins:
        """Those that lie whole in the window whose corner this is."""
        mine = self._inside(x_um, y_um)
        none = (np.zeros(0, np.int32),) * 3
        return Bins(self.x_um_N[mine] - x_um, self.y_um_N[mine] - y_um, self._side_um_N[mine],
                    np.ones(len(mine), np.float32), *none, 1.0, False)  # fmt: skip

    def number(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """Numbers of the squares with these centres."""
        return self._tree.query(np.stack([x_um, y_um], 1))[1]


def _most_in_a_tile(x_um_N: np.ndarray, y_um_N: np.ndarray, tile_um: float) -> int:
    """No tile, wherever it lies, holds more of these places: a quarter above the most, and quickly found."""
    step_um, low = tile_um / 8, (x_um_N.min(), y_um_N.min())
    column_N, row_N = (
        ((place - start) / step_um).astype(int) for place, start in zip((x_um_N, y_um_N), low, strict=True)
    )
    held = np.zeros((row_N.max() + 1, column_N.max() + 1), int)
    np.add.at(held, (row_N, column_N), 1)
    for axis in (0, 1):  # sums of the nine steps that a tile may touch
        held = scipy.ndimage.convolve1d(held, np.ones(9, int), axis, mode="constant")
    return int(held.max())


def _covering(x_um_N: np.ndarray, y_um_N: np.ndarray, half_um: float, side_um: float, px_um: float,
              step_um: float) -> list[tuple[float, float]]:  # fmt: skip
    """Corners of windows of side_um, on whole px, that hold everything within half_um of these places."""

    def starts(places: np.ndarray) -> np.ndarray:
        low, high = places.min() - half_um - 1e-3, places.max() + half_um + px_um
        number = max(1, int(np.ceil((high - low - side_um) / step_um)) + 1)
        slack = (side_um + (number - 1) * step_um - (high - low)) / 2
        return np.floor((low - slack + step_um * np.arange(number)) / px_um) * px_um

    return [(float(x), float(y)) for y in starts(y_um_N) for x in starts(x_um_N)]


def _towards_middle(x: np.ndarray, y: np.ndarray, side: float) -> np.ndarray:
    """Weight of a place in its window: 1 in the middle, falling smoothly, never 0."""
    return (np.sin(np.pi * x / side) * np.sin(np.pi * y / side)) ** 2 + 1e-3
