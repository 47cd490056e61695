"""Large outputs: whole or absent, also where two processes write one path, and where one was killed."""

import os
import platform
import subprocess
import sys

from tario_jax.predict.whole_output import whole_output

NODE = platform.node()


def test_what_another_process_is_writing_is_left_to_it_and_what_a_killed_one_left_is_removed(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    abandoned = [tmp_path / f".maps.h5ad.{NODE}-{number}.partial" for number in (int(ended.stdout), os.getpid())]
    abandoned.append(tmp_path / ".maps.h5ad.elsewhere-1.partial")
    of_another = [tmp_path / name for name in (f".maps.h5ad.{NODE}-{os.getppid()}.partial",
                                               f".maps.h5ad.elsewhere-{int(ended.stdout)}.partial",
                                               f".other.h5ad.{NODE}-{int(ended.stdout)}.partial")]  # fmt: skip
    for path in (*abandoned, *of_another):
        path.write_text("half")
    os.utime(abandoned[-1], (0, 0))  # of another machine, long ago
    with whole_output(tmp_path / "maps.h5ad") as partial:
        partial.write_text("whole")
        assert not (tmp_path / "maps.h5ad").exists()
    assert (tmp_path / "maps.h5ad").read_text() == "whole"
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "maps.h5ad", *of_another])
