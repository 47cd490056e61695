"""Embeddings: their formulas by hand in float64, what is added to what, and what does not belong together."""

import dataclasses

import numpy as np
import pytest
from made_patients import made_row
from made_reader import made_reader
from refusals import refused
from tiny_tissue import PANEL, spot_section, tiny_section, write_corpus

from tario_jax.cli.main import main
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.patients import embed
from tario_jax.evaluate.patients.embed import embed_corpus, rates_and_states
from tario_jax.evaluate.patients.looks import no_look
from tario_jax.evaluate.patients.outcome_tuning import Tuning
from tario_jax.evaluate.patients.outcomes import Setting
from tario_jax.evaluate.patients.probe_job import Asked, probe_job
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED, Embedded, Who, of_counts, of_rates, pooled
from tario_jax.model.model import Tario

ASKED = {"overlap": 0.5, "say": str}


@pytest.fixture(scope="module")
def store(predictor, tiny_corpus, tmp_path_factory) -> EmbeddingStore:
    out = tmp_path_factory.mktemp("embedded") / "tiny.embeddings"
    return embed_corpus(predictor, tiny_corpus, out, measured=True, region_um=90.0, **ASKED)


def test_predicted_vectors_are_those_of_the_maps(store, predictor, tiny_corpus):
    rows = {row.section: row for row in store.rows(PREDICTED)}
    assert sorted(rows) == [section.id for section in tiny_corpus.sections]
    maps = predictor.predict_section(tiny_corpus.section("C1"), tissue="virtual")
    rates, row = maps.rates_NxG.astype(np.float64), rows["C1"]
    assert (row.patient, row.cohort, row.bins) == ("C", tiny_corpus.section("C1").cohort, len(rates))
    np.testing.assert_allclose(row.expression_G, np.log1p(1e6 * rates.sum(0) / rates.sum()), rtol=1e-5)
    by_bin = np.log1p(1e4 * rates / rates.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(row.log_expression_G, by_bin, rtol=1e-5)
    assert row.detections == pytest.approx(rates.sum(), rel=1e-5) and np.isfinite(row.state_r).all()
    assert np.abs(row.state_r - rows["A1"].state_r).max() > 1e-3


def test_states_and_rates_are_the_models(predictor, tiny_corpus):
    """What the gene table makes of the states, and the total, are the rates."""
    cover = predictor.cover(tiny_corpus.section("A1"), tissue="virtual", bin_um=None, overlap=0.0)
    _, batch = next(cover.batches(predictor.rows))
    rates, states = (np.asarray(of) for of in predictor.call_on(rates_and_states, batch))
    np.testing.assert_allclose(rates, np.asarray(predictor.call_on(Tario.rates, batch)), rtol=1e-5)
    table, bias = (np.asarray(predictor.parameters[name], np.float64) for name in ("gene_table", "gene_bias"))
    logits = states.astype(np.float64) @ table.T * predictor.call_on(_gain, batch) + bias
    share = np.exp(logits)[..., : len(PANEL)]
    share /= share.sum(-1, keepdims=True)
    np.testing.assert_allclose(rates[..., : len(PANEL)] / rates.sum(-1, keepdims=True), share, rtol=2e-2)


def _gain(model, batch):
    return model.gene_gain


def test_measured_vectors_are_counts_of_detections(store, tiny_corpus):
    rows = {row.section: row for row in store.rows(MEASURED)}
    count_G = np.bincount(tiny_corpus.section("C1").all_detections().gene_D, minlength=len(PANEL))
    np.testing.assert_allclose(rows["C1"].expression_G, np.log1p(1e6 * count_G / count_G.sum()), rtol=1e-6)
    assert rows["C1"].detections == count_G.sum() and np.isnan(rows["C1"].state_r).all()


def test_regions_add_up_to_their_section(store):
    whole = {row.section: row for row in store.rows(PREDICTED)}["B1"]
    parts = [row for row in store.rows(PREDICTED, regions=True) if row.section == "B1"]
    assert len(parts) == 4 and {row.region for row in parts} == {"0,0", "90,0", "0,90", "90,90"}
    assert sum(row.bins for row in parts) == whole.bins
    bins = np.array([row.bins for row in parts])
    for name in ("log_expression_G", "state_r"):
        mean = bins @ np.stack([getattr(row, name) for row in parts]).astype(float) / bins.sum()
        np.testing.assert_allclose(mean, getattr(whole, name), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled(parts).expression_PxG[0], whole.expression_G, rtol=1e-5)


def test_new_sections_are_added_and_old_ones_are_not_computed_again(predictor, tiny_corpus, store, tmp_path,
                                                                    monkeypatch):  # fmt: skip
    out, done = tmp_path / "grown.embeddings", []
    one = embed._predicted

    def counted(predictor, corpus, sections, *rest):
        done.extend(section.id for section in sections)
        return one(predictor, corpus, sections, *rest)

    monkeypatch.setattr(embed, "_predicted", counted)
    for names in (("A1", "B1"), ("A1", "B1", "C1"), ()):
        grown = embed_corpus(predictor, tiny_corpus, out, sections=names, region_um=90.0, **ASKED)
    assert sorted(done) == [section.id for section in tiny_corpus.sections]
    for found, expected in zip(grown.rows(PREDICTED), store.rows(PREDICTED), strict=True):
        for name in Embedded._fields:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    again = embed_corpus(predictor, tiny_corpus, tmp_path / "b.embeddings", sections=("A1",), **ASKED)
    again.add(again.rows(PREDICTED))  # as two processes that did the same section
    again.add([*again.rows(PREDICTED), *store.rows(PREDICTED)[1:2]])
    assert len(again.rows(PREDICTED)) == 2


def test_patients_are_all_of_their_sections(store):
    """Expression as of all detections together; a gene that one section did not measure is that of the other."""
    nan = np.nan
    rows = [made_row("P", np.log1p([10.0, 500.0, 4.0]), section="a", bins=30, log_expression=[1.0, 2.0, 3.0],
                     state=[0.5], seen=True),
            made_row("P", np.log1p([50.0, 100.0, nan]), section="b", bins=10, detections=300.0,
                     log_expression=[2.0, 2.0, 7.0], state=[-0.5])]  # fmt: skip
    found = pooled(rows)
    np.testing.assert_allclose(np.expm1(found.expression_PxG[0]), [40.0, 200.0, 4.0], rtol=1e-5)
    np.testing.assert_allclose(found.log_expression_PxG[0], [1.25, 2.0, 4.0])
    np.testing.assert_allclose(found.state_Pxr[0], [0.25])
    assert found.seen_P.tolist() == [True]
    unseen = [rows[0]._replace(texture_F=rows[0].texture_F * nan, acquisition_A=rows[0].acquisition_A * nan),
              rows[1]._replace(texture_F=rows[1].texture_F + 3)]  # fmt: skip
    looks = pooled(unseen)  # a section that is too small to be looked at has no part in the patient's look
    assert (looks.texture_PxF == 3).all() and (looks.acquisition_PxA == 0).all() and looks.state_Pxr[0] == 0.25
    assert np.isnan(pooled(unseen[:1]).texture_PxF).all()
    everyone = pooled(store.rows(PREDICTED))
    assert everyone.name_P.tolist() == list("ABCDEF") and everyone.state_Pxr.shape[0] == 6


def test_glass_and_nothing_are_no_tissue():
    rates = np.array([[1.0, 3.0], [2.0, 2.0], [1e-6, 1e-6]], np.float32)
    states = np.array([[1.0, 2.0], [3.0, 2.0], [9.0, 9.0]], np.float32)
    who = Who("P", "c", "s", "seal", False)
    row = of_rates(who, "", lambda some: (rates[some], states[some]), rates.sum(1, dtype=float), no_look())
    assert row.bins == 2 and row.detections == 8
    assert row.state_r.tolist() == [2.0, 2.0] and row.spread_r.tolist() == [1.0, 0.0]
    assert of_counts(who, "", np.array([0, 5]), np.array([True, False]), 2) is None


def test_a_section_without_tissue_is_looked_at_once(predictor, tiny_corpus, tmp_path, monkeypatch):
    said: list[str] = []
    one = embed.of_rates
    monkeypatch.setattr(embed, "of_rates", lambda who, *rest: None if who.section == "B1" else one(who, *rest))
    asked = ASKED | {"say": said.append, "sections": ("A1", "B1")}
    found = embed_corpus(predictor, tiny_corpus, tmp_path / "x.embeddings", **asked)
    assert said[-1] == "embed: 1 of them hold no tissue, or nothing was detected there"
    embed_corpus(predictor, tiny_corpus, tmp_path / "x.embeddings", **asked)
    assert said[-1] == "embed: 0 of 2 sections are not there yet"
    assert [row.section for row in found.rows(PREDICTED)] == ["A1"] and set(found.held()) == {
        ("A1", PREDICTED),
        ("B1", PREDICTED),
    }
    (part,) = found.parts()
    assert list(found.patients_of(part)) == [("A", PREDICTED)]


def test_a_section_without_he_has_what_was_measured(predictor, tiny_corpus, tmp_path, monkeypatch):
    holds = Section.holds
    monkeypatch.setattr(Section, "holds", lambda self, name: holds(self, name) and (self.id, name) != ("B1", "he"))
    found = embed_corpus(predictor, tiny_corpus, tmp_path / "x.embeddings", measured=True, **ASKED)
    assert set(found.held()) == {(section.id, kind) for section in tiny_corpus.sections
                                 for kind in (PREDICTED, MEASURED)} - {("B1", PREDICTED)}  # fmt: skip
    refused(
        lambda: embed_corpus(predictor, tiny_corpus, tmp_path / "y.embeddings", sections=("A1", "B1"), **ASKED),
        "B1: has no H&E",
        "--measured",
        "leave it out",
    )
    monkeypatch.setattr(Section, "holds", lambda self, name: holds(self, name) and name != "he")
    refused(lambda: embed_corpus(predictor, tiny_corpus, tmp_path / "y.embeddings", **ASKED), str(tiny_corpus.root),
            "its sections have no H&E")  # fmt: skip
    assert not (tmp_path / "y.embeddings").exists()


def test_what_was_measured_of_other_genes_is_refused(predictor, tmp_path):
    """Shares of all that was measured are of more where more genes were."""
    fewer = np.arange(len(PANEL)) < 8
    sections = [tiny_section("A1", "A", 0, measured_gene_G=fewer), tiny_section("B1", "B", 1),
                tiny_section("C1", "C", 2, measured_gene_G=fewer)]  # fmt: skip
    corpus, asked = write_corpus(tmp_path / "c", sections), ASKED | {"measured": True}
    out = tmp_path / "x.embeddings"
    said = "B1: measured 12 genes of the model's panel, and A1 8"
    refused(lambda: embed_corpus(predictor, corpus, out, **asked), said, "--sections", "--out")
    embed_corpus(predictor, corpus, out, sections=("A1",), **asked)
    refused(lambda: embed_corpus(predictor, corpus, out, sections=("B1",), **asked), said)
    grown = embed_corpus(predictor, corpus, out, sections=("C1",), **asked)
    assert [row.section for row in grown.rows(MEASURED)] == ["A1", "C1"]
    embed_corpus(predictor, corpus, tmp_path / "y.embeddings", **ASKED)  # what is predicted is of all genes


def test_of_spots_the_size_that_was_predicted_is_told_and_no_other_is_asked(predictor, tiny_run, tmp_path, capsys):
    data = spot_section("A1", "A", 0, x_um=np.arange(20, 160, 30.0), y_um=np.full(5, 70.0))
    corpus = write_corpus(tmp_path / "c", [data])
    found = embed_corpus(predictor, corpus, tmp_path / "x.embeddings", **ASKED)
    assert found.about["bin_um"] == predictor.provenance.bin_um
    for job, out, more in (("embed", "y.embeddings", ()), ("gallery", "g", ("--section=A1", "--genes=GENE1"))):
        words = [job, f"--workdir={tiny_run}", f"--corpus={corpus.root}", f"--out={tmp_path / out}", "--bin-um=36"]
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert "is measured in spots" in error and "leave out the side of bins" in error and error.count("\n") == 1


def test_another_section_of_the_same_name_is_refused(store, predictor, tiny_corpus, monkeypatch):
    assert set(store.held().values()) == {section.seal_sha256[:16] for section in tiny_corpus.sections}
    monkeypatch.setattr(embed, "_seal", lambda section: "other" if section.id == "B1" else section.seal_sha256[:16])
    refused(lambda: embed_corpus(predictor, tiny_corpus, store.folder, region_um=90.0, **ASKED),
            "holds another section called 'B1'", "give another --out")  # fmt: skip


def test_a_probe_that_reads_sections_reads_those_that_were_embedded(store, predictor, tiny_corpus, tmp_path):
    """Virtual patients of any corpus have the same names."""
    again = [tiny_section(section.id, section.patient, 90 + at) for at, section in enumerate(tiny_corpus.sections)]
    other = write_corpus(tmp_path / "c", again)
    words = str(store.folder), "holds another section called 'A1'", f"that was embedded in place of {other.root}"
    reads = (Asked(("cohort",), reachable=True), {}), (Asked(("cohort",)), {"predictor": predictor, "tuning": Tuning()})
    for asked, more in reads:
        refused(lambda asked=asked, more=more: probe_job(store, other, asked, Setting(), str, **more), *words)


def test_what_does_not_belong_together_is_refused(store, predictor, tiny_corpus, tiny_run, tmp_path):
    out = store.folder
    refused(lambda: embed_corpus(predictor, tiny_corpus, out, region_um=50.0, **ASKED), "with region um 90.0, and this")
    other = made_reader(tiny_run)
    other.checkpoint = "another"
    refused(lambda: embed_corpus(other, tiny_corpus, out, region_um=90.0, **ASKED), "with checkpoint", "another")
    refused(lambda: EmbeddingStore(tmp_path / "none"), "holds no embeddings")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/file").write_text("")
    refused(lambda: embed_corpus(predictor, tiny_corpus, tmp_path / "x", **ASKED), "is there already")
    real = dataclasses.replace(tiny_corpus, kind="real")
    refused(lambda: embed_corpus(predictor, real, tmp_path / "y", **ASKED), "--allow-virtual-model")
    refused(lambda: embed_corpus(predictor, tiny_corpus, tmp_path / "z", sections=("Q",), **ASKED), "no section 'Q'")
    damaged = embed_corpus(predictor, tiny_corpus, tmp_path / "d", sections=("A1",), **ASKED)
    next((damaged.folder / "parts").iterdir()).write_bytes(b"PAR1")
    refused(lambda: damaged.rows(PREDICTED), "is damaged", "remove it, and embed again")
