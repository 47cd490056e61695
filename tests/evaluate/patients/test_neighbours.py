"""Neighbours of patients and slides: by hand in the space, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from made_patients import made_row, made_store
from made_slides import speckled, write_pyramid
from refusals import refused
from tiny_tissue import PANEL

from tario_jax.cli.main import main
from tario_jax.evaluate.patients.index import index_of
from tario_jax.evaluate.patients.looks import acquisition, look_of
from tario_jax.evaluate.patients.neighbours import NO_ADVICE, neighbours, query_of_patient, query_of_slide, with_look
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.unlike import unlike_of
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED
from tario_jax.panel import Panel
from tario_jax.predict.map_store import MapWriter, Slots
from tario_jax.predict.slide import as_ingested, section_as_slide


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EmbeddingStore:
    """Two cohorts of nine patients, far apart; what was measured is shifted and stretched."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(18):
        cohort = ("LUAD", "CRC")[number % 2]
        expression = 8 + (np.arange(12) < 6) * (2.0 if cohort == "CRC" else 0.0) + rng.normal(0, 0.2, 12)
        expression = np.log1p(1e6 * np.exp(expression) / np.exp(expression).sum())
        for kind, values in ((PREDICTED, expression), (MEASURED, 0.5 + 1.2 * expression)):
            rows.append(made_row(f"P{number:02d}", values, cohort=cohort, kind=kind))
    return made_store(tmp_path_factory.mktemp("made") / "made.embeddings", PANEL.symbols, rows)


@pytest.fixture(scope="module")
def index(store):
    return index_of(store)


def test_neighbours_share_the_cohort_and_are_the_nearest(store, index):
    found = neighbours(index, query_of_patient(store, index, "P04", PREDICTED), 4)
    names = index.name_P[found.entry_n].tolist()
    assert set(index.cohort_P[found.entry_n]) == {"LUAD"} and "P04" not in names and found.cohort == "LUAD"
    rows = {row.patient: row.expression_G.astype(float) for row in store.rows(PREDICTED)}
    # all components of 18 patients: distances are those of expression
    distance = {name: np.linalg.norm(of - rows["P04"]) for name, of in rows.items() if name != "P04"}
    assert names == sorted(distance, key=distance.get)[:4]
    np.testing.assert_allclose(found.distance_n, sorted(distance.values())[:4], rtol=1e-3)
    own = [min(np.linalg.norm(rows[a] - rows[b]) for b in rows if b != a) for a in rows]
    assert found.unusual == pytest.approx(np.mean(np.array(own) < min(distance.values())), abs=1e-6)
    of_crc = neighbours(index, query_of_patient(store, index, "P04", PREDICTED), 3, cohort="CRC")
    assert set(index.cohort_P[of_crc.entry_n]) == {"CRC"}


def test_what_was_measured_finds_its_own_kind_and_its_own_patient(store, index):
    measured = query_of_patient(store, index, "P05", MEASURED)
    assert set(index.cohort_P[neighbours(index, measured, 4).entry_n]) == {"CRC"}
    itself = neighbours(index, measured, 2, itself=True)
    assert index.name_P[itself.entry_n[0]] == "P05" and itself.distance_n[0] < 0.5 * itself.distance_n[1]
    both = neighbours(index, measured, 8, among=(PREDICTED, MEASURED))
    assert set(index.kind_P[both.entry_n]) == {PREDICTED, MEASURED} and "P05" not in index.name_P[both.entry_n]


def test_something_else_is_unusual(store, index):
    query = query_of_patient(store, index, "P04", PREDICTED)
    odd = dataclasses.replace(query, place_C=query.place_C + 5)
    assert neighbours(index, odd, 3).unusual == 1.0 > neighbours(index, query, 3).unusual


def slide_maps(folder, expression_G, checkpoint="c", slide="/none", slide_px=(100, 100), um=0.5, **more):
    rates = np.tile(np.expm1(expression_G) / 1e6, (4, 1)).astype(np.float32)
    slots = Slots.of_rows(np.array([0, 0, 1, 1]))
    folder.mkdir()
    writer = MapWriter(folder, Panel(PANEL.symbols), slots)
    for run in range(len(slots)):
        writer.write(run, {"rates": rates[slots.run(run)[0]]})
    about = {"section": "slide", "place": {"slide": str(slide)}, "slide_px": list(slide_px), "he_um_per_px": um,
             "panel_hash": Panel(PANEL.symbols).hash, "trained_on": "virtual", "tissue": "virtual", "banner": "",
             "warnings": [], "unit": "", "decoding": "one-shot", "bin_um": 36.0, "checkpoint": checkpoint,
             "model": "made", "overlap": 0.5} | more  # fmt: skip
    at = np.array([9.0, 27.0, 9.0, 27.0])
    writer.finish(about, at, at[[0, 0, 1, 1]], total_N=rates.sum(1), mean_G=rates.mean(0, dtype=np.float64),
                  largest_G=rates.max(0), validation=None)  # fmt: skip
    return folder


