"""`tario ingest` of Visium, Visium HD and HEST-1k: the second and third go into the corpus that the first began."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from made_visium import made_visium, made_visium_hd
from tiny_tissue import st_folder

from tario_jax.cli.main import main
from tario_jax.corpus.check import check_corpus
from tario_jax.corpus.read import Corpus


@pytest.fixture
def said(capsys):
    """What a job that ends well says."""

    def run(*words: object) -> str:
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert status == 0 and not err, err
        return out

    return run


def test_a_second_platform_joins_the_corpus_on_its_panel_and_the_same_command_again_changes_nothing(said, tmp_path):
    spots, squares = made_visium(tmp_path / "a"), made_visium_hd(tmp_path / "b")
    root = f"--out={tmp_path / 'corpus'}"
    first = ("ingest", "--source=visium", f"--path={spots.folder}", f"--image={spots.image}", "--patient=P1",
             "--cohort=BRCA", root)  # fmt: skip
    second = ("ingest", "--source=visium_hd", f"--path={squares.folder}", f"--image={squares.image}", "--patient=P2",
              "--cohort=COAD", "--section=H1", root)  # fmt: skip
    assert "symbols have several rows, summed: TBCE" in said(*first) and "squares of 2 µm" in said(*second)
    corpus = Corpus.open(tmp_path / "corpus")
    assert [section.id for section in corpus.sections] == ["H1", "a"]
    assert corpus.section("H1").record["detections"] > 0 and len(corpus.section("a").spots) == 24
    assert "is there already" in said(*first) and "is there already" in said(*second)
    assert Corpus.open(tmp_path / "corpus").seal == corpus.seal
    assert [finding.fault for finding in check_corpus(corpus) if finding.fault] == []


def test_a_panel_file_and_the_account_of_what_it_leaves_out(said, tmp_path):
    made = made_visium(tmp_path / "a")
    panel = tmp_path / "genes.tsv"
    panel.write_text("symbol\nMYC\nNEVER\nABSENT\n")
    words = ("ingest", "--source=visium", f"--path={made.folder}", f"--image={made.image}", "--patient=P1",
             "--cohort=BRCA", f"--panel={panel}", f"--out={tmp_path / 'c'}")  # fmt: skip
    said(*words, f"--json={tmp_path / 'said.json'}")
    (section,) = Corpus.open(tmp_path / "c").sections
    # NEVER was measured and not seen: that is another thing than ABSENT
    np.testing.assert_array_equal(section.measured_gene_G, [True, True, False])
    tallies = json.loads((tmp_path / "said.json").read_text())["report"]["tallies"]
    (on_panel,) = (tally for tally in tallies if tally["what"] == "on panel" and tally["section"] == "a")
    assert on_panel["kept"] == section.gene_totals_G.sum() > 0
    assert on_panel["read"] - on_panel["kept"] == sum(on_panel["dropped"].values()) > 0
    assert section.record["quality"]["counts_not_on_panel"] == on_panel["read"] - on_panel["kept"]


def test_spots_that_join_a_corpus_measured_what_they_have_a_column_for_seen_or_not(said, tmp_path):
    st_folder(tmp_path / "st", ("A1",))
    counts = pd.read_csv(tmp_path / "st/A1.tsv", sep="\t", index_col=0)
    counts.assign(G3=0).to_csv(tmp_path / "st/A1.tsv", sep="\t")
    (tmp_path / "genes.tsv").write_text("symbol\nG3\nG4\nG99\n")
    said("ingest", "--source=spots", f"--path={tmp_path / 'st'}", "--patient=A", "--cohort=BRCA",
         f"--panel={tmp_path / 'genes.tsv'}", f"--out={tmp_path / 'c'}")  # fmt: skip
    (section,) = Corpus.open(tmp_path / "c").sections
    np.testing.assert_array_equal(section.measured_gene_G, [True, True, False])
    np.testing.assert_array_equal(section.gene_totals_G, [0, counts.G4.sum(), 0])


@pytest.mark.parametrize("library", ["h5py", "anndata"])
def test_a_missing_library_is_one_line_that_says_what_to_install(library, tmp_path, capsys, monkeypatch):
    if library == "h5py":
        words = ("--source=visium", f"--path={made_visium(tmp_path / 'a').folder}")
    else:
        for name in ("st/T1.h5ad", "wsis/T1.tif"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
        (tmp_path / "meta.csv").write_text(
            "id,patient,st_technology,pixel_size_um_estimated,dataset_title,oncotree_code\nT1,P,Visium,0.5,A,IDC\n"
        )
        words = ("--source=hest", f"--path={tmp_path}")
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["ingest", *words, "--patient=P1", "--cohort=BRCA", f"--out={tmp_path / 'c'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"needs {library}; pip install 'tario-jax[io]'" in error
    assert not (tmp_path / "c").exists()
