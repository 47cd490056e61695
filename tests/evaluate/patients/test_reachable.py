"""What the H&E allows: V of a patient in bulk is that of the simulator, kept beside the corpus and computed once."""

import numpy as np
import pytest
from refusals import refused

from tario_jax.cli.main import main
from tario_jax.config import SourceConfig
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients import reachable
from tario_jax.evaluate.patients.reachable import reachable_bulk
from tario_jax.virtual.cohort import simulate_cohort
from tario_jax.virtual.patients import draw_patient, patient_number
from tario_jax.virtual.regions import region_of
from tario_jax.virtual.section import Settings, bulk_rates


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    config = SourceConfig(held_out_patients=3, cohorts=("LUAD",), section_um=128.0, panel="curated", workers=1)
    return simulate_cohort(config, tmp_path_factory.mktemp("further"), str, held_out_after=30)


def test_it_is_that_of_the_simulator_and_computed_once(corpus, monkeypatch):
    assert {row["patient"][:2] for row in corpus.patients} == {"vh"} and len(corpus.sections) == 6
    names = [row["patient"] for row in corpus.patients]
    monkeypatch.setattr(reachable, "_AT_ONCE", 2)
    said: list[str] = []
    found = reachable_bulk(corpus, names, workers=1, say=said.append)
    settings = Settings(0, 128.0, "default", "curated")
    patient = draw_patient(patient_number(names[1]), 0)
    total = sum(bulk_rates(patient, region_of(patient, name, 128.0), settings)[1] for name in ("core", "border"))
    np.testing.assert_allclose(found[1], np.log1p(1e4 * total / total.sum()), rtol=1e-5)
    assert found.shape == (3, len(corpus.panel)) and said == ["reachable: 2/3 patients", "reachable: 3/3 patients"]
    np.testing.assert_array_equal(reachable_bulk(corpus, names, workers=1, say=pytest.fail), found)


def test_nobody_knows_it_of_real_tissue(corpus):
    real = Corpus(corpus.root, corpus.panel, "real", corpus.seal, corpus.patients, corpus.sections)
    refused(lambda: reachable_bulk(real, []), "real tissue", "leave out --reachable")


def test_the_job_says_what_columns_need(corpus, capsys):
    start = ["simulate", f"--out={corpus.root}", "--cohorts=LUAD", "--held-out=3", "--section-um=128",
             "--panel=curated", "--held-out-after=30", "--workers=1"]  # fmt: skip
    assert main([*start, "--outcomes=EGFR"]) == 2
    assert "column 'EGFR': a probe needs two classes" in capsys.readouterr().err
    assert main([*start, "--outcomes=hair"]) == 2 and "column 'hair'" in capsys.readouterr().err
    assert main([*start, "--patients=2"]) == 2 and "held-out patients alone" in capsys.readouterr().err
