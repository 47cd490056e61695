"""Typed configs and their checks. How they are read and overridden: config_files.py."""

import dataclasses
import math
from typing import Literal


class InputError(ValueError):
    """A user's mistake. The message is one line: what, what was found, what was expected, how to mend it."""

    status = 2  # with which a process ends


class Absent(InputError):
    """Something that is to come by itself did not: nobody's mistake, and the same command may do later."""

    status = 75  # EX_TEMPFAIL of sysexits.h


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise InputError(f"config: {message}")


_MAY_BE_INFINITE = ("clip_norm", "hang_minutes")


def _check_numbers(group: object, name: str) -> None:
    """Raises `InputError` where a number of a group is none or infinite, or a seed is no key of Philox."""

    def check(field: str, value: object) -> None:
        if isinstance(value, tuple):
            for item in value:
                check(field, item)
        elif isinstance(value, float):
            _check(math.isfinite(value) or field in _MAY_BE_INFINITE and value == math.inf,
                   f"{name}.{field} is {getattr(group, field)}; expected finite numbers")  # fmt: skip
        elif field == "seed":
            bits = 63 if name == "source" else 32  # the others share a key of Philox with a step
            _check(0 <= value < 2**bits, f"{name}.seed is {value}; expected 0 to 2^{bits} - 1")

    for field in dataclasses.fields(group):
        check(field.name, getattr(group, field.name))


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where the corpus of `tario run` comes from."""

    kind: Literal["virtual", "spots", "corpus"] = "virtual"
    path: str = ""  # of the vendor's files or of a finished corpus; environment variables are expanded
    # virtual; a finished corpus has its own patients: split.train_patients takes so many of them
    train_patients: int = 93
    validation_patients: int = 7
    held_out_patients: int = 30
    cohorts: tuple[str, ...] = ()  # cancer types, by turns; empty: all, as often as they occur
    regions: tuple[str, ...] = ("core", "border")  # of each patient; "large": 2,048 µm of some
    section_um: float = 512.0  # side of core and border
    panel: Literal["whole", "curated"] = "whole"  # 18,963 genes, or those with a known role
    depth: Literal["low", "default", "high"] = "default"  # about 150, 400 or 1,000 transcripts a cell
    seed: int = 0
    workers: int = 2
    # spots
    patients: tuple[tuple[str, str], ...] = ()  # (patient, cohort) by the letters that a section's name starts with
    sections: tuple[str, ...] = ()  # read only these; empty: all
    pitch_um: float = 200.0  # between neighbouring spots of the array
    diameter_um: float = 100.0
    min_spot_total: int = 1  # spots with fewer counts are dropped, and counted
    min_gene_total: int = 1  # genes with fewer counts over all sections are left out of the panel, and counted

    def __post_init__(self):
        _check_numbers(self, "source")
        for name in ("train_patients", "held_out_patients"):
            _check(getattr(self, name) > 0, f"source.{name} is {getattr(self, name)}; expected at least 1")
        _check(
            self.validation_patients >= 0, f"source.validation_patients is {self.validation_patients}; expected >= 0"
        )
        _check(self.section_um >= 128, f"source.section_um is {self.section_um}; expected at least 128")
        _check(self.workers >= 1, f"source.workers is {self.workers}; expected at least 1")
        for name in ("pitch_um", "diameter_um"):
            _check(getattr(self, name) > 0, f"source.{name} is {getattr(self, name)}; expected more than 0")
        for name in ("min_spot_total", "min_gene_total"):
            _check(getattr(self, name) >= 0, f"source.{name} is {getattr(self, name)}; expected at least 0")
        _check(self.kind == "virtual" or bool(self.path), f"source.path is empty; source.kind={self.kind} needs one")
        _check(self.kind != "virtual" or not self.path,
               f"source.path is {self.path!r}, which source.kind=virtual does not read; set source.kind=corpus (or "
               "spots), or leave it out")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Who is on which side. Patients, unless `by="section"` is said out loud: then every result says so.

    With all three lists empty the corpus's own `split.tsv` counts.
    """

    by: Literal["patient", "section"] = "patient"
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    train_patients: int = 0  # only so many of those for training, of each cohort in proportion; 0 = all

    def __post_init__(self):
        _check(self.train_patients >= 0, f"split.train_patients is {self.train_patients}; expected at least 0")


