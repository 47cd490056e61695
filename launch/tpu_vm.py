"""The runs of a sweep on Cloud TPU VMs: a script each, of queued-resources commands.

A script asks for its slices, waits for them, starts the container on every host, and gives them back when the run is
done. Slices that are taken away (spot) are asked for again, and the run goes on from its newest checkpoint. It runs on
any machine with gcloud, for as long as the run takes; stopped, it may be started again: what there is is used.
"""

import fcntl
import hashlib
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from launch.attempt import LONGEST_PAUSE_S
from launch.attempts import LONG_S
from launch.files import write_files
from launch.gke import in_container, on_share
from launch.held import Held, Unheard
from launch.jobs import CORPUS, KINDS, Job, is_done, jobs_of
from launch.local import Local
from launch.site import Site
from launch.sweep_file import Sweep
from tario_jax.config import InputError

_MOUNT = (
    "sudo mkdir -p {at}; "
    "mountpoint -q {at} || sudo mount -t nfs -o hard {share} {at} || "
    "{{ sudo apt-get -qq install -y nfs-common && sudo mount -t nfs -o hard {share} {at}; }} || "
    "{{ echo {share}: cannot be mounted at {at} >&2; exit 1; }}; "
)
_HOST_COMMAND = (
    "{login}"
    "sudo docker stop tario >/dev/null 2>&1; "  # of an attempt whose connection broke: it saves
    # ipc: data.workers hand over their batches through /dev/shm, of which a container by itself has 64 MB
    "sudo docker run --rm --name tario --net=host --ipc=host --privileged --stop-timeout={grace_s} -v {at}:{at} "
    "{image} {words}"
)
_REGISTRIES = (".pkg.dev", "gcr.io")  # to which a VM's own account gives access, once docker is told
_COME_S = 1800  # that hosts wait for each other: pulling the image takes one longer than another


