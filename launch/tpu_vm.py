"""The runs of a sweep on Cloud TPU VMs: a script each, of queued-resources commands.

A script asks for its slices, waits for them, starts the container on every host, and gives them back when the run is
done. Slices that are taken away (spot) are asked for again, and the run goes on from its newest checkpoint. It runs on
any machine with gcloud, for as long as the run takes; stopped, it may be started again: what there is is used.
"""

import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from launch.files import write_files
from launch.gke import in_container
from launch.jobs import CORPUS, Job, is_done, jobs_of
from launch.local import Local
from launch.site import Site
from launch.sweep_file import Sweep
from tario_jax.config import InputError

_HOST_COMMAND = (
    "sudo mkdir -p {at}; mountpoint -q {at} || sudo mount -t nfs -o hard {share} {at}; "
    "sudo docker stop tario >/dev/null 2>&1; "  # of an attempt whose connection broke: it saves
    "sudo docker run --rm --name tario --net=host --privileged --stop-timeout={grace_s} -v {at}:{at} {image} {words}"
)


class TpuBackend:
    """Scripts in WORKDIR/launch/tpu: cohort, runs and report; all.sh does what is missing, several at once."""

    def __init__(self, sweep: Sweep, workdir: Path, site: Site, how: Local):
        site.needs("tpu", "project", "zone", "image", "share")
        sweep = in_container(sweep)
        self._sweep, self._workdir, self._site, self._how = sweep, workdir, site.tpu, how
        self._there = Path(site.tpu.mounted_at) / workdir.resolve().name
        self._jobs = jobs_of(sweep, self._there)
        for run, hardware in sweep.hardware.items():
            if hardware is None:
                raise InputError(f"{run}: Cloud TPU is to lend what? say --topology=v5e:16x16 or so, or "
                                 f"get_topologies() in {sweep.file}")  # fmt: skip
            _ = hardware.accelerator_type  # raises where there is none

    @property
    def folder(self) -> Path:
        return self._workdir / "launch" / "tpu"

    def resource_name(self, run: str) -> str:
        """Of the queued resource; of its node too, or the first part of its nodes' names."""
        text = re.sub(r"[^a-z0-9]+", "-", f"{self._workdir.resolve().name}-{run}".lower()).strip("-")
        return f"tario-{text[:36].strip('-')}-{hashlib.sha256(f'{self._there}/{run}'.encode()).hexdigest()[:5]}"

    def files(self) -> dict[str, str]:
        return {f"{run}.sh": self._script(run) for run in self._sweep.configs}

    def _script(self, run: str) -> str:
        hardware, site, name = self._sweep.hardware[run], self._site, self.resource_name(run)
        train, *then = self._jobs[run]
        nodes = [name] if hardware.slices == 1 else [f"{name}-{number}" for number in range(hardware.slices)]
        ask = ["--accelerator-type=" + hardware.accelerator_type, f"--runtime-version={hardware.runtime}",
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
        first = [self._host(self._jobs[CORPUS][0], run)] if CORPUS in self._jobs else []
        return _SCRIPT.format(
            sweep=self._sweep.file, run=run, hardware=hardware, chips=hardware.chips, hosts=hardware.hosts,
            lent="spot" if site.spot else "on demand", name=name, project=shlex.quote(site.project),
            zone=shlex.quote(site.zone), ask=" \\\n    ".join(map(shlex.quote, ask)), nodes=" ".join(nodes),
            retries=self._how.retries, train=shlex.quote(self._host(train, run)),
            alone="\n".join(f"  on_first {shlex.quote(command)} || return"
                            for command in [self._host(job, run) for job in then]) or "  true",
            cohort="\n".join(f"  on_first {shlex.quote(command)} || return" for command in first) or "  true",
        )  # fmt: skip

    def _host(self, job: Job, run: str) -> str:
        """What a host runs. The attempt is named by the script, so that all hosts' files agree."""
        grace_s = round(self._sweep.configs[run].train.grace_s) + 15
        alone = "" if job.kind == "train" else "env JAX_PLATFORMS=cpu "
        folder = shlex.quote(str(job.folder(self._there)))
        words = f"{alone}python -m launch.attempt {folder} --attempt=ATTEMPT -- {shlex.join(job.words)}"
        return _HOST_COMMAND.format(at=shlex.quote(self._site.mounted_at), share=shlex.quote(self._site.share),
                                    image=shlex.quote(self._site.image), words=words, grace_s=grace_s)  # fmt: skip

    def queued(self) -> dict[str, str]:
        """Runs whose slices are asked for or held, by name; empty where no gcloud is."""
        if not shutil.which("gcloud"):
            return {}
        told = subprocess.run(["gcloud", "compute", "tpus", "queued-resources", "list",
                               f"--project={self._site.project}", f"--zone={self._site.zone}",
                               "--format=csv[no-heading](name.basename(),state.state)"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        states = dict(line.split(",", 1) for line in told.stdout.splitlines() if "," in line)
        return {run: f"queued resource {states[self.resource_name(run)].lower()}" for run in self._sweep.configs
                if self.resource_name(run) in states}  # fmt: skip

    def write(self, kinds: Iterable[str], *, rewrite: bool, say: Callable[[str], None]) -> list[str]:
        """Writes the scripts; returns the runs that submit.sh would start."""
        runs = [
            run for run in self._sweep.configs
            if any(job.kind in kinds and not is_done(job, self._sweep, self._workdir) for job in self._jobs[run])
        ]  # fmt: skip
        script = _ALL.format(sweep=self._sweep.file, runs=" ".join(runs), at_once=self._how.at_once)
        write_files(self.folder, self.files() | {"submit.sh": script}, rewrite=rewrite, say=say)
        return runs

    def submit(self, say: Callable[[str], None]) -> None:
        if not shutil.which("gcloud"):
            raise InputError(
                f"--backend=tpu: no gcloud on this machine; install it, or run {self.folder}/submit.sh where it is"
            )
        with (self.folder / "submit.txt").open("a") as log:
            process = subprocess.Popen([str(self.folder / "submit.sh")], stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log, start_new_session=True)  # fmt: skip
        say(f"started {self.folder / 'submit.sh'} as process {process.pid}: it waits for slices, and must go on "
            f"running; {log.name} tells what it does, --status how the runs stand")  # fmt: skip


_ALL = """#!/usr/bin/env bash
# {sweep}: the runs that are missing, {at_once} at once.
# Made by `python -m launch`; edit it as you like: an edited file is kept.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

for run in {runs}; do
  while [ "$(jobs -rp | wc -l)" -ge {at_once} ]; do
    wait -n
  done
  echo "$(date '+%F %T') $run: $run.txt"
  "./$run.sh" >>"$run.txt" 2>&1 &
done
wait
"""

_SCRIPT = """#!/usr/bin/env bash
# {sweep}: {run} on {hardware}, {chips} chips of {hosts} hosts, {lent}.
# Made by `python -m launch`; edit it as you like: an edited file is kept.
set -uo pipefail

exec 9>"$0.lock"
flock --nonblock 9 || {{ echo "$0: runs already"; exit 0; }}

NAME={name}
NODES=({nodes})
RETRIES={retries}
place=(--project={project} --zone={zone} --quiet)

create() {{
  gcloud compute tpus queued-resources create "$NAME" "${{place[@]}}" \\
    {ask}
}}

state() {{ # ABSENT, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED …
  gcloud compute tpus queued-resources describe "$NAME" "${{place[@]}}" \\
    --format='value(state.state)' 2>/dev/null || echo ABSENT
}}

give_back() {{
  [ "$(state)" = ABSENT ] || gcloud compute tpus queued-resources delete "$NAME" "${{place[@]}}" --force
}}

on_first() {{
  gcloud compute tpus tpu-vm ssh "${{NODES[0]}}" "${{place[@]}}" --worker=0 --command="${{1//ATTEMPT/$attempt}}"
}}

on_all() {{ # every host of every slice; the status of the first slice that failed
  local node pids=() status=0
  for node in "${{NODES[@]}}"; do
    gcloud compute tpus tpu-vm ssh "$node" "${{place[@]}}" --worker=all --command="${{1//ATTEMPT/$attempt}}" &
    pids+=($!)
  done
  for node in "${{pids[@]}}"; do
    wait "$node" || status=$?
  done
  return "$status"
}}

the_run() {{
{cohort}
  on_all {train} || return
{alone}
}}

failures=0
refusals=0
while true; do
  case "$(state)" in
  ABSENT)
    if ! create; then # no quota, or the state was not told
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
    if [ "$(state)" = ACTIVE ]; then # nobody took the slices away: the run failed
      failures=$((failures + 1))
      if [ "$failures" -gt "$RETRIES" ]; then
        give_back
        exit "$status"
      fi
      sleep $((10 * 2 ** failures))
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
