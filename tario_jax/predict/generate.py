"""Generation of a section in K steps: samples, each with an order of writing and draws of its own, around the rates."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.stored_section import Section
from tario_jax.predict.cover import Placed
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.tissue import ImageSection
from tario_jax.predict.writing import LEAST_MEAN, Sample, Steps, Writer, WritingPlan, log_depth_of


class Samples(NamedTuple):
    """What each of S samples says of g genes at N places; a sample is of the whole section."""

    rates_SxNxg: np.ndarray  # float32
    counts_SxNxg: np.ndarray  # float32, as they were drawn and written
    moved_Nxg: np.ndarray  # float32: the mean over samples of their rates as they were drawn, over one-shot's


def generate_section(
    predictor: Predictor, section: Section | ImageSection, steps: Steps, *, tissue: str, bin_um: float | None = None,
    overlap: float = 0.5, genes: np.ndarray | None = None, progress: Callable[[int, int], None] | None = None,
) -> tuple[GeneMaps, Samples]:  # fmt: skip
    """Gene maps of a section from its H&E, its bins written in steps; `predict_section`'s with K = 1.

    The rates are those of one-shot prediction. A sample's are these times by how much what the model says of a bin when
    its turn comes differs from what it says from the H&E alone, over the mean of that over samples: a mean over
    contents that were drawn from the model knows no more of the patient, and what it moves by is drift. One sample
    alone has nothing to be held against and keeps its own. `between_NxG` is the variance between samples, None for one
    sample. genes: positions of those whose samples are kept; none by default.

    A sample is of the whole section: each bin is drawn once, in the window in whose middle it lies most (or the larger
    bin of which it is a part), and windows that overlap come one after the other, each with the contents that the
    others have written. All of it is as deep as one-shot prediction says the section is, which the model is told. No
    array of all samples and genes is ever made.

    Orders and draws are from Philox keyed by (seed, section, window, sample): how windows are batched does not matter.
    Raises `InputError` where the model was trained to read no contents (every K of data.groups is 1) and K is not 1,
    and where larger bins are to be written first that it does not know.
    """
    if not steps.one_shot:
        refuse_one_shot(predictor, "generation in steps")
    chosen_g = np.asarray([] if genes is None else genes, np.int32)
    cover = predictor.cover(section, tissue=tissue, bin_um=bin_um, overlap=overlap, turned=True, coarse=steps.coarse)
    held: list[Placed] = []
    blend = predictor.blended(cover, progress if steps.one_shot else None, held)
    is_bin_N = cover.places.scale_N == cover.places.scale_N.max() if steps.coarse else np.ones(len(cover), bool)
    maps = predictor.maps(cover, blend, tissue, asked_N=is_bin_N)
    of_places = (len(maps.rates_NxG), len(chosen_g))
    of_samples = (np.zeros((steps.samples, *of_places), np.float32) for _ in range(2))
    samples = Samples(*of_samples, np.ones(of_places, np.float32))
    if steps.one_shot:
        between_NxG = None if steps.samples == 1 else np.zeros_like(maps.rates_NxG)
        samples.rates_SxNxg[...] = maps.rates_NxG[:, chosen_g]
        for sample in range(steps.samples):
            key = [steps.seed, cover.section_key]
            rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, sample]))
            samples.counts_SxNxg[sample] = rng.poisson(samples.rates_SxNxg[sample])
        return dataclasses.replace(maps, between_NxG=between_NxG), samples
    plan = WritingPlan(cover, held, steps)
    mean_NxG, between_NxG = np.ones_like(maps.rates_NxG), np.zeros_like(maps.rates_NxG)
    contents = _InMemory(steps.samples, len(cover), predictor.provenance.config.model.width)
    bins, genes_all = maps.rates_NxG.shape
    log_depth = log_depth_of(maps.rates_NxG.sum(1, dtype=np.float64), maps.size_um)
    writer, done = Writer(predictor, cover, plan, steps, log_depth), 0

    def keep(sample: Sample) -> None:
        counted_n = sample.own.number_n < bins  # larger bins are no places of the maps
        number_n = sample.own.number_n[counted_n]
        samples.counts_SxNxg[sample.number, number_n] = sample.counts_nxg[counted_n]
        alone_nxg = maps.rates_NxG[np.ix_(number_n, chosen_g)]
        samples.rates_SxNxg[sample.number, number_n] = sample.share_nxg[counted_n] * alone_nxg

    for turn in plan.turns:
        for windows, batch in cover.batches(predictor.rows, numbers=turn):
            for written in writer.write(windows, batch, contents, chosen_g, keep):
                counted_n = written.own.number_n < bins
                number_n = written.own.number_n[counted_n]
                mean_NxG[number_n] = np.maximum(written.mean_nxG[counted_n, :genes_all], LEAST_MEAN)
                between_NxG[number_n] = maps.rates_NxG[number_n] ** 2 * written.between_nxG[counted_n, :genes_all]
            done += len(windows)
            if progress is not None:
                progress(done, plan.windows)
    samples.moved_Nxg[...] = mean_NxG[:, chosen_g]
    if steps.samples == 1:
        return dataclasses.replace(maps, decoding=str(steps)), samples
    samples.rates_SxNxg[...] /= samples.moved_Nxg
    return dataclasses.replace(maps, between_NxG=between_NxG / mean_NxG**2, decoding=str(steps)), samples


class _InMemory:
    """Contents of all places of a section."""

    def __init__(self, samples: int, places: int, width: int):
        self._content_SxNxd = np.zeros((samples, places, width), np.float32)

    def of(self, sample: int, number_n: np.ndarray) -> np.ndarray:
        return self._content_SxNxd[sample, number_n]

    def put(self, sample: int, number_n: np.ndarray, content_nxd: np.ndarray) -> None:
        self._content_SxNxd[sample, number_n] = content_nxd


def refuse_one_shot(predictor: Predictor, what: str) -> None:
    """Raises `InputError` for a model that never learnt to read contents."""
    data = predictor.provenance.config.data
    if data.one_shot:
        raise InputError(f"{what}: the model of {predictor.provenance.config.name!r} was trained one-shot, data.groups "
                         f"= {data.groups}, and reads no contents; train with a K other than 1 there")  # fmt: skip
