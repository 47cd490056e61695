"""The command line: what a user does wrong is answered in one line, and what was killed continues."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CLI_SIMULATE
from made_slides import speckled, write_pyramid
from PIL import Image
from tiny_tissue import st_folder

from tario_jax.cli import main as cli
from tario_jax.config import Config, InputError
from tario_jax.config_files import load_config, override
from tario_jax.evaluate.job import evaluate_checkpoint

JOBS = ("run", "simulate", "ingest", "check", "corpus", "encode", "train", "predict", "maps", "view", "export", "serve",
        "decode", "embed", "atlas", "probe", "neighbours", "evaluate", "finer", "shift", "gallery", "scaling", "bench",
        "compile", "status", "compare", "trace")  # fmt: skip
TRAIN = ("train", "--config=configs/quickstart.py")
SLIDE = ("ingest", "--source=slide", "--path={}", "--out={}/c")


def refused(done: subprocess.CompletedProcess, *words: str, status: int = 2) -> None:
    """Exit status 2, and one line on stderr that begins with tario and holds `words`."""
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr.endswith("\n") and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("tario")
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture
def tario(capsys):
    """The same without a process of its own, for the many small cases."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as left:
            status = left.code
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, out, err)

    return run


# --- help


def test_a_number_without_end_may_be_written():
    assert override(Config(), {"optim.clip_norm": "inf"}).optim.clip_norm == math.inf
    with pytest.raises(InputError, match=r"optim.learning_rate is inf; expected finite numbers"):
        override(Config(), {"optim.learning_rate": "inf"})


@pytest.mark.parametrize("job", JOBS)
def test_the_help_of_a_job_shows_examples_that_parse(job, cli_tario, repository):
    done = cli_tario(job, "--help")
    assert done.returncode == 0 and not done.stderr
    _, found, examples = done.stdout.partition("examples:\n")
    lines = examples.strip().splitlines()
    assert found and lines
    for line in lines:
        program, *words = shlex.split(line.strip().removeprefix("srun "))
        assignments, rest = cli.split_assignments(words)
        options = cli.parser().parse_args(rest)
        assert (program, options.job) == ("tario", job)
        if getattr(options, "config", None) is None:
            override(Config(), assignments)
        else:
            override(load_config(str(repository / options.config)), assignments)


def test_the_list_of_jobs_is_what_help_lists(cli_tario):
    listed = re.findall(r"^    (\w+)(?: |$)", cli_tario("--help").stdout, re.MULTILINE)
    assert listed == list(JOBS)


# --- sides and numbers that mean nothing


@pytest.mark.parametrize(("words", "told"), [
    (("evaluate", "--workdir=x", "--bin-um=0"), "--bin-um: '0': expected a number above 0"),
    (("evaluate", "--workdir=x", "--read-um=nan"), "--read-um: 'nan': expected a number above 0"),
    (("decode", "--workdir=x", "--out=y", "--bin-um=-36"), "--bin-um: '-36': expected a number above 0"),
    (("gallery", "--workdir=x", "--out=y", "--sides-um=0,36"), "--sides-um: '0': expected a number above 0"),
    (("gallery", "--workdir=x", "--out=y", "--at-r="), "--at-r: '': expected numbers from -1 to 1"),
    (("gallery", "--workdir=x", "--out=y", "--at-r=nan"), "--at-r: 'nan': expected numbers from -1 to 1"),
    (("gallery", "--workdir=x", "--out=y", "--section=a", "--genes=B", "--at-r=0.5"), "--section and --at-r: "),
    (("check", "x", "--config=configs/quickstart.py", "--config.data.bin_um=9"), "--config.data.bin_um: windows and"),
    (("scaling", "x", "--out=y", "--samples=3"), "--samples: '3': expected a whole number of at least 20"),
])  # fmt: skip
def test_a_number_that_means_nothing_is_refused_with_its_flag(tario, words, told):
    refused(tario(*words), told)


# --- configs and flags


