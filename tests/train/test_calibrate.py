"""What the head starts from: shares of genes over sections that measured different ones."""

import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_section, write_corpus

from tario_jax.train.calibrate import _counted, _measured_um2, depths, gene_shares
from tario_jax.train.composition import composition


def test_composition_explains_what_each_panel_found():
    """Whole panels beside those of fifty genes, as deep: pooled counts would give the fifty six times their share."""
    rng = np.random.default_rng(0)
    share_G = rng.gamma(0.5, 1.0, 1000)
    share_G /= share_G.sum()
    few_G = np.arange(1000) < 50
    masks = np.stack([np.ones(1000, bool), few_G])
    found_MxG = np.stack([rng.multinomial(4_000_000, np.where(mask, share_G, 0) / share_G[mask].sum())
                          for mask in masks])  # fmt: skip
    found = composition(found_MxG.sum(0).astype(float), found_MxG.sum(1).astype(float), masks)
    assert found.sum() == pytest.approx(1) and found[few_G].sum() == pytest.approx(share_G[few_G].sum(), rel=0.01)
    assert found_MxG.sum(0)[few_G].sum() / found_MxG.sum() > 5 * found[few_G].sum()
    # the likelihood of the counts is highest there
    weight = {name: sum((of[mask] * np.log(s[mask] / s[mask].sum())).sum() for of, mask in
                        zip(found_MxG, masks, strict=True)) for name, s in
              (("found", found), ("true", share_G + 1e-12), ("pooled", found_MxG.sum(0) + 0.5))}  # fmt: skip
    assert weight["found"] > weight["true"] > weight["pooled"]


def test_of_a_gene_that_nobody_measured_next_to_nothing_is_expected_and_the_others_are_as_without_it():
    rng = np.random.default_rng(1)
    masks = rng.random((3, 40)) < 0.7
    masks[:, :4], masks[0, 4:], masks[1, 10] = False, True, False
    found_G = np.where(masks.any(0), rng.poisson(500.0, 40), 0).astype(float)
    total_M = np.array([9000.0, 5000.0, 4000.0])
    whole, others = composition(found_G, total_M, masks), composition(found_G[4:], total_M, masks[:, 4:])
    assert whole.sum() == pytest.approx(1) and (whole > 0).all() and whole[:4].max() < 1e-4
    np.testing.assert_allclose(whole[4:] / whole[4:].sum(), others, rtol=1e-9)


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
    others = [gene for gene in range(len(PANEL)) if gene not in (3, 7)]
    among_others_G = counts_SxG.sum(0) / counts_SxG[:, others].sum()
    np.testing.assert_allclose(shares_G[others] / shares_G[others].sum(), among_others_G[others], rtol=0.01)
    np.testing.assert_allclose(shares_G[3], counts_SxG[0, 3] / counts_SxG[0].sum(), rtol=0.01)
    assert 0 < shares_G[7] < 1e-3 and shares_G.sum() == pytest.approx(1)


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
    np.testing.assert_allclose(gene_shares(sections, len(PANEL)), 1 / len(PANEL), rtol=0.01)
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


def test_sections_that_are_as_deep_are_told_so_whatever_they_measured():
    """Whole panels and halves of them, a thousand detections of a whole one each: the depth does not vary."""
    share_G = np.arange(1.0, len(PANEL) + 1)
    share_G /= share_G.sum()
    sections = []
    for patient in range(8):
        section = FakeSection(patient, patient % 3)
        section.measured_gene_G = section.measured_gene_G | (patient % 3 == 2)
        section.gene_totals_G = np.where(section.measured_gene_G, 1e5 * share_G, 0.0)
        section.density_per_um2 = section.gene_totals_G.sum() / 1e6
        sections.append(section)
    found = gene_shares(sections, len(PANEL))
    np.testing.assert_allclose(found, share_G, rtol=1e-3)
    mean, deviation = depths(sections, found)
    assert mean == pytest.approx(np.log(0.1), abs=1e-3) and deviation == 0.05  # the least there is


def test_area_counts_as_far_as_it_was_measured():
    """Two tiles of two windows: all genes of the one, a quarter of the composition of the other."""

    class Batch:
        bin_size_um_BxTxN = np.full((1, 2, 3), 10.0, np.float32)
        bin_measured_BxTxN = np.array([[[1, 1, 0], [1, 0.5, 0]]], np.float32)
        measured_gene_BxWxG = np.array([[[True] * 4 + [False] * 2, [True, False, False, False] + [False] * 2]])
        window_BxT = np.array([[0, 1]])

    assert _measured_um2(Batch, np.array([0.5, 0.5, 0.5, 0.5])) == pytest.approx(200 + 0.25 * 150)
