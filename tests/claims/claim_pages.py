"""What is written of the claims: docs/claims.json, docs/claims.md, and the figures that stand in READMEs and docs.

A figure stands in a page between `<!--claim:group/name-->` and `<!--/claim-->`; the text between them is rewritten from
docs/claims.json, so no page holds a number that no command gave.
"""

import contextlib
import fcntl
import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from claim_format import GROUPS, Claim, ClaimError, is_met

MARKER = re.compile(r"<!--claim:(?P<key>[^>]*?)-->(?P<text>.*?)<!--/claim-->", re.DOTALL)
NOT_MEASURED = "not measured"

Record = dict[str, Any]


def read_records(root: Path) -> dict[str, Record]:
    """docs/claims.json by claim; empty where nothing was measured yet."""
    path = root / "docs" / "claims.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["claims"]
    except (ValueError, KeyError, TypeError):
        raise ClaimError(f"{path}: expected what tests/claims/run.py writes; restore it with git") from None


def current_records(claims: list[Claim], stored: dict[str, Record]) -> dict[str, Record]:
    """A record for each claim as it stands now, with what `stored` holds of its last measurement.

    A figure of another command or another expression is no figure of this claim; under another bar it is one, but
    whether it is met is open.
    """
    records = {}
    for claim in claims:
        last = stored.get(claim.key)
        if last is None or last["definition"] != claim.definition:
            records[claim.key] = open_record(claim, None, "not measured yet")
        elif last["bar"] != claim.bar:
            records[claim.key] = open_record(claim, last, "the bar was changed")
        else:
            shown = {"shown": claim.shown(last["figure"])} if last["figure"] is not None else {}
            records[claim.key] = last | wording(claim) | shown
    return records


def open_record(claim: Claim, last: Record | None, reason: str) -> Record:
    """A claim that is not measured now: nothing is decided, the last figure stands beside it."""
    never = {"figure": None, "machine": "", "commit": "", "date": "", "seconds": 0.0, "kept_runs": []}
    record = wording(claim) | {"status": "open", "reason": reason, "shown": ""}
    record |= never if last is None else {name: last.get(name, value) for name, value in never.items()}
    if record["figure"] is not None:
        record["shown"] = claim.shown(record["figure"])
        if not is_met(record["figure"], claim.bar):
            record["reason"] += "; the last figure missed the bar"
    return record


