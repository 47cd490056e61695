"""Where Chromium is; installs it where that can be done."""

import os
import shutil
import subprocess
from pathlib import Path


def chromium() -> str:
    """Raises `RuntimeError` where it is not here, and cannot be installed."""
    if found := shutil.which("chromium"):
        return found
    if os.geteuid() or not shutil.which("apt-get"):
        raise RuntimeError("Chromium is not here, and only root can install it, by apt-get")
    script = Path(__file__).with_name("install_chromium.sh")
    done = subprocess.run([script], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"Chromium cannot be installed: {' '.join(done.stderr.split())[-200:]}")
    return done.stdout.split()[-1]
