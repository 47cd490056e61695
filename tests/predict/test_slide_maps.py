"""Whole slides: the same maps as of an image in memory, however they are cut, killed, shared, or stored as a file."""

import hashlib
import json
import os
import shutil
import types

import numpy as np
import pytest
import tifffile
from made_maps import content, made_validation
from made_slides import write_pyramid
from PIL import Image
from refusals import refused
from tiny_tissue import tiny_section, write_corpus

from tario_jax.panel import Panel
from tario_jax.predict.map_exports import pixels_of
from tario_jax.predict.map_store import KEPT_BITS, MapStore, Slots
from tario_jax.predict.measured import MeasuredBins
from tario_jax.predict.slide import opened_section
from tario_jax.predict.slide_job import Asked, _Work, predict_measured, predict_slide
from tario_jax.predict.spool import Spool, refuse_another_plan
from tario_jax.predict.stain_match import StainMatch, StainStatistics, stain_of
from tario_jax.predict.tissue_mask import find_tissue

ROUNDED = 2.0 ** -(KEPT_BITS + 1)
EVERYWHERE = Asked(everywhere=True, tissue="virtual")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """400 × 300 µm of the tissue that the model knows, at 0.5 µm per px."""
    return tiny_section("slide", "P", 5, width_um=400.0, height_um=300.0).he


@pytest.fixture(scope="module")
def slide(picture, tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("slides") / "slide.ome.tif", picture, ome=True, px_per_cm=20_000)


@pytest.fixture(scope="module")
def maps(predictor, slide, tmp_path_factory) -> MapStore:
    return predict_slide(predictor, slide, tmp_path_factory.mktemp("maps") / "a.maps", EVERYWHERE, say=str)


def test_they_are_those_of_the_image_in_memory(predictor, picture, maps):
    of_image = predictor.predict(picture, 0.5, tissue="virtual")
    assert np.array_equal(maps.x_um_N, of_image.x_um_N) and np.array_equal(maps.y_um_N, of_image.y_um_N)
    assert np.abs(maps.genes(np.arange(12)) / of_image.rates_NxG - 1).max() < 1.1 * ROUNDED
    assert np.array_equal(maps.gene("GENE3"), maps.genes([3])[:, 0])
    assert np.allclose(maps.mean_G, of_image.rates_NxG.mean(0), rtol=1e-5)
    assert np.allclose(maps.largest_G, of_image.rates_NxG.max(0), rtol=1e-5)
    in_memory = maps.gene_maps(["GENE3", "GENE1"])
    assert in_memory.panel.symbols == ("GENE3", "GENE1") and np.array_equal(in_memory.rates_NxG, maps.genes([3, 1]))
    refused(lambda: maps.gene("GENE99"), "'GENE99' is not among the 12")


def test_a_file_of_one_level_gives_the_same(predictor, picture, maps, tmp_path):
    """Whatever levels there are, the same px are read: no level is taken that would be resampled."""
    Image.fromarray(picture).save(tmp_path / "slide.png")
    refused(lambda: predict_slide(predictor, tmp_path / "slide.png", tmp_path / "n.maps", EVERYWHERE, say=str),
            "slide.png: does not say its µm per px", "--um-per-px")  # fmt: skip
    assert not (tmp_path / "n.maps").exists()
    asked = Asked(um_per_px=0.5, everywhere=True, tissue="virtual")
    found = predict_slide(predictor, tmp_path / "slide.png", tmp_path / "b.maps", asked, say=str)
    assert content(found.folder) == content(maps.folder)


class Killed(BaseException):
    pass


def test_killed_and_started_again_it_ends_with_the_same_bits(predictor, slide, maps, tmp_path, monkeypatch):
    out, calls = tmp_path / "c.maps", []
    add = Spool.add

    def counted(spool, window, *rest):
        calls.append(window)
        if len(calls) == 6:
            raise Killed
        add(spool, window, *rest)

    monkeypatch.setattr(Spool, "add", counted)
    with pytest.raises(Killed):
        predict_slide(predictor, slide, out, EVERYWHERE, say=str)
    refused(lambda: MapStore(out), "its prediction has not ended")
    refused(lambda: predict_slide(predictor, slide, out, Asked(bin_um=9.0, everywhere=True, tissue="virtual"), say=str),
            "a prediction was begun there with bin_um 18.0, and this has 9.0")  # fmt: skip
    broken = out / "work" / "windows" / "4.npz"
    broken.write_bytes(broken.read_bytes()[:100])  # as a crash of the machine leaves it
    predict_slide(predictor, slide, out, EVERYWHERE, say=str)
    assert content(out) == content(maps.folder) and not (out / "work").exists()
    assert [calls.count(window) for window in (0, 3, 4, 5, 9)] == [1, 1, 2, 2, 1]  # only the second batch twice


