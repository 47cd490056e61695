"""A slide as the page shows it: tiles of its H&E, values of its bins, and means over a region.

Axes: N bins, G genes, C cohorts, P corners of a polygon.
"""

import contextlib
import functools
import hashlib
import io
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.measure import points_in_poly

from tario_jax.config import InputError
from tario_jax.corpus.resample import crop_and_resample
from tario_jax.predict.gene_validation import FILE as VALIDATION
from tario_jax.predict.map_store import FILE, MapStore
from tario_jax.predict.signatures import Signature, cell_types, scores
from tario_jax.predict.slide import SlideSection, refuse_another, slide_of_maps

TILE_PX = 512
_QUALITY = 88  # of JPEG
_FAR = 4.0  # times as fine is a level that is far from what is asked


class Shown:
    """One folder of maps, and the slide that it is of, as long as it is open."""

    def __init__(self, folder: Path, at: Mapping[str, Path], signatures: Callable[[MapStore], list[Signature]],
                 stack: contextlib.ExitStack, say: Callable[[str], None] = print):  # fmt: skip
        """at: by their names, slides that lie elsewhere now. Raises `InputError` where the maps cannot be read."""
        self.store = MapStore(folder)
        asked = signatures(self.store)
        for one in asked:
            if not len(one.positions):
                say(f"{folder}: gene set {one.name!r} is left out: none of its genes is among the maps'")
        asked = [one for one in asked if len(one.positions)]
        self.signatures = [one for one in cell_types(self.store.panel) if one.name not in {set_.name for set_ in asked}]
        self.signatures += asked
        self._scores: np.ndarray | None = None
        self._seen: np.ndarray | None = None  # the overview
        self._scoring, self._opening = threading.Lock(), threading.Lock()
        self.section, self.missing = self._opened(at.get(self.name), stack, say)

    def _opened(self, slide: Path | None, stack: contextlib.ExitStack,
                say: Callable[[str], None]) -> tuple[SlideSection | None, str]:  # fmt: skip
        """The slide; or None, and why the page shows its maps alone."""
        try:
            section = slide_of_maps(self.store.about, stack, slide=slide, say=say)
        except InputError as error:
            if slide is not None:
                raise
            say(f"{self.store.folder}: its H&E is not shown: {error}")
            moved = "put the corpus back, or predict it again" if "corpus" in self.store.about["place"] else ""
            return None, f"{error}; {moved or 'give it by --slide'}"
        try:
            refuse_another(section, self.store.about)
        except InputError as error:
            if slide is not None:
                raise
            fix = "ingested anew; predict it again" if "corpus" in self.store.about["place"] else "give it by --slide"
            say(f"{self.store.folder}: its H&E is not shown: {error}")
            return None, f"{error}; {fix}"
        return section, ""

    @property
    def name(self) -> str:
        return self.store.about["section"]

    @property
    def top_level(self) -> int:
        """The tile level at which the slide has its own px; each below has half as many along a side."""
        return int(np.ceil(np.log2(max(self.store.about["slide_px"]))))

    @functools.cached_property
    def key(self) -> str:
        """Tells these maps, and the gene sets that are shown of them, from all others: the page asks by it, so that a
        browser keeps nothing of another slide."""
        seal, validation = self.store.folder / FILE, self.store.folder / VALIDATION
        held = seal.read_bytes() + (validation.read_bytes() if validation.exists() else b"")
        of_sets = [(one.name, one.kind, np.asarray(one.positions).tolist()) for one in self.signatures]
        return hashlib.sha256(held + repr(of_sets).encode()).hexdigest()[:12]

    def described(self) -> dict[str, Any]:
        about, validation = self.store.about, self.store.validation
        kept = ("bin_um", "he_um_per_px", "slide_px", "trained_on", "tissue", "banner", "checkpoint", "model",
                "decoding", "unit")  # fmt: skip
        return {name: about[name] for name in kept} | {
            "name": self.name, "key": self.key, "bins": len(self.store), "warnings": self.store.warnings,
            "genes": len(self.store.panel), "top_level": self.top_level,
            "tile_px": TILE_PX, "arrays": list(self.store.arrays), "he": self.section is not None,
            "he_missing": self.missing, "spread_between": about.get("spread"),
            "signatures": [{"name": one.name, "kind": one.kind} for one in self.signatures],
            "cohorts": [] if validation is None else [
                {"name": cohort, "patients": int(patients)}
                for cohort, patients in zip(validation.cohorts, validation.patients_C, strict=True)],
        }  # fmt: skip

    def genes(self) -> dict[str, Any]:
        """Symbols with mean and largest rate, and by cohort what is known of each."""
        store, validation = self.store, self.store.validation
        found: dict[str, Any] = {
            "symbols": list(store.panel.symbols), "mean": _short(store.mean_G), "largest": _short(store.largest_G),
            "cohorts": {},
        }  # fmt: skip
        for cohort in () if validation is None else validation.cohorts:
            of = validation.of(cohort, store.panel.symbols)
            found["cohorts"][cohort] = {name: _short(of[name]) for name in ("held_out_r", "excess_over_density")} | {
                "validated": of["validated"].astype(int).tolist()}  # fmt: skip
        return found

    def places(self) -> bytes:
        """x of all bins in µm, then y: float32 [2, N]."""
        return np.stack([self.store.x_um_N, self.store.y_um_N]).astype("<f4").tobytes()

    def values(self, array: str, name: str) -> bytes:
        """Of all bins: of a gene, or of a gene set where array is "signature"; float32 [N]."""
        return self._values(array, name).astype("<f4").tobytes()

    def _values(self, array: str, name: str) -> np.ndarray:
        if array != "signature":
            return self.store.gene(name, array)
        names = [one.name for one in self.signatures]
        if name not in names:
            raise InputError(f"{name!r}: no such gene set; expected one of {', '.join(names) or 'none: --signatures'}")
        return self._scores_NxS()[:, names.index(name)]

    def _scores_NxS(self) -> np.ndarray:
        with self._scoring:  # once, however many ask
            if self._scores is None:
                self._scores = scores(self.store, self.signatures)
        return self._scores

    def strongest(self) -> bytes:
        """Of each bin the cell type of the highest score, by its place among the signatures, 255 where there is none:
        uint8 [N]; then that score, float32 [N]."""
        of_types = [number for number, one in enumerate(self.signatures) if one.kind == "cell type"]
        if not of_types:
            return np.full(len(self.store), 255, np.uint8).tobytes() + np.zeros(len(self.store), "<f4").tobytes()
        score_NxS = self._scores_NxS()[:, of_types]
        number_N = score_NxS.argmax(1)
        score_N = np.take_along_axis(score_NxS, number_N[:, None], 1)[:, 0]
        return np.array(of_types, np.uint8)[number_N].tobytes() + score_N.astype("<f4").tobytes()

    def tile(self, level: int, column: int, row: int) -> bytes:
        """A tile of the H&E as JPEG. Raises `InputError` where there is none."""
        if self.section is None:
            raise InputError(f"{self.name}: {self.missing}")
        scale = 2 ** (self.top_level - level) if 0 <= level <= self.top_level else 1
        width_px, height_px = (-(-px // scale) for px in self.store.about["slide_px"])
        left, top = column * TILE_PX, row * TILE_PX
        if not 0 <= level <= self.top_level or not (0 <= left < width_px and 0 <= top < height_px):
            raise InputError(f"{self.name}: has no tile {level}/{column}/{row}")
        um_per_px = self.store.about["he_um_per_px"] * scale
        pixels = self._read(left * um_per_px, top * um_per_px, um_per_px)
        out = io.BytesIO()
        cut = pixels[: min(TILE_PX, height_px - top), : min(TILE_PX, width_px - left)]
        Image.fromarray(cut).save(out, "JPEG", quality=_QUALITY)
        return out.getvalue()

    def _read(self, x_um: float, y_um: float, um_per_px: float) -> np.ndarray:
        """From the overview where it is fine enough and no level of the slide is near: else all of it would be read."""
        level = self.section.level_for(um_per_px)
        level_um = self.section.he_um_per_px * self.section.file.downsample(level)
        if um_per_px > _FAR * level_um and (overview := self._overview()) is not None:
            overview_um = self.store.about["slide_px"][0] * self.store.about["he_um_per_px"] / overview.shape[1]
            if um_per_px >= overview_um * 0.99:
                return crop_and_resample(overview, overview.shape, overview_um, x_um, y_um, TILE_PX, um_per_px)
        return self.section.read(x_um, y_um, TILE_PX, um_per_px)

    def _overview(self) -> np.ndarray | None:
        path = self.store.folder / "overview.jpg"
        with self._opening:
            if self._seen is None and path.exists():
                self._seen = np.asarray(Image.open(path).convert("RGB"))
        return self._seen

    def inside(self, corner_um_Px2: np.ndarray) -> np.ndarray:
        """Numbers of the bins whose centres lie in a polygon."""
        centres = np.stack([self.store.x_um_N, self.store.y_um_N], 1)
        low, high = corner_um_Px2.min(0), corner_um_Px2.max(0)
        near = np.flatnonzero(((centres >= low) & (centres <= high)).all(1))
        return near[points_in_poly(centres[near], corner_um_Px2)]

    def region(self, corner_um_Px2: np.ndarray) -> dict[str, Any]:
        """Mean over the bins of a polygon, of every gene and array. Raises `InputError` where it holds no bin."""
        number_n = self.inside(corner_um_Px2)
        if not len(number_n):
            raise InputError("the region holds no bin; draw it over tissue")
        means = {array: self._mean(array, number_n) for array in self.store.arrays}
        area_mm2 = len(number_n) * (self.store.bin_um / 1e3) ** 2
        scored = self._scores_NxS()[number_n].mean(0, dtype=np.float64) if self.signatures else ()
        return {"bins": len(number_n), "area_mm2": area_mm2, "symbols": self.store.panel.symbols, "means": means,
                "scores": {one.name: float(score) for one, score in zip(self.signatures, scored, strict=True)
                           if np.isfinite(score)}}  # fmt: skip

    def _mean(self, array: str, number_n: np.ndarray) -> np.ndarray:
        """Over those of these bins where it is known, float64 [G]; NaN: in none. Only their runs are read."""
        sums_G, known_G = np.zeros((2, len(self.store.panel)))
        first = self.store.slots.first
        run_n = np.searchsorted(first, number_n, "right") - 1
        for run in np.unique(run_n):
            values_nxG = self.store.run(int(run), array)[number_n[run_n == run] - first[run]]
            sums_G += np.nansum(values_nxG, 0, dtype=np.float64)
            known_G += np.isfinite(values_nxG).sum(0)
        return sums_G / np.where(known_G > 0, known_G, np.nan)


def region_table(region: dict[str, Any]) -> str:
    """CSV: a gene a line, with its mean of each array."""
    arrays = list(region["means"])
    lines = [",".join(("symbol", *(f"mean_{array}" for array in arrays)))]
    for symbol, *values in zip(region["symbols"], *region["means"].values(), strict=True):
        told = (f"{value:.8g}" if np.isfinite(value) else "" for value in values)
        lines.append(",".join((f'"{symbol}"' if "," in symbol else symbol, *told)))
    return "\n".join(lines) + "\n"


def _short(values: np.ndarray) -> list[float | None]:
    """For JSON: four digits, and null where unknown."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist()]
