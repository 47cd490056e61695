"""Runs tests as a measurement: `measure_tests.py OUT.json TEST…`; a table of what passed, failed or was skipped."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def main() -> None:
    answer, *tests = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
        status = subprocess.run(words, check=False).returncode
        if status not in (0, 1):  # 0 and 1: tests ran; else a file is missing, or holds no test, and none can fail
            raise SystemExit(f"pytest ended with status {status}: expected tests in {' '.join(tests)}")
        found = [(case.get("name"), _state(case)) for case in ElementTree.parse(report).iter("testcase")]
    counted = Counter(state for _, state in found)
    table = "\n".join(f"{state:<8} {name}" for name, state in found)
    Path(answer).write_text(json.dumps({"passed": counted["passed"], "failed": counted["failed"],
                                        "skipped": counted["skipped"], "table": table}))  # fmt: skip


def _state(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


if __name__ == "__main__":
    main()