@pytest.mark.parametrize(("words", "answer"), [
    (("--config.train.step=3",), ("--config.train.step:", "did you mean --config.train.steps?")),
    (("--config.trian.steps", "3"), ("--config.trian.steps:", "did you mean --config.train.steps?")),
    (("--config.steps=3",), ("did you mean --config.train.steps?",)),
    (("--config.train.steps=many",), ("--config.train.steps=many", "expected int")),
    (("--config.train.steps=1.5",), ("--config.train.steps=1.5", "expected int")),
    (("--config.split.train=C2,C3",), ("--config.split.train=C2,C3", "expected a tuple, as \"('a',)\"")),
    (("--config.data.groups=4",), ("--config.data.groups=4", "expected a tuple, as \"((1, 0.5),)\"")),
    (("--config.data.order=spiral",), ("expected one of raster, hilbert",)),
    (("--config.train=3",), ("'train' is a group of fields",)),
    (("--config.data.bin_um=-1",), ("data.bin_um is -1.0", "more than 0")),
    (("--config.data.patch_px=7",), ("data.tile_um is 288.0", "multiple of patch_um = 7.0")),
    (("--config.train.steps",), ("--config.train.steps: has no value",)),
    (("--config.data.min_measured=0",), ("data.min_measured is 0.0", "what was not measured is not 0")),
    (("--config.data.sequence=patient",), ("one window a row", "data.windows_per_row")),
    (("--config.model.frozen_axes=8",), ("model.frozen_axes is 8 without data.frozen_encoder",)),
    (("--config.evaluate.read_um=(72.0,)",), ("evaluate.read_um holds 72", "summed up to those of")),
    (("--config.source.path=gs://b/corpus",), ("source.path is 'gs://b/corpus'", "source.kind=virtual does not read",
                                               "set source.kind=corpus")),
    (("--config.train.keep_every=150",), ("train.keep_every is 150", "multiple of train.checkpoint_every = 100")),
])  # fmt: skip
def test_a_wrong_field_is_answered_with_the_one_that_was_meant(tario, tmp_path, words, answer):
    refused(tario(*TRAIN, f"--workdir={tmp_path / 'w'}", *words), *answer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [
    ("train", "--config=configs/quickstart.py", "--corpus=gs://b/corpus", "--workdir=gs://b/runs/a"),
    ("compare", "runs/a", "s3://b/runs/a"),
])  # fmt: skip
def test_a_run_in_a_bucket_is_refused_before_it_becomes_a_folder_of_that_name(tario, words):
    refused(tario(*words), "workdir", "://b/runs/a is no path on a disk", "mount the bucket")


@pytest.mark.parametrize(("body", "answer"), [
    ("def get_config(arg):\n    return Config(train=TrainConfig(step=3))\n",
     ("mine.py, line 3:", "TrainConfig has no field 'step'; did you mean 'steps'?")),
    ("def get_config(arg):\n    return Config(data=DataConfig(rows=0))\n", ("data.rows is 0",)),
    ("def get_config(arg):\n    return Config(train=TrainConfig(learns='HE'))\n",
     ("mine.py: train.learns is 'HE'; expected one of counts, he",)),
    ("def get_config(arg):\n    return Config(data=DataConfig(groups=[(4, 1.0)]))\n",
     ("data.groups is [(4, 1.0)]; expected a tuple",)),
    ("def get_config(arg):\n    return Config(train=TrainConfig(steps=1e3))\n",
     ("train.steps is 1000.0; expected int",)),
    ("def get_config(arg):\n    return Config(train=TrainConfig(spike_steps=5))\n",
     ("train.spike_steps is 5, which train.spike_deviations=0 does not read",)),
    ("def get_config(arg):\n    return Config(data=DataConfig(window_um=1e999))\n", ("data.window_um is inf",)),
    ("def get_config(arg):\n    return Config(train=TrainConfig(seed=-1))\n", ("train.seed is -1; expected 0 to",)),
    ("def get_config(arg):\n    return 3\n", ("get_config returned int",)),
    ("def get_confg(arg):\n    return Config()\n", ("has no get_config; expected a function",)),
    ("def get_config(arg:\n", ("mine.py, line 2: SyntaxError",)),
    ("import nothing_of_this_name\n", ("mine.py, line 2: ModuleNotFoundError",)),
])  # fmt: skip
def test_a_mistake_in_a_config_file_is_one_line_with_its_place(tario, tmp_path, body, answer):
    path = tmp_path / "mine.py"
    path.write_text(f"from tario_jax.config import Config, DataConfig, TrainConfig\n{body}")
    refused(tario("train", f"--config={path}", f"--workdir={tmp_path / 'w'}"), *answer)