def test_work_of_another_plan_is_not_gone_on_with(tmp_path):
    """Files of windows go by number: another version of a library may see other tissue, and number them otherwise."""

    def plan(x_um_N, first=(0, 3)):
        places = types.SimpleNamespace(x_um_N=np.array(x_um_N, float), y_um_N=np.zeros(len(x_um_N)))
        return types.SimpleNamespace(cover=types.SimpleNamespace(places=places, corners=[(0.0, 0.0)]),
                                     slots=types.SimpleNamespace(first=np.array(first)))  # fmt: skip

    work = tmp_path / "n.maps" / "work"
    for _ in range(2):
        refuse_another_plan(work, plan([9, 27, 45]), None)
    held = b"".join(np.asarray(part).tobytes() for part in ([9.0, 27, 45], [0.0] * 3, [(0.0, 0.0)], [0, 3]))
    (work / "plan.sha256").write_text(hashlib.sha256(b"None" + held).hexdigest())  # by an older version
    refuse_another_plan(work, plan([9, 27, 45]), None)
    for other in (plan([9, 27, 63]), plan([9, 27, 45], (0, 2, 3))):
        refused(lambda other=other: refuse_another_plan(work, other, None),
                f"{tmp_path}/n.maps: was begun with other windows or bins")  # fmt: skip
    in_steps = tmp_path / "s.maps" / "work"
    for _ in range(2):
        refuse_another_plan(in_steps, plan([9, 27, 45]), 8)
    refused(lambda: refuse_another_plan(in_steps, plan([9, 27, 45]), 4),
            "s.maps: its steps were begun in batches of 8 windows", "they would be of 4")  # fmt: skip
    refused(lambda: refuse_another_plan(in_steps, plan([9, 27, 63]), 4), "was begun with other windows or bins")


def test_a_folder_that_another_process_begins_at_the_same_moment_is_its_own(predictor, slide, maps, tmp_path):
    out = tmp_path / "m.maps"
    out.mkdir()
    (out / ".asked.json.node-1.partial").write_text("{")  # just before its rename, or killed there
    predict_slide(predictor, slide, out, EVERYWHERE, say=str)
    (out / ".asked.json.node-1.partial").unlink()
    assert content(out) == content(maps.folder)


def test_what_is_found_of_genes_later_is_written_too(predictor, slide, maps, tmp_path, monkeypatch):
    out, said = tmp_path / "l.maps", []
    shutil.copytree(maps.folder, out)
    assert MapStore(out).validation is None
    table = made_validation(predictor.panel)
    monkeypatch.setattr(predictor, "validation", table)
    before = content(out / "rates")
    predict_slide(predictor, slide, out, EVERYWHERE, say=said.append)
    assert np.array_equal(MapStore(out).validation.r_CxG, table.r_CxG) and "since is written" in said[-1]
    predict_slide(predictor, slide, out, EVERYWHERE, say=said.append)
    assert said[-1] == f"{out}: is done already" and content(out / "rates") == before


def test_processes_share_a_slide(predictor, slide, maps, tmp_path):
    out, said = tmp_path / "d.maps", []
    begun = []

    def first(done) -> None:
        if not begun:  # in the middle of the first, another does the rest
            begun.append(done.windows)
            asked = Asked(everywhere=True, tissue="virtual", part=(1, 2))
            predict_slide(predictor, slide, out, asked, say=str)

    asked = Asked(everywhere=True, tissue="virtual", part=(0, 2))
    found = predict_slide(predictor, slide, out, asked, say=said.append, progress=first)
    assert begun and (found is None or len(found) == len(maps))
    assert content(out) == content(maps.folder)
    predict_slide(predictor, slide, out, asked, say=said.append)
    assert any("is done already" in line for line in said)


