"""How far counts scatter around rates predicted at once: fitted to validation sections, tried on held-out ones.

The two numbers of `Spread` travel with the validation of genes, so that maps can say how far a count may lie from its
rate. They hold for bins of the side that they were fitted at, which is the side that is predicted.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tario_jax.corpus.read import Section
from tario_jax.evaluate.decoding.calibration import LEVELS, coverage, randomised_pit
from tario_jax.evaluate.decoding.spread import POISSON, fit_spread
from tario_jax.evaluate.kept import Arrays, Kept, key_of
from tario_jax.evaluate.section_reader import Reader

SECTIONS = 8  # of either kind, at most: two numbers need no more
_DRAWN = 1 << 17  # counts of a section
_LEAST_DRAWN = 100


def count_spread(
    reader: Reader, validation: Sequence[Section], held_out: Sequence[Section], kept: Kept, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """`bursts` and `uncertain` of counts around the model's rates, the side of bins that they are of, and the shares of
    held-out counts within central intervals with them and as if counts were Poisson.

    None where there is no validation section with counts: nothing may be fitted to what scores are of.
    """
    usable, tried = (_some([section for section in sections if section.holds("he") and section.has_counts])
                     for sections in (validation, held_out))  # fmt: skip
    if not usable or not tried:
        return None
    reader = dataclasses.replace(reader, bin_um=reader.read_um)
    fitted_on = [_counts_and_rates(reader, section, kept) for section in usable]
    counts, rates = (np.concatenate(parts) for parts in zip(*fitted_on, strict=True))
    if len(counts) < _LEAST_DRAWN:
        return None
    spread = fit_spread(counts, rates[None], np.random.default_rng(0))
    counts, rates = (np.concatenate(parts) for parts in zip(
        *(_counts_and_rates(reader, section, kept) for section in tried), strict=True))  # fmt: skip
    say(f"evaluate: scatter of counts around rates, from {len(usable)} sections of validation, tried on {len(tried)}")

    def covered(around) -> dict[str, float]:
        pit = randomised_pit(counts, rates[None], np.random.default_rng(0), around)
        return {f"{100 * level:g}": float(coverage(pit, level)) for level in LEVELS}

    size_um = reader.read_um if tried[0].spots is None else tried[0].spots.square_um
    return {"size_um": size_um, **spread._asdict(), "validation_sections": len(usable), "held_out_sections": len(tried),
            "counts": len(counts), "coverage": covered(spread), "coverage_poisson": covered(POISSON)}  # fmt: skip


def _some(sections: Sequence[Section]) -> list[Section]:
    """At most `SECTIONS`, evenly."""
    return list(sections[:: max(1, len(sections) // SECTIONS)][:SECTIONS])


def _counts_and_rates(reader: Reader, section: Section, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """Of some bins and genes of a section, drawn by their rates, so that rates at which scatter shows are among them.

    The draw looks at no count, so the likelihood of the counts that are drawn is what it would be of all.
    """
    source = reader.source(section, predicted=True, with_truth=False)

    def drawn() -> Arrays:
        bins = source.measured()
        rates_NxP = np.nan_to_num(reader.rates(section, bins)) * bins.measured_gene_P
        at = _systematic(rates_NxP.ravel(), np.random.default_rng(0))
        bin_D, gene_D = np.unravel_index(at, rates_NxP.shape)
        return {"counts": np.asarray(bins.counts[bin_D, gene_D]).ravel(), "rates": rates_NxP[bin_D, gene_D]}

    key = key_of(rates=source.rates_key, drawn=_DRAWN)
    arrays = kept.get(f"spread/{section.id}", key, drawn)
    return arrays["counts"], arrays["rates"]


def _systematic(rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions drawn in proportion to their rates, each at most once."""
    up_to = np.cumsum(rates, dtype=np.float64)
    if not len(up_to) or up_to[-1] <= 0:
        return np.zeros(0, int)
    steps = (np.arange(_DRAWN) + rng.random()) * (up_to[-1] / _DRAWN)
    return np.unique(np.minimum(np.searchsorted(up_to, steps), len(rates) - 1))
