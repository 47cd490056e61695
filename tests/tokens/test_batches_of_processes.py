"""batch(t) is the same bits from 1, 2 and 4 processes, before and after a restart, on a local disk and in a bucket."""

import json
import subprocess
import sys

import pytest
from tiny_tissue import tiny_section, write_corpus

PROGRAM = """
import hashlib, json, sys
from tario_jax.config import DataConfig
from tario_jax.corpus.read import Corpus
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource, load_batches

place, first, row, rows = sys.argv[1], *map(int, sys.argv[2:])
data = DataConfig(bin_um=18.0, window_um=144.0, tile_um=144.0, rows=4, groups=((1, 1.0), (4, 1.0), (0, 1.0)),
                  order="random")
corpus = Corpus.open(place)
layout = corpus_layout(corpus.sections, data, len(corpus.panel))
source = BatchSource(corpus.sections, data, layout, steps=6, rows=range(row, row + rows))
found = {}
for t, batch in enumerate(load_batches(source, first=first, prefetch=2), first):
    for number in range(rows):
        found[f"{t} {row + number}"] = hashlib.sha256(b"".join(array[number].tobytes() for array in batch)).hexdigest()
print(json.dumps(found))
"""


def rows_of(place, *, first: int, row: int, rows: int) -> dict[str, str]:
    """Checksum of every row of every step from `first` on, by a process of its own that holds these rows."""
    words = [sys.executable, "-c", PROGRAM, str(place), str(first), str(row), str(rows)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def places(tmp_path_factory, bucket):
    sections = [tiny_section(f"{patient}1", patient, seed, detections=300) for seed, patient in enumerate("ABC")]
    local = tmp_path_factory.mktemp("corpora") / "processes"
    for place in (local, f"{bucket}/processes"):
        write_corpus(place, sections)
    return local, f"{bucket}/processes"


@pytest.mark.parametrize(
    "where", [pytest.param(0, id="on disk"), pytest.param(1, id="in a bucket", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_any_number_of_processes_started_at_any_step_makes_the_same_bits(places, where):
    whole = rows_of(places[0], first=0, row=0, rows=4)
    assert len(set(whole.values())) == 24
    for processes, first in ((1, 0), (1, 4), (2, 3), (4, 5)):
        rows, found = 4 // processes, {}
        for process in range(processes):
            found |= rows_of(places[where], first=first, row=process * rows, rows=rows)
        assert found == {name: bits for name, bits in whole.items() if int(name.split()[0]) >= first}