def test_a_misspelt_config_is_refused_by_the_installed_command(cli_tario, tmp_path):
    workdir = f"--workdir={tmp_path / 'w'}"
    refused(cli_tario(*TRAIN, workdir, "--config.train.step=3"), "did you mean --config.train.steps?")
    refused(cli_tario("train", "--config=configs/quikstart.py", workdir), "did you mean configs/quickstart.py?")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "answer"), [
    ((), ("the following arguments are required: JOB",)),
    (("trian",), ("invalid choice: 'trian'",)),
    (("simulate",), ("--out",)),
    (("simulate", "--out={}/c", "--patients=some"), ("--patients", "invalid int value: 'some'")),
    (("simulate", "--out={}/c", "--patients=0"), ("source.train_patients is 0",)),
    (("simulate", "--out={}/c", "--section-um=10"), ("source.section_um is 10.0",)),
    (("simulate", "--out={}/text.png"), ("text.png: is a file; expected a folder",)),
    (("simulate", "--out={}"), ("is not empty and not a corpus",)),
    (("check", "{}/c", "--config.train.steps=3"), ("'tario check' reads source, split and data of a config only",)),
    (("check",), ("no corpus is named", "--workdir=RUN")),
    (("simulate", "--patients=1"), ("no place to write", "--workdir=RUN")),
    (("simulate", "--out={}/o", "--config.source.seed=1"), ("name it with --config",)),
    (("simulate", "--out={}/o", "--workdir={}/w"), ("--out and --workdir are two places",)),
    (("check", "{}/c", "--workdir={}/w"), ("are two corpora; give one",)),
    (("evaluate", "--workdir={}/w", "--config.source.kind=corpus"), ("name the corpus itself (--corpus)",)),
    (("bench", "attention", "--config.model.width=64"), ("this bench reads no config",)),
    (("evaluate", "--workdir={}/w", "--config.data.bin_um=18"), ("reads source and evaluate of a config only",)),
    (("ingest", "--source=xenium"), ("--path is missing",)),
    (("ingest", "--config=configs/her2st.py", "--workdir={}/w", "--path=x"), ("--path: the source is that of",)),
    (("check", "{}/c"), ("no such folder",)),
    (("check", "{}"), ("holds no corpus.json",)),
    ((*TRAIN, "--workdir={}/w", "--corpus={}/c"), ("c: no such folder", "'tario ingest' or 'tario simulate'")),
    (("predict", "--workdir={}", "--out={}/a.h5ad"), ("--section", "--image")),
    (("predict", "--workdir={}", "--image=a.png", "--section=b", "--out={}/a.h5ad"), ("--section", "--image")),
    (("predict", "--workdir={}", "--image=a.png"), ("--out", "--table")),
    (("predict", "--workdir={}", "--image=a.png", "--out={}/a.txt"), ("a.txt", "expected .h5ad")),
    (("predict", "--workdir={}", "--section=a", "--table={}/a.xlsx"), ("a.xlsx", ".parquet, .tsv or .csv")),
    (("predict", "--workdir={}", "--image={}/text.png", "--out={}/a.h5ad"), ("text.png", "add --um-per-px")),
    (("predict", "--workdir={}", "--image={}/text.png", "--um-per-px=40", "--out={}/a.h5ad"), ("0.1 to 1.2",)),
    (("predict", "--workdir={}", "--image={}/no.png", "--um-per-px=0.5", "--out={}/a.h5ad"), ("no.png: no such",)),
    (("predict", "--workdir={}/w", "--section=a", "--out={}/a.h5ad"), ("w: no such workdir",)),
    (("predict", "--workdir={}", "--section=a", "--out={}/a.h5ad"), ("holds no checkpoints",)),
    (("evaluate", "--workdir={}/w", "--out={}/r"), ("w: no such workdir",)),
    (("ingest", "--source=xenium", "--path={}/x", "--patient=P", "--cohort=LUAD", "--out={}/c"), ("no such folder",)),
    (("ingest", "--source=spots", "--path={}", "--patient=P", "--cohort=LUAD", "--out={}/c"), ("NAME_selection.tsv",)),
    (("ingest", "--source=cosmx", "--path={}", "--patient=P", "--cohort=LUAD", "--out={}/c"), ("*_tx_file.csv",)),
    (("ingest", "--source=xenium", "--path={}", "--patient=P", "--cohort=LUAD", "--out={}/c", "--um-per-px=0.2"),
     ("--um-per-px: means nothing to --source=xenium",)),
    (("ingest", "--source=spots", "--path={}", "--patient=P", "--cohort=LUAD", "--out={}/c", "--registration=adjacent"),
     ("--registration: means nothing to --source=spots, only to xenium and cosmx",)),
    (("ingest", "--source=cosmx", "--path={}", "--patient=", "--cohort=LUAD", "--out={}/c"), ("one is empty",)),
    (("ingest", "--source=cosmx", "--path={}", "--patient=P", "--cohort=LUAD", "--out={}/c", "--force"),
     ("--force: means nothing to --source=cosmx", "slide")),
    (("ingest", "--source=xenium", "--path={}", "--patients-file=x", "--out={}/c"), ("--patients-file: means",)),
    ((*SLIDE, "--patients-file=x", "--cohort=LUAD"), ("--cohort: --patients-file names it",)),
    ((*SLIDE, "--patient=P", "--cohort=LUAD", "--pitch-um=3"), ("--pitch-um: means nothing to --source=slide",)),
    ((*SLIDE, "--patient=P", "--cohort=LUAD"), ("--panel is missing", "column symbol")),
    ((*SLIDE, "--patient=P", "--cohort=LUAD", "--panel={}/p.tsv"), ("--panel=", "p.tsv: cannot be read")),
    (("ingest", "--source=visium", "--path={}", "--patient=P", "--cohort=LUAD", "--out={}/c"),
     ("0 files of tissue_positions.parquet",)),
    (("ingest", "--source=visium", "--path={}", "--patient=P", "--cohort=LUAD", "--out={}/c", "--square-um=8"),
     ("--square-um: means nothing to --source=visium",)),
    (("ingest", "--source=visium_hd", "--path={}", "--patient=P", "--cohort=LUAD", "--out={}/c"),
     ("no folder square_002um", "Visium HD")),
    (("ingest", "--source=visium", "--path={}", "--patient=P", "--out={}/c"), ("--cohort is missing",)),
    (("ingest", "--source=hest", "--path={}", "--out={}/c"), ("metadata csv: none",)),
    (("ingest", "--source=hest", "--path={}", "--patient=P", "--patients-file={}/w.tsv", "--out={}/c"),
     ("--patients-file: --patient names one",)),
    (("ingest", "--source=hest", "--path={}", "--patients-file={}/w.tsv", "--out={}/c"), ("w.tsv: cannot be read",)),
    (("ingest", "--source=cosmx", "--path={}", "--patient=P", "--cohort=LUAD", "--out={}/c", "--panel={}/p.tsv"),
     ("p.tsv: cannot be read",)),
])  # fmt: skip
def test_wrong_flags_are_one_line_and_leave_nothing(tario, tmp_path, words, answer):
    (tmp_path / "text.png").write_text("no image at all\n")
    refused(tario(*(word.replace("{}", str(tmp_path)) for word in words)), *answer)
    assert [path.name for path in tmp_path.iterdir()] == ["text.png"]


