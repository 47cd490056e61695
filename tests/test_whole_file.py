"""Small files are the old one or the new one, whatever happens to the process that writes them."""

import os
import subprocess
import sys

import pytest

from tario_jax.whole_file import write_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from tario_jax.whole_file import write_whole
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path(sys.argv[1]), "new" * 1000, synced=True)
"""


def test_text_and_bytes_replace_what_was_there(tmp_path):
    for content in ("µm", b"\x00\xff"):
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(tmp_path) == ["file"]


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "file", "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "file")], check=False)
    assert done.returncode < 0 and (tmp_path / "file").read_text() == "old"
    left = [name for name in os.listdir(tmp_path) if name != "file"]
    assert len(left) == 1 and left[0].startswith(".file.") and left[0].endswith(".partial"), left


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's device that is always full")
def test_a_full_disk_is_told_with_the_files_name_and_leaves_nothing(tmp_path):
    write_whole(tmp_path / "file", "old")
    partial = tmp_path / f".file.{os.uname().nodename}-{os.getpid()}.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as error:
        write_whole(tmp_path / "file", "new")
    assert error.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]
