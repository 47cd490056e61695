"""The frame of reference: percentiles, shares and differences by hand, and what the page and the command say."""

import json

import numpy as np
import pytest
from made_patients import made_row, made_store
from scipy import stats

from tario_jax.cli.main import main
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients import frame
from tario_jax.evaluate.patients.index import index_of
from tario_jax.evaluate.patients.neighbours import neighbours, query_of_patient
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED
from tario_jax.predict.signatures import Signature

GENES = 24
SYMBOLS = tuple(f"GENE{k}" for k in range(GENES))
SET = Signature("first four", np.arange(4))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sixty patients; responders have more of the first four genes. P00 is far out in GENE9, as P01 is."""
    rng = np.random.default_rng(0)
    responds = rng.random(60) < 0.4
    expression = 8 + rng.normal(0, 0.3, (60, GENES))
    expression[:, :4] += 0.6 * responds[:, None]
    expression[:2, 9] += 4.0
    rows = []
    for at, of in enumerate(expression):
        rows.append(made_row(f"P{at:02d}", of, cohort="LUAD" if at % 4 else "CRC" if at else "LUAD"))
        for corner in ("0,0", "90,0"):
            far = 2.0 if corner == "90,0" else 0.0
            rows.append(made_row(f"P{at:02d}", of + far * (np.arange(GENES) % 2), cohort=rows[-1].cohort,
                                 region=corner))  # fmt: skip
    store = made_store(tmp_path_factory.mktemp("framed") / "x.embeddings", SYMBOLS, rows)
    table = tuple({"patient": f"P{at:02d}", "cohort": "LUAD", "response": str(bool(yes)).lower() if at % 7 else ""}
                  for at, yes in enumerate(responds))  # fmt: skip
    corpus = Corpus(store.folder, store.panel, "virtual", "", table, ())
    return store, index_of(store), corpus, expression, responds


def test_standings_are_shares_of_the_cohort(made):
    store, index, _, expression, _ = made
    query = query_of_patient(store, index, "P05", PREDICTED)
    gene, signature = frame.standings(index, query, "LUAD", ("GENE7",), (SET,), SYMBOLS)
    mine = [at for at in range(60) if (at % 4 or at == 0) and at != 5]
    assert gene.percentile == pytest.approx(np.mean(expression[mine, 7] < expression[5, 7]), abs=0.03)
    assert gene.patients == len(mine) == 45 and gene.low < gene.percentile < gene.high
    own = [*mine, 5]
    z = (expression[own] - expression[own].mean(0)) / expression[own].std(0, ddof=1)
    score = z[:, :4].mean(1)
    assert signature.percentile == pytest.approx(np.mean(score[:-1] < score[-1]), abs=0.03)
    (far,) = frame.standings(index, query_of_patient(store, index, "P00", PREDICTED), "LUAD", ("GENE9",), (), SYMBOLS)
    assert far.percentile > 0.97 and far.deviations > 2
    assert not frame.standings(index, query, "OV", ("GENE7",), (), SYMBOLS)


def test_what_was_measured_is_ranked_among_what_was_measured(tmp_path, capsys):
    """It spreads four times as much: among predicted patients most of it would lie beyond all."""
    rng = np.random.default_rng(1)
    expression = 8 + rng.normal(0, 0.2, (200, GENES))
    rows = [made_row(f"P{at:03d}", of, seen=True) for at, of in enumerate(expression)]
    measured = 8 + 4 * (expression - 8) + rng.normal(0, 0.2, expression.shape)
    rows += [made_row(f"P{at:03d}", of, kind=MEASURED) for at, of in enumerate(measured[:180])]
    rows += [made_row(f"Q{at}", of, cohort="OV", kind=kind) for at, of in enumerate(expression[:3])
             for kind in (PREDICTED, MEASURED)]  # fmt: skip
    store = made_store(tmp_path / "x.embeddings", SYMBOLS, rows)
    index = index_of(store)
    found = []
    for at in range(0, 180, 4):
        query = query_of_patient(store, index, f"P{at:03d}", MEASURED)
        found += frame.standings(index, query, "LUAD", ("GENE7", "GENE8"), (SET,), SYMBOLS)
    assert {one.patients for one in found} == {179} and len(found) == 3 * 45
    assert np.mean([one.unusual for one in found]) < 0.06
    assert np.mean([one.percentile for one in found]) == pytest.approx(0.5, abs=0.1)
    at = 5
    expected = np.mean(np.delete(measured[:180, 7], at) < measured[at, 7])
    (gene,) = frame.standings(index, query_of_patient(store, index, "P005", MEASURED), "LUAD", ("GENE7",), (), SYMBOLS)
    assert gene.percentile == pytest.approx(expected, abs=0.02)
    words = ["neighbours", str(store.folder), "--measured", "--genes=GENE7"]
    assert main([*words, "--patient=P005"]) == 0
    assert "of 179 measured patients of LUAD" in (out := capsys.readouterr().out) and "not told" not in out
    assert main([*words, "--patient=Q1"]) == 0
    assert "GENE7: not ranked, since it is not known of Q1, or of fewer than 4 other measured patients of OV" in (
        capsys.readouterr().out)  # fmt: skip


def test_of_too_few_patients_it_is_said_that_none_is_unusual(made, tmp_path, capsys):
    needed = frame.patients_to_tell()
    beyond = [frame.Standing("x", 9.0, 1.0, *frame.share_interval(n, n), n) for n in (needed - 1, needed)]
    assert [one.unusual for one in beyond] == [False, True]
    store, page = made[0], tmp_path / "P05.html"
    assert main(["neighbours", str(store.folder), "--patient=P05", "--genes=GENE7", f"--report={page}"]) == 0
    line = f"whether a standing is unusual is not told: that takes {needed} patients, and there are 45"
    assert line in capsys.readouterr().out and line in page.read_text()


def test_an_interval_is_wilsons():
    low, high = frame.share_interval(7, 20)
    z = stats.norm.ppf(0.975)
    middle, half = (7 + z**2 / 2) / (20 + z**2), z * np.sqrt(20) / (20 + z**2) * np.sqrt(0.35 * 0.65 + z**2 / 80)
    assert (low, high) == pytest.approx((middle - half, middle + half))


def test_what_makes_two_patients_alike(made):
    store, index, *_ = made
    query = query_of_patient(store, index, "P00", PREDICTED)
    found = neighbours(index, query, 1)
    assert index.name_P[found.entry_n[0]] == "P01"
    genes = frame.alike_genes(index, query, found.entry_n, "LUAD", SYMBOLS, 3)
    assert genes[0]["gene"] == "GENE9" and genes[0]["part"] > 2 * genes[1]["part"]
    assert genes[0]["query"] > 2 and genes[0]["neighbours"] > 2
    regions = [frame.regions_of(store, index, index.entry(name, PREDICTED)) for name in ("P00", "P01")]
    alike = frame.alike_regions(index, *regions)
    assert [(one["corner_um"], one["other_corner_um"]) for one in alike].count(("0,0", "0,0")) == 1 and len(alike) == 2
    assert all(one["corner_um"] == one["other_corner_um"] for one in alike)


def test_outcomes_of_neighbours_beside_those_of_the_cohort():
    shares = frame.outcome_shares(["true"] * 6 + ["false"] * 2 + [""], ["true"] * 12 + ["false"] * 28 + [""] * 5)
    yes = next(one for one in shares if one["value"] == "true")
    assert (yes["neighbours"], yes["of"], yes["cohort"]) == (6, 8, 40) and yes["cohort_share"] == 0.3
    assert yes["p"] == pytest.approx(2 * stats.hypergeom(40, 12, 8).sf(5))
    assert yes["low"] < 0.75 < yes["high"]


def test_how_responders_differ(made):
    store, index, _, expression, responds = made
    query = query_of_patient(store, index, "P05", PREDICTED)
    some = np.array([at for at in range(1, 60) if at % 4])
    entries = np.array([index.entry(f"P{at:02d}", PREDICTED) for at in some])
    found = frame.differences(index, entries, responds[some], "LUAD", (SET,), SYMBOLS, query)
    assert {one["name"] for one in found["genes"][:4]} == set(SYMBOLS[:4])
    (signature,) = found["signatures"]
    assert signature["low"] > 0 and signature["p"] < 1e-6
    top = found["genes"][0]
    gene = SYMBOLS.index(top["name"])
    test = stats.ttest_ind(expression[some][responds[some], gene], expression[some][~responds[some], gene],
                           equal_var=False)  # fmt: skip
    assert np.log(top["p"]) == pytest.approx(np.log(test.pvalue), rel=0.1)
    means = [expression[some][side, gene].mean() for side in (~responds[some], responds[some])]
    assert top["query"] == pytest.approx((expression[5, gene] - means[0]) / (means[1] - means[0]), abs=0.05)
    assert frame.differences(index, entries[:5], responds[some][:5], "LUAD", (), SYMBOLS, query) is None


def test_all_of_it_in_words_and_as_a_page(made, tmp_path, monkeypatch, capsys):
    store, _, corpus, *_ = made
    monkeypatch.setattr(Corpus, "open", lambda place: corpus)
    (tmp_path / "sets.gmt").write_text("four\tmade\tGENE0\tGENE1\tGENE2\tGENE3\n")
    page = tmp_path / "P00.html"
    assert main(["neighbours", str(store.folder), "--patient=P00", "--corpus=x", "--columns=response",
                 "--differ=response", "--genes=GENE9", f"--signatures={tmp_path / 'sets.gmt'}", "--why",
                 f"--report={page}", f"--json={tmp_path / 'x.json'}"]) == 0  # fmt: skip
    out, told = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
    assert told["neighbours"][0]["patient"] == "P01" and told["alike_genes"][0]["gene"] == "GENE9"
    assert "response true:" in out and "no advice on a treatment" in out and "GENE9: above" in out
    assert told["differ"]["column"] == "response" and told["differ"]["value"] == "true" and told["around"] == 45
    text = page.read_text()
    assert "no advice on a treatment" in text and "GENE9" in text and "four" in text and "P01" in text
    assert page.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_a_value_that_most_have_is_not_unusual(tmp_path):
    """None of a rare gene, as more than half of them; one that has as much as nobody is."""
    rng = np.random.default_rng(2)
    expression = 8 + rng.normal(0, 0.3, (200, GENES))
    expression[:, 3] = np.where(np.arange(200) < 110, 0.0, 1 + rng.random(200))
    expression[199, 3] = 9.0
    store = made_store(tmp_path / "x.embeddings", SYMBOLS, [made_row(f"P{at:03d}", of) for at, of in
                                                           enumerate(expression)])  # fmt: skip
    index = index_of(store)
    none, most = (frame.standings(index, query_of_patient(store, index, name, PREDICTED), "LUAD", ("GENE3",), (),
                                  SYMBOLS)[0] for name in ("P005", "P199"))  # fmt: skip
    assert not none.unusual and none.low < 0.01 and none.high > 0.5
    assert none.percentile == pytest.approx(109 / 2 / 199, abs=1e-6)
    assert most.unusual and most.percentile == 1


def test_measured_patients_are_held_against_measured_ones(tmp_path):
    """They spread four times as much; by the deviations of predicted ones all that is told would be the clip."""
    rng = np.random.default_rng(3)
    expression = 8 + rng.normal(0, 0.2, (80, GENES))
    responds = np.arange(80) % 2 == 0
    expression[:, :4] += 0.3 * responds[:, None]
    measured = 8 + 4 * (expression - 8)
    rows = [made_row(f"P{at:02d}", of, kind=kind) for kind, values in ((PREDICTED, expression), (MEASURED, measured))
            for at, of in enumerate(values)]  # fmt: skip
    store = made_store(tmp_path / "x.embeddings", SYMBOLS, rows)
    index = index_of(store)
    own, same = (query_of_patient(store, index, "P07", kind) for kind in (MEASURED, PREDICTED))
    entries = np.array([index.entry(f"P{at:02d}", PREDICTED) for at in range(20, 60)])
    told = [frame.alike_genes(index, query, entries[:3], "LUAD", SYMBOLS, GENES) for query in (own, same)]
    by_gene = [{one["gene"]: one["query"] for one in of} for of in told]
    shared = by_gene[0].keys() & by_gene[1].keys()
    assert len(shared) > 4 and all(by_gene[0][gene] == pytest.approx(by_gene[1][gene], abs=0.05) for gene in shared)
    found = [
        frame.differences(index, entries, responds[20:60], "LUAD", (SET,), SYMBOLS, query) for query in (own, same)
    ]
    assert found[0]["signatures"][0]["query"] == pytest.approx(found[1]["signatures"][0]["query"], abs=0.1)
