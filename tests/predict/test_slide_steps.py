"""Steps on a whole slide: the draws and deviations of `generate_section`, window by window, killed, shared, let go."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest
from made_maps import content
from made_reader import made_reader
from made_slides import write_pyramid
from refusals import refused
from tiny_tissue import PANEL, tiny_section

from tario_jax.predict.cover import Placed
from tario_jax.predict.generate import generate_section
from tario_jax.predict.map_store import KEPT_BITS, MapStore
from tario_jax.predict.slide import opened_section
from tario_jax.predict.slide_job import Asked, predict_slide
from tario_jax.predict.slide_plan import SlidePlan
from tario_jax.predict.slide_steps import SlideSteps
from tario_jax.predict.writing import Sample, Steps, WritingPlan, Written

STEPS = Steps(4, samples=3, seed=2)
ASKED = Asked(everywhere=True, tissue="virtual", steps=STEPS, spread=True)
ALL = np.arange(len(PANEL))


@pytest.fixture(scope="module")
def reader(tiny_run):
    return made_reader(tiny_run)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    picture = tiny_section("slide", "P", 5, width_um=300.0, height_um=260.0).he
    return write_pyramid(tmp_path_factory.mktemp("slides") / "slide.ome.tif", picture, ome=True, px_per_cm=20_000)


@pytest.fixture(scope="module")
def maps(reader, slide, tmp_path_factory) -> MapStore:
    return predict_slide(reader, slide, tmp_path_factory.mktemp("maps") / "a.maps", ASKED, say=str)


def test_they_are_those_of_the_section_in_memory(reader, slide, maps):
    with opened_section(slide, None, genes=len(PANEL), say=str) as section:
        of_section, samples = generate_section(reader, section, STEPS, tissue="virtual", genes=ALL)
    assert maps.arrays == ("rates", "spread", "drawn") and maps.about["spread"] == "samples"
    assert "drawn in 4 steps, random order, 3 samples" in maps.about["decoding"]
    np.testing.assert_allclose(maps.genes(ALL), of_section.rates_NxG, rtol=1.1 * 2.0 ** -(KEPT_BITS + 1))
    np.testing.assert_array_equal(maps.genes(ALL, "drawn"), samples.counts_SxNxg[0])
    apart = maps.genes(ALL, "spread") / maps.genes(ALL)
    expected = np.sqrt(of_section.between_NxG) / of_section.rates_NxG
    np.testing.assert_allclose(apart, expected, rtol=2e-3, atol=1e-3)
    assert expected.max() > 0.02 and samples.counts_SxNxg[0].sum() > 100


def test_without_uncertainty_one_sample_is_drawn(reader, slide, maps, tmp_path):
    asked = dataclasses.replace(ASKED, spread=False, steps=dataclasses.replace(STEPS, samples=1))
    found = predict_slide(reader, slide, tmp_path / "b.maps", asked, say=str)
    assert found.arrays == ("rates", "drawn")
    np.testing.assert_array_equal(found.genes(ALL, "drawn"), maps.genes(ALL, "drawn"))  # whatever others there are
    refused(lambda: found.gene("GENE1", "spread"), "holds no spread")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [3, 11])
def test_killed_and_started_again_it_ends_with_the_same_bits(reader, slide, maps, tmp_path, monkeypatch, at):
    out, calls, add = tmp_path / "c.maps", [], SlideSteps._add

    def counted(work, written, *rest):
        calls.append(written.window)
        if len(calls) == at:
            raise Killed
        add(work, written, *rest)

    monkeypatch.setattr(SlideSteps, "_add", counted)
    with pytest.raises(Killed):
        predict_slide(reader, slide, out, ASKED, say=str)
    refused(lambda: MapStore(out), "its prediction has not ended")
    other = dataclasses.replace(ASKED, steps=dataclasses.replace(STEPS, seed=3))
    refused(lambda: predict_slide(reader, slide, out, other, say=str), "was begun there with steps")
    kept = sorted((out / "steps" / "contents").glob("*.npz"))
    kept[0].write_bytes(kept[0].read_bytes()[:50])  # as a crash of the machine leaves it
    predict_slide(reader, slide, out, ASKED, say=str)
    assert content(out) == content(maps.folder) and not (out / "steps").exists()
    windows = len(set(calls))
    assert len(calls) < 1.5 * windows  # most are not written again


class FakeWriter:
    """Says nothing of any bin, at once."""

    def __init__(self, predictor, cover, plan: WritingPlan, steps: Steps, log_depth: float):
        self._plan, self._samples = plan, steps.samples

    def write(self, windows, batch, contents, genes_g, keep, genes_of):
        for window in windows:
            number_n = np.flatnonzero(self._plan.window_N == window)
            own, nothing = Placed(number_n, number_n, np.ones(len(number_n))), np.zeros((len(number_n), len(PANEL)))
            for sample in range(self._samples):
                contents.put(sample, number_n, np.zeros((len(number_n), 1)))
                keep(Sample(window, sample, own, nothing, nothing))
            yield Written(window, own, nothing + 1, nothing)


class FakeMaps:
    def read(self, run, name):
        return np.zeros((1, len(PANEL)), np.float32)

    def write(self, run, values): ...


@pytest.mark.parametrize(
    ("width_um", "height_um", "rows"),
    [pytest.param(430.0, 330.0, 4, marks=pytest.mark.slow), (520.0, 260.0, 5)],
)
def test_a_process_that_died_does_not_stop_another(reader, tmp_path, monkeypatch, width_um, height_um, rows):
    """Killed anywhere in a batch, which is written again as a whole: what it reads is still there, whoever goes on."""
    picture = np.full((round(height_um * 2), round(width_um * 2), 3), 200, np.uint8)
    slide = write_pyramid(tmp_path / "slide.ome.tif", picture, ome=True, px_per_cm=20_000)
    with opened_section(slide, None, genes=len(PANEL), say=str) as section:
        cover = reader.tissue_cover(section, None, tissue="virtual", bin_um=None, overlap=0.5)
    plan = SlidePlan.of(cover, rows)
    monkeypatch.setattr(cover, "batches", lambda rows, numbers: [(numbers, None)])
    monkeypatch.setattr("tario_jax.predict.slide_steps.Writer", FakeWriter)
    add = SlideSteps._add

    def work(folder) -> SlideSteps:
        return SlideSteps(reader, plan, STEPS, folder, FakeMaps(), rows=rows, total_N=np.ones(len(cover)), spread=True)

    def written_until(at, folder) -> None:
        calls = []

        def counted(self, *rest):
            add(self, *rest)
            calls.append(rest)
            if len(calls) == at:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(SlideSteps, "_add", counted)
            work(folder).run()

    windows = work(tmp_path / "all").windows
    for at in range(2, windows, 5):
        written_until(at, tmp_path / f"{at}")
        assert work(tmp_path / f"{at}").run(((1, 2), (0, 2), (2, 3))[at % 3])
        shutil.rmtree(tmp_path / f"{at}")


def test_processes_share_it(reader, slide, maps, tmp_path):
    """In the middle of the first, another does all that is left."""
    out, begun = tmp_path / "d.maps", []

    def first(done) -> None:
        if done.what == "write" and not begun:
            begun.append(done.windows)
            predict_slide(reader, slide, out, dataclasses.replace(ASKED, part=(1, 2)), say=str)

    with pytest.MonkeyPatch.context() as patch:
        clock = iter(range(10_000))
        patch.setattr("tario_jax.predict.slide_job.time.monotonic", lambda: float(next(clock)) * 2)
        predict_slide(reader, slide, out, dataclasses.replace(ASKED, part=(0, 2)), say=str, progress=first)
    assert begun and content(out) == content(maps.folder)


def test_what_nobody_waits_for_is_let_go(reader, tmp_path, monkeypatch):
    """From the top of a slide to its bottom."""
    kept, out = [], tmp_path / "e.maps"
    picture = tiny_section("slide", "P", 5, width_um=440.0, height_um=500.0).he
    slide = write_pyramid(tmp_path / "slide.ome.tif", picture, ome=True, px_per_cm=20_000)
    add = SlideSteps._add

    def counted(work, *rest):
        kept.append([len(list((out / "steps" / name).glob("*.npz"))) for name in ("contents", "said")])
        add(work, *rest)

    monkeypatch.setattr(SlideSteps, "_add", counted)
    monkeypatch.setattr("tario_jax.predict.map_store.Slots.of_rows.__func__.__defaults__", (17,))
    found = predict_slide(reader, slide, out, ASKED, say=str)
    contents, said = np.array(kept).max(0)
    assert len(found.slots) > 10 and len(kept) > 40
    assert contents < 0.5 * len(kept) and said < 0.5 * len(kept)


def test_what_cannot_be_written_is_refused(reader, predictor, slide, tmp_path):
    def asked(steps, predictor=reader, **more):
        with contextlib.suppress(FileNotFoundError):
            return refused(lambda: predict_slide(predictor, slide, tmp_path / "f.maps", dataclasses.replace(
                ASKED, steps=steps, **more), say=str))  # fmt: skip

    assert "one step writes nothing" in asked(Steps(1))
    assert "larger bins" in asked(Steps(4, order="resolutions"))
    assert "between two samples" in asked(Steps(4, samples=1))
    assert "trained one-shot" in asked(STEPS, predictor)
    assert not (tmp_path / "f.maps").exists()