def test_a_slide_is_placed_among_patients(store, index, tmp_path, capsys):
    (row,) = [row for row in store.rows(PREDICTED) if row.patient == "P06"]
    maps = slide_maps(tmp_path / "slide.maps", row.expression_G.astype(float))
    share = np.expm1(row.expression_G.astype(float))
    query = query_of_slide(store, index, maps)
    level_G = np.log1p(1e6 * share / share.sum()) - index.space.mean_KxG[0]
    np.testing.assert_allclose(query.level_G(), level_G, atol=1e-3)
    np.testing.assert_allclose(query.place_C, index.place_PxC[index.entry("P06", PREDICTED)], atol=2e-3)
    assert main(["neighbours", str(store.folder), f"--slide={maps}", "--number=3", "--genes=GENE3",
                 f"--json={tmp_path / 'told.json'}"]) == 0  # fmt: skip
    told = json.loads((tmp_path / "told.json").read_text())
    assert [one["cohort"] for one in told["neighbours"]] == ["LUAD"] * 3 and told["note"] == NO_ADVICE
    out = capsys.readouterr().out
    assert NO_ADVICE in out and "GENE3: above" in out and "nearer to their own nearest" not in out
    assert "is not known here" in out and told["unusual"] is None
    other = slide_maps(tmp_path / "other.maps", row.expression_G.astype(float), checkpoint="d")
    refused(lambda: query_of_slide(store, index, other), "checkpoint d", "predict the slide with that model")


def test_a_slide_is_taken_for_the_section_that_its_file_was_ingested_as(store, index, tmp_path):
    """Maps are named by the slide's file, and sections that `tario ingest` stores by the file without its suffix."""
    maps = slide_maps(tmp_path / "x.maps", np.linspace(3, 9, len(PANEL)), section="P06_core.svs")
    query = query_of_slide(store, index, maps)
    assert query.patient == "P06" and "none of its neighbours" in query.remarks[-1]


def test_a_slide_that_was_predicted_otherwise_is_refused_or_said(store, index, tmp_path, capsys):
    expression_G = np.linspace(3, 9, len(PANEL))
    for at, (more, words) in enumerate((({"overlap": 0.0}, ("overlap by 0,", "by 0.5", "--overlap=0.5")),
                                        ({"decoding": "4 steps"}, ("'4 steps'", "'one-shot'")))):  # fmt: skip
        maps = slide_maps(tmp_path / f"{at}.maps", expression_G, **more)
        refused(lambda maps=maps: query_of_slide(store, index, maps), *words)
    drawn = slide_maps(tmp_path / "drawn.maps", expression_G, decoding="one-shot; drawn in 4 steps")
    assert query_of_slide(store, index, drawn).remarks == ()
    page = tmp_path / "x.html"
    stained = slide_maps(tmp_path / "stained.maps", expression_G, stain={"found": {}}, section="P06_core")
    assert main(["neighbours", str(store.folder), f"--slide={stained}", "--number=17", f"--report={page}"]) == 0
    out = capsys.readouterr().out
    for line in ("its stains were taken to a reference", "is taken for the section of that name of patient P06"):
        assert line in out and line in page.read_text()
    assert "\nP06 " not in out and "\nP07 " in out


def test_no_stated_cohort_is_a_cohort_of_its_own(tmp_path):
    rng = np.random.default_rng(0)
    rows = [made_row(f"P{at}", rng.normal(8, 1, 12), cohort=("", "LUAD")[at % 2]) for at in range(12)]
    store = made_store(tmp_path / "x.embeddings", PANEL.symbols, rows)
    index = index_of(store)
    query = query_of_patient(store, index, "P2", PREDICTED)
    found = {cohort: set(index.cohort_P[neighbours(index, query, 11, cohort=cohort).entry_n]) for cohort in (None, "")}
    assert found == {None: {"", "LUAD"}, "": {""}}


