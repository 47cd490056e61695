"""Symbols of a CosMx panel: reported, renamed by the user's own table, never guessed."""

import numpy as np
import pytest
from refusals import refused
from test_source_cosmx import made_up, read, save

from tario_jax.sources.fov_survey import lost_genes, lost_many
from tario_jax.sources.targets import read_symbol_map, sort_targets


def test_dates_and_aliases_are_renamed_by_the_users_table_and_counted(tmp_path):
    tx, positions = made_up()
    tx.loc[:9, "target"] = "1-Mar"
    tx.loc[10:14, "target"] = "Sep-01"
    tx.loc[15:24, "target"] = "NANOG2"
    save(tmp_path, tx, positions)
    table = tmp_path / "renamed.tsv"
    table.write_text("old\tnew\n1-Mar\tMARCHF1\nNANOG2\tNANOG\nCCL3/L1\tCCL3\nNOT_HERE\tX\n")
    ingested, section = read(tmp_path, symbol_map=table)
    assert set(ingested.panel.symbols) == {"NEGR1", "NANOG", "NANS", "CCL3", "MARCHF1"}
    found = np.bincount(section.detections.gene_D, minlength=5)
    assert found[ingested.panel.index["MARCHF1"]] == 10
    assert found[ingested.panel.index["NANOG"]] == tx.target.isin(["NANOG", "NANOG2"]).sum()
    tally = ingested.report.tally("detections", "S1")
    assert tally.dropped["symbol turned into a date by a spreadsheet"] == 5  # Sep-01, which the table leaves out
    assert tally.read == len(tx) == tally.kept + sum(tally.dropped.values())
    genes = ingested.report.tally("genes", "S1")
    assert (genes.read, genes.kept, genes.dropped["another target of a gene"]) == (8, 5, 1)
    said = ingested.report.table()
    for words in ("3 targets were renamed", "1 that are not here: NOT_HERE", "targets that are dates, dropped: Sep-01",
                  "1 genes are several targets, which are summed: NANOG"):  # fmt: skip
        assert words in said, said
    assert "name several genes" not in said


def test_a_table_that_is_none_is_refused(tmp_path):
    table = tmp_path / "renamed.tsv"
    for content, words in (
        ("1-Mar MARCHF1\n", ("line 1", "expected old<TAB>new")),
        ("1-Mar\tMARCHF1\n1-Mar\tMTARC1\n", ("line 2", "'MTARC1'", "an earlier one to 'MARCHF1'")),
        ("old\tnew\n", ("maps nothing",)),
    ):
        table.write_text(content)
        refused(lambda: read_symbol_map(table), "renamed.tsv", *words)
    refused(lambda: read_symbol_map(tmp_path / "none.tsv"), "none.tsv", "cannot be read")
    refused(
        lambda: sort_targets(tmp_path / "tx.csv", ["NegPrb1", "A"], {"NegPrb1": "A"}, table), "a negative or system"
    )


def test_a_field_that_lost_many_genes_is_flagged_and_one_of_other_tissue_is_not():
    rng = np.random.default_rng(0)
    rates_FxG = np.full((12, 400), 40.0) * rng.gamma(8, 1 / 8, 400)
    rates_FxG[3, :8] *= 30  # a field of its own tissue: 8 genes rise there, and are hardly anywhere else
    rates_FxG[np.arange(12) != 3, :8] = 0.2
    rates_FxG[7, 100:130] = 0.1  # a cycle of imaging failed
    share_F = lost_genes(rng.poisson(rates_FxG))
    assert lost_many(share_F).tolist() == [field == 7 for field in range(12)]
    assert share_F[7] == pytest.approx(30 / 400, rel=0.2)
    assert np.isnan(lost_genes(rng.poisson(rates_FxG[:3]))).all()  # too few fields to tell


def test_a_lost_cycle_stays_with_the_section_and_is_said(tmp_path):
    rng = np.random.default_rng(0)
    fov = np.repeat(np.arange(1, 7), 4000)
    tx, positions = made_up(detections=len(fov))
    start_px = np.stack([1000.0 * np.arange(6) + 500, np.full(6, 7000.0)], 1)
    local_px = tx[["x_local_px", "y_local_px"]].to_numpy()
    tx = tx.assign(fov=fov, x_global_px=start_px[fov - 1, 0] + local_px[:, 0],
                   y_global_px=start_px[fov - 1, 1] + local_px[:, 1], target=rng.integers(0, 40, len(fov)))  # fmt: skip
    tx["target"] = "GENE" + tx.target.astype(str)
    gone = (tx.fov == 4) & tx.target.isin(["GENE1", "GENE2", "GENE3", "GENE4"])
    positions = positions.iloc[[0] * 6].assign(fov=range(1, 7), x_global_px=start_px[:, 0], y_global_px=7000.0)
    save(tmp_path, tx[~gone], positions)
    ingested, section = read(tmp_path)
    flagged = {name: share for name, share in section.quality.items() if name.startswith("lost_genes_of_fov")}
    assert flagged == {"lost_genes_of_fov_4": pytest.approx(0.1)}
    assert "1 of 6 FOVs lost many genes" in ingested.report.table() and "4 (10%)" in ingested.report.table()
