"""Sections of a corpus as evaluation sees them: binned, described, predicted; each kept once it is worked out."""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.sparse

from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.bins import area_weights, grid_places, sparse_grid_counts, whole_bins
from tario_jax.evaluate.features import section_features
from tario_jax.evaluate.kept import Arrays, Kept, key_of
from tario_jax.evaluate.scope import CommonGenes, truth_key
from tario_jax.evaluate.section_bins import SectionBins, SectionSource, Truth
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.predictor import Predictor
from tario_jax.virtual.section import truth_rates

_VERSION = 1  # of the bins that are kept
LARGE_UM2 = 1e6  # a section beyond this is read alone: its H&E and its detections take memory


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads sections on bins of `bin_um` (or their spots); rates are predicted at `read_um`, and summed up to those."""

    predictor: Predictor
    corpus: Corpus
    genes: CommonGenes
    bin_um: float
    read_um: float
    overlap: float
    shared: Kept

    def source(self, section: Section, *, predicted: bool, with_truth: bool) -> SectionSource:
        data = self.predictor.provenance.config.data
        key = key_of(version=_VERSION, seal=self.corpus.seal, section=section.id, bin_um=self.bin_um,
                     min_measured=data.min_measured, genes=self.genes.symbols)  # fmt: skip
        rates_key = key_of(section=key, checkpoint=self.predictor.checkpoint, read_um=self.read_um,
                           overlap=self.overlap)  # fmt: skip

        def measured() -> SectionBins:
            arrays = self.shared.get(f"bins/{section.id}", key, lambda: _to_arrays(self.bins(section)))
            return _from_arrays(section, arrays)

        return SectionSource(
            section.id, section.patient, section.cohort, measured,
            (lambda: self.rates(section, measured()).__getitem__) if predicted else None,
            self._truth(section, measured) if with_truth else None, key, truth_key(section) if with_truth else "",
            rates_key, large=section.width_um * section.height_um > LARGE_UM2,
        )  # fmt: skip

    def rates(self, section: Section, bins: SectionBins) -> np.ndarray:
        """Predicted rates of the common genes on the measured part of each bin, float32 [N, P]."""
        maps = self.predictor.predict_section(
            section, tissue=self.corpus.kind, overlap=self.overlap,
            bin_um=None if section.has_spots else self.read_um, one_of_many=True,
        )  # fmt: skip
        section.close()  # what was read of it, and is not read again soon
        rates_NxP = _on_places(maps, bins)
        if bins.share_N is not None:
            rates_NxP *= bins.share_N.astype(np.float32)[:, None]
        in_model = self.genes.in_model
        return rates_NxP if len(in_model) == rates_NxP.shape[1] else rates_NxP[:, in_model]

    def _truth(self, section: Section, measured: Callable[[], SectionBins]) -> Callable[[], Truth] | None:
        """T and V of virtual tissue on these bins; None of real tissue."""
        if section.has_spots or section.truth is None:
            return None

        def truth() -> Truth:
            bins = measured()
            columns = int(section.width_um / self.bin_um + 1e-6)
            at = (bins.y_um_N // self.bin_um).astype(int) * columns + (bins.x_um_N // self.bin_um).astype(int)
            stored = section.truth
            rates = (rates.reshape(-1, rates.shape[-1]) for rates in truth_rates(stored, self.bin_um))
            return tuple(bins.share_N[:, None] * values[at][:, self.genes.in_corpus] for values in rates)

        return truth

    def bins(self, section: Section, *, described: bool = True) -> SectionBins:
        """The measured side. described: with features of the H&E around each bin, which take most of the time; without
        them there are none."""
        share_N = None
        if section.has_spots:
            spots = section.spots
            x_um_N, y_um_N, counts = spots.x_um_N, spots.y_um_N, scipy.sparse.csr_array(
                (spots.count_E, spots.gene_E, spots.indptr), shape=(len(spots.x_um_N), len(section.measured_gene_G))
            )  # fmt: skip
            size_um, pitch_um, layout = spots.diameter_um, spots.pitch_um, "spots"
        else:
            section.check_bins(self.bin_um)
            columns, rows = whole_bins(section, self.bin_um)
            x_um_N, y_um_N = grid_places(columns, rows, self.bin_um)
            share_N = section.measured_share(x_um_N, y_um_N, self.bin_um)
            kept = np.flatnonzero(share_N >= self.predictor.provenance.config.data.min_measured - 1e-6)
            counts = sparse_grid_counts(section.all_detections(), len(section.measured_gene_G), columns, rows,
                                        self.bin_um)[kept]  # fmt: skip
            x_um_N, y_um_N, share_N = x_um_N[kept], y_um_N[kept], np.minimum(share_N[kept], 1.0)
            size_um, pitch_um, layout = self.bin_um, self.bin_um, "square"
        features_NxF, density_N = np.zeros((len(x_um_N), 0)), np.zeros(len(x_um_N))
        if described:
            features_NxF, density_N = section_features(section.he(), section.he_um_per_px, x_um_N, y_um_N, size_um)
        measured_gene_P = section.measured_gene_G[self.genes.in_corpus]
        section.close()  # counts of spots are some hundred MB of a whole slide
        return SectionBins(
            section.id, section.patient, section.cohort, x_um_N, y_um_N, pitch_um, layout,
            counts.astype(np.float32)[:, self.genes.in_corpus], features_NxF, density_N,
            measured_gene_P, share_N,
        )  # fmt: skip


def _on_places(maps: GeneMaps, bins: SectionBins) -> np.ndarray:
    """Predicted rates at the places of the bins, of whole bins, for every gene of the model, float32 [N, G]."""
    if bins.layout == "square" and abs(maps.size_um - bins.pitch_um) > 1e-6:
        weights = area_weights((maps.x_um_N, maps.y_um_N), maps.size_um, (bins.x_um_N, bins.y_um_N), bins.pitch_um)
        return weights.astype(np.float32) @ maps.rates_NxG
    return maps.rates_NxG[maps.rows_at(bins.x_um_N, bins.y_um_N)]


def _to_arrays(bins: SectionBins) -> Arrays:
    counts = bins.counts
    arrays = {
        "x_um": bins.x_um_N, "y_um": bins.y_um_N, "pitch_um": np.array(bins.pitch_um), "layout": np.array(bins.layout),
        "count": counts.data, "gene": counts.indices, "indptr": counts.indptr, "features": bins.features_NxF,
        "nuclear_density": bins.nuclear_density_N, "measured_gene": bins.measured_gene_P,
    }  # fmt: skip
    return arrays if bins.share_N is None else arrays | {"share": bins.share_N}


def _from_arrays(section: Section, arrays: Arrays) -> SectionBins:
    shape = len(arrays["x_um"]), len(arrays["measured_gene"])
    counts = scipy.sparse.csr_array((arrays["count"], arrays["gene"], arrays["indptr"]), shape=shape)
    return SectionBins(
        section.id, section.patient, section.cohort, arrays["x_um"], arrays["y_um"], float(arrays["pitch_um"]),
        str(arrays["layout"]), counts, arrays["features"], arrays["nuclear_density"], arrays["measured_gene"],
        arrays.get("share"),
    )  # fmt: skip