def test_a_slides_scanner_is_compared_where_the_slide_is(store, index, tmp_path, capsys):
    """Its squares of tissue, few among the glass, and held against single sections."""
    white, tissue = np.full((2600, 5200, 3), 255, np.uint8), speckled(1024, 512)
    image = white.copy()
    image[1024:2048, 3584:4096] = tissue
    slide = write_pyramid(tmp_path / "x.tif", image, px_per_cm=20_000)
    expression_G = np.linspace(3, 9, len(PANEL))
    maps = slide_maps(tmp_path / "x.maps", expression_G, slide=slide, slide_px=(5200, 2600))
    query = with_look(query_of_slide(store, index, maps), 0.5)
    expected = np.mean([acquisition(part) for part in (tissue[:512], tissue[512:])], 0)
    np.testing.assert_allclose(query.acquisition_A, expected, rtol=1e-5)
    assert query.not_compared == ""
    rng = np.random.default_rng(0)
    rows = [made_row(f"T{at:02d}", rng.normal(8, 0.3, len(PANEL)), seen=True, section=f"T{at:02d}_{part}",
                     acquisition=expected + shift + rng.normal(0, 0.1, 7))
            for at in range(60) for part, shift in (("core", 0.4), ("border", -0.4))]  # fmt: skip
    near = made_store(tmp_path / "near.embeddings", PANEL.symbols, rows)
    found = unlike_of(index_of(near), near)
    placed = dataclasses.replace(query, place_C=np.zeros(len(index_of(near).place_PxC[0])))
    # of two sections each, patients differ less than single sections do
    assert not found.told(placed)["scanner"]["unlike"]
    assert found.told(dataclasses.replace(placed, acquisition_A=expected + 0.4))["scanner"]["unlike"] is False
    assert found.told(dataclasses.replace(placed, acquisition_A=expected + 0.4, entry=0))["scanner"]["unlike"]
    assert found.told(dataclasses.replace(placed, acquisition_A=expected + 3))["scanner"]["unlike"]
    assert main(["neighbours", str(near.folder), f"--slide={maps}"]) == 0
    assert "its scanner is like those of the 60 patients" in capsys.readouterr().out
    slide.unlink()
    assert main(["neighbours", str(near.folder), f"--slide={maps}"]) == 0
    assert "its scanner is not compared: " in (out := capsys.readouterr().out) and "x.tif" in out
    write_pyramid(slide, image[:1024], px_per_cm=20_000)
    assert "has 5200 × 1024 px" in with_look(query, 0.5).not_compared
    write_pyramid(slide, image[::-1], px_per_cm=20_000)
    assert "another slide" not in with_look(query, 0.5).not_compared  # these maps do not say what lay in its middle


def test_a_slide_is_looked_at_as_it_would_be_ingested(store, index, tmp_path):
    """A scan of 0.25 µm per px is held against sections that are stored at 0.5."""
    image = np.kron(speckled(700, 900), np.ones((2, 2, 1), np.uint8))  # nothing is finer than 0.5 µm
    fine = write_pyramid(tmp_path / "fine.tif", image, px_per_cm=40_000, levels=1)
    coarse = write_pyramid(tmp_path / "coarse.tif", image[::2, ::2], px_per_cm=20_000, levels=1)
    found = {}
    for slide, px, um in ((fine, (1800, 1400), 0.25), (coarse, (900, 700), 0.5)):
        maps = slide_maps(
            tmp_path / f"{slide.stem}.maps", np.linspace(3, 9, len(PANEL)), slide=slide, slide_px=px, um=um
        )
        query = query_of_slide(store, index, maps)
        found[slide.stem] = with_look(query, 0.5).acquisition_A
    np.testing.assert_allclose(found["fine"], found["coarse"], atol=1e-5)
    assert "has 0.5 µm per px, and sections of training 0.2" in with_look(query, 0.2).not_compared
    about = json.loads((maps / "maps.json").read_text())
    about["about"] |= {"identity": {"middle_sha256": "0"}}
    (maps / "maps.json").write_text(json.dumps(about))
    assert "is another slide than the one" in with_look(query, 0.5).not_compared
    about["about"] |= {"identity": {}, "place": {}}
    (maps / "maps.json").write_text(json.dumps(about))
    assert "do not say where the slide lies" in with_look(query, 0.5).not_compared


def test_a_section_looks_the_same_as_a_slide(tiny_corpus):
    section = tiny_corpus.section("A1")
    as_slide = as_ingested(section_as_slide(section, genes=1), section.he_um_per_px)
    for found, expected in zip(look_of(as_slide), look_of(section), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_of_a_few_px_nothing_is_known(store, index, tmp_path):
    slide = write_pyramid(tmp_path / "x.tif", speckled(20, 20), px_per_cm=20_000, levels=1)
    maps = slide_maps(tmp_path / "x.maps", np.linspace(3, 9, len(PANEL)), slide=slide, slide_px=(20, 20))
    assert "fewer than 32 px" in with_look(query_of_slide(store, index, maps), 0.5).not_compared


def test_patients_without_a_cohort(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [made_row(f"P{at}", rng.normal(8, 1, 12), cohort="") for at in range(9)]
    store = made_store(tmp_path / "x.embeddings", PANEL.symbols, rows)
    assert main(["neighbours", str(store.folder), "--patient=P3", "--genes=GENE3"]) == 0
    assert "of 8 patients of no stated cohort, " in capsys.readouterr().out


def test_what_is_not_there_is_one_line(store, tiny_corpus, capsys):
    for words, answer in ((["--patient=Q"], "no predicted section of patient 'Q'"),
                          (["--patient=P01", "--genes=X"], "gene 'X' is not among"),
                          (["--patient=P01", "--columns=site"], "give both"),
                          (["--slide=x.maps", "--measured"], "goes with --patient"),
                          (["--patient=P01", "--columns=q", f"--corpus={tiny_corpus.root}"], "'q': is not in"),
                          (["--slide=/none.maps"], "no gene maps")):  # fmt: skip
        assert main(["neighbours", str(store.folder), *words]) == 2
        told = capsys.readouterr().err
        assert answer in told and told.count("\n") == 1
