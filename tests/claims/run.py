"""Measures what this project claims.

    python tests/claims/run.py                       every claim that is not long
    python tests/claims/run.py --only=main-job       groups, or claims as group/name, * allowed, with commas
    python tests/claims/run.py --long                the long ones too
    python tests/claims/run.py --list                what is claimed, without measuring it
    python tests/claims/run.py --pages               only rewrite the pages from docs/claims.json

Prints claim, figure, bar and met, missed or open; writes docs/claims.json, docs/claims.md and the figures that README
and docs hold. Met is only what this run measured. Exit status: 1 if a claim is missed, 2 for a mistake in a claim file.
"""

import argparse
import fnmatch
import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import claim_runs
from claim_format import GROUPS, Claim, ClaimError, is_met, load_claims
from claim_pages import (
    Record,
    current_records,
    figure_text,
    locked,
    measured_text,
    open_record,
    read_records,
    store_records,
    wording,
    write_pages,
    write_records,
)

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GROUP", default="", help=f"one of {', '.join(GROUPS)}, or group/name")
    parser.add_argument("--long", action="store_true", help="run the long claims too")
    parser.add_argument("--list", action="store_true", help="print the claims and measure nothing")
    parser.add_argument("--pages", action="store_true", help="rewrite the pages from docs/claims.json")
    options = parser.parse_args(arguments)
    try:
        claims = load_claims(root / "tests" / "claims")
        chosen = _chosen(claims, options.only)
        if options.list:
            _print_list(chosen)
            return 0
        decided = {} if options.pages else _measure_all(chosen, claims, root, options.long)
        with locked(root):
            records = current_records(claims, read_records(root))
            write_records(root, records)
            changed = write_pages(root, claims, records)
    except ClaimError as error:
        print(error, file=sys.stderr)
        return 2
    for path in changed:
        print(f"wrote {path.relative_to(root)}")
    if options.pages:
        return 0
    _print_table([decided[claim.key] for claim in chosen])
    return int(any(decided[claim.key]["status"] == "missed" for claim in chosen))


def _chosen(claims: list[Claim], only: str) -> list[Claim]:
    """The claims of these groups, or that match these patterns; `only` names several with commas between them."""
    chosen: list[Claim] = []
    for one in only.split(","):
        found = [claim for claim in claims if one in ("", claim.group) or fnmatch.fnmatch(claim.key, one)]
        if not found and one not in GROUPS:
            raise ClaimError(
                f"--only={one}: no such group or claim; expected one of {', '.join(GROUPS)}, or group/name"
            )
        chosen += [claim for claim in found if claim not in chosen]
    return chosen


def _measure_all(chosen: list[Claim], claims: list[Claim], root: Path, long: bool) -> dict[str, Record]:
    """Measures the chosen of all claims; returns their records.

    Stores after each command what that alone decided: what a killed run measured is not lost, nor what another run,
    that measures at the same time, has stored since.
    """
    machine, commit = claim_runs.machine(), claim_runs.commit(root)
    last = current_records(claims, read_records(root))
    decided: dict[str, Record] = {}
    shared: dict[str | tuple[str, ...], list[Claim]] = {}
    for claim in chosen:
        reason = _why_not(claim, root, long)
        if reason:
            decided[claim.key] = open_record(claim, last[claim.key], reason)
        else:
            shared.setdefault(claim.command, []).append(claim)
    store_records(root, claims, decided)
    for number, together in enumerate(shared.values(), 1):
        first = max(together, key=lambda claim: claim.minutes)
        _say(f"[{number}/{len(shared)}] {', '.join(claim.key for claim in together)}: about {first.minutes:g} min")
        kept = claim_runs.kept_runs(first)  # before what is made anew lies there too
        run = claim_runs.run_command(first, root, _say)
        found = {claim.key: _measured(claim, run, machine, commit) | {"kept_runs": kept} for claim in together}
        for claim in together:
            _keep_table(claim, run, found[claim.key], root)
        store_records(root, claims, found)
        decided |= found
        if all(record["shown"] for record in found.values()):
            shutil.rmtree(run.places["workdir"])
        else:
            _say(f"  kept for a look: {run.places['workdir']} (output in claim.log)")
    return decided


def _keep_table(claim: Claim, run: claim_runs.Run, record: Record, root: Path) -> None:
    """Keeps the table that a run leaves, with its origin, where the claim names one and its figure was measured."""
    if not claim.table or record["figure"] is None:
        return
    try:
        text = run.table(claim).rstrip()
    except ClaimError as error:
        record |= {"status": "missed", "reason": str(error)}
        return
    path = root / "docs" / "tables" / f"{claim.table}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{text}\n\nmeasured {measured_text(record)}\nby {record['command']}\n", encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _why_not(claim: Claim, root: Path, long: bool) -> str:
    lacking = [need for need in claim.needs if claim_runs.absent(need, root)]
    if lacking:
        return f"needs {', '.join(lacking)}"
    return "long, run with LONG=1" if claim.long and not long else ""


def _measured(claim: Claim, run: claim_runs.Run, machine: str, commit: str) -> Record:
    record = wording(claim) | {
        "status": "missed", "reason": "", "figure": None, "shown": "",
        "machine": machine, "commit": commit, "date": claim_runs.today(), "seconds": round(run.seconds, 3),
    }  # fmt: skip
    try:
        figure = run.figure(claim)
    except ClaimError as error:
        return record | {"reason": str(error)}
    if not math.isfinite(figure):
        return record | {"reason": f"the figure is {figure}"}
    status = "met" if is_met(figure, claim.bar) else "missed"
    return record | {"status": status, "figure": figure, "shown": claim.shown(figure)}


def _print_list(claims: list[Claim]) -> None:
    width = max((len(claim.key) for claim in claims), default=0)
    for claim in claims:
        notes = [f"{claim.minutes:g} min", *(["long"] if claim.long else []), *claim.needs]
        print(f"{claim.key:{width}}  {claim.bar:>10} {claim.unit:5} {', '.join(notes):20} {claim.claim}")


def _print_table(records: list[Record]) -> None:
    rows = [("claim", "figure", "bar", "")]
    for record in records:
        status = record["status"] + (f" ({record['reason']})" if record["reason"] else "")
        if record["status"] == "open" and record["shown"]:
            status += f"; last measured {measured_text(record)}"
        first, *more = textwrap.wrap(record["claim"], 72)
        rows.append((first, figure_text(record) or "-", record["bar"], status))
        rows += [(line, "", "", "") for line in more]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print(" | ".join([*(f"{cell:{width}}" for cell, width in zip(row[:3], widths, strict=True)), row[3]]))


if __name__ == "__main__":
    sys.exit(main())