# --- images


def test_an_image_that_cannot_be_read_is_refused(cli_tario, tario, tmp_path):
    (tmp_path / "text.png").write_text("no image at all\n")
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:9000])
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    (tmp_path / "text.tif").write_text("no image at all\n")
    (tmp_path / "empty.jpg").touch()

    def predict(run, name):
        return run("predict", f"--workdir={tmp_path}", f"--image={tmp_path / name}", "--um-per-px=0.5",
                   f"--out={tmp_path / 'maps.h5ad'}")  # fmt: skip

    refused(predict(cli_tario, "text.png"), "text.png: cannot be read as an image")
    for name, answer in {"half.jpg": "truncated", "grey.png": "mode 'L'", "text.tif": "not a TIFF",
                         "empty.jpg": "cannot be read"}.items():  # fmt: skip
        refused(predict(tario, name), name, answer)
    assert not list(tmp_path.glob("*maps*"))


# --- predictions of a tiny run


def test_a_prediction_that_cannot_be_made_is_one_line_and_writes_nothing(tiny_run, tiny_corpus, tario, tmp_path):
    given = ("--workdir", tiny_run, "--corpus", tiny_corpus.root, "--out", tmp_path / "maps.h5ad")
    for words, answer in (
        (("--section=Z9",), ("has no section 'Z9'", "it holds A1")),
        (("--section=F1", "--bin-um=500"), ("180 x 150 µm", "at least one bin of 500 µm")),
        (("--section=F1", "--bin-um=100"), ("bins of 100 µm do not fit windows of data.window_um = 72 µm",)),
        (("--section=F1", "--bin-um=0"), ("--bin-um: '0': expected a number above 0",)),
        (("--section=F1", "--overlap=1"), ("overlap",)),
    ):
        refused(tario("predict", *given, *words), *answer)
    for words, answer in (
        (("--steps=4", "--uncertainty"), ("trained one-shot", "data.groups")),
        (("--steps=-1", "--uncertainty"), ("groups is -1",)),
        (("--steps=4",), ("--steps: X holds the rates of one-shot", "add --uncertainty")),
        (("--steps=1", "--order=resolutions"), ("--steps: X holds the rates of one-shot",)),
        (("--samples=4",), ("--samples: means nothing to one-shot", "--steps=K above 1")),
        (("--steps=1", "--samples=4"), ("--samples: means nothing to one-shot", "--steps=K above 1")),
        (("--steps=1", "--uncertainty"), ("--uncertainty: is between the samples", "one step is one-shot")),
        (("--config.evaluate.top_genes=4",), ("reads source and evaluate.overlap of a config only",)),
        (("--steps=4", "--samples=1", "--uncertainty"), ("--uncertainty", "two --samples or more")),
        (("--uncertainty",), ("--uncertainty", "'tario evaluate'", "evaluate it first")),
        (("--cells=corpus", "--steps=4"), ("--steps", "cells are predicted", "leave it out")),
        (("--uncertainty", "--cells=corpus"), ("--uncertainty", "is of bins", "leave one of them out")),
    ):
        refused(tario("predict", *given, "--section=F1", *words), *answer)
    refused(tario("predict", "--workdir", tiny_run, "--section=F1", "--out", tmp_path / "maps.h5ad"),
            "trained on a corpus elsewhere", "--corpus")  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_maps_say_how_they_were_generated(tiny_run, tiny_corpus, tario, tmp_path):
    anndata = pytest.importorskip("anndata")
    words = ("predict", "--workdir", tiny_run, "--corpus", tiny_corpus.root, "--section=F1")
    done = tario(*words, "--steps=1", "--out", tmp_path / "maps.h5ad")
    assert done.returncode == 0 and "one-shot" in done.stdout, done.stderr
    assert "of this name" not in done.stdout
    done = tario(*words[:-1], "--section=A1", "--table", tmp_path / "maps.tsv")
    assert done.returncode == 0 and "note: A1: training or validation saw a patient of this name" in done.stdout
    maps = anndata.read_h5ad(tmp_path / "maps.h5ad")
    assert maps.uns["tario"]["decoding"] == "one-shot" and not maps.layers