class TpuBackend:
    """A script for each run in WORKDIR/launch/tpu; submit.sh runs those of what is missing, several at once."""

    def __init__(self, sweep: Sweep, workdir: Path, site: Site, how: Local, *, to_do: bool = True):
        """to_do: as of `jobs_of`."""
        site.needs("tpu", "project", "zone", "image", "share")
        sweep = in_container(sweep)
        self._sweep, self._workdir, self._site, self._how = sweep, workdir, site.tpu, how
        self._there = on_share(workdir, site.tpu.mounted_at)
        self._jobs = jobs_of(sweep, self._there, to_do=to_do)
        if CORPUS in self._jobs:
            raise InputError(f"{sweep.file}: makes its cohort ({sweep.source.kind}), and slices would wait for it; "
                             "make it where the share is mounted (--commands prints how), then say "
                             "--config.source.kind=corpus --config.source.path=CORPUS")  # fmt: skip
        for run, hardware in sweep.hardware.items():
            if hardware is None:
                raise InputError(f"{run}: Cloud TPU is to lend what? say --topology=v5e:16x16 or so, or "
                                 f"get_topologies() in {sweep.file}")  # fmt: skip
            _ = hardware.accelerator_flags  # raises where there are none

    @property
    def folder(self) -> Path:
        return self._workdir / "launch" / "tpu"

    def resource_name(self, run: str) -> str:
        """Of the queued resource; of its node too, or the first part of its nodes' names."""
        text = re.sub(r"[^a-z0-9]+", "-", f"{self._workdir.resolve().name}-{run}".lower()).strip("-")
        return f"tario-{text[:36].strip('-')}-{hashlib.sha256(f'{self._there}/{run}'.encode()).hexdigest()[:5]}"

    def files(self, kinds: Iterable[str] = KINDS) -> dict[str, str]:
        """kinds: of jobs that a script does."""
        of_runs = {run: [job for job in self._jobs[run] if job.kind in kinds] for run in self._sweep.configs}
        return {f"{run}.sh": self._script(run, jobs) for run, jobs in of_runs.items() if jobs}

    def _script(self, run: str, jobs: list[Job]) -> str:
        hardware, site, name = self._sweep.hardware[run], self._site, self.resource_name(run)
        nodes = [name] if hardware.slices == 1 else [f"{name}-{number}" for number in range(hardware.slices)]
        ask = [*hardware.accelerator_flags, f"--runtime-version={hardware.runtime}",
               f"--valid-until-duration={site.valid_until}"]  # fmt: skip
        ask += (
            [f"--node-id={name}"]
            if hardware.slices == 1
            else [f"--node-count={hardware.slices}", f"--node-prefix={name}"]
        )
        ask += ["--spot"] if site.spot else []
        for flag in ("network", "subnetwork", "service_account"):
            if getattr(site, flag):
                ask.append(f"--{flag.replace('_', '-')}={getattr(site, flag)}")
        does = [f"{'on_all' if job.kind == 'train' else 'on_first'} {shlex.quote(self._host(job, run))} || return"
                for job in jobs]  # fmt: skip
        vms = hardware.vms
        back_off_s = math.ceil(self._how.back_off_s)
        return _SCRIPT.format(
            sweep=self._sweep.file, run=run, hardware=hardware, chips=hardware.chips,
            vms=f"{vms} VM{'s' * (vms > 1)}", lent="spot" if site.spot else "on demand", name=name,
            project=shlex.quote(site.project), zone=shlex.quote(site.zone), ask=" \\\n    ".join(map(shlex.quote, ask)),
            nodes=" ".join(nodes), retries=self._how.retries, back_off_s=back_off_s, long_s=LONG_S,
            longest_s=max(back_off_s, round(LONGEST_PAUSE_S)), does="\n".join(f"  {line}" for line in does),
        )  # fmt: skip

    def _host(self, job: Job, run: str) -> str:
        """What a host runs. The attempt is named by the script, so that all hosts' files agree."""
        grace_s = round(self._sweep.configs[run].train.grace_s) + 15
        words = list(job.words)
        if job.kind == "train" and self._sweep.hardware[run].vms > 1:
            words.append(f"--start-timeout-s={_COME_S}")
        alone = "" if job.kind == "train" else "env JAX_PLATFORMS=cpu "
        command = (f"{alone}python -m launch.attempt {shlex.quote(str(job.folder(self._there)))} --attempt=ATTEMPT -- "
                   f"{shlex.join(words)}")  # fmt: skip
        registry = self._site.image.partition("/")[0]
        login = f"sudo gcloud auth configure-docker {registry} --quiet >/dev/null 2>&1; " if registry.endswith(
            _REGISTRIES) else ""  # fmt: skip
        at, share = shlex.quote(self._site.mounted_at), shlex.quote(self._site.share)
        return _MOUNT.format(at=at, share=share) + _HOST_COMMAND.format(
            at=at, login=login, image=shlex.quote(self._site.image), words=command, grace_s=grace_s)  # fmt: skip

    def held(self) -> Held:
        """Runs whose script runs here, or whose slices are asked for or held. Raises `Unheard` where gcloud fails."""
        queued = {run: f"{run}.sh runs on this machine" for run in self._sweep.configs
                  if _is_locked(self.folder / f"{run}.sh.lock")}  # fmt: skip
        queued = {run: "waits its turn in submit.sh" for run in self._await_their_turn()} | queued
        if not shutil.which("gcloud"):
            return Held(queued)
        told = subprocess.run(["gcloud", "compute", "tpus", "queued-resources", "list",
                               f"--project={self._site.project}", f"--zone={self._site.zone}",
                               "--format=csv[no-heading](name.basename(),state.state)"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        if told.returncode:
            raise Unheard(f"gcloud: {' '.join(told.stderr.split())[:200] or 'failed'}; try again when it answers")
        states = dict(line.split(",", 1) for line in told.stdout.splitlines() if "," in line)
        for run in self._sweep.configs:
            if (name := self.resource_name(run)) in states:
                words = f"queued resource {states[name].lower()}"
                queued[run] = words if run in queued else f"{words}, and no script of it runs here"
        return Held(queued)

    def _await_their_turn(self) -> list[str]:
        """Runs that a submit.sh that runs here has not come to: their scripts took no lock since it began."""
        submission = self.folder / "submit.sh.lock"
        if not _is_locked(submission):
            return []
        named = re.search(r"^for run in (.*); do$", (self.folder / "submit.sh").read_text(), re.MULTILINE)
        began = submission.stat().st_mtime_ns
        return [run for run in (named[1].split() if named else ()) if run in self._sweep.configs
                and not any(lock.stat().st_mtime_ns >= began for lock in self.folder.glob(f"{run}.sh.lock"))
                and any(not is_done(job, self._sweep, self._workdir) for job in self._jobs[run])]  # fmt: skip

    def write(self, kinds: Iterable[str], held: Held, *, rewrite: bool, say: Callable[[str], None]) -> list[str]:
        """Writes the scripts; returns the runs that submit.sh would start: whose script does not run already."""
        kinds = tuple(kinds)
        runs = [
            run for run in self._sweep.configs
            if not _is_locked(self.folder / f"{run}.sh.lock")
            and any(job.kind in kinds and not is_done(job, self._sweep, self._workdir) for job in self._jobs[run])
        ]  # fmt: skip
        files = self.files(kinds)
        if not _is_locked(self.folder / "submit.sh.lock"):  # else it says what waits its turn
            files["submit.sh"] = _ALL.format(sweep=self._sweep.file, runs=" ".join(runs), at_once=self._how.at_once)
        write_files(self.folder, files, always=("submit.sh",), rewrite=rewrite, say=say)
        return runs

    def submit(self, say: Callable[[str], None]) -> None:
        if not shutil.which("gcloud"):
            raise InputError(
                f"--backend=tpu: no gcloud on this machine; install it, or run {self.folder}/submit.sh where it is"
            )
        if _is_locked(self.folder / "submit.sh.lock"):
            raise InputError(f"{self.folder / 'submit.sh'}: runs already, and goes through the runs that it was made "
                             "for; wait for it, or stop it first: another would take more than --at-once")  # fmt: skip
        with (self.folder / "submit.txt").open("a") as log:
            process = subprocess.Popen([str(self.folder / "submit.sh")], stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log, start_new_session=True)  # fmt: skip
        say(f"started {self.folder / 'submit.sh'} as process {process.pid}: it waits for slices, and must go on "
            f"running; {log.name} tells what it does, --status how the runs stand")  # fmt: skip


def _is_locked(path: Path) -> bool:
    """Whether a process of this machine holds it."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # NFS gives the other kind to who writes alone
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


_ALL = """#!/usr/bin/env bash
# {sweep}: the runs that are missing, {at_once} at once.
# Made anew at each `python -m launch`, by what is done: not to be edited.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

exec 8>"submit.sh.lock"
flock --nonblock 8 || {{ echo "$0: runs already"; exit 0; }}

for run in {runs}; do
  while [ "$(jobs -rp | wc -l)" -ge {at_once} ]; do
    wait -n
  done
  echo "$(date '+%F %T') $run: $run.txt"
  "./$run.sh" >>"$run.txt" 2>&1 8>&- &
done
wait
"""

_SCRIPT = """#!/usr/bin/env bash
# {sweep}: {run} on {hardware}, {chips} chips of {vms}, {lent}.
# Made by `python -m launch`; edit it as you like: an edited file is kept.
set -uo pipefail

exec 9>"$0.lock"
flock --nonblock 9 || {{ echo "$0: runs already"; exit 0; }}

NAME={name}
NODES=({nodes})
RETRIES={retries}
BACK_OFF_S={back_off_s}
LONGEST_S={longest_s}
place=(--project={project} --zone={zone} --quiet)

create() {{
  gcloud compute tpus queued-resources create "$NAME" "${{place[@]}}" \\
    {ask}
}}

state() {{ # ABSENT, PROVISIONING, ACTIVE, SUSPENDED, FAILED …; UNKNOWN where gcloud does not say
  local told
  if told=$(gcloud compute tpus queued-resources describe "$NAME" "${{place[@]}}" \\
    --format='value(state.state)' 2>"$0.err"); then
    echo "$told"
  elif grep -qiE 'NOT_FOUND|not found' "$0.err"; then
    echo ABSENT
  else
    cat "$0.err" >&2
    echo UNKNOWN
  fi
}}

give_back() {{ # until they are gone: what is held is paid for
  local tries
  for tries in {{1..60}}; do
    [ "$(state)" = ABSENT ] && return
    gcloud compute tpus queued-resources delete "$NAME" "${{place[@]}}" --force || sleep 60
  done
  echo "$NAME: COULD NOT BE GIVEN BACK after $tries tries, and costs money: delete it by hand" >&2
}}

on_first() {{
  gcloud compute tpus tpu-vm ssh "${{NODES[0]}}" "${{place[@]}}" --worker=0 --command="${{1/=ATTEMPT/=$attempt}}"
}}

on_all() {{ # every VM of every slice; 2, a mistake, where one of them says so, else the status of one that failed
  local node pids=() status=0 one
  for node in "${{NODES[@]}}"; do
    gcloud compute tpus tpu-vm ssh "$node" "${{place[@]}}" --worker=all --command="${{1/=ATTEMPT/=$attempt}}" &
    pids+=($!)
  done
  for node in "${{pids[@]}}"; do
    wait "$node"
    one=$?
    if [ "$one" -ne 0 ] && [ "$status" -ne 2 ]; then
      status=$one
    fi
  done
  return "$status"
}}

the_run() {{
{does}
}}

failures=0
refusals=0
while true; do
  case "$(state)" in
  ABSENT)
    if ! create; then # no quota, or nothing like it there
      refusals=$((refusals + 1))
      [ "$refusals" -le "$RETRIES" ] || exit 1
      sleep 60
    fi
    ;;
  ACTIVE)
    refusals=0
    attempt=$(date +%s)
    the_run
    status=$?
    if [ "$status" -eq 0 ] || [ "$status" -eq 2 ]; then # done, or a mistake
      give_back
      exit "$status"
    fi
    if [ $(($(date +%s) - attempt)) -ge {long_s:.0f} ]; then # it got on
      failures=0
    fi
    if [ "$status" -eq 255 ]; then # a connection broke: that slices are taken away is told a little later
      sleep 60
    fi
    if [ "$(state)" = ACTIVE ]; then # nobody took the slices away: the run failed
      failures=$((failures + 1))
      if [ "$failures" -gt "$RETRIES" ]; then
        give_back
        exit "$status"
      fi
      pause=$((BACK_OFF_S * 2 ** (failures < 30 ? failures : 30) / 2))
      sleep $((pause < LONGEST_S ? pause : LONGEST_S)) # the slices are paid for meanwhile
    fi
    ;;
  SUSPENDED | SUSPENDING | FAILED) # taken away, or not to be had
    give_back
    sleep 60
    ;;
  *) sleep 30 ;;
  esac
done
"""
