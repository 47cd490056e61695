"""The runs of a sweep as array jobs of Slurm: training, evaluation behind it, the scaling report behind both.

A run is told to end by SIGUSR1 before its time is over (and by whoever sends it: scancel --signal=USR1 --batch JOB), or
by SIGTERM where Slurm preempts it: its processes save and end, and it is queued again. A job that fails is queued again
too, and pauses first, `retries` times; a user's mistake (status 2) is not, nor what has no program, or of whose `setup`
a command fails.

Arrays have a task for each run of the sweep's file, whichever were asked for: a task is the same run in all of them.
"""

import dataclasses
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from launch.files import run_script, write_files
from launch.hardware import Hardware
from launch.held import Held, Unheard
from launch.jobs import CORPUS, SCALING, Job, is_done, jobs_of
from launch.local import Local
from launch.site import Site
from launch.sweep_file import Sweep
from tario_jax.config import InputError

_CHECKOUT = Path(__file__).resolve().parents[1]
_OVER = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "REVOKED",
    "TIMEOUT",
)
"""States of a job that is not to come back by itself; all others hold it."""
_ATTEMPT = '--attempt="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"'
_HEAD = """#!/usr/bin/env bash
# {what}
# Made by `python -m launch`; edit it as you like: an edited file is kept.
"""
_SUBMIT = """#!/usr/bin/env bash
# {what}
# Made anew at each `python -m launch`, by what is done and what is queued: not to be edited.
"""


