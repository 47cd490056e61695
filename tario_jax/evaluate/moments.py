"""Correlations of every gene in all three forms, in one pass over strips of bins.

Counts stay sparse, predictions are dense and read strip by strip: memory is bounded whatever a section's size. A form's
values are never kept, since r needs their sums alone; Pearson residuals are no exception, though they need the gene's
share of the section, which is known at the end only: with t the bin's total and s the share,
(x − t·s) / √(t·s) = (x / √t) / √s − √t·√s, so the sums of x / √t and √t are enough.

K blocks of tissue (one where no blocks are resampled), n bins of a strip, N of a section, G genes, E entries (bin,
gene) that are not 0. Sums are float64.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping

import numpy as np
import scipy.sparse

from tario_jax.evaluate.blas import one_thread
from tario_jax.evaluate.metrics import COMPOSITION_SCALE, composition, correlation, expected_composition, residuals

FORMS = ("counts", "composition", "residual")
VALUES_AT_ONCE = 1 << 19  # of a strip: 4 MiB in float64
ENTRIES_AT_ONCE = 1 << 22  # of products: some 100 MB with their copies

Rows = Callable[[slice], np.ndarray]  # a strip of bins -> values [n, G]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A section's counts of the genes under evaluation. Totals are over every gene that the section measured."""

    counts: scipy.sparse.csr_array  # [N, G]; 0 for genes that the section did not measure
    total_N: np.ndarray
    kept_N: np.ndarray  # positions of the bins with counts enough for composition and residual
    measured_G: np.ndarray  # bool

    def __len__(self) -> int:
        return len(self.total_N)

    def bins(self, form: str) -> np.ndarray:
        """Positions of the bins that a form compares."""
        return np.arange(len(self)) if form == "counts" else self.kept_N

    @functools.cached_property
    def share_G(self) -> np.ndarray:
        """Share of each gene in the counts of the kept bins."""
        kept_N = np.isin(np.arange(len(self)), self.kept_N).astype(np.float64)
        return (kept_N @ self.counts) / max(float(self.total_N @ kept_N), 1e-300)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each gene's counts, and of their squares, over all bins, float64 [G]."""
        genes, count_E = self.counts.indices, self.counts.data
        added = (np.bincount(genes, power_E, minlength=len(self.measured_G)) for power_E in (count_E, count_E**2))
        return tuple(sum_G.astype(np.float64) for sum_G in added)

    def dense(self, form: str, bins: np.ndarray) -> np.ndarray:
        """Values of a form at these bins, float64 [len(bins), G]; NaN for genes that were not measured."""
        values_NxG, total_N = self.counts[bins].toarray().astype(np.float64), self.total_N[bins]
        if form == "composition":
            values_NxG = composition(values_NxG, total_N)
        elif form == "residual":
            values_NxG = residuals(values_NxG, total_N, self.share_G)
        return values_NxG if self.measured_G.all() else np.where(self.measured_G, values_NxG, np.nan)

    def products(self, form: str, given_NxF: np.ndarray) -> np.ndarray:
        """givenᵀ @ values of a form over the bins that it compares, float64 [F, G]; 0 for genes that were not measured.

        What `dense` of those bins would give, in as many products as there are counts that are not 0: of the residual
        (x / √t) / √s − √t·√s, with t the bin's total and s the gene's share, the second part is one product a gene.
        """
        bins = self.bins(form)
        entries = int(np.diff(self.counts.indptr)[bins].sum())
        summed_GxF = np.zeros((len(self.measured_G), given_NxF.shape[1]))
        for part in np.array_split(bins, -(-entries // ENTRIES_AT_ONCE) or 1):
            counts, total_n = self.counts[part], self.total_N[part]
            value_E = counts.data.astype(np.float64)
            if form == "composition":
                value_E = np.log1p(value_E * np.repeat(COMPOSITION_SCALE / total_n, np.diff(counts.indptr)))
            elif form == "residual":
                value_E *= np.repeat(1 / np.sqrt(total_n), np.diff(counts.indptr))
            values = scipy.sparse.csr_array((value_E, counts.indices, counts.indptr), shape=counts.shape)
            summed_GxF += values.T.tocsr() @ given_NxF[part]  # gene by gene: three times as fast as bin by bin
        if form == "residual":
            root_G = np.sqrt(self.share_G)
            summed_GxF *= np.divide(1.0, root_G, out=np.zeros_like(root_G), where=root_G > 0)[:, None]
            summed_GxF -= np.outer(root_G, np.sqrt(self.total_N[bins]) @ given_NxF[bins])
        return summed_GxF.T

    def of(self, genes: np.ndarray) -> "Measured":
        """The same of some of the genes."""
        return Measured(self.counts[:, genes], self.total_N, self.kept_N, self.measured_G[genes])


def measure(counts_NxP: scipy.sparse.csr_array | np.ndarray, measured_P: np.ndarray, genes: np.ndarray,
            min_total: int) -> Measured:  # fmt: skip
    """Counts over the whole panel [N, P] as `Measured` of `genes` (positions in the panel)."""
    counts = scipy.sparse.csr_array(counts_NxP)
    if not measured_P.all():
        counts = scipy.sparse.csr_array(counts.multiply(measured_P[None]))
    total_N = counts @ np.ones(counts.shape[1])
    chosen = counts if len(genes) == len(measured_P) else counts[:, genes]
    return Measured(chosen, total_N, np.flatnonzero(total_N >= max(min_total, 1)), measured_P[genes])


@dataclasses.dataclass(frozen=True)
class FromRates:
    """A prediction of counts, whose composition and residuals follow from its rates and their own total.

    The composition is its expectation, if counts are Poisson with these rates; that of the rates is another quantity
    (`metrics.expected_composition`). The expected residual is that of the rates.

    A strip's total is looked at when its rates were read: what reads them may fill it in as it goes.
    """

    rates: Rows
    total_N: np.ndarray
    counted: bool = False  # these are counts that another measurement found, whose composition is their own
    composed: Rows | None = None  # the composition, where it is known already

    def composition(self, rows: slice, p_nxG: np.ndarray) -> np.ndarray:
        """Of a strip whose rates are p, float64 [n, G]."""
        if self.composed is not None:
            return np.array(self.composed(rows), np.float64)  # a copy: it is written over
        return (composition if self.counted else expected_composition)(p_nxG, self.total_N[rows])


@dataclasses.dataclass(frozen=True)
class Line:
    """Values of a form that are a line in one number of each bin: their sums follow from sums of that number, and no
    strip of them is made."""

    number_N: np.ndarray
    slope_G: np.ndarray
    intercept_G: np.ndarray

    def __call__(self, rows: slice) -> np.ndarray:
        return self.intercept_G + self.number_N[rows, None] * self.slope_G

    def of(self, genes: np.ndarray) -> "Line":
        """The same of some of the genes."""
        return Line(self.number_N, self.slope_G[genes], self.intercept_G[genes])

    def summed(self, weight_K: np.ndarray, u_K: np.ndarray) -> np.ndarray:
        """Σw·y [K, G] from Σw and Σw·u, with y the value and u the number; weights may be of each gene, [K, G] too."""
        weight, u = (sums if sums.ndim == 2 else sums[:, None] for sums in (weight_K, u_K))
        return self.intercept_G * weight + self.slope_G * u

    def squared(self, weight_K: np.ndarray, u_K: np.ndarray, uu_K: np.ndarray) -> np.ndarray:
        """Σw·y², [K, G]."""
        return self.intercept_G * self.summed(weight_K, u_K) + self.slope_G * self.summed(u_K, uu_K)


Direct = Mapping[str, Rows | Line]
"""A prediction of the values of some forms, each by itself. A form that is absent is a constant or cannot be made."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over bins of measured x and predicted p, [K, G] each; n_K bins.

    scale_x, scale_p: sums of squares against which a spread is judged: below 1e-10 of them it is rounding.
    """

    n_K: np.ndarray
    x: np.ndarray
    p: np.ndarray
    xx: np.ndarray
    pp: np.ndarray
    xp: np.ndarray
    scale_x: np.ndarray
    scale_p: np.ndarray

    def r(self, weights_BxK: np.ndarray | None = None) -> np.ndarray:
        """r by gene, [G]; with weights (how often each block is drawn) [B, G]. NaN and 0 as in `pearson_by_gene`."""
        whole = weights_BxK is None
        weights_BxK = np.ones((1, len(self.n_K))) if whole else weights_BxK
        n_Bx1 = np.maximum(weights_BxK @ self.n_K, 1.0)[:, None]
        x, p, xx, pp, xp, scale_x, scale_p = (
            weights_BxK @ part for part in (self.x, self.p, self.xx, self.pp, self.xp, self.scale_x, self.scale_p)
        )
        r_BxG = correlation(xx - x * x / n_Bx1, pp - p * p / n_Bx1, xp - x * p / n_Bx1, scale_x, scale_p)
        r_BxG = np.where(n_Bx1 < 2, np.nan, r_BxG)
        return r_BxG[0] if whole else r_BxG

    def of(self, genes: np.ndarray) -> "Sums":
        """The same of some of the genes."""
        parts = (getattr(self, field.name)[:, genes] for field in dataclasses.fields(self)[1:])
        return Sums(self.n_K, *parts)


def section_sums(measured: Measured, predictions: Mapping[str, FromRates | Direct],
                 block_N: np.ndarray | None = None) -> dict[tuple[str, str], Sums]:  # fmt: skip
    """Sums by (method, form) over the bins of a section, by blocks where `block_N` numbers them.

    Strips are worked on side by side and added up in their order: the bits do not depend on the number of cores.
    """
    number, genes = measured.counts.shape
    block_N = np.zeros(number, np.int64) if block_N is None else block_N
    blocks = int(block_N.max(initial=0)) + 1
    kept_N = np.zeros(number)
    kept_N[measured.kept_N] = 1.0
    step = max(1, VALUES_AT_ONCE // max(genes, 1))
    strips = [slice(first, min(first + step, number)) for first in range(0, number, step)]

    def one(rows: slice) -> tuple[np.ndarray, dict[tuple[str, str], list[np.ndarray]]]:
        """Sums of a strip over the few blocks that it touches, and which those are."""
        touched, block_n = np.unique(block_N[rows], return_inverse=True)
        strip = _Strip(measured, rows, kept_N[rows], block_n, max(len(touched), 1))
        found = {("", ""): strip.measured()}
        for method, prediction in predictions.items():
            if isinstance(prediction, FromRates):
                rates_nxG = np.asarray(prediction.rates(rows), np.float64)
                composed_nxG = prediction.composition(rows, rates_nxG)
                found[method, "rates"] = strip.of_rates(rates_nxG, composed_nxG, prediction.total_N[rows])
            else:
                for form, values in prediction.items():
                    found[method, form] = (
                        strip.of_number(form, values.number_N[rows]) if isinstance(values, Line)
                        else strip.of_values(form, np.asarray(values(rows), np.float64))
                    )  # fmt: skip
        return touched, found

    added: dict[tuple[str, str], list[np.ndarray]] = {}
    with one_thread(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # a few at a time: results of all strips of a large section would be as large as its predictions
        for first in range(0, max(len(strips), 1), 8):
            for touched, parts in pool.map(one, strips[first : first + 8] or [slice(0, 0)]):
                for name, values in parts.items():
                    totals = added.setdefault(name, [np.zeros((blocks, *value.shape[1:])) for value in values])
                    where = slice(None) if len(touched) == blocks else touched
                    for total, value in zip(totals, values, strict=True):
                        total[where] += value[: len(touched)]
    return _finished(added, predictions, measured.measured_G)


class _Strip:
    """Some bins of a section: weights of sums, and the entries that are not 0."""

    def __init__(self, measured: Measured, rows: slice, kept_n: np.ndarray, block_n: np.ndarray, blocks: int):
        counts, total_n = measured.counts, measured.total_N[rows]
        self._genes, self._blocks = counts.shape[1], blocks
        first, last = counts.indptr[rows.start], counts.indptr[rows.stop]
        sizes_n = np.diff(counts.indptr[rows.start : rows.stop + 1])
        self._bin_E = np.repeat(np.arange(len(sizes_n)), sizes_n)
        self._gene_E, self._count_E = counts.indices[first:last], counts.data[first:last].astype(np.float64)
        self._key_E = block_n[self._bin_E] * self._genes + self._gene_E
        self._block_n, self._kept_n = block_n, kept_n
        self._kept_E = kept_n[self._bin_E]
        self._total_n = total_n
        self._root_n = np.sqrt(total_n)
        total_E = np.maximum(total_n[self._bin_E], 1.0)
        self._composed_E = np.log1p(COMPOSITION_SCALE * self._count_E / total_E) * self._kept_E
        self._rooted_E = self._count_E / np.sqrt(total_E) * self._kept_E

    def _summed(self, values_nxG: np.ndarray, *weights_n: np.ndarray) -> list[np.ndarray]:
        """Sums over the bins of each block with each of the weights, [K, G] each."""
        if self._blocks == 1:
            return list((np.stack(weights_n) @ values_nxG)[:, None])
        at = np.concatenate([self._block_n + k * self._blocks for k in range(len(weights_n))])
        bins = np.tile(np.arange(len(self._block_n)), len(weights_n))
        rows = len(weights_n) * self._blocks
        matrix = scipy.sparse.csr_array((np.concatenate(weights_n), (at, bins)), shape=(rows, len(self._block_n)))
        return np.split(matrix @ values_nxG, len(weights_n))

    def _by_block(self, value_n: np.ndarray) -> np.ndarray:
        return np.bincount(self._block_n, value_n, minlength=self._blocks).astype(np.float64)  # int where it is empty

    def _by_gene(self, value_E: np.ndarray) -> np.ndarray:
        summed = np.bincount(self._key_E, value_E, minlength=self._blocks * self._genes)
        return summed.astype(np.float64).reshape(self._blocks, self._genes)

    def measured(self) -> list[np.ndarray]:
        """n, then x, xx of counts; n, x, xx of composition; and of kept bins Σx, Σx/√t, Σx²/t, Σ√t, Σt."""
        count_E = self._count_E
        return [
            self._by_block(np.ones_like(self._kept_n)), self._by_gene(count_E), self._by_gene(count_E * count_E),
            self._by_block(self._kept_n), self._by_gene(self._composed_E), self._by_gene(self._composed_E**2),
            self._by_gene(count_E * self._kept_E), self._by_gene(self._rooted_E), self._by_gene(self._rooted_E**2),
            self._by_block(self._kept_n * self._root_n), self._by_block(self._kept_n * self._total_n),
        ]  # fmt: skip

    def of_rates(self, p_nxG: np.ndarray, composed_nxG: np.ndarray, total_n: np.ndarray) -> list[np.ndarray]:
        """All sums with predicted rates p, their composition, which is written over, and their total u, in the order in
        which `_finished` takes them."""
        root_n = np.sqrt(np.maximum(total_n, 0.0))
        inverse_n = np.divide(1.0, root_n, out=np.zeros_like(root_n), where=root_n > 0)
        all_n, kept_n = np.ones_like(root_n), self._kept_n
        p, kp, b, cb = self._summed(p_nxG, all_n, kept_n, kept_n * inverse_n, kept_n * self._root_n * inverse_n)
        square_nxG = p_nxG * p_nxG
        pp, bb = self._summed(square_nxG, all_n, kept_n * inverse_n**2)
        told_E = p_nxG[self._bin_E, self._gene_E]
        xp = self._by_gene(self._count_E * told_E)
        ab = self._by_gene(self._rooted_E * told_E * inverse_n[self._bin_E])
        ad = self._by_gene(self._rooted_E * root_n[self._bin_E])
        (y,) = self._summed(composed_nxG, kept_n)
        xy = self._by_gene(self._composed_E * composed_nxG[self._bin_E, self._gene_E])
        (yy,) = self._summed(np.multiply(composed_nxG, composed_nxG, out=composed_nxG), kept_n)
        by_block = [self._by_block(kept_n * value_n) for value_n in (root_n, self._root_n * root_n, total_n)]
        return [p, pp, xp, y, yy, xy, kp, b, bb, ab, ad, cb, *by_block]

    def of_values(self, form: str, y_nxG: np.ndarray) -> list[np.ndarray]:
        """Σy, Σy², Σxy of a form's values; of residuals Σ(x/√t)·y and Σ√t·y in place of Σxy."""
        weight_n, x_E = self._compared(form)
        told_E = y_nxG[self._bin_E, self._gene_E]
        (yy,) = self._summed(y_nxG * y_nxG, weight_n)
        y, cy = self._summed(y_nxG, weight_n, weight_n * self._root_n)
        return [y, yy, self._by_gene(x_E * told_E), *([cy] if form == "residual" else [])]

    def of_number(self, form: str, u_n: np.ndarray) -> list[np.ndarray]:
        """Σu, Σu², Σxu by gene, and Σ√t·u, of the number of a `Line`."""
        weight_n, x_E = self._compared(form)
        by_block = [self._by_block(weight_n * of_n) for of_n in (u_n, u_n * u_n, self._root_n * u_n)]
        return [*by_block, self._by_gene(x_E * u_n[self._bin_E])]

    def _compared(self, form: str) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the bins, and the measured values of the entries, of residuals x/√t."""
        if form == "counts":
            return np.ones_like(self._kept_n), self._count_E
        return self._kept_n, self._composed_E if form == "composition" else self._rooted_E


@dataclasses.dataclass(frozen=True)
class _Residual:
    """z = (x / √t)·α − √t·β of one side, from its sums: [K, G] each, α and β [G]."""

    a: np.ndarray
    c: np.ndarray  # [K, 1]
    alpha: np.ndarray
    beta: np.ndarray
    z: np.ndarray
    zz: np.ndarray
    scale: np.ndarray

    @staticmethod
    def of(x: np.ndarray, a: np.ndarray, aa: np.ndarray, c_K: np.ndarray, total_K: np.ndarray) -> "_Residual":
        share_G = np.maximum(x.sum(0), 0.0) / max(float(total_K.sum()), 1e-300)
        beta = np.sqrt(share_G)
        alpha = np.divide(1.0, beta, out=np.zeros_like(beta), where=beta > 0)
        c, total = c_K[:, None], total_K[:, None]
        seen_G = beta > 0  # a gene that is nowhere has residuals of 0
        return _Residual(a, c, alpha, beta, alpha * a - beta * c, (alpha**2 * aa - 2 * x + share_G * total) * seen_G,
                         share_G * total)  # fmt: skip


def _finished(added: dict[tuple[str, str], list[np.ndarray]], predictions: Mapping[str, FromRates | Direct],
              measured_G: np.ndarray) -> dict[tuple[str, str], Sums]:  # fmt: skip
    n_K, x, xx, kept_K, y, yy, kx, a, aa, c_K, total_K = added.pop(("", ""))
    of_form = {"counts": (n_K, x), "composition": (kept_K, y), "residual": (kept_K, a)}
    x, y = (np.where(measured_G, part, np.nan) for part in (x, y))  # NaN in a sum makes r undefined
    z = _Residual.of(kx, a, aa, c_K, total_K)
    z_sum = np.where(measured_G, z.z, np.nan)

    def counts(p, pp, xp):
        return Sums(n_K, x, p, xx, pp, xp, xx, pp)

    def composed(p, pp, xp):
        return Sums(kept_K, y, p, yy, pp, xp, yy, pp)

    sums = {}
    for (method, form), values in added.items():
        if form in FORMS and isinstance(line := predictions[method][form], Line):
            u_K, uu_K, cu_K, xu = values
            weight_K, x_of_form = of_form[form]
            values = [line.summed(weight_K, u_K), line.squared(weight_K, u_K, uu_K), line.summed(x_of_form, xu),
                      *([line.summed(c_K, cu_K)] if form == "residual" else [])]  # fmt: skip
        if form == "counts":
            sums[method, form] = counts(*values)
        elif form == "composition":
            sums[method, form] = composed(*values)
        elif form == "residual":
            p, pp, ap, cp = values
            sums[method, form] = Sums(kept_K, z_sum, p, z.zz, pp, z.alpha * ap - z.beta * cp, z.scale, pp)
        else:
            p, pp, xp, q, qq, yq, kp, b, bb, ab, ad, cb, d_K, cd_K, u_K = values
            predicted = _Residual.of(kp, b, bb, d_K, u_K)
            zz = (z.alpha * predicted.alpha * ab - z.alpha * predicted.beta * ad - z.beta * predicted.alpha * cb
                  + z.beta * predicted.beta * cd_K[:, None])  # fmt: skip
            sums[method, "counts"] = counts(p, pp, xp)
            sums[method, "composition"] = composed(q, qq, yq)
            sums[method, "residual"] = Sums(kept_K, z_sum, predicted.z, z.zz, predicted.zz, zz, z.scale,
                                            predicted.scale)  # fmt: skip
    return sums
