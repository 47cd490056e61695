"""Rates of every gene from the H&E alone, for a section or an image, blended over windows."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from tario_jax.config import BATCH_AXES, DataConfig, InputError, MeshConfig
from tario_jax.corpus.stored_section import Section
from tario_jax.model.build import Built, build_of
from tario_jax.model.model import Tario
from tario_jax.parallel.mesh import make_mesh, traced_on
from tario_jax.predict.cover import Blend, Cover, Placed
from tario_jax.predict.frozen_card import make_ready
from tario_jax.predict.gene_validation import FILE as VALIDATION
from tario_jax.predict.gene_validation import GeneValidation, read_gene_validation
from tario_jax.predict.maps import ONE_SHOT, GeneMaps
from tario_jax.predict.slide import SlideSection
from tario_jax.predict.slide_plan import TissueCover, TissuePlaces
from tario_jax.predict.squares import SquareCover, SquarePlaces
from tario_jax.predict.tissue import ImageSection
from tario_jax.predict.tissue_mask import TissueMask
from tario_jax.tokens.batch import Batch
from tario_jax.train.checkpoint import Checkpoints, find_checkpoint
from tario_jax.train.provenance import Provenance
from tario_jax.train.seal import checkpoint_id
from tario_jax.train.state import to_devices


class Predictor:
    """A trained model, ready to predict. Made by `load`."""

    def __init__(self, provenance: Provenance, parameters, calibration, *, checkpoint: str = "",
                 allow_virtual_model: bool = False):  # fmt: skip
        """checkpoint: tells these parameters from all others."""
        self.provenance = provenance
        self.checkpoint = checkpoint
        self.validation: GeneValidation | None = None  # goes along with every map
        self.panel = provenance.panel
        self.allow_virtual_model = allow_virtual_model
        self.built = _built(provenance)
        self.mesh = _prediction_mesh(self.built)
        self._shardings = self.built.shardings(self.mesh)
        self.parameters, self.calibration = jax.device_put((parameters, calibration), self._shardings)
        self._compiled: dict[Callable, Callable] = {}

    def of_step(self, parameters, calibration, checkpoint: str) -> "Predictor":
        """Another checkpoint of the same run, predicting with what is compiled already."""
        other = copy.copy(self)
        other.checkpoint, other.validation = checkpoint, None
        other.parameters, other.calibration = jax.device_put((parameters, calibration), self._shardings)
        return other

    @property
    def trained_on(self) -> str:
        """Kind of tissue that the model learnt from: virtual or real."""
        return self.provenance.trained_on

    @property
    def training_stain(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the stain densities of training windows, float [3] each.

        Raises `InputError` for a model that began from H&E alone: its windows were drawn from everywhere, glass too.
        Checkpoints of older versions do not tell it.
        """
        if any(start.get("learns") == "he" for start in self.provenance.starts):
            raise InputError("--stain=training: this model began from H&E alone, and its mean stain is of glass too; "
                             "name a slide whose stain is to be taken (--stain=IMAGE)")  # fmt: skip
        encoder = self.calibration["he_encoder"]
        return np.asarray(encoder["density_mean"], np.float64), np.asarray(encoder["density_scale"], np.float64)

    def predict(
        self, image: np.ndarray, um_per_px: float, *, bin_um: float | None = None, tissue: str = "real",
        overlap: float = 0.5, force: bool = False, progress: Callable[[int, int], None] | None = None,
    ) -> GeneMaps:  # fmt: skip
        """Gene maps of an H&E image.

        image: uint8 RGB [H, W, 3]; um_per_px: its scale, 0.1 to 1.2 unless `force`; bin_um: side of the bins, that of
        training by default; tissue: "real", or "virtual" for an image of virtual tissue. An image is real tissue unless
        it is said to be virtual, and a model of virtual tissue predicts real tissue only if it was loaded with
        allow_virtual_model=True; progress(done, all) is called as windows are predicted. Raises `InputError`.
        """
        section = ImageSection(image, um_per_px, genes=len(self.panel), force=force)
        return self.predict_section(section, tissue=tissue, bin_um=bin_um, overlap=overlap, progress=progress)

    def predict_section(
        self, section: Section | ImageSection, *, tissue: str, bin_um: float | None = None, overlap: float = 0.5,
        progress: Callable[[int, int], None] | None = None, one_of_many: bool = False,
    ) -> GeneMaps:  # fmt: skip
        """Gene maps of a section of the corpus (its spots where it has some, else square bins) from its H&E alone.

        A place that several windows hold gets their mean, weighed towards the middle of a window. one_of_many: others
        of about its size are predicted too, for which a program for a last batch of fewer rows pays.
        """
        cover = self.cover(section, tissue=tissue, bin_um=bin_um, overlap=overlap, turned=True)
        return self.maps(cover, self.blended(cover, progress, shares=self.parts if one_of_many else 0), tissue)

    def predict_squares(
        self, section: Section | ImageSection, x_um_N: np.ndarray, y_um_N: np.ndarray, side_um_N: np.ndarray, *,
        tissue: str, overlap: float = 0.5, progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Expected detections of every gene in squares of any side around any places, float32 [N, G].

        A query carries its place and its size, so each square is one query; no two may have the same centre. Raises
        `InputError` as `predict_section`.
        """
        data = self._data(section, tissue, overlap)
        places = SquarePlaces(section, x_um_N, y_um_N, side_um_N, data)
        cover = SquareCover(section, data, len(self.panel), overlap=overlap, places=places, turned=data.turn,
                            frozen_features=self.provenance.layout.frozen_features)  # fmt: skip
        return _whole(section, self.blended(cover, progress), np.ones(len(cover), bool))

    def blended(self, cover: Cover, progress: Callable[[int, int], None] | None = None,
                held: list[Placed] | None = None, shares: int = 0) -> Blend:  # fmt: skip
        """Rates of all places of a cover, from the H&E at once. held: gets what each window holds, window by window;
        shares: as `Cover.batches`."""
        blend = Blend(len(cover), len(self.panel))
        for windows, batch in cover.batches(self.rows, shares=shares):
            if cover.data.coarse_um:  # the bins of a later scale would read contents that nobody has written
                batch = batch._replace(bin_step_BxTxN=np.ones_like(batch.bin_step_BxTxN))
            rates_BxQxG = np.asarray(self.call(Tario.rates, self.placed_on_devices(batch)))
            for row, window in enumerate(windows):
                placed = cover.placed(batch, row, window)
                blend.add(placed, rates_BxQxG[row])
                if held is not None:
                    held.append(placed)
            if progress is not None:
                progress(windows[-1] + 1, len(cover.corners))
        return blend

    def cover(
        self, section: Section | ImageSection, *, tissue: str, bin_um: float | None, overlap: float,
        count_capacity: int = 1, turned: bool = False, coarse: bool = False, he: bool = True,
    ) -> Cover:  # fmt: skip
        """The windows of a section; turned: in different turns, if the model saw tissue turned in training.

        coarse: with the larger bins that training wrote first; he: whether the H&E, and its stored features, are read.

        Raises `InputError` for what may not, or cannot, be predicted.
        """
        data = self._data(section, tissue, overlap, he)
        if bin_um is not None and section.has_spots:
            raise InputError(f"{section.id}: is measured in spots, which are predicted as they are; leave out bin_um")
        data = data if bin_um is None else dataclasses.replace(data, bin_um=bin_um)
        if coarse:
            data = self._with_coarse(section, data)
        return Cover(section, data, len(self.panel), overlap=overlap, count_capacity=count_capacity,
                     frozen_features=self.provenance.layout.frozen_features, turned=turned and data.turn,
                     coarse=coarse)  # fmt: skip

    def tissue_cover(self, section: SlideSection, mask: TissueMask | None, *, tissue: str, bin_um: float | None,
                     overlap: float) -> TissueCover:  # fmt: skip
        """The windows of a slide that hold tissue, in different turns, if the model saw tissue turned in training.

        mask: None for all of the slide. Raises `InputError` for what may not, or cannot, be predicted.
        """
        data = self._data(section, tissue, overlap)
        data = data if bin_um is None else dataclasses.replace(data, bin_um=bin_um)
        return TissueCover(section, data, len(self.panel), overlap=overlap, places=TissuePlaces(section, data, mask),
                           turned=data.turn, frozen_features=self.provenance.layout.frozen_features)  # fmt: skip

    def _with_coarse(self, section: Section | ImageSection, data: DataConfig) -> DataConfig:
        trained = self.provenance.config
        if not trained.data.coarse_um:
            raise InputError(f"coarse bins: the model of {trained.name!r} knows none; train with data.coarse_um")
        if section.has_spots:
            raise InputError(f"coarse bins: {section.id} is measured in spots, which are parts of no larger bins")
        if data.bin_um not in trained.data.trained_bins_um:
            raise InputError(f"coarse bins: are of bins of {data.bin_um:g} µm here, and were learnt with "
                             f"{trained.data.bin_um:g} µm; leave out bin_um")  # fmt: skip
        return dataclasses.replace(data, coarse_um=trained.data.coarse_um)

    def refuse_tissue(self, name: str, tissue: str) -> None:
        """Raises `InputError` where the model may not be asked about tissue of this kind."""
        if tissue not in ("virtual", "real"):
            raise InputError(f"tissue is {tissue!r}; expected 'virtual' or 'real'")
        if self.trained_on == "virtual" and tissue == "real" and not self.allow_virtual_model:
            raise InputError(
                f"{name}: is real tissue, and this model was trained on virtual tissue and knows no biology; "
                "use --allow-virtual-model (allow_virtual_model=True) if you only want to see it run"
            )

    def _data(self, section: Section | ImageSection, tissue: str, overlap: float, he: bool = True) -> DataConfig:
        """The data config of prediction. Raises `InputError` for what the model may not be asked."""
        self.refuse_tissue(section.id, tissue)
        if not 0 <= overlap < 1:
            raise InputError(f"overlap of windows is {overlap:g}; expected 0 <= overlap < 1")
        if he and (card := self.provenance.frozen_card) is not None:
            make_ready(section, card)
        return self.provenance.config.data.of_one_scale(bin_um=self.provenance.bin_um, bin_mixture=())

    def call(self, function: Callable, *arguments):
        """`function(model, *arguments)` on the devices; compiled once a shape, also for other steps of the run."""
        if function not in self._compiled:

            def of_model(parameters, calibration, *arguments):
                return function(self.built.merge(parameters, calibration), *arguments)

            self._compiled[function] = jax.jit(traced_on(self.mesh, of_model))
        return self._compiled[function](self.parameters, self.calibration, *arguments)

    def call_on(self, function: Callable, batch: Batch, *arguments):
        """`function(model, batch, *arguments)`, where the batch lies on the host."""
        return self.call(function, self.placed_on_devices(batch), *arguments)

    def placed_on_devices(self, batch: Batch) -> Batch:
        """A batch whose rows lie on the devices, as `call` takes it."""
        return to_devices(batch, self.mesh)

    def maps(self, cover: Cover, blend: Blend, tissue: str, *, asked_N: np.ndarray | None = None,
             decoding: str = ONE_SHOT) -> GeneMaps:  # fmt: skip
        """Blended rates of a cover as gene maps, of all its places or of those that were asked.

        Raises `InputError` where rates are no numbers, or a place has none.
        """
        section, places = cover.section, cover.places
        asked_N = np.ones(len(cover), bool) if asked_N is None else asked_N
        rates_NxG = _whole(section, blend, asked_N)
        names = section.seal["record"]["spot_names"] if section.has_spots else ()  # not their counts
        names = tuple(name for name, asked in zip(names, asked_N, strict=False) if asked)
        # what was validated is the prediction from the H&E at once
        validation = self.validation if decoding == ONE_SHOT else None
        return GeneMaps(section.id, self.panel, places.x_um_N[asked_N], places.y_um_N[asked_N], places.size_um,
                        rates_NxG, section.he_full_um_per_px, self.trained_on, tissue, names, section.he_origin_px,
                        decoding, validation=validation)  # fmt: skip

    @property
    def rows(self) -> int:
        """Rows of a batch: those of training, a multiple of the devices' shares."""
        return max(self.parts, self.provenance.config.data.rows // self.parts * self.parts)

    @property
    def parts(self) -> int:
        """Shares of a batch, one a device."""
        return int(np.prod([self.mesh.shape[axis] for axis in BATCH_AXES]))


def load(path: Path | str, *, allow_virtual_model: bool = False) -> Predictor:
    """The newest checkpoint of a workdir as a `Predictor`. Raises `InputError` where there is none."""
    return load_step(*find_checkpoint(path), allow_virtual_model=allow_virtual_model)


def load_step(
    workdir: Path, step: int, *, allow_virtual_model: bool = False, like: Predictor | None = None
) -> Predictor:
    """A certain checkpoint, which is whole. like: one of the same run, whose compiled program is used again."""
    with Checkpoints(workdir) as checkpoints:
        provenance = checkpoints.provenance(step)
        if provenance.config.train.learns == "he":
            raise InputError(f"{workdir}: step {step} learnt from H&E alone (train.learns=he) and knows no gene; start "
                             f"a run from it (--config.start.checkpoint={workdir}), and predict with that")  # fmt: skip
        built = _built(provenance)
        parameters, calibration = checkpoints.model(step, built, _prediction_mesh(built))
    checkpoint = checkpoint_id(workdir, step)
    if like is not None and like.provenance == provenance:
        predictor = like.of_step(parameters, calibration, checkpoint)
    else:
        predictor = Predictor(provenance, parameters, calibration, checkpoint=checkpoint,
                              allow_virtual_model=allow_virtual_model)  # fmt: skip
    with contextlib.suppress(InputError, FileNotFoundError):  # a broken one validates nothing, and is written anew
        found = read_gene_validation(workdir / VALIDATION)
        if found.about["checkpoint"] == checkpoint:  # else it is that of an earlier step
            predictor.validation = found
    return predictor


def _whole(section: Section | ImageSection, blend: Blend, asked_N: np.ndarray) -> np.ndarray:
    """Blended rates of the places that were asked. Raises `InputError` where one has none, or they are no numbers."""
    unseen = int((asked_N & ~blend.seen_N).sum())
    if unseen:
        raise InputError(f"{section.id}: {unseen} places lie in no window; lower the overlap")
    rates_NxG = blend.mean() if asked_N.all() else blend.mean()[asked_N]
    if not np.isfinite(rates_NxG).all():
        raise diverged(section.id)
    return rates_NxG


def diverged(section: str) -> InputError:
    """What is told where a model's rates of a section are not numbers."""
    return InputError(f"{section}: the model's rates are not numbers: its training diverged; see its metrics.jsonl, "
                      "and train again with a lower optim.learning_rate")  # fmt: skip


def _built(provenance: Provenance) -> Built:
    """The model of a checkpoint as it is read, with the kernel that it was trained with only where there is one: its
    numbers are those of plain XLA."""
    config = provenance.config
    if config.model.attention == "pallas":  # which refuses where it cannot be had; auto takes it where it can
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="auto"))
    return build_of(config, len(provenance.panel), provenance.layout.frozen_features, provenance.only_um)


def _prediction_mesh(built: Built, devices: list[jax.Device] | None = None) -> Mesh:
    """All devices that are here, whatever the mesh of training was: the most over fsdp that divide every parameter."""
    count = len(jax.devices() if devices is None else devices)
    for fsdp in (size for size in range(count, 0, -1) if count % size == 0):
        try:
            mesh = make_mesh(MeshConfig(replica=-1, fsdp=fsdp), devices)
            built.shardings(mesh)
            return mesh
        except InputError:
            if fsdp == 1:
                raise
