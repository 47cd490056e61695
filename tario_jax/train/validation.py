"""Loss on fixed windows of the validation sections."""

from collections.abc import Callable

from jax.sharding import Mesh

from tario_jax.config import Config
from tario_jax.corpus.stored_section import Section
from tario_jax.model.build import Built, Tree
from tario_jax.parallel.mesh import local_rows
from tario_jax.tokens.batch import Batch, Layout
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train.state import TrainState, make_loss, to_devices

_STREAM = 1


class Validation:
    """Nats per detection from the H&E alone, as in inference, whatever is trained; None without such sections."""

    def __init__(self, config: Config, sections: list[Section], layout: Layout, built: Built, mesh: Mesh,
                 beat: Callable[[], None]):  # fmt: skip
        self._mesh, self._beat, self._batches = mesh, beat, []
        if sections:
            steps = -(-config.train.validation_rows // config.data.rows)
            # of hidden patches, the groups say which are hidden
            groups = config.data.groups if config.train.learns == "he" else ((1, 1.0),)
            data = config.data.of_one_scale(groups=groups, bin_mixture=(), sequence="window")
            source = BatchSource(sections, data, layout, steps=steps, stream=_STREAM,
                                 rows=local_rows(mesh, config.data.rows), augment=False)  # fmt: skip
            self._batches = [source[t] for t in range(steps)]
            self._loss = make_loss(built, mesh, config.train.accumulate)

    def compile(self, state: TrainState, batch: Batch) -> None:
        """Compiles for arrays like these (abstract) ones."""
        if self._batches:
            parameters = state.average or state.parameters
            self._loss = self._loss.lower(parameters, state.calibration, batch).compile()

    def __call__(self, state: TrainState, goes_on: Callable[[], bool] = lambda: True) -> float | None:
        """Of the parameters' running mean, where there is one: it is what predicts. None where it was broken off,
        because `goes_on()` was False before a batch."""
        if not self._batches:
            return None
        parameters: Tree = state.average or state.parameters
        nats = detections = 0.0
        for batch in self._batches:
            if not goes_on():
                return None
            sums = self._loss(parameters, state.calibration, to_devices(batch, self._mesh))
            nats += float(sums.total_nats) + float(sums.gene_nats)
            detections += float(sums.detections)
            self._beat()
        return nats / max(detections, 1.0)
