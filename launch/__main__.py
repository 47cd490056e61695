"""python -m launch: the runs of a sweep."""

import argparse
import shlex
import sys
from pathlib import Path

from launch.local import JOBS, commands, run_here
from launch.sweep_file import is_evaluated, is_trained, read_sweep
from tario_jax.config import Config, InputError

EXAMPLES = """examples:
  python -m launch configs/sweeps/study.py --workdir=sweeps/study
  python -m launch configs/sweeps/study.py --workdir=sweeps/study --only='p16_*' --dry-run
  python -m launch configs/sweeps/study.py --workdir=sweeps/study --jobs=simulate,train
  python -m launch configs/sweeps/study.py --workdir=sweeps/study --status
"""


def _state(workdir: Path, config: Config) -> str:
    if is_evaluated(workdir, config):
        return "evaluated"
    if is_trained(workdir, config):
        return "trained"
    return "begun" if (workdir / "metrics.jsonl").exists() else "not begun"


def _jobs(text: str) -> tuple[str, ...]:
    found = tuple(filter(None, text.split(",")))
    if not found or not set(found) <= set(JOBS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(JOBS)}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch", allow_abbrev=False, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Makes the cohort of a sweep, trains and evaluates its runs on this machine, one after the other, "
        "and ends in 'tario scaling'. Started again, it does what is missing.",
    )  # fmt: skip
    parser.add_argument("sweep", type=Path, metavar="SWEEP.py", help="a file with get_sweep(), as in configs/sweeps/")
    parser.add_argument("--workdir", type=Path, required=True, help="corpus, runs, logs and the scaling report")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="runs of such names")
    parser.add_argument("--jobs", type=_jobs, default=JOBS, metavar="JOB,JOB",
                        help=f"some of {','.join(JOBS)}: so an accelerator may train, and a CPU evaluate")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="prints the commands and starts nothing")
    parser.add_argument("--status", action="store_true", help="prints which runs are trained and evaluated")
    options = parser.parse_args(arguments)
    try:
        sweep = read_sweep(options.sweep, options.only)
        if options.dry_run:
            for several in commands(sweep, options.workdir).values():
                for command in several:
                    if command[0] in options.jobs:
                        print("tario", shlex.join(command))
            return 0
        if options.status:
            for name, config in sweep.configs.items():
                print(f"{name:<32} {_state(options.workdir / name, config)}")
            return 0
        return 1 if run_here(sweep, options.workdir, options.jobs) else 0
    except InputError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("launch: stopped; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
