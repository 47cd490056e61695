"""Sizes × contexts: do larger models gain more from longer context?"""

import numpy as np

from tario_jax.evaluate.intervals import interval, patient_resampling
from tario_jax.evaluate.scaling.axes import Plane
from tario_jax.evaluate.scaling.measures import TOP, Ranking, top_r
from tario_jax.evaluate.scaling.records import Record
from tario_jax.evaluate.scaling.trial import seed_deviation

QUANTITIES = ("nats", "gene_nats", "r/counts/top", "r/composition/top", "r/residual/top")
Cells = dict[tuple[float, float], tuple[Record, ...]]


def grid_cells(plane: Plane) -> tuple[list[float], list[float], Cells] | None:
    """(sizes, contexts, runs by both) of the largest whole grid; None where it is smaller than 2 × 2.

    Contexts are those that every size with more than one of them has. A cell that two configurations share, as two
    tables of genes beside one trunk, is of neither.
    """
    places = [(size, context) for size, context, _ in plane.points]
    cells = {(size, context): runs for size, context, runs in plane.points if places.count((size, context)) == 1}
    by_size: dict[float, set[float]] = {}
    for size, context in cells:
        by_size.setdefault(size, set()).add(context)
    sizes = sorted(size for size, contexts in by_size.items() if len(contexts) > 1)
    contexts = sorted(set.intersection(*(by_size[size] for size in sizes))) if sizes else []
    if len(sizes) < 2 or len(contexts) < 2:
        return None
    return sizes, contexts, {(size, context): cells[size, context] for size in sizes for context in contexts}


def measure_grid(
    sizes: list[float], contexts: list[float], cells: Cells, measured: dict[str, dict], ranking: Ranking, samples: int,
    seed: int,
) -> dict:  # fmt: skip
    """Each quantity in each cell, by seed, and the interaction: the gain of the longest context over the shortest at
    the largest size, less that at the smallest.

    measured: {run: {quantity: value}}. seed_sd of the interaction follows from the pooled deviation between seeds and
    the numbers of seeds; low and high: patients drawn, all of a patient's sections along.
    """
    corners = _corners(sizes, contexts)
    first = next(iter(cells.values()))[0].scores
    weights_BxS = patient_resampling(list(first.patients), samples, np.random.default_rng(seed)).weights_BxS
    found = {}
    for name in QUANTITIES:
        values = {cell: [measured[run.name][name] for run in runs] for cell, runs in cells.items()}
        if any(value is None for several in values.values() for value in several):
            continue
        sd, degrees = seed_deviation([value for several in values.values() for value in several],
                                     [str(cell) for cell, several in values.items() for _ in several])  # fmt: skip
        interaction = float(sum(sign * np.mean(values[cell]) for cell, sign in corners.items()))
        of_seeds = None if sd is None else sd * float(np.sqrt(sum(1 / len(values[cell]) for cell in corners)))
        low, high = interval(sum(
            sign * np.mean([_sampled(run, name, ranking, weights_BxS) for run in cells[cell]], axis=0)
            for cell, sign in corners.items()
        ))  # fmt: skip
        found[name] = {
            "cells": [[values[size, context] for context in contexts] for size in sizes],
            "gains": [float(np.mean(values[size, contexts[-1]]) - np.mean(values[size, contexts[0]]))
                      for size in sizes],
            "interaction": interaction, "low": low, "high": high, "seed_sd": of_seeds, "seed_degrees": degrees,
        }  # fmt: skip
    runs = [[[run.name for run in cells[size, context]] for context in contexts] for size in sizes]
    return {"sizes": sizes, "contexts_um": contexts, "runs": runs, "quantities": found}


def _corners(sizes: list[float], contexts: list[float]) -> dict[tuple[float, float], int]:
    """The four cells of the interaction, and the sign of each."""
    return {(sizes[-1], contexts[-1]): 1, (sizes[-1], contexts[0]): -1,
            (sizes[0], contexts[-1]): -1, (sizes[0], contexts[0]): 1}  # fmt: skip


def _sampled(run: Record, quantity: str, ranking: Ranking, weights_BxS: np.ndarray) -> np.ndarray:
    """The quantity in every sample of patients, [B]."""
    if quantity in ("nats", "gene_nats"):
        return run.scores.nats(weights_BxS)[:, : None if quantity == "nats" else 1].sum(1)
    return top_r(run.scores, quantity.split("/")[1], ranking.genes(TOP), weights_BxS)