ORDERS = ("raster", "hilbert", "random", "coarse_to_fine")  # in which bins are written (tokens/order.py)
RESOLUTIONS = "resolutions"  # in generation also: the larger bins of data.coarse_um, scale by scale, then the bins
GENERATED_ORDERS = (*ORDERS, RESOLUTIONS)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Windows, bins and batches."""

    bin_um: float = 36.0  # side of the square bins; spots have their own size
    bin_mixture: tuple[
        tuple[float, float], ...
    ] = ()  # (side in µm, weight): drawn per window in training; empty: bin_um
    window_um: float = 288.0
    tile_um: float = 288.0  # tokens of a tile are adjacent
    he_um_per_px: float = 1.0
    patch_px: int = 18
    rows: int = 8  # of the global batch
    windows_per_row: int = 1
    sequence: Literal["window", "patient"] = "window"  # what sees each other: a window, or a row's, all of one patient
    groups: tuple[tuple[int, float], ...] = ((1, 1.0),)  # (K, weight): K is drawn per window; 0 = one bin a group
    order: Literal[ORDERS] = "random"
    # sides of larger bins that a window writes before its own, the largest first: coarse to fine (docs/decoding.md)
    coarse_um: tuple[float, ...] = ()
    coarse_share: float = 0.5  # of the windows in training, where there are such bins
    flip: bool = True
    turn: bool = True
    stain_jitter: float = 0.1  # standard deviation of the log gain of each stain; a third of it mixes the stains
    force_adjacent: bool = False  # bins under 36 µm although a section's H&E is of an adjacent section
    near_bins: int = 24  # around each bin, whose contents its query knows at once: 24 are the square of five by five
    depth_told: float = 0.5  # how often training tells a window how deep its section was measured (docs/training.md)
    min_measured: float = 0.9  # a bin counts if this share of it is measured (bins off the tissue count too)
    max_spots: int = 0  # capacity for spots in a window; 0 = from the corpus
    count_capacity: int = 0  # entries (bin, gene, count) a row; 0 = from the corpus
    frozen_encoder: str = ""  # whose stored features (tario encode) each H&E token holds too; empty: none
    seed: int = 0
    prefetch: int = 2  # batches read ahead
    workers: int = 0  # processes that make the batches, each `prefetch` ahead; 0 = threads of this one

    def __post_init__(self):
        _check_numbers(self, "data")
        for name in ("bin_um", "window_um", "tile_um", "he_um_per_px", "patch_px", "rows", "windows_per_row"):
            _check(getattr(self, name) > 0, f"data.{name} is {getattr(self, name)}; expected more than 0")
        _check(self.patch_px >= 4, f"data.patch_px is {self.patch_px}; expected at least 4, to hold any texture")
        for name, low in (("stain_jitter", 0), ("max_spots", 0), ("count_capacity", 0), ("prefetch", 1),
                          ("workers", 0)):  # fmt: skip
            _check(getattr(self, name) >= low, f"data.{name} is {getattr(self, name)}; expected at least {low}")
        _check(self.sequence == "window" or self.windows_per_row > 1,
               f"data.sequence is {self.sequence!r} with one window a row, which is a sequence by itself; set "
               "data.windows_per_row, or leave it out")  # fmt: skip
        _check(self.windows_per_row < 4096, f"data.windows_per_row is {self.windows_per_row}; expected less than 4,096")
        _check(self.near_bins >= 0, f"data.near_bins is {self.near_bins}; expected at least 0")
        _check(0 <= self.depth_told <= 1, f"data.depth_told is {self.depth_told}; expected a share, 0 to 1")
        _check(0.001 <= self.min_measured <= 1,
               f"data.min_measured is {self.min_measured}; expected a share of a bin, 0.001 to 1: what was not "
               "measured is not 0")  # fmt: skip
        for part, whole in (("patch_um", "tile_um"), ("tile_um", "window_um")):
            ratio = getattr(self, whole) / getattr(self, part)
            _check(
                math.isclose(ratio, round(ratio), abs_tol=1e-6) and ratio >= 1,
                f"data.{whole} is {getattr(self, whole)}; expected a multiple of {part} = {getattr(self, part)}",
            )
        _check(bool(self.groups), "data.groups is empty; expected pairs (K, weight)")
        for groups, weight in self.groups:
            _check(groups >= 0 and weight > 0, f"data.groups holds ({groups}, {weight}); expected K >= 0, weight > 0")
        for side, weight in self.bin_mixture:
            _check(side > 0 and weight > 0, f"data.bin_mixture holds ({side}, {weight}); expected both more than 0")
        _check(self.bin_um in self.trained_bins_um,
               f"data.bin_um is {self.bin_um}, which validation and evaluation take; expected one of data.bin_mixture, "
               f"{', '.join(f'{side:g}' for side in self.trained_bins_um)}")  # fmt: skip

        self._check_coarse()

    def _check_coarse(self) -> None:
        """Each scale's bins are made of whole ones of the next, and a window of whole ones of the first."""
        _check(0 < self.coarse_share <= 1, f"data.coarse_share is {self.coarse_share}; expected above 0, at most 1")
        sides = (self.window_um, *self.coarse_um)
        pairs = (*zip(sides, sides[1:], strict=False), *((sides[-1], side) for side in self.trained_bins_um))
        nests = all(math.isclose(large / small, round(large / small), abs_tol=1e-6) and (large > small or not number)
                    for number, (large, small) in enumerate(pairs))  # fmt: skip
        _check(not self.coarse_um or nests,
               f"data.coarse_um is {self.coarse_um}; expected sides that fall, each a multiple of the next, the last "
               f"one of the bins' {', '.join(f'{side:g}' for side in self.trained_bins_um)} µm, and a window of "
               f"{self.window_um:g} µm a multiple of the first")  # fmt: skip
        _check(
            bool(self.coarse_um) or self.coarse_share == DataConfig.coarse_share,
            f"data.coarse_share is {self.coarse_share} without data.coarse_um; set that, or leave it out",
        )

    def of_one_scale(self, **fields) -> "DataConfig":
        """The same without coarse bins, and with these fields."""
        return dataclasses.replace(self, coarse_um=(), coarse_share=DataConfig.coarse_share, **fields)

    @property
    def largest_bin_um(self) -> float:
        """Side of the largest squares that training draws."""
        return max(*self.trained_bins_um, *self.coarse_um, 0.0)

    @property
    def trained_bins_um(self) -> tuple[float, ...]:
        """Sides of the squares that training draws."""
        return tuple(side for side, _ in self.bin_mixture) or (self.bin_um,)

    @property
    def patch_um(self) -> float:
        return self.patch_px * self.he_um_per_px

    @property
    def one_shot(self) -> bool:
        """True where no window ever writes content that a query could read: every K is 1, and no bins are coarse."""
        return all(groups == 1 for groups, _ in self.groups) and not self.coarse_um


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model. Trunk = everything but the gene tables."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp_width: int = 384
    pattern: tuple[Literal["global", "local"], ...] = ("global",)  # one period of the layers
    # lengths l of the first and the last head, which begin as means over their surroundings (model/reach.py);
    # none: over all that they see
    reach_um: tuple[float, ...] = (20.0, 200.0)
    stem_width: int = 48
    frozen_axes: int = 64  # of the stored features of data.frozen_encoder, those of most variance
    gene_dim: int = 64  # factored gene tables: [genes, gene_dim] and [gene_dim, width]
    principal_start: bool = True  # the table begins at axes along which bins differ (train/principal.py); or at random
    tie_genes: bool = True  # the bin encoder reads with the head's table
    # gene_in starts at 0, and nothing is read out of a table that holds nothing yet; without it the best rate of short
    # runs falls with width, in muP too (docs/training_width.md)
    zero_read_out: bool = False
    # muP (model/width.py): sizes of the model whose optim.learning_rate this one is to share; 0: standard for width,
    # as here for the others. heads × head_dim and mlp_width count as growing with width
    base_width: int = 0
    base_head_dim: int = 0
    base_gene_dim: int = 0
    base_stem_width: int = 0
    # of global layers; local ones attend tile by tile, but for reference
    attention: Literal["auto", "reference", "blockwise", "pallas", "ring", "all_gather"] = "auto"
    attention_block: int = 256  # most tokens of a block in plain XLA
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the device has it
    remat: Literal["none", "full", "save_attention", "offload"] = "none"  # see model/decoder.py
    # of a bin's total; the second with one learnt dispersion, as in training (predicted rates are means of both)
    total_likelihood: Literal["poisson", "negative_binomial"] = "poisson"
    # a detection weighs (mean share of a gene)^−this in training, at most 100 times the usual; 0: all alike
    rare_gene_weight: float = 0.0
    loss_chunk: int = 0  # bins of a row whose logits exist at once; 0: a budget of memory says (ops/sparse_counts.py)
    loss_gene_chunk: int = 0  # genes of a device whose logits exist at once; 0: the same, mostly all of them

    def __post_init__(self):
        _check_numbers(self, "model")
        for name in (
            "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "stem_width", "gene_dim",
            "attention_block", "frozen_axes",
        ):  # fmt: skip
            _check(getattr(self, name) > 0, f"model.{name} is {getattr(self, name)}; expected more than 0")
        _check(
            len(self.reach_um) in (0, 2)
            and list(self.reach_um) == sorted(self.reach_um)
            and min(self.reach_um, default=1) > 0,
            f"model.reach_um is {self.reach_um}; expected two lengths in µm, the shorter first, or () for none",
        )
        _check(0 <= self.rare_gene_weight <= 1,
               f"model.rare_gene_weight is {self.rare_gene_weight}; expected 0 to 1")  # fmt: skip
        bases = ("base_width", "base_head_dim", "base_gene_dim", "base_stem_width")
        for name in ("loss_chunk", "loss_gene_chunk", *bases):
            _check(getattr(self, name) >= 0, f"model.{name} is {getattr(self, name)}; expected at least 0")
        for name in bases[1:]:
            _check(
                self.base_width > 0 or not getattr(self, name),
                f"model.{name} is {getattr(self, name)} without muP; set model.base_width, or leave it out",
            )
        _check(
            self.heads % self.kv_heads == 0,
            f"model.kv_heads is {self.kv_heads}; expected a divisor of model.heads = {self.heads}",
        )
        _check(self.head_dim % 4 == 0, f"model.head_dim is {self.head_dim}; expected a multiple of 4 (2-D rotary)")
        _check(
            bool(self.pattern) and self.layers % len(self.pattern) == 0,
            f"model.layers is {self.layers}; expected a multiple of the period model.pattern = {self.pattern}",
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """How gradients become updates (train/optimiser.py)."""

    learning_rate: float = 2e-3  # the highest, after a linear warm-up from 0
    warmup_steps: int = 50
    schedule: Literal["cosine", "wsd"] = "cosine"  # what follows it; wsd: constant, then linear to final_share
    decay_share: float = 0.2  # wsd: of the steps, the last ones, over which the rate falls
    final_share: float = 0.0  # of learning_rate, at the last step
    weight_decay: float = 0.05  # times the rate, of matrices and tables
    optimiser: Literal["adamw", "muon"] = "adamw"  # muon: of matrices, AdamW of gene tables, norms and biases
    muon_rate: float = 10.0  # muon: of its matrices, over the rate of all else
    b1: float = 0.9
    b2: float = 0.98
    clip_norm: float = 1.0  # of all gradients together
    z_loss: float = 0.0  # weight of log²Z of each detection, which keeps the softmax over genes near its scale

    def __post_init__(self):
        _check_numbers(self, "optim")
        for name in ("learning_rate", "clip_norm", "muon_rate"):
            _check(getattr(self, name) > 0, f"optim.{name} is {getattr(self, name)}; expected more than 0")
        for name in ("b1", "b2"):
            _check(0 <= getattr(self, name) < 1, f"optim.{name} is {getattr(self, name)}; expected 0 to below 1")
        for name in ("warmup_steps", "weight_decay", "z_loss"):
            _check(getattr(self, name) >= 0, f"optim.{name} is {getattr(self, name)}; expected at least 0")
        _check(0 < self.decay_share <= 1, f"optim.decay_share is {self.decay_share}; expected above 0, at most 1")
        _check(0 <= self.final_share <= 1, f"optim.final_share is {self.final_share}; expected 0 to 1")
        for name, choice, of in (("decay_share", "schedule", "wsd"), ("muon_rate", "optimiser", "muon")):
            _check(getattr(self, choice) == of or getattr(self, name) == getattr(OptimConfig, name),
                   f"optim.{name} is {getattr(self, name)}, which optim.{choice}={getattr(self, choice)} does not "
                   f"read; set optim.{choice}={of}, or leave it out")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """What step 0 begins with: the seed, or the parameters of a checkpoint (train/fine_tune.py)."""

    checkpoint: str = ""  # a workdir (its newest one), or WORKDIR/checkpoints/STEP; environment variables are expanded
    trained: Literal["all", "gene_tables"] = "all"  # gene_tables: rows and biases of genes, and the density's bias

    def __post_init__(self):
        _check(self.trained == "all" or bool(self.checkpoint),
               f"start.trained is {self.trained!r} without a checkpoint, whose trunk would stay as it is; set "
               "start.checkpoint, or leave it out")  # fmt: skip


MESH_AXES = ("replica", "fsdp", "context", "tensor")
BATCH_AXES = ("replica", "fsdp")  # rows of a batch are split over these


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices by axis; −1 for one axis takes what is left."""

    replica: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        _check(
            all(size == -1 or size >= 1 for size in sizes) and sizes.count(-1) <= 1,
            f"mesh is {sizes}; expected sizes of at least 1 and at most one −1",
        )


TRACKERS = ("tensorboard", "wandb")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    # he: from H&E alone, how hidden patches look (docs/fine_tuning.md); what data says of bins and counts is not read
    learns: Literal["counts", "he"] = "counts"
    steps: int = 500
    accumulate: int = 1  # parts of a batch, one after the other: the memory of a part, the step of the whole
    log_every: int = 10
    validate_every: int = 100
    validation_rows: int = 32  # fixed windows of validation
    checkpoint_every: int = 100
    keep_checkpoints: int = 2  # the newest
    keep_every: int = 0  # steps: checkpoints at a multiple of them stay for good; 0: none
    grace_s: float = 20.0  # from SIGTERM to the end, in which a last checkpoint is written
    ema_decay: float = 0.0  # of a running mean of the parameters, which is then what predicts; 0: none
    skip_limit: int = 10  # steps in a row whose loss or gradients are not finite; they are skipped, more end the run
    spike_deviations: float = 0.0  # a loss so many usual departures above the usual one is a spike; 0: none is
    spike_steps: int = 3  # so many in a row: back to the checkpoint before, and past these batches
    rollback_limit: int = 5  # more end the run
    hang_minutes: float = 15.0  # without a step: all stacks are written, and the process ends
    calibration_rows: int = 64  # windows that set the stain statistics' scale before step 0
    track: tuple[Literal[TRACKERS], ...] = ()  # beside metrics.jsonl; extra [track]
    seed: int = 0

    def __post_init__(self):
        _check_numbers(self, "train")
        for name in (
            "steps", "accumulate", "log_every", "validate_every", "validation_rows", "checkpoint_every",
            "keep_checkpoints", "calibration_rows", "grace_s", "skip_limit", "spike_steps", "rollback_limit",
            "hang_minutes",
        ):  # fmt: skip
            _check(getattr(self, name) > 0, f"train.{name} is {getattr(self, name)}; expected more than 0")
        for name in self.track:
            _check(name in TRACKERS, f"train.track holds {name!r}; expected some of {', '.join(TRACKERS)}")
        for name in ("keep_every", "spike_deviations"):
            _check(getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}; expected at least 0")
        _check(self.keep_every % self.checkpoint_every == 0,
               f"train.keep_every is {self.keep_every}; expected a multiple of train.checkpoint_every = "
               f"{self.checkpoint_every}, or 0: at other steps nothing is saved")  # fmt: skip
        _check(not self.spike_deviations or self.keep_checkpoints * self.checkpoint_every >= self.spike_steps,
               f"train.keep_checkpoints is {self.keep_checkpoints}, and none of before a spike of train.spike_steps = "
               f"{self.spike_steps} would be left; expected more, or a longer train.checkpoint_every")  # fmt: skip
        for name in ("spike_steps", "rollback_limit"):
            _check(self.spike_deviations > 0 or getattr(self, name) == getattr(TrainConfig, name),
                   f"train.{name} is {getattr(self, name)}, which train.spike_deviations=0 does not read; set "
                   "train.spike_deviations, or leave it out")  # fmt: skip
        _check(0 <= self.ema_decay < 1, f"train.ema_decay is {self.ema_decay}; expected 0 to below 1")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is measured on held-out sections, and how."""

    top_genes: int = 100  # genes of highest Moran's I
    ranked_on: Literal["train", "held_out"] = "train"  # held_out: chosen on the test truth, as published curves are
    mean_genes: int = 300  # genes of highest mean
    min_detected: float = 0.0  # a gene enters a ranking if seen in this share of the bins that it is ranked on
    min_total: int = 20  # 36 µm bins (others by area), or spots, with fewer counts have no composition, and are counted
    min_bins: int = 32  # sections with fewer bins are skipped, and counted
    overlap: float = 0.5  # of neighbouring windows in prediction
    shuffles: int = 10  # shuffled-target runs
    bootstraps: int = 1000
    block_um: float = 100.0  # side of a bootstrap block within a section; spots use 3 × 3 spots
    examples: int = 3  # triptychs
    bin_um: float = 0.0  # side of the bins on which all is measured, to which predictions are summed up; 0: data.bin_um
    read_um: tuple[float, ...] = ()  # finer bins at which the model is read too, and summed up to the same
    seed: int = 0

    def __post_init__(self):
        _check_numbers(self, "evaluate")
        _check(0 <= self.overlap < 1, f"evaluate.overlap is {self.overlap}; expected 0 <= overlap < 1")
        for name in ("top_genes", "mean_genes", "min_bins", "bootstraps", "block_um"):
            _check(getattr(self, name) > 0, f"evaluate.{name} is {getattr(self, name)}; expected more than 0")
        _check(self.shuffles >= 10, f"evaluate.shuffles is {self.shuffles}; expected at least 10")
        for side_um in self.read_um:
            _check(side_um > 0, f"evaluate.read_um holds {side_um}; expected more than 0")
        for name in ("examples", "min_total", "bin_um"):
            _check(getattr(self, name) >= 0, f"evaluate.{name} is {getattr(self, name)}; expected at least 0")
        _check(0 <= self.min_detected <= 1, f"evaluate.min_detected is {self.min_detected}; expected a share, 0 to 1")
        _check(self.bootstraps >= 20, f"evaluate.bootstraps is {self.bootstraps}; expected at least 20, of which 95 % "
               "are an interval")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    name: str = "run"
    source: SourceConfig = SourceConfig()
    split: SplitConfig = SplitConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    start: StartConfig = StartConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self):
        _check(bool(self.data.frozen_encoder) or self.model.frozen_axes == ModelConfig.frozen_axes,
               f"model.frozen_axes is {self.model.frozen_axes} without data.frozen_encoder, whose features it is of; "
               "set that, or leave it out")  # fmt: skip
        _check(self.train.learns == "counts" or self.start.trained == "all",
               f"start.trained is {self.start.trained!r}, and train.learns={self.train.learns} trains no genes; "
               "expected start.trained=all")  # fmt: skip
        _check(self.train.learns == "counts" or not self.optim.z_loss,
               f"optim.z_loss is {self.optim.z_loss}, and train.learns={self.train.learns} has no softmax over genes; "
               "leave it out")  # fmt: skip
        if self.train.learns == "counts":  # of H&E alone nothing is evaluated
            self._check_evaluated_bins()

    def _check_evaluated_bins(self) -> None:
        side_um = self.evaluate.bin_um or self.data.bin_um
        for read_um in self.evaluate.read_um:
            _check(read_um <= side_um, f"evaluate.read_um holds {read_um:g}; bins are summed up to those of "
                   f"{side_um:g} µm (evaluate.bin_um, else data.bin_um); expected smaller ones")  # fmt: skip
        _check(not 0 < self.evaluate.bin_um < self.data.bin_um,
               f"evaluate.bin_um is {self.evaluate.bin_um}; expected at least data.bin_um = {self.data.bin_um}, since "
               "that is predicted and summed up, or 0")  # fmt: skip

    @property
    def writes_contents(self) -> bool:
        """Whether a row holds the contents of its bins beside their queries."""
        return self.train.learns == "counts" and not self.data.one_shot

    def refuse_he_alone(self, job: str) -> None:
        """Raises `InputError` where the config learns from H&E alone, which only training does."""
        _check(self.train.learns == "counts",
               f"train.learns is {self.train.learns!r}, and '{job}' asks for a model of counts; run 'tario train' with "
               "it, then this with start.checkpoint of that workdir")  # fmt: skip
