"""`tario run`, the whole way, on virtual tissue and on spots; run again, it trains nothing and says the same."""

import copy
import dataclasses
import json

import pytest
from tiny_tissue import st_folder, tiny_section, write_corpus

from tario_jax.evaluate.main_job import _Clock, write_maps

SIZES = """
        model=ModelConfig(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=64, gene_dim=16,
                          stem_width=8, loss_chunk=16),
        train=TrainConfig(steps=2, calibration_rows=4, validation_rows=2),
"""
VIRTUAL = """
        source=SourceConfig(train_patients=3, validation_patients=1, held_out_patients=2, section_um=256,
                            panel="curated", regions=("core",)),
        data=DataConfig(window_um=72, tile_um=72, patch_px=36, rows=2),
        evaluate=EvaluateConfig(top_genes=10, mean_genes=20, bootstraps=100),
"""
SPOTS = """
        source=SourceConfig(kind="spots", path="$TARIO_TEST_SPOTS", patients=(("A", "BRCA"),)),
        split=SplitConfig(by="section", train=("A1",), held_out=("A2",)),
        data=DataConfig(window_um=432, tile_um=432, he_um_per_px=4, patch_px=9, rows=2),
        evaluate=EvaluateConfig(top_genes=5, mean_genes=10, bootstraps=100),
"""


def config_file(folder, fields):
    path = folder / "mine.py"
    path.write_text(
        "from tario_jax.config import *\n\n\ndef get_config() -> Config:\n"
        f'    return Config(\n        name="mine",{fields}{SIZES}    )\n'
    )
    return path


def two_runs(cli_tario, tmp_path, fields):
    """The report and the output of the first run; the second one must say the same and train nothing."""
    words = ("run", f"--config={config_file(tmp_path, fields)}", f"--workdir={tmp_path / 'run'}")
    reports, said = [], []
    for number in range(2):
        done = cli_tario(*words, f"--json={tmp_path / f'{number}.json'}")
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / f"{number}.json").read_text()))
        said.append(done.stdout)
    assert "step      2/2" in said[0] and "step      2/2" not in said[1]
    assert "resumed at step 2 of 2" in said[1]
    first_seconds, second_seconds = (report["headline"].pop("seconds") for report in reports)
    assert reports[0] == reports[1] and second_seconds > first_seconds > 0
    page = (tmp_path / "run/report.html").read_text()
    assert said[0].rstrip().endswith(f"report: {tmp_path / 'run/report.html'}") and 'src="http' not in page
    return reports[0], said[0], page


HEADLINE = (
    "spatial_r_top100", "ridge_r_top100", "density_r_top100", "composition_r_top100", "ridge_composition_r_top100",
)  # fmt: skip


def test_the_main_job_on_virtual_patients(cli_tario, tmp_path):
    report, said, page = two_runs(cli_tario, tmp_path, VIRTUAL)
    assert report["headline"].keys() >= {*HEADLINE, "share_of_reachable_top100", "bulk_r", "ridge_bulk_r"}
    assert (report["trained_on"], report["split_by"], report["bin_um"]) == ("virtual", "patient", 36.0)
    assert report["sections"]["train"] == 3 and report["sections"]["held_out"] == 2
    assert -1 < report["headline"]["share_of_reachable_top100"] < 1.2
    assert f"{'evaluated on':<32} virtual tissue: 2 held-out sections, split by patient" in said
    assert "Virtual tissue throughout" in page and "Virtual tissue throughout" in said
    assert sorted(path.name for path in (tmp_path / "run/maps").iterdir()) == ["vh00000_core.h5ad", "vh00001_core.h5ad"]


@pytest.mark.slow
def test_the_main_job_on_spots_split_by_section(cli_tario, tmp_path, monkeypatch):
    monkeypatch.setenv("TARIO_TEST_SPOTS", str(st_folder(tmp_path / "st", ("A1", "A2"))))
    report, said, page = two_runs(cli_tario, tmp_path, SPOTS)
    assert (report["trained_on"], report["split_by"], report["bin_um"]) == ("real", "section", None)
    assert report["sections"] | {"train": 1, "held_out": 1, "held_out_bins": 36} == report["sections"]
    assert all(isinstance(report["headline"][name], float) for name in HEADLINE)
    assert "split by section" in said and "knows no biology" not in page

    done = cli_tario("evaluate", f"--workdir={tmp_path / 'run'}", "--bin-um=18", f"--out={tmp_path / 'again'}")
    assert done.returncode == 2 and "is measured in spots" in done.stderr and not (tmp_path / "again").exists()


@pytest.mark.parametrize("missing", ["path", "variable"])
def test_the_main_job_refuses_a_source_that_is_not_there(cli_tario, tmp_path, monkeypatch, missing):
    monkeypatch.delenv("TARIO_TEST_SPOTS", raising=False)
    answer = "the environment variable is not set"
    if missing == "path":
        monkeypatch.setenv("TARIO_TEST_SPOTS", str(tmp_path / "nowhere"))
        answer = "nowhere"
    words = ("run", f"--config={config_file(tmp_path, SPOTS)}", f"--workdir={tmp_path / 'run'}")
    done = cli_tario(*words)
    assert done.returncode == 2 and answer in done.stderr and done.stderr.count("\n") == 1


def test_maps_are_written_of_what_has_an_h_and_e_and_once_a_checkpoint_and_validation(predictor, tmp_path):
    pytest.importorskip("anndata")
    sections = [tiny_section(name, name, seed) for seed, name in enumerate("AB")]
    sections[1] = dataclasses.replace(sections[1], he=None, he_um_per_px=None)
    corpus, mine, run = write_corpus(tmp_path / "c", sections), copy.copy(predictor), tmp_path / "run"
    mine.provenance = dataclasses.replace(predictor.provenance, held_out=("A", "B"))
    run.mkdir()
    (run / "validation.parquet").write_bytes(b"of one evaluation")
    path, account = run / "maps/A.h5ad", run / "kept/maps.json"

    def written() -> bool:
        before, lines = path.stat().st_mtime_ns if path.exists() else 0, []
        write_maps(mine, corpus, 0.0, run, lines.append)
        assert lines == ["maps: 1 held-out sections have no H&E, and get no maps", "maps: 1/1 held-out sections"]
        return path.stat().st_mtime_ns != before

    assert written() and not written()
    assert [file.name for file in path.parent.iterdir()] == ["A.h5ad"]
    account.write_text('{"A": ')  # torn
    assert written() and not written()
    (run / "validation.parquet").write_bytes(b"of another")
    assert written() and not written()
    mine.checkpoint = "another"
    assert written() and not written()


@pytest.mark.parametrize("held", ['{"train": 3', "[1]", None])
def test_seconds_of_a_broken_account_are_none(tmp_path, held):
    path = tmp_path / "seconds.json"
    if held is not None:
        path.write_text(held)
    clock = _Clock(path)
    assert clock.total() == 0
    clock.note("train")
    assert json.loads(path.read_text()).keys() == {"train"} and list(tmp_path.iterdir()) == [path]
