"""How far counts scatter around rates: found again on made sections, and it travels from an evaluation to maps."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from refusals import refused

from tario_jax.config import InputError
from tario_jax.evaluate import uncertainty
from tario_jax.evaluate.decoding.spread import Spread
from tario_jax.evaluate.job import evaluate_checkpoint
from tario_jax.evaluate.kept import Kept
from tario_jax.predict.gene_validation import read_gene_validation

BINS, GENES = 300, 40


@pytest.fixture
def made(monkeypatch):
    """`made(spread)`: a reader of made sections whose counts scatter around their rates by that; reads are counted."""

    def reader(spread: Spread):
        def draw(section):
            rng = np.random.default_rng(section.seed)
            rates = np.exp(rng.normal(0, 1.5, (section.bins, GENES))).astype(np.float32)
            sizes = spread.sizes(rates)
            counts = rng.poisson(rates if sizes is None else rng.gamma(sizes, rates / sizes))
            return rates, counts

        def bins_of(section, described):
            assert not described  # features take most of the time, and nobody reads them
            measured = np.arange(GENES) != 0  # counts of the first gene are no measurement
            bins = SimpleNamespace(counts=scipy.sparse.csr_array(np.where(measured, draw(section)[1], 10**6)),
                                   measured_gene_P=measured)  # fmt: skip
            return bins

        def rates(section, bins):
            found.read.append(section.id)
            return draw(section)[0]

        found = SimpleNamespace(bin_um=72.0, read_um=36.0, bins=bins_of, rates=rates, read=[],
                                source=lambda section, **_: SimpleNamespace(rates_key=section.id))  # fmt: skip
        return found

    monkeypatch.setattr(uncertainty.dataclasses, "replace", lambda reader, bin_um: reader)
    return reader


def sections(*seeds, he=True, counts=True, bins=BINS, spots=None):
    return [SimpleNamespace(id=f"S{seed}", seed=seed, placed_spots=spots, has_spots=spots is not None,
                            has_counts=counts, holds=lambda name: he, bins=bins) for seed in seeds]  # fmt: skip


def nothing(line):
    pass


def test_scatter_is_found_and_covers_held_out_counts_where_poisson_does_not(made, tmp_path):
    reader, kept = made(Spread(0.5, 0.3)), Kept(tmp_path)
    found = uncertainty.count_spread(reader, sections(*range(12)), sections(*range(20, 40)), kept, nothing)
    assert (found["bursts"], found["uncertain"]) == pytest.approx((0.5, 0.3), abs=0.05)
    assert (found["size_um"], found["validation_sections"], found["held_out_sections"]) == (36.0, 8, 8)
    for band in ("all", *uncertainty.BANDS):
        assert found["coverage"][band] == pytest.approx({"50": 0.5, "80": 0.8, "95": 0.95}, abs=0.02), band
    assert found["coverage_poisson"]["all"]["80"] < 0.7 and found["coverage_poisson"]["above 10"]["80"] < 0.5
    # evenly, nothing is read twice, and what is kept gives the same
    assert reader.read[:8] == [f"S{k}" for k in (0, 2, 3, 5, 6, 8, 9, 11)] and len(reader.read) == 16
    again = uncertainty.count_spread(reader, sections(*range(12)), sections(*range(20, 40)), kept, nothing)
    assert again == found and len(reader.read) == 16
    # another process begins with others, and finds the same
    other = made(Spread(0.5, 0.3))
    apart = uncertainty.count_spread(other, sections(*range(12)), sections(*range(20, 40)), Kept(tmp_path / "b"),
                                     nothing, (2, 2))  # fmt: skip
    assert apart == found and other.read[0] == "S2"


def test_counts_of_poisson_are_told_as_poisson(made, tmp_path):
    found = uncertainty.count_spread(made(Spread()), sections(1, 2), sections(3), Kept(tmp_path), nothing)
    assert max(found["bursts"], found["uncertain"]) < 0.02
    assert found["coverage"]["all"] == pytest.approx(found["coverage_poisson"]["all"], abs=0.01)


@pytest.mark.parametrize("lacking", [{"he": False}, {"counts": False}])
def test_without_sections_of_validation_nothing_is_fitted(made, tmp_path, lacking):
    for validation in ([], sections(1, 2, **lacking)):
        found = uncertainty.count_spread(made(Spread()), validation, sections(3), Kept(tmp_path), nothing)
        assert list(found) == ["not_learnt"] and "no validation section" in found["not_learnt"]


def test_sections_that_cannot_be_read_or_hold_nothing_are_left_out(made, tmp_path):
    reader, said = made(Spread(0.5, 0.3)), []
    bins_of = reader.bins

    def refusing(section, described):
        if section.seed == 1:
            raise InputError("S1: its places are known to 50 µm")
        return bins_of(section, described)

    reader.bins = refusing
    validation = [*sections(1), *sections(2, bins=0), *sections(3, 4)]
    found = uncertainty.count_spread(reader, validation, sections(5, 6), Kept(tmp_path), said.append)
    assert (found["validation_sections"], found["held_out_sections"]) == (2, 2)
    assert "S1 is left out" in said[0] and "50 µm" in said[0]
    for nobody in (sections(7, bins=0), sections(8, spots=SimpleNamespace(square_um=49.0))):
        found = uncertainty.count_spread(reader, sections(3, 4), nobody, Kept(tmp_path), nothing)
        assert "held-out ones 0" in found["not_learnt"]


def test_an_evaluation_hands_it_to_maps_of_the_same_places(predictor, tiny_corpus, tmp_path):
    config = predictor.provenance.config.evaluate
    evaluate_checkpoint(predictor, tiny_corpus, config, tmp_path, title="x", say=nothing)
    told = json.loads((tmp_path / "report.json").read_text())["uncertainty"]
    page = (tmp_path / "report.html").read_text()
    assert told["validation_sections"] == told["held_out_sections"] == 1 and f"all {told['counts']:,}" in page
    validation = read_gene_validation(tmp_path / "validation.parquet")
    assert validation.count_spread(18.0) == (told["bursts"], told["uncertain"])
    refused(lambda: validation.count_spread(36.0), "places of 18 µm", "these are of 36 µm")
    assert validation.count_numbers(36.0) == {}


def test_an_evaluation_of_another_corpus_fits_nothing(predictor, tmp_path):
    from tiny_tissue import tiny_section, write_corpus

    others = write_corpus(tmp_path / "c", [tiny_section(f"N{k}", f"N{k}", 40 + k) for k in range(2)])
    evaluate_checkpoint(predictor, others, predictor.provenance.config.evaluate, tmp_path, title="x", say=nothing)
    assert json.loads((tmp_path / "report.json").read_text())["uncertainty"]["not_learnt"]
    assert "Not learnt" in (tmp_path / "report.html").read_text()
    refused(lambda: read_gene_validation(tmp_path / "validation.parquet").count_spread(18.0), "was not learnt")