def test_maps_say_how_far_counts_lie_from_rates(tiny_run, tiny_corpus, predictor, tario, tmp_path):
    anndata = pytest.importorskip("anndata")
    evaluate_checkpoint(predictor, tiny_corpus, predictor.provenance.config.evaluate, tmp_path, title="x",
                        say=lambda line: None)  # fmt: skip
    found = json.loads((tmp_path / "report.json").read_text())["uncertainty"]
    words = ("predict", "--workdir", tiny_run, "--corpus", tiny_corpus.root, "--section=F1", "--out",
             tmp_path / "maps.h5ad", "--validation", tmp_path / "validation.parquet")  # fmt: skip
    refused(tario(*words, "--uncertainty", "--bin-um=36"), "--uncertainty", "places of 18 µm", "these are of 36 µm")
    assert not (tmp_path / "maps.h5ad").exists()
    done = tario(*words, "--uncertainty")
    assert done.returncode == 0, done.stderr
    maps = anndata.read_h5ad(tmp_path / "maps.h5ad")
    expected = maps.X * (1 + found["bursts"]) + found["uncertain"] * maps.X**2
    np.testing.assert_allclose(maps.layers["count_variance"], expected, rtol=1e-5)
    about = maps.uns["tario"]
    assert (about["count_bursts"], about["count_uncertain"]) == (found["bursts"], found["uncertain"])
    assert tario(*words).returncode == 0 and not anndata.read_h5ad(tmp_path / "maps.h5ad").layers