def test_windows_are_let_go_when_nobody_waits_for_them(predictor, slide, tmp_path, monkeypatch):
    """Whatever the size of a slide, only windows of the runs at work are kept."""
    monkeypatch.setattr(Slots.of_rows.__func__, "__defaults__", (24,))
    kept = []
    folder = tmp_path / "e.maps/work/windows"
    monkeypatch.setattr("tario_jax.predict.slide_job._Work._tell",
                        lambda work: kept.append(len(list(folder.glob("*.npz")))))  # fmt: skip
    found = predict_slide(predictor, slide, tmp_path / "e.maps", EVERYWHERE, say=str)
    assert len(found.slots) > 10 and max(kept) < found.about["windows"] / 2


def test_the_deviation_between_windows_is_kept_where_it_is_asked_for(predictor, slide, maps, tmp_path):
    asked = Asked(everywhere=True, tissue="virtual", spread=True)
    found = predict_slide(predictor, slide, tmp_path / "f.maps", asked, say=str)
    assert np.array_equal(found.gene("GENE2"), maps.gene("GENE2"))
    spread_N, mean_N = found.gene("GENE2", "spread"), found.gene("GENE2")
    assert (spread_N >= 0).all() and 0 < np.median(spread_N / mean_N) < 1
    refused(lambda: maps.gene("GENE2", "spread"), "holds no spread", "--uncertainty")


def test_only_tissue_is_predicted(predictor, picture, tmp_path):
    """Half of the slide is glass; the bins of tissue are those of the whole."""
    wide = np.full((600, 1600, 3), 244, np.uint8)
    wide[:, :800] = picture
    path = write_pyramid(tmp_path / "wide.ome.tif", wide, ome=True, px_per_cm=20_000)
    found = predict_slide(predictor, path, tmp_path / "g.maps", Asked(tissue="virtual"), say=str)
    assert 0.9 < len(found) / (22 * 16) < 1.1 and found.x_um_N.max() < 400 + 18
    assert found.about["windows"] < 100 and (tmp_path / "g.maps/overview.jpg").exists()
    blank = write_pyramid(tmp_path / "blank.ome.tif", np.full((600, 800, 3), 244, np.uint8), ome=True, px_per_cm=20_000)
    refused(lambda: predict_slide(predictor, blank, tmp_path / "h.maps", Asked(tissue="virtual"), say=str),
            "no tissue is found on it", "--everywhere")  # fmt: skip
    assert not (tmp_path / "h.maps").exists()  # where the same with --everywhere may be begun
    wanted = StainStatistics(*predictor.training_stain)
    asked = [Asked(tissue="virtual", everywhere=everywhere, stain=wanted) for everywhere in (False, True)]
    stains = [predict_slide(predictor, path, tmp_path / f"{one.everywhere}.maps", one, say=str).about["stain"]
              for one in asked]  # fmt: skip
    assert stains[0] == stains[1]  # glass has none


def test_a_slide_that_looks_otherwise_is_warned_of(predictor, slide, maps, picture, tmp_path):
    assert maps.about["outside"] == [] and maps.about["warnings"] == []
    said = []
    odd = 255 - (255 - picture) // 3
    path = write_pyramid(tmp_path / "odd.ome.tif", odd[..., ::-1].copy(), ome=True, px_per_cm=20_000)
    found = predict_slide(predictor, path, tmp_path / "i.maps", EVERYWHERE, say=said.append)
    assert found.about["outside"] and any("lies outside of what the model was trained on" in line for line in said)
    asked = Asked(um_per_px=1.19, everywhere=True, tissue="virtual")
    coarse = predict_slide(predictor, slide, tmp_path / "j.maps", asked, say=said.append)
    assert any("what it learnt to see is not in the image" in line for line in coarse.about["warnings"])


def test_a_model_of_virtual_tissue_is_not_asked_about_real(predictor, slide, tmp_path):
    refused(lambda: predict_slide(predictor, slide, tmp_path / "k.maps", Asked(), say=str), "--allow-virtual-model")
    assert not (tmp_path / "k.maps").exists()


