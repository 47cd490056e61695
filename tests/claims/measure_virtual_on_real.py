"""The quickstart's model on the Xenium excerpt, with --allow-virtual-model and without."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

TARIO = Path(sys.executable).parent / "tario"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    run, corpus, report = (options.workdir / name for name in ("quickstart", "xenium", "report"))
    subprocess.run([TARIO, "run", "--config=configs/quickstart.py", f"--workdir={run}"], check=True)
    source = Path(os.environ["TARIO_REAL_DATA"]) / "xenium_excerpt"
    subprocess.run([TARIO, "ingest", "--source=xenium", f"--path={source}", "--patient=P1", "--cohort=BRCA",
                    f"--out={corpus}"], check=True)  # fmt: skip
    evaluate = [TARIO, "evaluate", f"--workdir={run}", f"--corpus={corpus}", "--bin-um=18", f"--out={report}"]
    refused = subprocess.run(evaluate, check=False).returncode
    subprocess.run([*evaluate, "--allow-virtual-model"], check=True)
    said = json.loads((report / "report.json").read_text())
    page = (report / "report.html").read_text()
    result = {
        "without_flag": {"exit_status": refused},
        "with_flag": {
            "genes_in_common": said["genes"]["in_common"],
            "bin_um": said["bin_um"],
            "has_banner": bool(said["banners"]) and said["banners"][0] in page and "virtual" in said["banners"][0],
        },
    }
    options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
