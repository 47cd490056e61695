"""What is trained, on what, where: a config met with a corpus and the devices that are here."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from tario_jax.config import Config
from tario_jax.corpus.feature_grid import common_card
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import Split, split_corpus
from tario_jax.corpus.stored_section import coarser_he
from tario_jax.model.build import Built, Tree, build_of, model_sizes
from tario_jax.model.decoder import choose_attention, compute_dtype
from tario_jax.parallel.hosts import refuse_different
from tario_jax.parallel.mesh import check_host_memory, check_rows, local_rows, make_mesh, traced_on
from tario_jax.tokens.batch import Batch, Layout, batch_bytes
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.deal import check_tiles
from tario_jax.tokens.hidden import as_trained
from tario_jax.tokens.pipeline import BatchSource, load_batches, trained_bin_um, trained_sides_um
from tario_jax.train.frozen import trained_parameters
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.provenance import Provenance
from tario_jax.train.stability import Stability
from tario_jax.train.state import TrainState, abstract_batch, abstract_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained, on what, where."""

    config: Config
    split: Split
    layout: Layout
    provenance: Provenance
    mesh: Mesh
    built: Built
    optimiser: optax.GradientTransformation
    trained: Tree | None  # see frozen.py

    @classmethod
    def of(cls, config: Config, corpus: Corpus) -> "Run":
        """Raises `InputError` where the config does not fit the corpus or the devices."""
        he_alone, config = config.train.learns == "he", as_trained(config)
        split = split_corpus(corpus, config.split, he_alone=he_alone)
        layout = corpus_layout(split.train + split.validation, config.data, len(corpus.panel))
        card = None
        if config.data.frozen_encoder:
            with_he = [section for side in (split.train, split.validation, split.held_out) for section in side
                       if section.holds("he")]  # fmt: skip
            card = common_card(with_he, config.data.frozen_encoder)
        provenance = Provenance(
            config, corpus.panel, corpus.seal, corpus.kind, split.by,
            tuple(s.id for s in split.train), tuple(s.id for s in split.held_out), layout,
            tuple(sorted({s.patient for s in split.train + split.validation})),
            trained_bin_um(split.train, config.data), validation=tuple(s.id for s in split.validation),
            train_patients=tuple(sorted({s.patient for s in split.train})), frozen_card=card,
            sides_um=trained_sides_um(split.train, config.data),
        )  # fmt: skip
        mesh = make_mesh(config.mesh)
        check_rows(mesh, config.data.rows, config.train.accumulate)
        check_tiles(layout.tiles, mesh.shape["context"])
        check_host_memory(jax.local_devices(), config.model.remat)
        built = build_of(config, len(corpus.panel), layout.frozen_features)
        trained = trained_parameters(built, config.start)
        optimiser = make_optimiser(config.optim, config.train.steps, built, trained)
        return cls(config, split, layout, provenance, mesh, built, optimiser, trained)

    def started(self, origin: dict[str, Any] | None) -> "Run":
        """The run whose step 0 took `origin`, a checkpoint as its provenance describes it (None: its seed)."""
        return dataclasses.replace(self, provenance=self.provenance.started(origin))

    def resumed(self, found: Provenance) -> "Run":
        """The run that goes on from a checkpoint of its own, as its provenance describes it."""
        run = self.started(found.started_from)
        return dataclasses.replace(run, provenance=run.provenance.resumed(found))

    @property
    def abstract(self) -> TrainState:
        return abstract_state(self.built, self.optimiser, self.mesh, Stability.of(self.config))

    @property
    def abstract_batch(self) -> Batch:
        return abstract_batch(self.config.data.rows, self.layout, self.mesh)

    @property
    def dtype(self):
        return traced_on(self.mesh, compute_dtype)(self.config.model)

    def train_step(self):
        return make_train_step(self.built, self.optimiser, self.mesh, self.config.train.accumulate,
                               Stability.of(self.config), self.trained)  # fmt: skip

    def batches(self, first: int, passed: int, say: Callable[[str], None]) -> Iterator[Batch]:
        """Those of the steps from `first` on, `passed` batches further than their numbers."""
        data = self.config.data
        source = BatchSource(self.split.train, data, self.layout, steps=self.config.train.steps + passed,
                             rows=local_rows(self.mesh, data.rows))  # fmt: skip
        return load_batches(source, first=first + passed, prefetch=data.prefetch, workers=data.workers, say=say)

    def refuse_different(self, first: int | None) -> None:
        of_run = zlib.crc32(json.dumps(self.provenance.to_json(), sort_keys=True).encode()) >> 1
        refuse_different({
            "the config, the corpus or the code": of_run,
            "the newest checkpoint of --workdir": -1 if first is None else first,
        })  # fmt: skip

    def describe(self, say: Callable[[str], None]) -> None:
        config, layout, genes = self.config, self.layout, len(self.provenance.panel)
        bins = layout.tiles * layout.bins_per_tile
        seen = layout.tiles * layout.patches_per_tile + (bins if config.writes_contents else 0)
        rows = config.data.rows // config.train.accumulate
        attention = traced_on(self.mesh, choose_attention)(config.model, rows, seen, bins)
        say(
            f"{config.name}: {model_sizes(config, genes, layout.frozen_features)}; {genes} genes; a row holds "
            f"{layout.windows_per_row} windows = {seen} tokens and {bins} queries; {config.data.rows} rows a step; "
            f"attention: {attention}; mesh {dict(self.mesh.shape)} of {jax.devices()[0].device_kind}"
        )
        held = max(config.data.workers, 1) * config.data.prefetch + 1
        of_bytes = batch_bytes(len(local_rows(self.mesh, config.data.rows)), layout)
        say(
            f"batches of {of_bytes / 1e6:.1f} MB a process, made by "
            + (f"{config.data.workers} workers" if config.data.workers else "threads")
            + f": {held} are held, {held * of_bytes / 1e6:.0f} MB"
        )
        for line in self.split.described():
            say(line)
        if warning := coarser_he(self.split.train, config.data.he_um_per_px):
            say(warning)
