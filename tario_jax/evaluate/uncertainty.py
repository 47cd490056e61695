"""How far counts scatter around rates predicted at once: fitted to validation sections, tried on held-out ones.

The two numbers of `Spread` travel with the validation of genes, so that maps can say how far a count may lie from its
rate. They hold for places of the side that they were fitted at, which is the side that is predicted.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.decoding.calibration import LEVELS, coverage, randomised_pit
from tario_jax.evaluate.decoding.spread import POISSON, Spread, fit_spread
from tario_jax.evaluate.kept import Arrays, Kept, by_turns, key_of
from tario_jax.evaluate.scope import spread_over
from tario_jax.evaluate.section_reader import Reader

BANDS = {"below 1": (0.0, 1.0), "1 to 10": (1.0, 10.0), "above 10": (10.0, np.inf)}  # of rates
_SECTIONS = 8  # of either kind, at most: two numbers need no more
_DRAWN = 1 << 17  # counts of a section
_LEAST_DRAWN = 100


def sections_to_fit(sections: Sequence[Section]) -> list[Section]:
    """At most 8 of those with an H&E and counts, evenly."""
    return spread_over([section for section in sections if section.holds("he") and section.has_counts], _SECTIONS)


def count_spread(
    reader: Reader, validation: Sequence[Section], held_out: Sequence[Section], kept: Kept, say: Callable[[str], None],
    part: tuple[int, int] = (1, 1),
) -> dict[str, Any]:  # fmt: skip
    """`bursts` and `uncertain` of counts around the model's rates, the side of the places that they are of, and the
    shares of held-out counts within central intervals with them and as if counts were Poisson; or `not_learnt`: why.

    validation: sections that nothing was learnt from: to fit to what scores are of would be to know them. part: (k, n)
    where n processes share the work.
    """
    reader = dataclasses.replace(reader, bin_um=reader.read_um)
    to_fit, to_try = sections_to_fit(validation), sections_to_fit(held_out)
    if not to_fit:
        return {"not_learnt": "there is no validation section of the model's own corpus, with counts, that neither it "
                              "nor a checkpoint that it started from learnt from"}  # fmt: skip
    size_um = _size_um(reader, to_fit[0])
    drawn = {section.id: _counts_and_rates(reader, section, kept, say)
             for section in by_turns([*to_fit, *to_try], part) if _size_um(reader, section) == size_um}  # fmt: skip
    (fitted, counts, rates), (tried, tried_counts, tried_rates) = (
        _together([drawn[section.id] for section in sections if section.id in drawn]) for sections in (to_fit, to_try)
    )
    if min(len(counts), len(tried_counts)) < _LEAST_DRAWN:
        return {"not_learnt": f"validation sections gave {len(counts)} counts of places of {size_um:.3g} µm, held-out "
                              f"ones {len(tried_counts)}; at least {_LEAST_DRAWN} of each are needed"}  # fmt: skip
    spread = fit_spread(counts, rates[None], np.random.default_rng(0))
    say(f"evaluate: scatter of counts around rates, from {fitted} sections of validation, tried on {tried}")

    def covered(around: Spread) -> dict[str, dict[str, float]]:
        pit = randomised_pit(tried_counts, tried_rates[None], np.random.default_rng(0), around)
        of_band = {band: pit[(low <= tried_rates) & (tried_rates < high)] for band, (low, high) in BANDS.items()}
        return {band: {f"{100 * level:g}": float(coverage(of, level)) for level in LEVELS}
                for band, of in ({"all": pit} | of_band).items() if len(of)}  # fmt: skip

    return {"size_um": size_um, **spread._asdict(), "validation_sections": fitted, "held_out_sections": tried,
            "counts": len(tried_counts), "coverage": covered(spread), "coverage_poisson": covered(POISSON)}  # fmt: skip


def _size_um(reader: Reader, section: Section) -> float:
    return section.placed_spots.square_um if section.has_spots else reader.read_um


def _together(drawn: list[tuple[np.ndarray, np.ndarray]]) -> tuple[int, np.ndarray, np.ndarray]:
    """Of how many sections, counts, rates."""
    some = [of for of in drawn if len(of[0])]
    if not some:
        return 0, np.zeros(0), np.zeros(0)
    return len(some), *(np.concatenate(parts) for parts in zip(*some, strict=True))


def _counts_and_rates(
    reader: Reader, section: Section, kept: Kept, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Of some bins and genes of a section, drawn by their rates, so that rates at which scatter shows are among them.

    The draw looks at no count, so the likelihood of the counts that are drawn is what it would be of all.
    """

    def drawn() -> Arrays:
        bins = reader.bins(section, described=False)
        rates_NxP = np.nan_to_num(reader.rates(section, bins), copy=False)
        rates_NxP[:, ~bins.measured_gene_P] = 0.0
        bin_D, gene_D = _systematic(rates_NxP, np.random.default_rng(0))
        if not len(bin_D):
            return {"counts": np.zeros(0), "rates": np.zeros(0)}
        return {"counts": np.asarray(bins.counts[bin_D, gene_D]).ravel(), "rates": rates_NxP[bin_D, gene_D]}

    key = key_of(rates=reader.source(section, predicted=True, with_truth=False).rates_key, drawn=_DRAWN)
    try:
        arrays = kept.get(f"spread/{section.id}", key, drawn)
    except InputError as error:  # places that are not known well enough, or too few
        say(f"evaluate: {section.id} is left out of the scatter of counts: {error}")
        return np.zeros(0), np.zeros(0)
    return arrays["counts"], arrays["rates"]


def _systematic(rates_NxP: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns drawn in proportion to their rates, each place at most once."""
    of_row_N = rates_NxP.sum(1, dtype=np.float64)
    up_to_N = np.cumsum(of_row_N)
    if not len(up_to_N) or up_to_N[-1] <= 0:
        return np.zeros(0, int), np.zeros(0, int)
    wanted_D = (np.arange(_DRAWN) + rng.random()) * (up_to_N[-1] / _DRAWN)
    row_D = np.minimum(np.searchsorted(up_to_N, wanted_D, side="right"), len(up_to_N) - 1)
    rows, columns = [], []
    for row, first, last in zip(*_runs(row_D), strict=True):
        up_to_P = np.cumsum(rates_NxP[row], dtype=np.float64)
        within = wanted_D[first:last] - (up_to_N[row] - of_row_N[row])
        found = np.unique(np.minimum(np.searchsorted(up_to_P, within, side="right"), len(up_to_P) - 1))
        found = found[rates_NxP[row, found] > 0]  # rounding may step over the last rate
        rows.append(np.full(len(found), row))
        columns.append(found)
    return np.concatenate(rows), np.concatenate(columns)


def _runs(sorted_D: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each value, and where its run begins and ends."""
    values, first = np.unique(sorted_D, return_index=True)
    return values, first, np.append(first[1:], len(sorted_D))
