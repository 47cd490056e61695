"""What an evaluation found gene by gene and section by section, kept for comparisons between runs: `scores.npz`."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.whole_file import UNREADABLE, write_whole

FORMAT_VERSION = 4
FILE = "scores.npz"


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """The scores of one run at one side of bins; S held-out sections, G genes, P patients.

    r: float32 [S, G] by method and form ("model" and "counts", "composition", "residual"; controls likewise). NaN: not
    measured, or constant in the measurement. nats_S: Poisson negative log-likelihood of a section's counts under the
    predicted rates, per detection: gene_nats_S of its multinomial over genes, total_nats_S of the bins' totals.
    """

    bin_um: float  # side of the bins that are compared; 0: spots
    read_um: float  # side of those that were predicted, and then summed up to bin_um; 0: spots
    corpus_seal: str
    checkpoint: str  # of the model: its step, and what tells it from others of that step
    ranked_on: str  # "training sections" or "held-out sections"
    settings: str  # JSON of those of `EvaluateConfig` that r depends on, and "split_by" where that is no patient
    sections: tuple[str, ...]
    patients: tuple[str, ...]  # of the sections
    cohorts: tuple[str, ...]
    symbols: tuple[str, ...]
    gene_class: tuple[str, ...]  # of virtual tissue; empty strings where none is known
    moran_G: np.ndarray  # on the training sections; NaN: not ranked
    rho_SxG: np.ndarray  # reliability of the counts, unclipped
    gene_nats_S: np.ndarray
    total_nats_S: np.ndarray
    detections_S: np.ndarray
    r: dict[tuple[str, str], np.ndarray]
    bulk_patients: tuple[str, ...]
    bulk_cohorts: tuple[str, ...]
    bulk_measured_PxG: np.ndarray  # mean count a bin
    bulk_measured_total_P: np.ndarray  # over every measured gene
    bulk_predicted_PxG: np.ndarray
    bulk_predicted_total_P: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """Positions of the ranked genes, highest Moran's I first; ties keep the panel's order."""
        order = np.argsort(-np.where(np.isfinite(self.moran_G), self.moran_G, -np.inf), kind="stable")
        return order[: np.isfinite(self.moran_G).sum()]

    def write(self, path: Path) -> None:
        """The file is absent or whole."""
        arrays: dict[str, Any] = {"format_version": FORMAT_VERSION}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "r":
                arrays |= {f"r/{method}/{form}": r_SxG.astype(np.float32) for (method, form), r_SxG in value.items()}
            else:
                arrays[field.name] = np.asarray(value, str) if isinstance(value, tuple) else np.asarray(value)
        memory = io.BytesIO()
        np.savez_compressed(memory, **arrays)
        write_whole(path, memory.getvalue())


def is_current(path: Path) -> bool:
    """Whether these scores are there and of this version; their arrays are not read."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return int(file["format_version"]) == FORMAT_VERSION
    except UNREADABLE:
        return False


def read_scores(path: Path) -> ScoreTable:
    """Raises `InputError` where the file is missing, broken or of another version."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; 'tario evaluate' of that run writes it") from None
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read ({error}); evaluate that run again") from None
    version = int(arrays.pop("format_version", -1))
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: has format version {version}; expected {FORMAT_VERSION}; evaluate that run again")
    r = {tuple(name.split("/")[1:]): arrays.pop(name) for name in list(arrays) if name.startswith("r/")}
    return ScoreTable(r=r, **{name: _plain(value) for name, value in arrays.items()})


def _plain(value: np.ndarray) -> Any:
    if value.ndim == 0:
        return value.item()
    return tuple(value.tolist()) if value.dtype.kind == "U" else value
