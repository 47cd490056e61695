"""Which sections a model has seen, and which of them rank, fit and try what is measured of it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_tissue import tiny_section, write_corpus

from tario_jax.cli.main import main
from tario_jax.config import SplitConfig
from tario_jax.evaluate.decoding import measure as decoding
from tario_jax.evaluate.scope import has_seen, ranking_side, spread_over, unseen_validation
from tario_jax.predict import predictor as predictor_module

START = {"seen_patients": ["E"], "train": ["E1"], "validation": [], "started_from": None}


@pytest.mark.parametrize(("number", "most", "expected"), [(25, 3, [0, 12, 24]), (23, 12, [*range(0, 23, 2)]),
                                                          (2, 12, [0, 1]), (0, 12, [])])  # fmt: skip
def test_sections_are_taken_evenly_up_to_the_last(number, most, expected):
    assert spread_over(range(number), most) == expected


def test_genes_are_ranked_on_sections_of_every_cohort(monkeypatch):
    """Sections come by their names, so the first dozen may be of one cohort."""
    read = []
    truth = SimpleNamespace(x_um_N=np.arange(4.0), y_um_N=np.zeros(4), pitch_um=1.0, layout="square",
                            counts_Nxg=np.arange(8.0).reshape(4, 2))  # fmt: skip
    monkeypatch.setattr(decoding, "read_truth", lambda section, *more: read.append(section) or truth)
    sections = [SimpleNamespace(number=number, close=lambda: None) for number in range(23)]
    decoding.genes_by_moran(SimpleNamespace(panel=range(2)), None, sections, 2)
    assert [section.number for section in read] == list(range(0, 23, 2))


def test_validation_patients_of_an_earlier_checkpoint_do_not_count(predictor, tiny_corpus):
    provenance = dataclasses.replace(predictor.provenance, started_from=START)
    (section,) = unseen_validation(predictor.provenance, tiny_corpus)
    assert section.patient == "E" and unseen_validation(provenance, tiny_corpus) == []


def test_decoding_fits_no_scatter_to_them_either(predictor, tiny_run, tiny_corpus, tmp_path, monkeypatch):
    class Measured(Exception):
        pass

    def measured(*given, fitted_on, **more):
        raise Measured(*(section.id for section in fitted_on))

    monkeypatch.setattr(decoding, "measure_decoding", measured)
    words = ["decode", f"--workdir={tiny_run}", f"--corpus={tiny_corpus.root}", f"--out={tmp_path / 'd'}"]
    for start, fitted_on in ((None, ("E1",)), (START, ())):
        mine = predictor.of_step(predictor.parameters, predictor.calibration, predictor.checkpoint)
        mine.provenance = dataclasses.replace(predictor.provenance, started_from=start)
        monkeypatch.setattr(predictor_module, "load", lambda *given, mine=mine, **more: mine)
        with pytest.raises(Measured) as raised:
            main(words)
        assert raised.value.args == fitted_on


def test_who_was_held_out_ranks_no_genes_when_the_split_has_changed(predictor, tmp_path):
    sections = [tiny_section(f"{patient}1", patient, seed, detections=50) for seed, patient in enumerate("ABCD")]
    corpus = write_corpus(tmp_path / "c", sections, split=dict(zip("ABCD", ["train"] * 3 + ["held_out"], strict=True)))
    config = dataclasses.replace(predictor.provenance.config, split=SplitConfig(train_patients=1))
    provenance = dataclasses.replace(predictor.provenance, corpus_seal=corpus.seal, config=config, train=("A1",),
                                     held_out=("C1", "D1"))  # fmt: skip
    assert [section.id for section in ranking_side(provenance, corpus)] == ["A1", "B1"]
    assert ranking_side(dataclasses.replace(provenance, corpus_seal="another"), corpus) == []


def test_what_was_seen_is_known_by_the_unit_of_the_split(predictor):
    def section(name, patient):
        return SimpleNamespace(id=name, patient=patient)

    by_patient = predictor.provenance
    assert has_seen(by_patient, section("x", "A")) and has_seen(by_patient, section("x", "E"))
    assert not has_seen(by_patient, section("A1", "F"))
    by_section = dataclasses.replace(by_patient, split_by="section", validation=(), train=("A1", "B1"))
    assert has_seen(by_section, section("B1", "B")) and not has_seen(by_section, section("B2", "B"))
    assert has_seen(dataclasses.replace(by_section, started_from=START), section("E1", "E"))
