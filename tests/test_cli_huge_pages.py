"""Huge pages: asked for where they are given on request, once, by the same process with the same words."""

import json
import os
import subprocess
import sys

import pytest

from tario_jax.cli import __main__ as entry
from tario_jax.cli import huge_pages
from tario_jax.cli.huge_pages import tunables

ASKED = "glibc.malloc.hugetlb=1"
STARTED = """
import json, os, sys
from pathlib import Path
from tario_jax.cli import huge_pages
huge_pages.start_again(Path(sys.argv[1]))
print(json.dumps([os.getpid(), sys.argv[2:], sys.warnoptions, os.environ.get("GLIBC_TUNABLES")]))
"""


@pytest.mark.parametrize(("given", "before", "after"), [
    ("always [madvise] never\n", "", ASKED),
    ("always [madvise] never\n", "glibc.malloc.arena_max=1", f"glibc.malloc.arena_max=1:{ASKED}"),
    ("always [madvise] never\n", "glibc.malloc.hugetlb=0", None),  # refused
    ("always [madvise] never\n", ASKED, None),  # asked for already: else it would start itself for ever
    ("[always] madvise never\n", "", None),
    ("always madvise [never]\n", "", None),
])  # fmt: skip
def test_huge_pages_are_asked_for_where_that_changes_something(given, before, after, tmp_path):
    (tmp_path / "enabled").write_text(given)
    assert tunables(before, tmp_path / "enabled") == after


def test_no_word_of_huge_pages_is_no_request(tmp_path):
    assert tunables("", tmp_path / "enabled") is None


@pytest.mark.parametrize(("given", "asked"), [("always [madvise] never", ASKED), ("always madvise [never]", None)])
def test_the_command_starts_itself_again_in_the_same_process(given, asked, tmp_path, repository):
    (tmp_path / "enabled").write_text(given)
    words = ["--name", "two words", "", "ü"]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    started = subprocess.Popen([sys.executable, "-W", "error", "-c", STARTED, str(tmp_path / "enabled"), *words],
                               cwd=repository, env=environment, stdout=subprocess.PIPE, text=True)  # fmt: skip
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 0
    assert json.loads(said) == [started.pid, words, ["error"], asked]


def test_the_installed_command_asks_before_it_reads_its_words(monkeypatch):
    asked = []
    monkeypatch.setattr(huge_pages, "start_again", lambda: asked.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["tario", "no-such-job"])
    with pytest.raises(SystemExit):
        entry.command()
    assert asked == [["tario", "no-such-job"]]
