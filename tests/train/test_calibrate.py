"""What the head starts from: shares of genes over sections that measured different ones."""

import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_section, write_corpus

from tario_jax.train.calibrate import _counted, depths, gene_shares


def test_shares_of_genes_are_among_the_sections_that_measured_them(tmp_path):
    """Gene 3 is measured by one section, gene 7 by none: of it nothing is known, and next to nothing is expected."""
    measured_SxG = np.ones((2, len(PANEL)), bool)
    measured_SxG[:, 7], measured_SxG[1, 3] = False, False
    sections = [tiny_section(f"S{number}", "P", number, measured_gene_G=measured_G)
                for number, measured_G in enumerate(measured_SxG)]  # fmt: skip
    corpus = write_corpus(tmp_path / "corpus", sections)
    shares_G = gene_shares(list(corpus.sections), len(PANEL))
    counts_SxG = np.stack([np.bincount(section.all_detections().gene_D, minlength=len(PANEL)) for section in
                           corpus.sections]).astype(float)  # fmt: skip
    np.testing.assert_allclose(shares_G[3], counts_SxG[0, 3] / counts_SxG[0].sum(), rtol=0.01)
    others = [gene for gene in range(len(PANEL)) if gene not in (3, 7)]
    np.testing.assert_allclose(shares_G[others], counts_SxG.sum(0)[others] / counts_SxG.sum(), rtol=0.01)
    assert 0 < shares_G[7] < 1e-3


class FakeSection:
    """Of one of two assays, which measure each the half of the panel."""

    def __init__(self, patient: int, assay: int):
        self.patient, self.assay = f"P{patient:03}", assay
        self.measured_gene_G = (np.arange(len(PANEL)) < len(PANEL) // 2) == (assay == 0)
        self.gene_totals_G = np.where(self.measured_gene_G, 100, 0)


@pytest.mark.parametrize("patients", [60, 93, 100, 300])
def test_however_many_there_are_both_assays_of_a_patient_count(patients):
    """Sections lie by patient: every second one is of one assay alone."""
    sections = [FakeSection(patient, assay) for patient in range(patients) for assay in (0, 1)]
    np.testing.assert_allclose(gene_shares(sections, len(PANEL)), 2 / len(PANEL), rtol=0.01)
    by_turns = [FakeSection(patient, patient % 2) for patient in range(4 * patients)]
    assert gene_shares(by_turns, len(PANEL)).min() > 0.1 / len(PANEL)
    assert len(_counted(sections)) <= 130 and len(_counted(by_turns)) <= 130


def test_depths_are_those_of_the_whole_panel(tmp_path):
    """A section that measured half of what there is, is as deep as one that measured all at twice its density."""
    share_G = np.full(len(PANEL), 1 / len(PANEL))
    half_G = np.arange(len(PANEL)) < len(PANEL) // 2
    sections = [tiny_section("S0", "P", 0), tiny_section("S1", "Q", 1, detections=6000, measured_gene_G=half_G)]
    sections = list(write_corpus(tmp_path / "corpus", sections).sections)
    whole, part = (np.log(section.density_per_um2) for section in sections)
    found = [section.all_detections() for section in sections]
    assert whole - part == pytest.approx(np.log(len(found[0].gene_D) / len(found[1].gene_D)), abs=1e-6)
    expected = np.array([whole, part + np.log(2)])
    assert depths(sections, share_G) == pytest.approx((expected.mean(), expected.std()), abs=1e-9)
    assert depths(sections[:1], share_G) == (pytest.approx(whole), 0.05)
