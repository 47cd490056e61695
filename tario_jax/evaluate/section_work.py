"""The work of an evaluation section by section: each piece is kept under a key of everything that it depends on, and
several processes may share it."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Generator

import numpy as np

from tario_jax.config import EvaluateConfig
from tario_jax.evaluate.blas import one_thread
from tario_jax.evaluate.controls import (
    Controls,
    Fitting,
    controls_from_arrays,
    controls_to_arrays,
    fit_controls,
    fit_density,
)
from tario_jax.evaluate.kept import Arrays, Kept, by_turns, key_of
from tario_jax.evaluate.moments import Measured, measure
from tario_jax.evaluate.ranking import standing
from tario_jax.evaluate.ridge import Spread
from tario_jax.evaluate.section_bins import SectionSource
from tario_jax.evaluate.section_scores import Plan, score_controls, score_measurement, score_model, totals_of

_READ_AT_ONCE = 4  # sections: numpy and scipy let other threads work, and so do the reads
_SCORED_AT_ONCE = 2  # each with rates of all genes in all its bins, where the truth is known
_VERSION = 5  # of what is kept: another one is worked out anew


@dataclasses.dataclass(frozen=True)
class Work:
    """How the work is shared and kept. With defaults: alone, and nothing is kept.

    shared: what does not depend on the model, for all evaluations on the same corpus; own: what does. part: (k, n) for
    the k-th of n processes that share both folders: each begins with its own sections and then helps the others.
    """

    shared: Kept = Kept(None)
    own: Kept = Kept(None)
    part: tuple[int, int] = (1, 1)
    say: Callable[[str], None] = lambda line: None


ALONE = Work()


def ranking_standings(sections: list[SectionSource], standings: dict[str, Arrays], config: EvaluateConfig,
                       work: Work) -> list[Arrays]:  # fmt: skip
    """Those on which genes are ranked: of other bins, where the sections have some for that."""
    apart = [section.ranked for section in sections if section.ranked is not None]
    known = standings | standings_of(apart, config, work)
    return [known[section.section_id] for section in sections]


def standings_of(sections: list[SectionSource], config: EvaluateConfig, work: Work) -> dict[str, Arrays]:
    """How the genes of the whole panel stand in each section."""

    def one(source: SectionSource) -> Arrays:
        def make() -> Arrays:
            section = source.measured()
            every = np.arange(section.counts.shape[1])
            measured = measure(section.counts, section.measured_gene_P, every, section.least_total(config.min_total))
            return standing(measured, *section.where)

        key = key_of(of="standing", version=_VERSION, section=source.key, min_total=config.min_total)
        return work.shared.get(f"standing/{source.section_id}", key, make)

    return _each("measure", sections, one, work, _at_once(sections, _READ_AT_ONCE))


def _at_once(sections: list[SectionSource], most: int) -> int:
    """How many of them are worked on side by side."""
    return 1 if any(source.large for source in sections) else min(most, os.cpu_count() or 1)


def _each(what: str, sections: list[SectionSource], one: Callable[[SectionSource], Arrays], work: Work,
          at_once: int = 1) -> dict[str, Arrays]:  # fmt: skip
    """one(section) of all, in this process's order, some at once; told about five times. In the order of `sections`."""
    found: dict[str, Arrays] = {}
    turns = by_turns(sections, work.part)
    with contextlib.closing(_side_by_side(one, turns, at_once)) as made:
        for number, (source, arrays) in enumerate(zip(turns, made, strict=True), 1):
            found[source.section_id] = arrays
            if number % max(1, len(sections) // 5) == 0 or number == len(sections):
                work.say(f"{what}: {number}/{len(sections)} sections")
    return {source.section_id: found[source.section_id] for source in sections}


def _side_by_side(one: Callable[[SectionSource], Arrays], turns: list[SectionSource], at_once: int,
                  ) -> Generator[Arrays]:  # fmt: skip
    """one(section) of all, in their order. Where one failed, or all is interrupted, no further section begins."""
    if at_once == 1:
        yield from map(one, turns)
        return
    failures: list[BaseException] = []

    def unless_failed(source: SectionSource) -> Arrays:
        if failures:
            raise failures[0]
        try:
            return one(source)
        except BaseException as error:
            failures.append(error)
            raise

    pool = concurrent.futures.ThreadPoolExecutor(at_once)
    try:
        with one_thread():
            yield from pool.map(unless_failed, turns)
    finally:
        pool.shutdown(cancel_futures=True)


def score_sections(fitting: list[SectionSource], kept: list[SectionSource], plan: Plan, split_by: str,
            work: Work) -> tuple[tuple[Arrays, ...], Controls | None]:  # fmt: skip
    """What section_scores finds of each held-out section, and the controls."""
    config = plan.config
    chosen = {name: getattr(plan, name).tolist() for name in ("genes", "in_sets")}
    settings = {name: getattr(config, name) for name in ("min_total", "block_um", "shuffles", "seed")}
    key = key_of(of="scores", version=_VERSION, by_block=plan.by_block, **chosen, **settings)

    def of_measurement(source: SectionSource) -> Arrays:
        own_key = key_of(section=source.key, truth=source.truth_key, plan=key)
        return work.shared.get(f"measurement/{source.section_id}", own_key,
                               lambda: score_measurement(source.measured(), source.truth, plan))  # fmt: skip

    found = _each("truth and noise", kept, of_measurement, work, _at_once(kept, _SCORED_AT_ONCE))
    if fitting:
        key = key_of(plan=key, fitted=[s.key for s in fitting], split_by=split_by)
        arrays = work.shared.get("fitted", key, lambda: controls_to_arrays(_fitted(fitting, plan, split_by, work)))
        plan = dataclasses.replace(plan, controls=controls_from_arrays(arrays))

        def of_controls(source: SectionSource) -> Arrays:
            return work.shared.get(f"controls/{source.section_id}", key_of(section=source.key, plan=key),
                                   lambda: score_controls(source.measured(), plan))  # fmt: skip

        control = _each("controls", kept, of_controls, work, _at_once(kept, _SCORED_AT_ONCE))
        found = {name: arrays | control[name] for name, arrays in found.items()}
    predicted = [source for source in fitting if source.rates is not None]
    totals = _each("density", predicted, lambda source: _total(source, work), work) if predicted else {}
    density = fit_density([(plan.measure(source.measured()), totals[source.section_id]["total"])
                           for source in predicted])  # fmt: skip
    density_key = [source.rates_key for source in predicted] or "of counts alone"

    def of_model(source: SectionSource) -> Arrays:
        def make() -> Arrays:
            rates = None if source.rates is None else source.rates()
            true = found[source.section_id].get("true_rates")
            return score_model(source.measured(), rates, density, true, plan)

        own_key = key_of(section=source.key, truth=source.truth_key, rates=source.rates_key, plan=key,
                         density=density_key)  # fmt: skip
        return work.own.get(f"model/{source.section_id}", own_key, make)

    model = _each("predict", kept, of_model, work)
    return tuple(found[source.section_id] | model[source.section_id] for source in kept), plan.controls


def _total(source: SectionSource, work: Work) -> Arrays:
    """Predicted totals of a training section, over the genes that it measured."""

    def make() -> Arrays:
        return {"total": totals_of(source.measured(), source.rates())}

    return work.own.get(f"total/{source.section_id}", key_of(version=_VERSION, rates=source.rates_key), make)


def _fitted(fitting: list[SectionSource], plan: Plan, split_by: str, work: Work) -> Controls:
    def read(source: SectionSource) -> tuple[Measured, np.ndarray]:
        section = source.measured()
        return plan.measure(section), section.features_NxF

    sections = []
    for source in fitting:
        section = source.measured()
        sections.append(Fitting(
            functools.partial(read, source), Spread.of(section.features_NxF), plan.measure(section).total_N,
            section.nuclear_density_N, source.patient_id if split_by == "patient" else source.section_id,
        ))  # fmt: skip

    def say(done: int) -> None:
        if done % max(1, len(fitting) // 5) == 0 or done == len(fitting):
            work.say(f"fit controls: {done}/{len(fitting)} sections")

    return fit_controls(sections, plan.in_sets, say)
