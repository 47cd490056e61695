"""One corpus of several platforms: each section knows what it measured, and what it did not measure teaches nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from made_visium import made_visium
from refusals import refused
from test_source_xenium import made_up as made_xenium
from tiny_tissue import tiny_config

from tario_jax.corpus.read import Corpus
from tario_jax.ops.count_likelihood import SparseCounts, check_counts, count_nll, log_rates
from tario_jax.panel import Panel
from tario_jax.sources.check import check
from tario_jax.sources.ingest import ingest, panel_to_take
from tario_jax.sources.onto_panel import onto_panel
from tario_jax.sources.visium import read_visium
from tario_jax.sources.xenium import read_xenium
from tario_jax.tokens.batch import tokenise
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource, trained_bin_um
from tario_jax.tokens.window import read_window

FEATURES = tuple((f"ENSG{row:011d}", symbol, "Gene Expression")
                 for row, symbol in enumerate(("NANOG", "NEGR1", "TP53", "EGFR")))  # fmt: skip
DATA = dataclasses.replace(tiny_config().data, windows_per_row=2, rows=8)


def xenium(folder):
    return read_xenium(folder, patient_id="X", cohort="LUAD", section_id="X1")


def visium(made, section_id="V1"):
    return read_visium(made.folder, patient_id="V", cohort="BRCA", section_id=section_id, image=made.image)


def quiet(line):
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("platforms")
    (folder / "xenium").mkdir()
    made_xenium(folder / "xenium")
    made = made_visium(folder / "outs", features=FEATURES)
    ingest(xenium(folder / "xenium"), folder / "corpus", quiet)
    ingest(onto_panel(visium(made), panel_to_take(folder / "corpus", None)), folder / "corpus", quiet)
    return folder, made


@pytest.fixture(scope="module")
def corpus(folders):
    return Corpus.open(folders[0] / "corpus")


def measured(section, panel):
    return [symbol for symbol, there in zip(panel.symbols, section.measured_gene_G, strict=True) if there]


def test_each_section_knows_which_genes_it_measured_and_the_corpus_is_sound(corpus, folders):
    assert corpus.panel.symbols == ("BLANK1", "BLOB", "NANOG", "NEGR1")  # of the source that came first
    assert measured(corpus.section("X1"), corpus.panel) == list(corpus.panel.symbols)
    assert measured(corpus.section("V1"), corpus.panel) == ["NANOG", "NEGR1"]
    made = folders[1]
    inside = made.positions.barcode[made.positions.in_tissue == 1]
    totals = pd.Series(corpus.section("V1").gene_totals_G, corpus.panel.symbols)
    assert totals.to_dict() == {"BLANK1": 0, "BLOB": 0, "NANOG": made.counts.loc[inside, 0].sum(),
                                "NEGR1": made.counts.loc[inside, 1].sum()}  # fmt: skip
    found = check(corpus, quiet)
    assert found.faults == [] and {section.patient for section in corpus.sections} == {"X", "V"}
    begun = json.loads((folders[0] / "corpus/ingest.json").read_text())
    assert begun["source"] == {"source": "Xenium"} and begun["also"] == [{"source": "Visium"}]


def test_ingesting_again_adds_nothing_and_another_section_of_the_same_name_is_refused(corpus, folders, tmp_path):
    folder, made = folders
    panel = panel_to_take(corpus.root, None)
    assert panel == corpus.panel
    for again in (xenium(folder / "xenium"), visium(made)):
        assert ingest(onto_panel(again, panel), corpus.root, quiet).seal == corpus.seal
    other = made_visium(tmp_path / "outs", features=FEATURES, seed=5)
    refused(lambda: ingest(onto_panel(visium(other), panel), corpus.root, quiet), "'V1' of other files")
    refused(lambda: ingest(visium(other, "V2"), corpus.root, quiet), "panel_hash")  # its own panel is another
    assert Corpus.open(corpus.root).seal == corpus.seal


def test_a_panel_file_chooses_the_genes_and_must_be_that_of_a_corpus(corpus, folders, tmp_path):
    path = tmp_path / "genes.tsv"
    path.write_text(f"symbol\tensembl\nEGFR\t\nNANOG_OLD\t{FEATURES[0][0]}.3\nNOWHERE\t\n")
    chosen = panel_to_take(tmp_path / "new", path)
    made = ingest(onto_panel(visium(folders[1]), chosen), tmp_path / "new", quiet)
    assert measured(made.sections[0], made.panel) == ["EGFR", "NANOG_OLD"]
    assert made.panel.ensembl == ("", FEATURES[0][0], "")  # the ids stay beside the corpus, for the next source
    assert made.sections[0].gene_totals_G[1] == corpus.section("V1").gene_totals_G[2] > 0
    refused(lambda: panel_to_take(corpus.root, path), "genes.tsv: 3 genes", "holds sections of 4 genes")
    assert panel_to_take(tmp_path / "nothing", None) is None
    refused(lambda: panel_to_take(tmp_path / "nothing", tmp_path / "none.tsv"), "none.tsv: cannot be read")


@jax.jit
def nats_and_rates(bias_G, table_Gxd, h, counts, valid, measured_gene_BxWxG, window):
    log_total = jnp.ones(valid.shape)
    of_window = (measured_gene_BxWxG, window)

    def loss(bias_G):
        nll = count_nll(h, table_Gxd, bias_G, log_total, counts, valid, *of_window, chunk=8)
        return nll.total_nats + nll.gene_nats

    return *jax.value_and_grad(loss)(bias_G), jnp.exp(log_rates(h, table_Gxd, bias_G, log_total, *of_window))


def likelihood(batch, bias_G, table_Gxd):
    """Loss and its gradient by the bias, rates [bins, genes] and windows of the bins, under arbitrary states."""
    rows, bins = len(batch.segment_BxT), batch.bin_measured_BxTxN[0].size
    valid = (batch.bin_measured_BxTxN > 0).reshape(rows, bins)
    window = np.repeat(np.maximum(batch.segment_BxT, 0), batch.bin_measured_BxTxN.shape[2], 1)
    counts = SparseCounts(batch.count_bin_BxC, batch.count_gene_BxC, batch.count_BxC)
    check_counts(counts, valid, batch.measured_gene_BxWxG, window, "a test")
    h = np.random.default_rng(1).standard_normal((rows, bins, table_Gxd.shape[1])).astype(np.float32)
    *nats, rates = nats_and_rates(bias_G, table_Gxd, h, counts, valid, batch.measured_gene_BxWxG, window)
    return *nats, np.asarray(rates)[valid], window[valid]


def test_unmeasured_genes_are_outside_the_likelihood_of_their_section_only(corpus):
    layout = corpus_layout(corpus.sections, DATA, len(corpus.panel))
    spot, cells = corpus.section("V1"), corpus.section("X1")
    at = spot.spots.x_um_N[7] - 36, spot.spots.y_um_N[7] - 36
    windows = [read_window(spot, *at, DATA), read_window(cells, 20.0, 20.0, DATA)]
    rngs = [[np.random.default_rng(0)] * 2]

    def batch_of(row):
        return tokenise([row], DATA, layout, np.ones((1, len(row)), int), rngs)

    rng = np.random.default_rng(2)
    table = rng.standard_normal((layout.genes_padded, 4)).astype(np.float32)
    bias = rng.standard_normal(layout.genes_padded).astype(np.float32)
    missing = np.flatnonzero(~spot.measured_gene_G)
    moved = bias.copy()
    moved[missing] += 3
    nats, gradient, *_ = likelihood(batch_of(windows[:1]), bias, table)
    again, *_ = likelihood(batch_of(windows[:1]), moved, table)
    assert (
        nats == again > 0 and (gradient[missing] == 0).all() and (gradient[spot.measured_gene_G.nonzero()] != 0).all()
    )
    nats, gradient, *_ = likelihood(batch_of(windows[1:]), bias, table)
    again, *_ = likelihood(batch_of(windows[1:]), moved, table)
    assert nats != again and (gradient[missing] != 0).all()
    # side by side in one row, each bin has the genes of its own section
    *_, rates, window = likelihood(batch_of(windows), bias, table)
    assert (rates[window == 0][:, missing] == 0).all() and (rates[window == 1][:, : len(corpus.panel)] > 0).all()
    np.testing.assert_allclose(rates.sum(1), np.e, rtol=1e-4)


def test_batches_of_such_a_corpus_hold_windows_of_both(corpus):
    layout = corpus_layout(corpus.sections, DATA, len(corpus.panel))
    assert layout.bins_per_tile == 4 and trained_bin_um(corpus.sections, DATA) == DATA.bin_um
    source = BatchSource(corpus.sections, DATA, layout, steps=12)
    masks = np.concatenate([source[t].measured_gene_BxWxG[..., : len(corpus.panel)].reshape(-1, 4) for t in range(12)])
    of_spots = (masks == corpus.section("V1").measured_gene_G).all(1)
    assert 0 < of_spots.sum() < len(masks) and masks[~of_spots].all()


def test_a_virtual_corpus_takes_no_real_section(corpus, folders, tmp_path):
    from tiny_tissue import tiny_section, write_corpus

    virtual = write_corpus(
        tmp_path / "v", [tiny_section("A1", "A", 0)], panel=Panel((*corpus.panel.symbols, *"ABCDEFGH"))
    )
    source = onto_panel(visium(folders[1]), panel_to_take(virtual.root, None))
    refused(lambda: ingest(source, virtual.root, quiet), "kind = 'virtual', now 'real'")
