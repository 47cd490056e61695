"""Generation and given contents on eight devices say what they say on one."""

import numpy as np
import pytest
from made_reader import made_reader
from tiny_tissue import PANEL

from tario_jax.corpus.read import Corpus
from tario_jax.predict.condition import Condition, predict_given
from tario_jax.predict.generate import Steps, generate_section

_PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[4], sys.argv[4] + "/predict"]
import jax, numpy as np
from made_reader import made_reader
from test_decode_on_mesh import found
from tario_jax.corpus.read import Corpus

assert jax.device_count() == 8
np.savez(sys.argv[3], **found(made_reader(Path(sys.argv[1])), Corpus.open(sys.argv[2])))
"""


def found(reader, corpus) -> dict[str, np.ndarray]:
    section = corpus.section("F1")
    maps, samples = generate_section(reader, section, Steps(4, samples=2), tissue="virtual", overlap=0.0,
                                     genes=np.arange(len(PANEL)))  # fmt: skip
    half = predict_given(reader, corpus, section, Condition("checkerboard"), overlap=0.0)
    hidden = predict_given(reader, corpus, section, Condition("all", he=False), overlap=0.0)
    return {"steps": maps.rates_NxG, "between": maps.between_NxG, "counts": samples.counts_SxNxg,
            "given": half.maps.rates_NxG, "hidden": hidden.maps.rates_NxG}  # fmt: skip


@pytest.mark.slow
def test_eight_devices_say_what_one_says(tiny_run, tiny_corpus, devices8, repository, tmp_path):
    expected = found(made_reader(tiny_run), Corpus.open(tiny_corpus.root))
    places = tiny_run, tiny_corpus.root, tmp_path / "found.npz", repository / "tests"
    devices8(_PROGRAM, *map(str, places))
    with np.load(tmp_path / "found.npz") as held:
        np.testing.assert_array_equal(held["counts"], expected["counts"])
        for name, tolerance in (("steps", 1e-4), ("between", 5e-3), ("given", 1e-4), ("hidden", 1e-4)):
            np.testing.assert_allclose(held[name], expected[name], rtol=tolerance, atol=1e-6, err_msg=name)