def test_what_a_store_is_not_is_told(maps, tmp_path, slide, predictor):
    refused(lambda: MapStore(tmp_path / "none"), "no such folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    refused(lambda: predict_slide(predictor, slide, tmp_path / "other", EVERYWHERE, say=str), "holds no gene maps")
    seal = json.loads((maps.folder / "maps.json").read_text())
    (tmp_path / "old").mkdir()
    for change, words in (({"format_version": 9}, "version 9; this tario reads version 1"), ({"format": "x"}, "is x"),
                          (None, "is damaged")):  # fmt: skip
        text = "{" if change is None else json.dumps(seal | change)
        (tmp_path / "old" / "maps.json").write_text(text)
        refused(lambda: MapStore(tmp_path / "old"), f"{tmp_path}/old", words)
    refused(lambda: predict_slide(predictor, slide, maps.folder, Asked(tissue="virtual"), say=str), "asked otherwise")


@pytest.mark.parametrize("change", [
    lambda seal: seal.pop("run_first"), lambda seal: seal.update(about=None), lambda seal: seal["about"].pop("place"),
    lambda seal: seal["about"].pop("warnings"), lambda seal: seal["about"].update(bin_um=0),
    lambda seal: seal.update(arrays=[]), lambda seal: seal.update(arrays=["rates", "../../etc"]),
    lambda seal: seal.update(run_first=[0, 5]), lambda seal: seal.update(run_start=[0, 1]),
    lambda seal: seal.update(run_first="x"), lambda seal: seal.update(run_first=[0, "x"]),
])  # fmt: skip
def test_damaged_maps_are_one_line(maps, tmp_path, change):
    shutil.copytree(maps.folder, tmp_path / "o.maps")
    seal = json.loads((maps.folder / "maps.json").read_text())
    change(seal)
    (tmp_path / "o.maps/maps.json").write_text(json.dumps(seal))
    refused(lambda: MapStore(tmp_path / "o.maps"), f"{tmp_path}/o.maps", "predict again")


def test_a_panel_that_is_no_text_is_one_line(maps, tmp_path):
    shutil.copytree(maps.folder, tmp_path / "p.maps")
    (tmp_path / "p.maps/panel.tsv").write_bytes(b"\xff\xfe\x00")
    refused(lambda: MapStore(tmp_path / "p.maps"), "panel.tsv: is missing or damaged")


def test_a_process_that_comes_late_finds_it_done(predictor, slide, maps, tmp_path, monkeypatch):
    """Between its start and its first window another ended the slide: nothing is predicted again, nothing is left."""
    out, begun = tmp_path / "q.maps", []
    run = _Work.run

    def late(work):
        if not begun:
            begun.append(work)
            predict_slide(predictor, slide, out, EVERYWHERE, say=str)
        return run(work)

    monkeypatch.setattr(_Work, "run", late)
    found = predict_slide(predictor, slide, out, EVERYWHERE, say=str)
    assert len(begun) == 1 and content(found.folder) == content(maps.folder)
    (out / "steps").mkdir()  # as of a kill between the seal and clearing up
    (out / "asked.json").write_text("{}")
    predict_slide(predictor, slide, out, EVERYWHERE, say=str)
    assert not (out / "steps").exists() and not (out / "asked.json").exists()


def test_a_full_disk_is_one_line(predictor, slide, tmp_path, monkeypatch):
    def full(spool, *_):
        raise OSError(28, "No space left on device", str(tmp_path / "l.maps/work/windows/3.npz"))

    monkeypatch.setattr(Spool, "add", full)
    with pytest.raises(OSError, match="No space left") as error:
        predict_slide(predictor, slide, tmp_path / "l.maps", EVERYWHERE, say=str)
    assert error.value.filename  # by which the command tells it in a line


def test_a_section_has_what_was_measured_beside_it(predictor, tiny_corpus, tmp_path):
    """Rates as of the section in memory; counts as of its detections, one by one."""
    found = predict_measured(predictor, tiny_corpus, "F1", tmp_path / "n.maps", EVERYWHERE, say=str)
    section = tiny_corpus.section("F1")
    of_section = predictor.predict_section(section, tissue="virtual")
    assert np.abs(found.genes(np.arange(12)) / of_section.rates_NxG - 1).max() < 1.1 * ROUNDED
    all_of_it = section.all_detections()
    for number in (0, 17, len(found) - 1):
        inside = (np.abs(all_of_it.x_um_D - found.x_um_N[number]) < 9) & (
            np.abs(all_of_it.y_um_D - found.y_um_N[number]) < 9)  # fmt: skip
        expected = np.bincount(all_of_it.gene_D[inside], minlength=12)
        assert found.genes(np.arange(12), "measured")[number].tolist() == expected.tolist() and expected.sum() > 5
    assert found.arrays == ("rates", "measured") and found.about["place"]["section"] == "F1"
    other = Panel(("GENE3", "NEW", *(f"GENE{number}" for number in (0, 1, 2))))
    counts = MeasuredBins(section, tiny_corpus.panel, other, 0.9).counts(found.x_um_N, found.y_um_N, 18.0)
    assert np.array_equal(counts[:, 0], found.gene("GENE3", "measured")) and np.isnan(counts[:, 1]).all()


def test_a_section_lies_in_the_image_that_it_was_cut_from(predictor, tmp_path):
    """Stored at twice the scanner's µm per px, from a corner of the slide; what was measured is too coarse for bins."""
    quality = {"he_full_um_per_px": 0.25, "he_origin_x_px": 1000.0, "he_origin_y_px": 400.0, "place_precision_um": 12.0}
    corpus = write_corpus(tmp_path / "c", [tiny_section("F1", "F", 5, quality=quality)])
    said = []
    found = predict_measured(predictor, corpus, "F1", tmp_path / "s.maps", EVERYWHERE, say=said.append)
    assert found.arrays == ("rates",) and any("squares of 12 µm" in line for line in said)
    np.testing.assert_allclose(pixels_of(found)[0], [1000 + 9 / 0.25, 400 + 9 / 0.25])
    maps = predictor.predict_section(corpus.section("F1"), tissue="virtual")
    np.testing.assert_allclose(pixels_of(found), maps.to_anndata().obsm["spatial"])
    np.testing.assert_allclose(found.gene_maps().to_anndata().obsm["spatial"], pixels_of(found))


def test_stains_of_a_reference_change_every_window(predictor, picture, slide, tmp_path):
    """As the image whose every px was changed before: none of those that the stain was measured on stays as it was."""
    wanted = StainStatistics(*predictor.training_stain)
    wanted = StainStatistics(wanted.mean_3 * 1.5, wanted.deviation_3)
    asked = Asked(everywhere=True, tissue="virtual", stain=wanted)
    found = predict_slide(predictor, slide, tmp_path / "o.maps", asked, say=str)
    with opened_section(slide, None, genes=12, say=str) as section:
        change = StainMatch(stain_of(section, find_tissue(section)), wanted)
        whole = change(section.read(0.0, 0.0, 400, 1.0)[:300])
    alone = predictor.predict(whole, 1.0, tissue="virtual")
    assert np.abs(found.genes(np.arange(12)) / alone.rates_NxG - 1).max() < 1.1 * ROUNDED


def test_levels_are_chosen_for_what_is_asked(slide):
    """0.5, 1 and 2 µm per px: for 1 µm the finest, of whose px two make one."""
    with opened_section(slide, None, genes=1, say=str) as section:
        assert [section.level_for(um) for um in (0.25, 0.5, 1.0, 2.0, 4.0, 9.0)] == [0, 0, 0, 1, 2, 2]
        direct = section.read(0.0, 0.0, 300, 1.0)
        assert np.array_equal(section.begin_he_window(0.0, 0.0, 300, 1.0)(), direct)
        section._kept = 1
        assert np.array_equal(section.begin_he_window(-20.0, 100.0, 200, 1.0)()[:, 20:], direct[100:300, :180])


def test_runs_hold_whole_rows():
    slots = Slots.of_rows(np.repeat([0, 1, 4, 5, 9], [40, 30, 100, 200, 7]), most=128)
    assert slots.first.tolist() == [0, 70, 170, 370, 377] and slots.chunk_of(np.diff(slots.first), 128) == 128
    assert slots.start.tolist() == [0, 128, 256, 512, 640]  # the longest row takes two chunks
    assert len(np.unique(slots.slot_N)) == 377 and slots.slot_N[70] == 128


@pytest.mark.parametrize("suffix", [".tif", ".svs"])
def test_a_broken_slide_is_one_line(predictor, slide, tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(slide.read_bytes()[:5000])
    refused(
        lambda: predict_slide(predictor, path, tmp_path / "m.maps", EVERYWHERE, say=str), str(path), "copy or export"
    )
    path.write_text("no slide")
    refused(lambda: predict_slide(predictor, path, tmp_path / "m.maps", EVERYWHERE, say=str), str(path))
    coarse = tmp_path / "coarse.tif"
    tifffile.imwrite(coarse, np.zeros((64, 64, 3), np.uint8), photometric="rgb", resolution=(2500, 2500),
                     resolutionunit="CENTIMETER")  # fmt: skip
    refused(lambda: predict_slide(predictor, coarse, tmp_path / "m.maps", EVERYWHERE, say=str), "4 µm per px",
            "expected 0.1 to 1.2")  # fmt: skip
    assert os.listdir(tmp_path) and not (tmp_path / "m.maps").exists()
