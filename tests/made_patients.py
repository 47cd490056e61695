"""Rows and stores of made patients, for what works on embeddings alone."""

from pathlib import Path

import numpy as np

from tario_jax.evaluate.patients.looks import ACQUISITION, texture_names
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import PREDICTED, Embedded
from tario_jax.panel import Panel

ABOUT = {"checkpoint": "c", "model": "made", "trained_on": "virtual", "bin_um": 36.0, "overlap": 0.5, "region_um": None,
         "tissue": "virtual"}  # fmt: skip


def made_row(patient: str, expression_G, *, cohort: str = "LUAD", section: str = "", region: str = "",
             kind: str = PREDICTED, seen: bool = False, bins: int = 10, detections: float = 100.0, log_expression=None,
             state=(0.0, 0.0), texture=None, acquisition=None, um_per_px: float = 0.5) -> Embedded:  # fmt: skip
    """Zeros where nothing is said."""

    def full(values, size):
        return np.zeros(size, np.float32) if values is None else np.asarray(values, np.float32)

    state = np.asarray(state, np.float32)
    expression_G = np.asarray(expression_G, np.float32)
    return Embedded(patient, cohort, section or f"{patient}_core", "", region, kind, seen, bins, detections,
                    um_per_px, expression_G,
                    full(log_expression, len(expression_G)), state, 0 * state, full(texture, len(texture_names())),
                    full(acquisition, len(ACQUISITION)))  # fmt: skip


def made_store(folder: Path, symbols: tuple[str, ...], rows: list[Embedded], **about: str) -> EmbeddingStore:
    store = EmbeddingStore.begun(folder, Panel(symbols), ABOUT | about)
    store.add(rows)
    return store
