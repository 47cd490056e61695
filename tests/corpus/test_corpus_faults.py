"""Faults planted in real processes: each is named by its file, nothing damaged is read, and a rerun completes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_tissue import st_folder

TARIO = Path(sys.executable).parent / "tario"
SIMULATE = ("simulate", "--patients=2", "--validation=0", "--held-out=1", "--regions=core", "--section-um=160",
            "--panel=curated", "--workers=1")  # fmt: skip
READ = ("bench", "loader", "--batches=1", "--rounds=1")  # reads windows of every section


def tario(*words: object, **more) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in (TARIO, *words)], capture_output=True, text=True, timeout=200, **more)


def one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("tario: "), done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "corpus"
    made = tario(*SIMULATE, f"--out={root}")
    assert made.returncode == 0, made.stderr
    return root


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "corpus"))


def seal(root: Path) -> str:
    return json.loads((root / "corpus.json").read_text())["seal"]


@pytest.mark.parametrize("array", ["he", "detections/place_and_gene"])
@pytest.mark.parametrize("fault", ["flipped byte", "missing shard", pytest.param("cut short", marks=pytest.mark.slow)])
def test_a_damaged_shard_is_named_by_check_and_by_whoever_reads_it(copy, array, fault):
    for shard in copy.glob(f"sections/*/{array}/c/0/0*"):
        shard = next(path for path in (shard, *shard.glob("*")) if path.is_file())
        content = shard.read_bytes()
        if fault == "flipped byte":
            shard.write_bytes(content[:400] + bytes([content[400] ^ 16]) + content[401:])
        elif fault == "cut short":
            shard.write_bytes(content[: len(content) // 2])
        else:
            shard.unlink()
    checked = tario("check", copy)
    assert checked.returncode == 1 and str(shard.relative_to(copy)) in checked.stdout, checked.stdout
    one_line(tario(*READ, f"--corpus={copy}"), f"/{array}", "restore it, or delete the folder of its section")


def test_a_section_that_is_deleted_as_the_message_says_is_made_again(copy, whole):
    shutil.rmtree(copy / "sections/vt00001_core")
    (copy / "split.tsv").write_text((copy / "split.tsv").read_text().replace("vt00000\ttrain", "vt00000\tvalidation"))
    assert tario(*SIMULATE, f"--out={copy}").returncode == 0
    assert seal(copy) == seal(whole) and tario("check", copy).returncode == 0
    assert "vt00000\tvalidation" in (copy / "split.tsv").read_text()  # as its user had it


def test_a_cohort_that_grows_keeps_the_sides_that_its_user_gave(copy):
    (copy / "split.tsv").write_text((copy / "split.tsv").read_text().replace("vt00000\ttrain", "vt00000\tvalidation"))
    grown = tario(*(word.replace("--patients=2", "--patients=4") for word in SIMULATE), f"--out={copy}")
    assert grown.returncode == 0, grown.stderr
    lines = (copy / "split.tsv").read_text().splitlines()
    assert "vt00000\tvalidation" in lines and "vt00003\ttrain" in lines


def test_a_cohort_does_not_grow_over_a_seal_that_was_altered(copy):
    seal_of_section = copy / "sections/vt00000_core/seal.json"
    seal_of_section.write_text(seal_of_section.read_text().replace('"cells": ', '"cells": 1'))
    before = (copy / "corpus.json").read_bytes()
    one_line(tario(*(word.replace("--patients=2", "--patients=4") for word in SIMULATE), f"--out={copy}"),
             f"{seal_of_section}: differs from the corpus seal")  # fmt: skip
    assert (copy / "corpus.json").read_bytes() == before


@pytest.mark.parametrize("name", ["patients.parquet", "sections.parquet"])
def test_a_truncated_table_is_named(copy, name):
    (copy / name).write_bytes((copy / name).read_bytes()[:-40])
    one_line(tario(*READ, f"--corpus={copy}"), f"{copy / name}: differs from the corpus seal; restore it")


def test_the_same_section_under_two_names_is_refused(tmp_path):
    st = st_folder(tmp_path / "st", ("A1", "B1"))
    for path in st.glob("A1*"):
        shutil.copy(path, path.with_name(path.name.replace("A1", "B1")))
    done = tario(
        "ingest", "--source=spots", f"--path={st}", "--patient=A,B", "--cohort=BRCA", f"--out={tmp_path / 'c'}"
    )
    one_line(done, "sections 'A1' and 'B1' hold the same data; 'B1' is not taken")
    assert not (tmp_path / "c/corpus.json").exists()


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_the_unbroken_one(whole, tmp_path):
    """Killed at ever later moments, whatever it is doing then: as soon as so many files are there."""
    root, kills = tmp_path / "killed", 0
    last = files_of(whole)
    for files in (0, 1, last // 6, last // 3, last // 2, 2 * last // 3, 5 * last // 6):
        process = subprocess.Popen([TARIO, *SIMULATE, f"--out={root}"], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        while process.poll() is None and files_of(root) < files:
            time.sleep(0.001)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            if not (root / "corpus.json").exists() and root.exists():
                one_line(tario("check", root), str(root))
        process.wait()
    assert kills >= 4
    assert tario(*SIMULATE, f"--out={root}").returncode == 0
    assert seal(root) == seal(whole) and tario("check", root).returncode == 0


def files_of(root: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


def test_a_full_disk_is_said_and_the_same_command_completes_once_there_is_room(whole, tmp_path):
    """On a file system of 2 MB of its own, which grows before the second run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = " ".join(str(word) for word in (TARIO, *SIMULATE, f"--out={disk}/corpus"))
    script = f"""
        mount -t tmpfs -o size=1m none {disk} || exit 77
        {words} > {tmp_path}/out 2> {tmp_path}/err; echo $? > {tmp_path}/status
        {TARIO} check {disk}/corpus > /dev/null 2> {tmp_path}/refused; echo $? >> {tmp_path}/status
        mount -o remount,size=200m none {disk} || exit 77
        {words} > /dev/null && {TARIO} check {disk}/corpus > /dev/null && cp {disk}/corpus/corpus.json {tmp_path}/
    """
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system of its own can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "err").read_text()
    assert (tmp_path / "status").read_text().split() == ["2", "2"], said
    assert said.count("\n") == 1 and str(disk) in said and "No space left on device" in said, said
    assert "is not sealed" in (tmp_path / "refused").read_text()
    assert seal(tmp_path) == seal(whole)
