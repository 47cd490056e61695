"""The corpus of a run stays what the run learnt from."""

import dataclasses
import subprocess
import sys

import pytest
from refusals import refused
from tiny_tissue import tiny_config

from tario_jax.evaluate import main_job

SOURCE = tiny_config().source
BEFORE_HOSTS_MEET = """
import sys
from pathlib import Path
from jax._src import xla_bridge
from tario_jax.config import InputError, SourceConfig
from tario_jax.evaluate.main_job import refuse_other_source
try:
    refuse_other_source(SourceConfig(seed=5), Path(sys.argv[1]))
except InputError:
    print(xla_bridge.backends_are_initialized())
"""


def test_another_source_is_refused_before_anything_is_made(tiny_run, monkeypatch):
    monkeypatch.setattr(main_job, "make_corpus", lambda *words: pytest.fail("made"))
    refused(lambda: main_job.corpus_of_run(dataclasses.replace(SOURCE, seed=5), tiny_run),
            "learnt from a corpus of source.seed = 0", "5 would make another one", "use another --workdir")  # fmt: skip
    refused(lambda: main_job.corpus_of_run(dataclasses.replace(SOURCE, train_patients=94), tiny_run),
            "source.train_patients = 93")  # fmt: skip


def test_what_decides_nothing_of_it_may_change(tiny_run, tmp_path):
    main_job.refuse_other_source(dataclasses.replace(SOURCE, workers=9, pitch_um=3.0, min_gene_total=4), tiny_run)
    main_job.refuse_other_source(dataclasses.replace(SOURCE, kind="corpus", path="x"), tiny_run)
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "checkpoints" / "7" / "provenance.json").write_text("{")  # as a crash may leave it
    main_job.refuse_other_source(dataclasses.replace(SOURCE, seed=5), tmp_path)


def test_it_is_asked_before_the_hosts_of_a_run_have_met(tiny_run):
    done = subprocess.run([sys.executable, "-c", BEFORE_HOSTS_MEET, str(tiny_run)], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout.strip() == "False"