def test_an_image_is_real_tissue_to_a_model_of_virtual_tissue(tiny_run, tario, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (150, 130, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    words = ("predict", "--workdir", tiny_run, "--image", tmp_path / "slide.png", "--um-per-px=1", "--bin-um=18",
             "--table", tmp_path / "maps.tsv")  # fmt: skip
    refused(tario(*words), "virtual tissue", "--allow-virtual-model")
    assert not (tmp_path / "maps.tsv").exists()
    done = tario(*words, "--allow-virtual-model", f"--json={tmp_path / 'said.json'}")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    table = pd.read_csv(tmp_path / "maps.tsv", sep="\t", comment="#")
    assert table.shape == (8 * 7, 3 + 12) and said["places"] == 56 and np.isfinite(table.iloc[:, 3:].to_numpy()).all()
    assert "knows no biology" in said["banner"] and "knows no biology" in (tmp_path / "maps.tsv").read_text()


def test_a_checkpoint_of_another_panel_is_refused(tiny_run, cli_corpus, cli_tario, tario, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    done = cli_tario(*TRAIN, f"--corpus={cli_corpus}", f"--workdir={tmp_path / 'run'}")
    refused(done, "was trained with panel", "of 12 genes", "of 1024", "0 in common", "another --workdir")
    done = tario("evaluate", f"--workdir={tiny_run}", f"--corpus={cli_corpus}", f"--out={tmp_path / 'report'}")
    refused(done, "shares no gene with the model's")
    assert not (tmp_path / "report").exists()


# --- splits and corpora


def test_a_patient_in_two_splits_is_refused_and_found_by_check(cli_corpus, cli_tario, tario, tmp_path):
    corpus = shutil.copytree(cli_corpus, tmp_path / "corpus")
    with (corpus / "split.tsv").open("a") as split:
        split.write("vt00001\theld_out\n")
    refused(cli_tario(*TRAIN, f"--corpus={corpus}", f"--workdir={tmp_path / 'w'}"),
            "split.tsv: patient 'vt00001' is in 'train' and in 'held_out'")  # fmt: skip
    done = tario("check", corpus)
    assert done.returncode == 1 and re.search(r"split +FAULT .*vt00001", done.stdout)
    (corpus / "split.tsv").unlink()
    refused(tario(*TRAIN, f"--corpus={corpus}", f"--workdir={tmp_path / 'w'}"), "split.tsv: no such file")


def _kill_when(condition, words) -> None:
    """Starts the command, sends SIGKILL once `condition()` holds, and waits until its children are gone."""
    process = subprocess.Popen([Path(sys.executable).parent / "tario", *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(_alive(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlives the command that was killed"
        time.sleep(0.01)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds children in /proc")
@pytest.mark.slow
def test_a_killed_simulation_is_refused_and_continues_to_the_same_seal(
    cli_corpus, tiny_run, cli_tario, tario, tmp_path
):
    root = tmp_path / "corpus"
    words = (*CLI_SIMULATE, f"--out={root}")
    _kill_when(lambda: list(root.glob("sections/*/seal.json")), words)
    done_before = len(list(root.glob("sections/*/seal.json")))
    assert 1 <= done_before < 6 and not (root / "corpus.json").exists()
    answer = ("corpus: is not sealed", f"after {done_before} sections", "run the same ingest again")
    refused(cli_tario(*TRAIN, f"--corpus={root}", f"--workdir={tmp_path / 'w'}"), *answer)
    refused(tario("check", root), *answer)
    refused(tario("evaluate", f"--workdir={tiny_run}", f"--corpus={root}", f"--out={tmp_path / 'r'}"), *answer)
    refused(cli_tario(*words, "--seed=7"), "was begun with source", "use another folder")
    assert not (tmp_path / "w").exists() and not (tmp_path / "r").exists()

    done = cli_tario(*words)
    assert done.returncode == 0 and f"{done_before} of 6 sections are there already" in done.stdout
    whole, again = (json.loads((folder / "corpus.json").read_text()) for folder in (cli_corpus, root))
    assert again == whole
    assert (root / "split.tsv").read_text() == (cli_corpus / "split.tsv").read_text()
    assert tario("check", root).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds children in /proc")
def test_a_killed_ingest_continues_with_a_whole_account(cli_tario, tario, tmp_path):
    st = st_folder(tmp_path / "st", ("A1", "A2", "B1", "B2"))
    words = ("ingest", "--source=spots", f"--path={st}", "--patient=A,B", "--cohort=BRCA")
    whole = tario(*words, f"--out={tmp_path / 'whole'}", f"--json={tmp_path / 'whole.json'}")
    assert whole.returncode == 0, whole.stderr
    root = tmp_path / "killed"
    _kill_when((root / "sections/A1/seal.json").exists, (*words, f"--out={root}"))
    done_before = len(list(root.glob("sections/*/seal.json")))
    assert 1 <= done_before < 4
    refused(tario("check", root), "is not sealed", "run the same ingest again")
    refused(tario("ingest", "--source=spots", f"--path={st}", "--patient=A,B", "--cohort=LUAD", f"--out={root}"),
            "holds a section 'A1' of other files, of another patient")  # fmt: skip

    again = tario(*words, f"--out={root}", f"--json={tmp_path / 'again.json'}")
    assert again.returncode == 0 and "1/4 sections  A1  is there already" in again.stdout
    reports = [json.loads((tmp_path / name).read_text()) for name in ("whole.json", "again.json")]
    assert reports[0]["report"] == reports[1]["report"] and reports[0]["seal"] == reports[1]["seal"]
    assert sum(tally["what"] == "counts" and tally["kept"] > 0 for tally in reports[1]["report"]["tallies"]) == 4
    before = (root / "corpus.json").read_text()
    third = tario(*words, f"--out={root}")
    assert third.returncode == 0 and (root / "corpus.json").read_text() == before


def test_an_ingest_that_cannot_read_its_files_leaves_nothing(cli_tario, tario, tmp_path):
    st = st_folder(tmp_path / "st", ("A1",))
    image = st / "A1.jpg"
    image.write_bytes(image.read_bytes()[:50_000])
    spots = ("ingest", "--source=spots", f"--path={st}", "--patient=A", "--cohort=BRCA", f"--out={tmp_path / 'corpus'}")
    refused(cli_tario(*spots), "A1.jpg: cannot be read as an image", "truncated")
    counts = pd.read_csv(st / "A1.tsv", sep="\t", index_col=0)
    (counts + 0.5).to_csv(st / "A1.tsv", sep="\t")
    refused(tario(*spots), "A1.tsv: column 'G0'", "expected raw counts")
    pd.read_csv(st / "A1_selection.tsv", sep="\t").drop(columns="new_x").to_csv(st / "A1_selection.tsv", sep="\t")
    refused(tario(*spots), "A1_selection.tsv: no column 'new_x'")

    cosmx = tmp_path / "cosmx"
    cosmx.mkdir()
    (cosmx / "S_tx_file.csv").write_text("fov,x_local_px,y_local_px,x_global_px,y_global_px\n1,1,1,1,1\n")
    (cosmx / "S_fov_positions_file.csv").write_text("fov,x_global_px,y_global_px\n1,0,0\n")
    given = ("--patient=A", "--cohort=NSCLC", f"--out={tmp_path / 'corpus'}")
    refused(cli_tario("ingest", "--source=cosmx", f"--path={cosmx}", *given), "S_tx_file.csv: no column 'target'")

    xenium = tmp_path / "xenium"
    xenium.mkdir()
    (xenium / "experiment.xenium").write_text('{"pixel_size": 0.2125}')
    (xenium / "he_imagealignment.csv").write_text("1.7,0,0\n0,1.7,0\n0,0,1\n")
    (xenium / "he_image.ome.tif").write_text("never opened\n")
    rows = pd.DataFrame({"feature_name": ["ACTB"], "x_location": [1.0], "y_location": [1.0]})
    rows.to_parquet(xenium / "transcripts.parquet")
    refused(cli_tario("ingest", "--source=xenium", f"--path={xenium}", *given), "transcripts.parquet: no column 'qv'")
    rows.assign(qv=40.0).to_parquet(xenium / "transcripts.parquet")
    refused(tario("ingest", "--source=xenium", f"--path={xenium}", *given), "he_image.ome.tif: cannot be read as")
    assert not (tmp_path / "corpus").exists()


def test_whoever_stops_reading_gets_no_traceback(cli_corpus):
    command = [Path(sys.executable).parent / "tario", "check", cli_corpus]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as `| head` does, once it has its lines
        assert process.stderr.read() == ""
    assert process.returncode == 141


# --- whole slides


def test_a_folder_of_slides_becomes_a_corpus_that_grows_and_is_checked(cli_tario, tario, tmp_path):
    slides, root = tmp_path / "slides", tmp_path / "corpus"
    slides.mkdir()
    table = tmp_path / "patients.tsv"
    table.write_text("file\tpatient\tcohort\n" + "".join(f"{name}.tif\tP{name}\tBRCA\n" for name in "ab"))
    panel = tmp_path / "panel.tsv"
    panel.write_text("symbol\nEPCAM\nTP53\n")
    for seed, name in enumerate("ab"):
        write_pyramid(slides / f"{name}.tif", speckled(300, 400, seed))
    words = ("ingest", "--source=slide", f"--path={slides}", f"--out={root}")
    done = cli_tario(*words, f"--patients-file={table}", f"--panel={panel}", f"--json={tmp_path / 'said.json'}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "2/2 sections  b  written" in done.stdout
    assert "a: stored at 0.5 µm per px: 200 × 150 px, level 2 of 3, as it is; the file has 0.25" in done.stdout
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["sections"] == 2 and said["genes"] == 2

    # a third one, with the panel of the corpus that is there; the two others are known again
    write_pyramid(slides / "c.tif", speckled(300, 400, 2))
    refused(tario(*words, f"--patients-file={table}"), "no line for c.tif")
    table.write_text(table.read_text() + "c.tif\tPc\tBRCA\n")
    done = tario(*words, f"--patients-file={table}")
    assert done.returncode == 0 and "2/3 sections  b  is there already" in done.stdout, done.stderr
    assert "3/3 sections  c  written" in done.stdout
    refused(tario(*words, f"--patients-file={table}", "--he-um-per-px=0.25"), "holds a section 'a'", "other flags")
    panel.write_text("symbol\nEPCAM\n")
    refused(tario(*words, f"--patients-file={table}", f"--panel={panel}"), "leave --panel out", "another --out")
    done = tario("check", root)
    assert done.returncode == 0 and "3 sections, real" in done.stdout and "0 faults" in done.stdout, done.stdout


def test_a_slide_without_its_scale_is_refused_and_stored_once_it_is_given(tario, tmp_path):
    panel = tmp_path / "panel.tsv"
    panel.write_text("symbol\nEPCAM\n")
    Image.fromarray(speckled(120, 160)).save(tmp_path / "S1.png")
    words = ("ingest", "--source=slide", f"--path={tmp_path / 'S1.png'}", "--patient=P1", "--cohort=BRCA",
             f"--panel={panel}", f"--out={tmp_path / 'c'}")  # fmt: skip
    refused(tario(*words), "S1.png: does not say its µm per px; give --um-per-px")
    refused(tario(*words, "--um-per-px=2.5"), "--um-per-px: 2.5 µm per px; expected 0.1 to 1.2; --force takes it")
    assert not (tmp_path / "c").exists()
    done = tario(*words, "--um-per-px=2.5", "--force", "--section=X")
    assert done.returncode == 0 and "X: stored at 2.5 µm per px, coarser than the 0.5" in done.stdout
