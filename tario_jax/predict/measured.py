"""What an assay measured in the bins of a section, beside what is predicted there."""

import numpy as np

from tario_jax.corpus.stored_section import Section
from tario_jax.panel import Panel


class MeasuredBins:
    """Detections of a section by bins and genes of a model's panel."""

    def __init__(self, section: Section, measured_panel: Panel, panel: Panel, min_measured: float):
        """measured_panel: that of the section's corpus; min_measured: the share of a bin that makes it count."""
        self._section, self._min_measured = section, min_measured
        at_G = np.array([measured_panel.index.get(symbol, -1) for symbol in panel.symbols], int)
        is_measured = np.append(section.measured_gene_G, False)
        self._unknown_G = ~is_measured[at_G]
        self._place_of = np.full(len(measured_panel), -1)
        self._place_of[at_G[at_G >= 0]] = np.flatnonzero(at_G >= 0)
        self._genes = len(panel)

    def counts(self, x_um_n: np.ndarray, y_um_n: np.ndarray, bin_um: float) -> np.ndarray:
        """Float32 [n, G]; NaN where a bin was not measured enough to count, and for genes that were not."""
        low_x, low_y = x_um_n.min() - bin_um / 2, y_um_n.min() - bin_um / 2
        found = self._section.detections(low_x, low_y, np.ptp(x_um_n) + bin_um, np.ptp(y_um_n) + bin_um)
        column_n, row_n = (np.floor((at - low) / bin_um).astype(int) for at, low in ((x_um_n, low_x), (y_um_n, low_y)))
        number_YxX = np.full((row_n.max() + 1, column_n.max() + 1), -1)
        number_YxX[row_n, column_n] = np.arange(len(x_um_n))
        column_D, row_D = (np.floor((at - low) / bin_um).astype(int)
                           for at, low in ((found.x_um_D, low_x), (found.y_um_D, low_y)))  # fmt: skip
        bin_D = number_YxX[row_D.clip(0, number_YxX.shape[0] - 1), column_D.clip(0, number_YxX.shape[1] - 1)]
        gene_D = self._place_of[found.gene_D]
        kept = (bin_D >= 0) & (gene_D >= 0)
        counts_nxG = np.zeros((len(x_um_n), self._genes), np.float32)
        np.add.at(counts_nxG, (bin_D[kept], gene_D[kept]), 1.0)
        counts_nxG[self._section.measured_share(x_um_n, y_um_n, bin_um) < self._min_measured - 1e-6] = np.nan
        counts_nxG[:, self._unknown_G] = np.nan
        return counts_nxG
