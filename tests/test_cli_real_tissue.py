"""Real excerpts through the command line: ingested, checked, and predicted by a model of virtual tissue."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from tario_jax.corpus.read import Corpus
from tario_jax.sources.alignment import read_alignment

pytestmark = pytest.mark.real_data
PIXEL_UM = 0.2125
# the smallest model that can be trained: what it predicts is of no interest here
TINY = {
    "data.bin_um": 18, "data.window_um": 72, "data.tile_um": 36, "data.patch_px": 9, "data.rows": 2,
    "model.width": 32, "model.layers": 2, "model.heads": 2, "model.kv_heads": 1, "model.head_dim": 16,
    "model.mlp_width": 64, "model.gene_dim": 16, "model.stem_width": 8, "model.loss_chunk": 16,
    "train.steps": 2, "train.calibration_rows": 4, "train.validation_rows": 2, "evaluate.bootstraps": 100,
}  # fmt: skip


@pytest.fixture(scope="session")
def cli_xenium(real_data, cli_tario, tmp_path_factory):
    """The corpus of the Xenium excerpt, by `tario ingest`."""
    root = tmp_path_factory.mktemp("cli_xenium") / "xenium"
    done = cli_tario("ingest", "--source=xenium", f"--path={real_data / 'xenium_excerpt'}", "--patient=P1",
                     "--cohort=BRCA", "--section=X1", f"--out={root}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def checked(cli_tario, corpus, folder):
    done = cli_tario("check", corpus, f"--json={folder / 'check.json'}")
    assert not done.stderr
    return done, json.loads((folder / "check.json").read_text())


def test_the_xenium_excerpt_is_ingested_and_registered(cli_xenium, real_data, cli_tario, tmp_path):
    root, said = cli_xenium
    rows = pd.read_parquet(real_data / "xenium_excerpt/transcripts.parquet")
    control = rows.feature_name.str.match("NegControl|BLANK_|antisense_")
    kept, low = (~control & (rows.qv >= 20)).sum(), (~control & (rows.qv < 20)).sum()
    assert f"{len(rows):,}" in said and f"{kept:,}" in said and f"{low:,}  qv below 20" in said
    done, found = checked(cli_tario, root, tmp_path)
    assert done.returncode == 0 and found["faults"] == 0 and found["kind"] == "real"
    registration = found["registration"]["X1"]
    assert registration["verdict"] == "registered" and np.hypot(*registration["shift_um"]) <= 5
    assert "registered: best shift" in done.stdout


@pytest.mark.parametrize(("verdict", "move"), [
    ("shifted", lambda affine: np.array([[1, 0, 20 / PIXEL_UM], [0, 1, 0], [0, 0, 1]]) @ affine),
    ("mirrored", lambda affine: affine @ np.array([[-1, 0, 527], [0, 1, 0], [0, 0, 1]])),  # the H&E is 527 px wide
])  # fmt: skip
def test_a_shifted_and_a_mirrored_copy_are_reported(verdict, move, real_data, cli_tario, tmp_path):
    copy = shutil.copytree(real_data / "xenium_excerpt", tmp_path / "copy")
    path = copy / "he_imagealignment.csv"
    np.savetxt(path, move(read_alignment(path, PIXEL_UM).affine), delimiter=",")
    done = cli_tario("ingest", "--source=xenium", f"--path={copy}", "--patient=P1", "--cohort=BRCA",
                     f"--out={tmp_path / 'corpus'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done, found = checked(cli_tario, tmp_path / "corpus", tmp_path)
    assert done.returncode == 1 and found["faults"] == 1
    (registration,) = found["registration"].values()
    assert registration["verdict"] == verdict and f"FAULT {verdict}" in done.stdout
    if verdict == "shifted":  # the H&E went to the right: the detections lie to its left
        np.testing.assert_allclose(registration["shift_um"], (-20, 0), atol=1.5)
    else:
        assert "left to right" in done.stdout


def test_cosmx_counts_are_a_plain_group_by_and_the_assumed_scale_is_said(real_data, cli_tario, tmp_path):
    words = ("ingest", "--source=cosmx", f"--path={real_data / 'cosmx_lung12'}", "--patient=P12", "--cohort=NSCLC")
    done = cli_tario(*words, f"--out={tmp_path / 'lung12'}", f"--json={tmp_path / 'said.json'}")
    assert done.returncode == 0, done.stderr
    assert "note: 0.12028 µm per px is the vendor's default" in done.stdout and "give um_per_px" in done.stdout
    file = pd.read_csv(real_data / "cosmx_lung12/Lung12_tx_file.csv")
    plain = file[~file.target.str.match(r"^NegPrb\d+$")].groupby("target").size()
    corpus = Corpus.open(tmp_path / "lung12")
    (section,) = corpus.sections
    read = pd.Series(np.bincount(section.all_detections().gene_D, minlength=len(corpus.panel)), corpus.panel.symbols)
    for stored in (read, pd.Series(section.gene_totals_G, corpus.panel.symbols)):
        pd.testing.assert_series_equal(stored, plain, check_names=False, check_dtype=False)
    report = json.loads((tmp_path / "said.json").read_text())["report"]
    rows = next(tally for tally in report["tallies"] if tally["what"] == "detections")
    assert rows["read"] == len(file) and rows["kept"] == plain.sum()
    assert cli_tario("check", tmp_path / "lung12").returncode == 0

    done = cli_tario(*words, f"--out={tmp_path / 'stated'}", "--um-per-px=0.18")
    assert done.returncode == 0 and "default" not in done.stdout
    stated = Corpus.open(tmp_path / "stated").sections[0]
    assert stated.width_um == pytest.approx(section.width_um * 0.18 / 0.12028)


def test_a_her2st_section_is_ingested_and_its_spots_agree_with_the_table(real_data, cli_tario, tmp_path):
    done = cli_tario("ingest", "--source=spots", f"--path={real_data / 'her2st'}", "--patient=B,C", "--cohort=BRCA",
                     "--sections=B4", "--min-spot-total=100", f"--out={tmp_path / 'her2st'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ingest: 1/1 sections  B4  written" in done.stdout
    corpus = Corpus.open(tmp_path / "her2st")
    (section,) = corpus.sections
    table = pd.read_csv(real_data / "her2st/B4.tsv.gz", sep="\t", index_col=0).loc[list(section.spots.name_N)]
    assert section.spots.dense(len(corpus.panel)).sum() == table.to_numpy().sum()
    assert (section.patient, section.cohort, corpus.kind) == ("B", "BRCA", "real")
    done, found = checked(cli_tario, tmp_path / "her2st", tmp_path)
    assert done.returncode == 0 and found["registration"]["B4"]["verdict"] == "registered"


def test_a_broken_jpeg_of_her2st_is_refused(real_data, cli_tario, tmp_path):
    for name in ("C5.tsv.gz", "C5_selection.tsv"):
        shutil.copy(real_data / "her2st" / name, tmp_path)
    whole = (real_data / "her2st/C5.jpg").read_bytes()
    (tmp_path / "C5.jpg").write_bytes(whole[: len(whole) // 2])
    done = cli_tario("ingest", "--source=spots", f"--path={tmp_path}", "--patient=C", "--cohort=BRCA",
                     f"--out={tmp_path / 'corpus'}")  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "corpus").exists()
    assert done.stderr.startswith("tario: ") and "C5.jpg: cannot be read as an image" in done.stderr


@pytest.fixture(scope="session")
def cli_virtual_run(cli_corpus, cli_tario, tmp_path_factory):
    """The workdir of two steps on virtual patients, by `tario train`."""
    workdir = tmp_path_factory.mktemp("cli_run") / "run"
    config = ("--config=configs/quickstart.py", *(f"--config.{name}={value}" for name, value in TINY.items()))
    done = cli_tario("train", *config, f"--corpus={cli_corpus}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_a_virtual_model_sees_real_tissue_only_with_the_flag(cli_virtual_run, cli_xenium, cli_tario, tmp_path):
    words = ("evaluate", f"--workdir={cli_virtual_run}", f"--corpus={cli_xenium[0]}", "--bin-um=18",
             f"--out={tmp_path / 'report'}")  # fmt: skip
    done = cli_tario(*words)
    assert done.returncode == 2 and "--allow-virtual-model" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "report").exists()

    done = cli_tario(*words, "--allow-virtual-model", f"--json={tmp_path / 'said.json'}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report/report.json").read_text())
    page = (tmp_path / "report/report.html").read_text()
    banner = "This model was trained on virtual tissue; it knows no biology."
    assert report["banners"][0].startswith(banner) and banner in page and banner in done.stdout
    assert (report["trained_on"], report["corpus_kind"], report["bin_um"]) == ("virtual", "real", 18.0)
    common = set(Corpus.open(cli_xenium[0]).panel.symbols) & set(table_genes(cli_virtual_run))
    assert report["genes"]["in_common"] == len(common) > 50
    assert report["genes"]["model_panel"] == 1024 and report["genes"]["corpus_panel"] == 288
    assert f"{len(common)} in common" in done.stdout and f"{len(common)} genes in common" in page
    assert report["sections"] | {"held_out_bins": 80} == report["sections"] and report["sections"]["train"] == 0
    assert "few blocks" in report["interval"]["note"]
    assert report["headline"]["ridge_r_top100"] is None and "not estimable" in done.stdout
    assert 'src="http' not in page and json.loads((tmp_path / "said.json").read_text()) == report


@pytest.mark.slow
def test_maps_of_real_tissue_by_a_virtual_model_hold_its_genes_and_the_banner(
    cli_virtual_run, cli_xenium, cli_tario, tmp_path
):
    import anndata

    done = cli_tario("predict", f"--workdir={cli_virtual_run}", f"--corpus={cli_xenium[0]}", "--section=X1",
                     "--bin-um=18", "--allow-virtual-model", f"--out={tmp_path / 'maps.h5ad'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    maps = anndata.read_h5ad(tmp_path / "maps.h5ad")
    assert list(maps.var_names) == table_genes(cli_virtual_run) and np.isfinite(maps.X).all() and (maps.X >= 0).all()
    assert maps.uns["tario"]["trained_on"] == "virtual" and "knows no biology" in maps.uns["tario"]["banner"]


def table_genes(workdir) -> list[str]:
    from tario_jax.train.checkpoint import Checkpoints

    with Checkpoints(workdir) as checkpoints:
        return list(checkpoints.provenance(checkpoints.steps[-1]).panel.symbols)