def wording(claim: Claim) -> Record:
    """The fields of a record that are copied from the claim file."""
    command = claim.command if isinstance(claim.command, str) else " ".join(claim.command)
    return {"claim": claim.claim, "bar": claim.bar, "unit": claim.unit, "command": command,
            "definition": claim.definition}  # fmt: skip


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Nobody else reads docs/claims.json to write it, or writes the pages: of two runs at once both figures stay."""
    path = root / "docs" / ".claims.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def store_records(root: Path, claims: list[Claim], decided: dict[str, Record]) -> None:
    """Replaces these records in docs/claims.json, as it is by now."""
    with locked(root):
        write_records(root, current_records(claims, read_records(root)) | decided)


def write_records(root: Path, records: dict[str, Record]) -> None:
    """To be called under `locked`."""
    ordered = {key: records[key] for key in sorted(records, key=_place)}
    text = json.dumps({"claims": ordered}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path = root / "docs" / "claims.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".claims.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _place(key: str) -> tuple[int, str]:
    return GROUPS.index(key.split("/")[0]), key


def write_pages(root: Path, claims: list[Claim], records: dict[str, Record]) -> list[Path]:
    """Writes docs/claims.md and every marked figure of the READMEs and docs; returns the pages that changed."""
    wanted = {root / "docs" / "claims.md": claims_page(records)}
    wanted |= {path: filled(path, claims, records) for path in pages(root)}
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8")
    return changed


def pages(root: Path) -> list[Path]:
    """README.md, that of launch, and the pages of docs, but for the generated one."""
    found = [root / "README.md", root / "launch" / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [path for path in found if path.exists() and path != root / "docs" / "claims.md"]


def filled(path: Path, claims: list[Claim], records: dict[str, Record]) -> str:
    """The text of `path` with each marked figure as docs/claims.json has it.

    Raises `ClaimError` for a marker that names no claim, or that is not closed.
    """
    by_key = {claim.key: claim for claim in claims}

    def figure(match: re.Match) -> str:
        claim = by_key.get(match["key"])
        if claim is None:
            raise ClaimError(f"{path}: marker {match['key']!r}; expected a claim under tests/claims")
        record = records.get(claim.key, {})
        known = record.get("figure") is not None
        return f"<!--claim:{claim.key}-->{claim.shown(record['figure']) if known else NOT_MEASURED}<!--/claim-->"

    text = path.read_text(encoding="utf-8")
    markers = list(MARKER.finditer(text))
    for match in markers:
        if "<!--claim:" in match["text"]:
            raise ClaimError(f"{path}: marker {match['key']!r} is not closed; expected <!--/claim--> behind its figure")
    if not text.count("<!--claim:") == text.count("<!--/claim-->") == len(markers):
        raise ClaimError(f"{path}: a marker is not closed; expected <!--claim:group/name-->figure<!--/claim-->")
    return MARKER.sub(figure, text)


def stale_pages(root: Path, claims: list[Claim]) -> list[str]:
    """One line for each page that does not say what docs/claims.json says, or that names a claim that is not there."""
    records = read_records(root)
    lines = []
    for path in pages(root):
        try:
            if filled(path, claims, records) != path.read_text(encoding="utf-8"):
                lines.append(f"{path}: a figure is not that of docs/claims.json")
        except ClaimError as error:
            lines.append(str(error))
    page = root / "docs" / "claims.md"
    if not page.exists() or page.read_text(encoding="utf-8") != claims_page(records):
        lines.append(f"{page}: is not generated from docs/claims.json")
    now = current_records(claims, records)
    differing = [key for key in sorted({*records, *now}) if records.get(key) != now.get(key)]
    return lines + [f"docs/claims.json: {key} is not as its claim file has it" for key in differing]


def claims_page(records: dict[str, Record]) -> str:
    """docs/claims.md as text."""
    lines = [
        "# Claims",
        "",
        "Generated by `make claims` from claims.json; edits are overwritten. A line is a file under `tests/claims/`.",
        "*met* and *missed* are of the commit and machine beside them; *open* was not measured in the latest run of",
        "its group, and shows the last figure there is. `+` behind a commit: measured with uncommitted changes.",
        "*Of runs kept in* a folder: what was found there was not trained again; such runs are of earlier commits.",
    ]
    for group in GROUPS:
        keys = [key for key in records if key.split("/")[0] == group]
        if not keys:
            continue
        lines += ["", f"## {group}", "", "| claim | figure | bar | | measured |", "|---|---|---|---|---|"]
        for key in keys:
            record = records[key]
            status = record["status"] + (f" ({record['reason']})" if record["reason"] else "")
            cells = [record["claim"], figure_text(record), record["bar"], status, measured_text(record)]
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        lines += ["", "Commands:", ""]
        commands = dict.fromkeys(records[key]["command"] for key in keys)
        lines += [textwrap.indent(command, "    ") for command in commands]
    return "\n".join(lines) + "\n"


def figure_text(record: Record) -> str:
    """The last figure with its unit; empty where there is none."""
    return " ".join(filter(None, (record["shown"], record["unit"]))) if record["shown"] else ""


def measured_text(record: Record) -> str:
    """When, where and at which commit the last figure was measured."""
    if not record["date"]:
        return "never"
    kept = f", of runs kept in {' and '.join(record['kept_runs'])}" if record.get("kept_runs") else ""
    return f"{record['date']}, {record['commit']}, {record['machine']}, {record['seconds']:.0f} s{kept}"
