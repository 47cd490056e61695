"""Features of H&E patches on a regular grid of a section: stored beside its arrays, outside of the corpus seal.

sections/<id>/features/<encoder>/vectors    float16 [rows, columns, F]
                                 seal.json  card, origin, pitch, and which section they are of; written last

Without its seal the array does not exist: a write that was killed leaves nothing that is read.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.place import Place

VECTORS, SEAL = "vectors", "seal.json"
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class FeatureGrid:
    """Vectors at (origin_um + column · pitch_um, origin_um + row · pitch_um): what an encoder sees around each place.

    read: begins to read rows and columns of the vectors, float16 [rows, columns, F]; what comes back waits for them.
    """

    card: dict[str, Any]
    card_hash: str
    origin_um: float  # of the first vector's place, from the section's corner, along both axes
    pitch_um: float
    shape: tuple[int, int, int]  # rows, columns, F
    read: Callable[[slice, slice], Callable[[], np.ndarray]]

    def begin_square(self, x_um: float, y_um: float, side: int, step_um: float) -> Callable[[], np.ndarray]:
        """Starts to read features in the middles of side × side squares of step_um whose first corner is (x_um, y_um).

        What comes back gives float16 [side, side, F], interpolated linearly between the four vectors around each place;
        beyond the grid's outermost places it is theirs.
        """
        along = (np.arange(side) + 0.5) * step_um
        (row_S, down_S, rows), (column_S, across_S, columns) = (
            self._between(corner + along, number) for corner, number in ((y_um, self.shape[0]), (x_um, self.shape[1]))
        )
        reading = self.read(rows, columns)

        def end() -> np.ndarray:
            held_RxCxF = reading().astype(np.float32)
            below, beside = (np.minimum(at + 1, size - 1) for at, size in
                             ((row_S, held_RxCxF.shape[0]), (column_S, held_RxCxF.shape[1])))  # fmt: skip
            down, across = down_S[:, None, None], across_S[:, None]
            lines = held_RxCxF[row_S] * (1 - down) + held_RxCxF[below] * down
            return (lines[:, column_S] * (1 - across) + lines[:, beside] * across).astype(np.float16)

        return end

    def _between(self, places_um: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, slice]:
        """Vectors before the places, counted from the first that is read; shares of those after; what is read."""
        at = np.clip((places_um - self.origin_um) / self.pitch_um, 0, number - 1)
        before = np.floor(at).astype(int)
        first, end = int(before[0]), min(int(before[-1]) + 2, number)
        return before - first, (at - before).astype(np.float32), slice(first, end)


def grid_size(width_um: float, height_um: float, pitch_um: float) -> tuple[int, int]:
    """(rows, columns) of the grid that covers a section: its places are the middles of squares of the pitch."""
    rows, columns = (max(1, math.ceil(extent / pitch_um - 1e-6)) for extent in (height_um, width_um))
    return rows, columns


def held_grid(card: dict[str, Any], card_hash: str, vectors_RxCxF: np.ndarray) -> FeatureGrid:
    """A grid in memory."""
    return FeatureGrid(card, card_hash, card["pitch_um"] / 2, card["pitch_um"], vectors_RxCxF.shape,
                       lambda rows, columns: lambda: vectors_RxCxF[rows, columns])  # fmt: skip


def common_card(sections: Sequence[Any], encoder: str) -> dict[str, Any]:
    """The card of the features of all these sections, with its hash and their length.

    Raises `InputError` where one has none, or two have features of different cards.
    """
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # in a bucket every read is a journey
        grids = list(pool.map(lambda section: section.feature_grid(encoder), sections))
    for section, grid in zip(sections, grids, strict=True):
        if grid.card_hash != grids[0].card_hash:
            raise InputError(f"section {section.id!r}: has features {encoder!r} of card {grid.card_hash}, section "
                             f"{sections[0].id!r} of {grids[0].card_hash}; encode them with one card")  # fmt: skip
    return grids[0].card | {"hash": grids[0].card_hash}


def grid_place(section: Place, encoder: str) -> Place:
    return section / f"features/{encoder}"


def write_grid(section: Place, encoder: str, of_section: str, grid: FeatureGrid, vectors_RxCxF: np.ndarray) -> None:
    """Stores the vectors and, last, their seal. of_section: checksum of the section's own seal."""
    place = grid_place(section, encoder)
    (place / SEAL).remove()  # first: what is half written is not sealed
    layout.write_array(place / VECTORS, vectors_RxCxF)
    layout.write_json(place / SEAL, {
        "format_version": _FORMAT_VERSION, "card": grid.card, "card_hash": grid.card_hash, "section_seal": of_section,
        "origin_um": grid.origin_um, "pitch_um": grid.pitch_um, "shape": list(vectors_RxCxF.shape),
    })  # fmt: skip


def read_seal(section: Place, encoder: str) -> dict[str, Any] | None:
    """What was sealed; None where nothing was. Raises `InputError` for a seal that is broken or of another format."""
    seal = grid_place(section, encoder) / SEAL
    if not seal.exists():
        return None
    told = layout.read_json(seal)
    names = {"format_version", "card", "card_hash", "section_seal", "origin_um", "pitch_um", "shape"}
    if told.get("format_version") != _FORMAT_VERSION or not names <= set(told):
        raise InputError(f"{seal}: is of format {told.get('format_version')}, this tario reads {_FORMAT_VERSION}; "
                         "delete the folder and run tario encode again")  # fmt: skip
    return told


def open_grid(section: Place, encoder: str, of_section: str, command: str) -> FeatureGrid:
    """A stored grid. Raises `InputError` where there is none, or it is of another H&E; command: what makes one."""
    told = read_seal(section, encoder)
    place = grid_place(section, encoder)
    if told is None:
        raise InputError(f"{section}: holds no features of encoder {encoder!r}; make them with '{command}'")
    if told["section_seal"] != of_section:
        raise InputError(f"{place}: is of another ingest of this section; delete it, and make it with '{command}'")
    store = layout.open_array(place / VECTORS)
    if store.shape != tuple(told["shape"]):
        raise InputError(f"{place}: holds vectors of shape {store.shape}, its seal says {tuple(told['shape'])}; delete "
                         f"it, and make it with '{command}'")  # fmt: skip

    def read(rows: slice, columns: slice) -> Callable[[], np.ndarray]:
        reading = store[rows, columns].read()
        return lambda: layout.result_of(reading, place / VECTORS)

    return FeatureGrid(told["card"], told["card_hash"], told["origin_um"], told["pitch_um"], tuple(told["shape"]), read)