class SlurmBackend:
    """Scripts in WORKDIR/launch/slurm; submit.sh there submits them."""

    def __init__(self, sweep: Sweep, workdir: Path, site: Site, how: Local, *, to_do: bool = True):
        """to_do: as of `jobs_of`."""
        self._sweep, self._site, self._how = sweep, site.slurm, how
        self._workdir = workdir.resolve()
        self._jobs = jobs_of(_absolute(sweep), self._workdir, to_do=to_do)
        digest = hashlib.sha256(str(self._workdir).encode()).hexdigest()[:6]
        self._name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', sweep.name)}-{digest}"
        self.groups()  # raises where a run has what Slurm does not lend
        if not re.fullmatch(r"[\w./-]+", str(self._workdir)):
            raise InputError(f"--workdir={workdir}: is {self._workdir}; expected letters, digits and _ . - / alone: "
                             "lines of #SBATCH take nothing else")  # fmt: skip
        grace_s = max(config.train.grace_s for config in sweep.configs.values())
        if self._site.grace_s < grace_s:
            raise InputError(f"--site.slurm.grace_s={self._site.grace_s}: runs of {sweep.file} take train.grace_s = "
                             f"{grace_s:g} to save; expected at least that")  # fmt: skip

    @property
    def folder(self) -> Path:
        return self._workdir / "launch" / "slurm"

    def groups(self) -> dict[str, tuple[Hardware | None, list[str]]]:
        """Arrays: by name their hardware, and the runs of the file that have it, of which some were asked for."""
        found: dict[str, tuple[Hardware | None, list[str]]] = {}
        for run, hardware in self._sweep.whole.items():
            if hardware is not None and not hardware.is_gpu:
                if run not in self._sweep.hardware:
                    continue
                raise InputError(f"{run}: has {hardware}, and Slurm lends GPUs or CPUs; say --topology=8xH100 or so, "
                                 "or take another --backend")  # fmt: skip
            name = "cpu" if hardware is None else str(hardware).lower()
            found.setdefault(name, (hardware, []))[1].append(run)
        return {name: of for name, of in found.items() if set(of[1]) & set(self._jobs)}

    def files(self) -> dict[str, str]:
        files = {}
        if CORPUS in self._jobs:
            files["corpus.sbatch"] = self._single(CORPUS, "the cohort")
        for group, (hardware, runs) in self.groups().items():
            files[f"train_{group}.sbatch"] = self._train(group, hardware, runs)
            if any(len(self._jobs.get(run, ())) > 1 for run in runs):
                files[f"evaluate_{group}.sbatch"] = self._evaluate(group, runs)
        if SCALING in self._jobs:
            files["scaling.sbatch"] = self._single(SCALING, "the report over all runs")
        return files

    def _directives(self, job: str, output: str, **more: str | int | None) -> str:
        site = self._site
        given = {"job-name": f"{self._name}-{job}", "output": output, "open-mode": "append",
                 "partition": site.partition, "account": site.account, "qos": site.qos, "constraint": site.constraint,
                 "mem": f"{site.memory_gb}G" if site.memory_gb else "", "requeue": None, **more}  # fmt: skip
        return "".join(f"#SBATCH --{name}{'' if value is None else f'={value}'}\n" for name, value in given.items()
                       if value not in ("", 0))  # fmt: skip

    def _shell(self) -> str:
        """What comes first in each script. JAX_PLATFORMS and the like come along from where it is submitted."""
        lines = [f"cd {shlex.quote(str(_CHECKOUT))} || exit"]
        if self._site.setup:
            lines.append(_SETUP.format(setup=self._site.setup))
        lines.append("set -uo pipefail")
        if self._site.cpus_per_task:  # srun no longer takes it from sbatch
            lines.append(f"export SRUN_CPUS_PER_TASK={self._site.cpus_per_task}")
        return "\n".join(lines) + "\n"

    def _single(self, run: str, what: str) -> str:
        (job,) = self._jobs[run]
        folder = shlex.quote(str(job.folder(self._workdir)))
        command = f"{self._attempt(folder)} \\\n  -- {shlex.join(job.words)}"
        return (
            _HEAD.format(what=f"{self._sweep.file}: {what}.")
            + self._directives(
                run, f"{self.folder}/{run}.txt", nodes=1, ntasks=1, time=self._site.evaluate_minutes,
                signal=f"B:USR1@{self._site.grace_s}", **{"cpus-per-task": self._site.cpus_per_task},
            )
            + f"\n{self._shell()}"
            + self._job(command, folder, job.kind)
        )  # fmt: skip

    def _evaluate(self, group: str, runs: list[str]) -> str:
        gpus = self._site.evaluate_gpus if group != "cpu" else 0
        return (
            _HEAD.format(what=f"{self._sweep.file}: evaluates its runs on {group}, each behind its training.")
            + self._directives(
                f"evaluate-{group}", f"{self.folder}/evaluate_{group}_%a.txt", array=self._array(runs), nodes=1,
                ntasks=1, time=self._site.evaluate_minutes, gres=f"gpu:{gpus}" if gpus else "",
                signal=f"B:USR1@{self._site.grace_s}", **{"cpus-per-task": self._site.cpus_per_task},
            )
            + f"\n{self._shell()}\n{self._pick(runs)}"
            + self._job(self._of_run(runs, "evaluate"), self._folder_of_run, "evaluate")
        )  # fmt: skip

    def _train(self, group: str, hardware: Hardware | None, runs: list[str]) -> str:
        site, how = self._site, self._how
        if hardware is None:
            nodes, tasks, gpus = 1, how.processes, 0
            devices = f"export JAX_NUM_CPU_DEVICES={how.devices}\n" if how.devices else ""
        else:
            nodes, tasks, gpus, devices = hardware.hosts, 1, hardware.chips_of_host, ""
        return (
            _HEAD.format(what=f"{self._sweep.file}: trains its runs on {group}, {nodes} node{'s' * (nodes > 1)} of "
                         f"{tasks} process{'es' * (tasks > 1)} each.")  # fmt: skip
            + self._directives(
                f"train-{group}", f"{self.folder}/train_{group}_%a.txt", array=self._array(runs), nodes=nodes,
                time=site.time_minutes, gres=f"gpu:{gpus}" if gpus else "", signal=f"B:USR1@{site.grace_s}",
                **{"ntasks-per-node": tasks, "cpus-per-task": site.cpus_per_task},
            )
            + f"\n{self._shell()}{devices}\n{self._pick(runs)}"
            + self._job(f"srun --kill-on-bad-exit=0 {self._of_run(runs, 'train')}", self._folder_of_run, "train")
        )  # fmt: skip

    def _array(self, runs: list[str]) -> str:
        return f"0-{len(runs) - 1}{self._at_once(len(runs))}"

    def _at_once(self, tasks: int) -> str:
        return f"%{self._how.at_once}" if self._how.at_once is not None and self._how.at_once < tasks else ""

    def _pick(self, runs: list[str]) -> str:
        return f"RUNS=({' '.join(runs)})\nrun=${{RUNS[$SLURM_ARRAY_TASK_ID]}}\n"

    def _of_run(self, runs: list[str], kind: str) -> str:
        """The command of an array's task: that of one of its runs, with $run in place of the name."""
        job = next(job for run in runs for job in self._jobs.get(run, ()) if job.kind == kind)
        words = []
        for word in job.words:
            quoted = shlex.quote(word)
            if word.startswith(("--config=", "--workdir=")) and word.endswith((f":{job.run}", f"/{job.run}")):
                before = re.sub(r'([$`"\\])', r"\\\1", word.removesuffix(job.run))
                quoted = f'"{before}$run"'
            words.append(quoted)
        return f"{self._attempt(self._folder_of_run)} \\\n  -- {' '.join(words)}"

    @property
    def _folder_of_run(self) -> str:
        return f'"{self._workdir}/$run"'

    def _job(self, command: str, folder: str, kind: str) -> str:
        return _JOB.format(command=command, journals=f"{folder}/logs/{kind}_*.jsonl", retries=self._how.retries)

    @property
    def _python(self) -> str:
        """That of slurm.setup, or the one that runs this."""
        return "python" if self._site.setup else shlex.quote(sys.executable)

    def _attempt(self, folder: str) -> str:
        again = f"--retries={self._how.retries} --back-off-s={self._how.back_off_s:g}"
        return f"{self._python} -m launch.attempt {folder} {_ATTEMPT} {again}"

    def submit_script(self, kinds: Iterable[str], held: Held) -> tuple[str, list[str]]:
        """Shell that submits what is missing, each behind what it needs; and what it starts, by name."""
        lines, started, last = [], [], []
        behind = ""
        if CORPUS in self._jobs and not self._done(self._jobs[CORPUS][0]):
            if CORPUS in held.ids:
                lines.append(f"corpus={held.ids[CORPUS]}")
            elif self._jobs[CORPUS][0].kind in kinds:
                lines.append("corpus=$(sbatch --parsable corpus.sbatch)")
                started.append(CORPUS)
            if lines:
                behind = ' "--dependency=afterok:$corpus" --kill-on-invalid-dep=yes'
        for number, (group, (_, runs)) in enumerate(self.groups().items(), 1):
            missing = {kind: [at for at, run in enumerate(runs) if run not in held.queued and self._lacks(run, kind)]
                       for kind in ("train", "evaluate")}  # fmt: skip
            train, evaluate = missing["train"], missing["evaluate"]
            after = ""
            if train and "train" in kinds:
                lines.append(
                    f"train{number}=$(sbatch --parsable --array={self._some(train)}{behind} train_{group}.sbatch)"
                )
                after = f' "--dependency=aftercorr:$train{number}" --kill-on-invalid-dep=yes'
                started += [runs[at] for at in train]
                last.append(f"$train{number}")
            if evaluate and "evaluate" in kinds:
                # those that are trained wait for nobody
                behind_training = [at for at in evaluate if at in train] if after else []
                at_once = [at for at in evaluate if at not in train]
                for these, dependency, name in ((behind_training, after, f"evaluate{number}"),
                                                (at_once, "", f"again{number}")):  # fmt: skip
                    if these:
                        lines.append(f"{name}=$(sbatch --parsable --array={self._some(these)}{dependency} "
                                     f"evaluate_{group}.sbatch)")  # fmt: skip
                        started += [runs[at] for at in these if runs[at] not in started]
                        last.append(f"${name}")
        if SCALING in self._jobs and "scaling" in kinds and (last or not self._done(self._jobs[SCALING][0])):
            dependency = f' "--dependency=afterany:{":".join(last)}"' if last else ""
            if last or not held.queued:
                lines.append(f"sbatch --parsable{dependency} scaling.sbatch >/dev/null")
                started.append(SCALING)
        head = _SUBMIT.format(what=f"{self._sweep.file}: submits what is missing of it.")
        return f'{head}set -euo pipefail\ncd "$(dirname "$0")"\n\n' + "\n".join(lines) + "\n", started

    def _lacks(self, run: str, kind: str) -> bool:
        return any(job.kind == kind and not self._done(job) for job in self._jobs.get(run, ()))

    def _done(self, job: Job) -> bool:
        return is_done(job, self._sweep, self._workdir)

    def _some(self, numbers: list[int]) -> str:
        return ",".join(map(str, numbers)) + self._at_once(len(numbers))

    def held(self) -> Held:
        """What Slurm holds; nothing where there is no Slurm here. Raises `Unheard` where it does not answer."""
        if not shutil.which("squeue"):
            return Held()
        told = subprocess.run(["squeue", "--noheader", "--array", "--format=%j|%K|%T|%r|%A", "--states=all"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        if told.returncode:
            raise Unheard(f"squeue: {' '.join(told.stderr.split()) or 'failed'}; try again when Slurm answers")
        queued: dict[str, str] = {}
        ids: dict[str, str] = {}
        runs_of = {group: runs for group, (_, runs) in self.groups().items()}
        for line in told.stdout.splitlines():
            name, index, state, reason, number = (line.split("|") + [""] * 5)[:5]
            prefix, _, job = name.partition(f"{self._name}-")
            kind, _, group = job.partition("-")
            if prefix or state in _OVER:
                continue
            because = f", {reason}" if reason not in ("None", "") else ""
            words = f"{kind}: {state.lower()} in Slurm{because}"
            if job in (CORPUS, SCALING):
                queued[job], ids[job] = words, number
            elif group in runs_of and index.isdecimal() and int(index) < len(runs_of[group]):
                queued.setdefault(runs_of[group][int(index)], words)
        return Held(queued, ids=ids)

    def write(self, kinds: Iterable[str], held: Held, *, rewrite: bool, say: Callable[[str], None]) -> list[str]:
        """Writes the scripts; returns what submit.sh would start."""
        script, started = self.submit_script(kinds, held)
        self._refuse_other_arrays(held)
        write_files(self.folder, self.files() | {"submit.sh": script}, always=("submit.sh",), rewrite=rewrite, say=say)
        for path, line in self._arrays():
            if line not in path.read_text().splitlines():
                raise InputError(f"{path}: was edited, and has other runs than {self._sweep.file} has now; take over "
                                 f"the line {line}, or --rewrite")  # fmt: skip
        return started

    def _arrays(self) -> list[tuple[Path, str]]:
        """Their scripts that are there, and the line by which a task is a run."""
        return [(path, self._pick(runs).splitlines()[0]) for group, (_, runs) in self.groups().items()
                for path in (self.folder / f"{kind}_{group}.sbatch" for kind in ("train", "evaluate"))
                if path.exists()]  # fmt: skip

    def _refuse_other_arrays(self, held: Held) -> None:
        """Tasks are told from each other by their place in RUNS: a queued array must mean the same runs."""
        for path, line in self._arrays():
            if held.queued and line not in path.read_text().splitlines():
                name = f"{self._name}-{path.stem.replace('_', '-', 1)}"
                raise InputError(f"{self._sweep.file}: has other runs than those that Slurm holds of it; wait until "
                                 f"they are done, or 'scancel --name={name}'")  # fmt: skip

    def submit(self, say: Callable[[str], None]) -> None:
        if not shutil.which("sbatch"):
            raise InputError("--backend=slurm: no sbatch on this machine; run this on a login node of the cluster, or "
                             f"--dry-run, which writes {self.folder}")  # fmt: skip
        run_script(self.folder / "submit.sh")
        say(f"submitted by {self.folder / 'submit.sh'}; `squeue --name={self._name}-train-…` and --status show them")


def _absolute(sweep: Sweep) -> Sweep:
    """With its file named from /: jobs begin elsewhere."""
    return dataclasses.replace(sweep, file=sweep.file.resolve())


_SETUP = """
setup_failed() {{ # STATUS LINE FILE FILES COMMAND: of the setup's own; of files that it sources only under its set -e
  local where="line $(($2 - setup_line))"
  if [ "$4" -gt 1 ]; then
    [[ $- == *e* ]] || return
    where="$3, line $2"
  fi
  echo "launch: slurm.setup: $where: $5: ended with status $1" >&2
  exit "$1"
}}
trap 'setup_failed "$?" "$LINENO" "${{BASH_SOURCE[0]}}" "${{#BASH_SOURCE[@]}}" "$BASH_COMMAND"' ERR
setup_line=$LINENO
{setup}
status=$? setup_end=$LINENO  # of `a && b`, whose first part failed, no trap hears
trap - ERR
set +eu +o pipefail
[ "$status" -eq 0 ] || setup_failed "$status" "$((setup_end - 1))" "" 1 "a list of commands"
""".strip()

_JOB = """
cancelled=
tell() {{  # USR1 goes on to every process of the job, which makes it save and end
  kill -USR1 "$step" 2>/dev/null
}}
trap tell USR1
trap 'cancelled=1; tell' TERM  # by scancel, or by a preemption, after which Slurm itself queues it again

{command} &
step=$!
while kill -0 "$step" 2>/dev/null; do  # a signal ends `wait`, not the step
  wait "$step"
done
wait "$step"
status=$?

# 0: done; 2: a mistake, or it failed too often; 126, 127: no such program: not again
case "$status" in 0 | 2 | 126 | 127) exit "$status" ;; esac
if [ -n "$cancelled" ]; then
  exit "$status"
fi
# attempts in a row that could not note that they began, as on a full disk, are counted here: nobody else knows of them
noted=$(grep -hos '"attempt": "'"$SLURM_JOB_ID"'[.][0-9]*"' {journals} | tr -dc '0-9.\\n' | sort -t. -k2n | tail -n 1)
noted=${{noted#*.}}
if [ $((${{SLURM_RESTART_COUNT:-0}} - ${{noted:--1}})) -gt {retries} ]; then
  exit "$status"
fi
scontrol requeue "$SLURM_JOB_ID"
"""
