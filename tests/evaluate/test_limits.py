"""The limits of virtual tissue are correlations with its truth, and real tissue has none."""

import numpy as np
import pytest
from tiny_tissue import tiny_section, write_corpus

from tario_jax.config import InputError
from tario_jax.corpus.write import begin_corpus, seal_corpus, write_section
from tario_jax.evaluate.limits import measure_limits
from tario_jax.virtual import Settings, curated_panel, simulate_section, truth_rates
from tario_jax.virtual.genes import program


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("limits") / "c"
    begin_corpus(root, curated_panel(), "virtual", {"made": "by a test"})
    for number in (0, 1):
        write_section(root, curated_panel(), "virtual", simulate_section(
            number, "core", Settings(section_um=256.0, panel="curated")))  # fmt: skip
    return seal_corpus(root, curated_panel(), "virtual", {"vt00000": "train", "vt00001": "held_out"})


def test_limits_are_the_mean_correlations_with_the_truth(corpus):
    section = corpus.section("vt00001_core")
    limits = measure_limits(corpus, [section], lambda line: None, (36.0,))
    found = section.all_detections()
    side, genes = 7, len(corpus.panel)
    counts = np.zeros((side, side, genes))
    inside = (found.x_um_D < side * 36) & (found.y_um_D < side * 36)
    place = ((found.y_um_D[inside] // 36).astype(int), (found.x_um_D[inside] // 36).astype(int), found.gene_D[inside])
    np.add.at(counts, place, 1)
    markers = program(True).genes_of("type_marker")
    for k, rates in enumerate(truth_rates(section.truth, 36.0)):
        r = [np.corrcoef(counts[..., g].ravel(), rates[..., g].ravel())[0, 1] for g in markers if counts[..., g].any()]
        assert limits.by_bin[36.0]["counts"]["type_marker"][k] == pytest.approx(np.mean(r), abs=1e-4)
    true, reachable, number = limits.by_bin[36.0]["counts"]["type_marker"]
    assert 0.2 < reachable < true and number == len(markers)
    assert "type_marker" in limits.table() and limits.to_dict()["sections"] == ["vt00001_core"]


def test_unseen_states_are_out_of_reach_of_the_h_and_e(corpus):
    limits = measure_limits(corpus, list(corpus.sections), lambda line: None, (36.0,))
    composed = limits.by_bin[36.0]["composition"]
    seen, unseen = composed["visible_state"], composed["hidden_state"]
    # the expected composition follows the depth a little, which the H&E shows
    assert seen[1] > 0.95 * seen[0] and unseen[1] < 0.75 * unseen[0]


def test_real_tissue_has_no_limits(tmp_path):
    real = write_corpus(tmp_path / "c", [tiny_section("A1", "A", 0)], kind="real", split={"A": "train"})
    with pytest.raises(InputError, match="limits need virtual tissue; this is real tissue"):
        measure_limits(real, list(real.sections))
