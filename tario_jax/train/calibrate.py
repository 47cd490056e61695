"""Statistics of the training sections that the model starts from: stain, texture, mean composition, mean density."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tario_jax.corpus.stored_section import Section
from tario_jax.model.build import Built, Tree
from tario_jax.model.frozen_features import CLIP_SD, leading_axes
from tario_jax.model.stain import texture_statistics
from tario_jax.tokens.batch import Batch
from tario_jax.train.composition import composition
from tario_jax.train.principal import principal_table

_SECTIONS_COUNTED = 128  # at most, evenly among all: a start takes as long with 93 patients as with 2,545
_MOST_WEIGHT = 100.0  # of a gene's detections, over those of the median gene
_LEAST_DEVIATION = 0.05  # of the log of depths
_VALUES_AT_ONCE = 1 << 24  # of colours of pixels
PADDING_BIAS = -30.0  # e^−30: nothing, and still finite


def calibrate(
    built: Built, parameters: Tree, calibration: Tree, batches: list[Batch], sections: list[Section], genes: int, *,
    gene_base: float = 0, principal: bool = True, rare_gene_weight: float = 0.0, seed: int = 0,
) -> tuple[Tree, Tree]:  # fmt: skip
    """Sets the H&E encoder's scales and the table of genes from `batches`, and the head's biases from totals.

    The head then starts at the mean composition and the mean density of detections, and the table at the axes along
    which bins differ (train/principal.py), so that the first steps are spent on differences between places.
    gene_base: columns of the table in the base of muP, 0: its own; principal: False leaves the table as it is;
    rare_gene_weight: as of the config, for a model that weighs genes; seed: of what is random in the table.

    Returns new parameters and calibration. Of `parameters` only the shapes are read: they may lie on devices of other
    processes; those that are set are arrays of this one, as is all of calibration.
    """
    calibration = calibrate_he(built, parameters, calibration, batches)
    shares = gene_shares(sections, genes)
    encoder = dict(calibration["bin_encoder"])
    encoder["depth_mean"], encoder["depth_scale"] = (jnp.asarray(of, jnp.float32) for of in depths(sections, shares))
    calibration = {**calibration, "bin_encoder": encoder}
    if "gene_weight" in calibration:
        calibration["gene_weight"] = gene_weights(shares, rare_gene_weight, len(calibration["gene_weight"]))
    bias_G = np.full(parameters["gene_bias"].shape, PADDING_BIAS, np.float32)
    bias_G[:genes] = np.log(shares)
    area_um2 = sum(_measured_um2(batch, shares) for batch in batches)
    detections = sum(float(batch.count_BxC.sum()) for batch in batches)
    parameters = {
        **parameters,
        "gene_bias": jnp.asarray(bias_G),
        "total_bias": jnp.asarray(np.log((detections + 1.0) / max(area_um2, 1.0)), jnp.float32),
    }
    if principal:
        shape = parameters["gene_table"].shape
        parameters["gene_table"] = gene_table(batches, genes, shape, gene_base or shape[1], seed)
    return parameters, calibration


def _measured_um2(batch: Batch, share_G: np.ndarray) -> float:
    """Area of a batch's bins, each as far as it was measured: of a part of the panel the part's share."""
    genes_BxWxG = np.asarray(batch.measured_gene_BxWxG)[..., : len(share_G)]
    share_BxW = np.where(genes_BxWxG.all(-1), 1.0, genes_BxWxG @ share_G / share_G.sum()).astype(np.float32)
    share_BxT = np.take_along_axis(share_BxW, np.asarray(batch.window_BxT), 1)
    return float((batch.bin_size_um_BxTxN**2 * batch.bin_measured_BxTxN * share_BxT[..., None]).sum())


def gene_table(batches: list[Batch], genes: int, shape: tuple[int, int], gene_base: float, seed: int) -> jax.Array:
    """The padded table of genes at the axes along which the bins of `batches` differ."""
    table_Gxr = np.zeros(shape, np.float32)
    table_Gxr[:genes] = principal_table(batches, genes, shape[1], gene_base, seed)
    return jnp.asarray(table_Gxr)


def calibrate_he(built: Built, parameters: Tree, calibration: Tree, batches: list[Batch]) -> Tree:
    """The calibration with the H&E encoder's scales set from `batches`; what is new are arrays of this process."""
    densities, textures = _Moments(), _Moments()
    parts = [part for batch in batches for part in _parts(batch)]
    for batch in parts:
        raw = built.merge(parameters, calibration).he_encoder.standardised(batch)
        densities.add(np.asarray(raw[batch.segment_BxT >= 0], np.float64).reshape(-1, 3))
    encoder = dict(calibration["he_encoder"])
    encoder["density_mean"], encoder["density_scale"] = densities.mean(), densities.deviation()
    calibration = {**calibration, "he_encoder": encoder}
    statistics = jax.jit(texture_statistics)
    for batch in parts:
        density = built.merge(parameters, calibration).he_encoder.standardised(batch)
        seen = statistics(density)[batch.segment_BxT >= 0]
        textures.add(np.asarray(seen, np.float64).reshape(-1, seen.shape[-1]))
    encoder["texture_mean"], encoder["texture_scale"] = textures.mean(), textures.deviation()
    if "frozen" in encoder:
        encoder["frozen"] = _frozen(encoder["frozen"], batches)
    return calibration


def _parts(batch: Batch) -> list[Batch]:
    """Some rows at a time: their pixels become float32, and their texture takes twenty times that, on one device."""
    rows = max(1, _VALUES_AT_ONCE // max(batch.he_BxTxPxYxXx3[0].size, 1))
    return [Batch(*(array[first : first + rows] for array in batch))
            for first in range(0, len(batch.he_BxTxPxYxXx3), rows)]  # fmt: skip


def depths(sections: list[Section], share_G: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of the log of how deep the sections were measured, as the model reads it; 0 and 1: of none."""
    depths = []
    for section in _counted(sections):
        if (density := section.density_per_um2) > 0:
            depths.append(math.log(density / share_G[section.measured_gene_G].sum()))
    return (float(np.mean(depths)), max(float(np.std(depths)), _LEAST_DEVIATION)) if depths else (0.0, 1.0)


def gene_weights(share_G: np.ndarray, power: float, padded: int) -> jax.Array:
    """share^−power, at most 100 times that of the median gene, for a mean over detections of 1; float32 [padded]."""
    weight_G = np.minimum((share_G / np.median(share_G)) ** -power, _MOST_WEIGHT)
    weight_G /= (share_G * weight_G).sum() / share_G.sum()
    return jnp.asarray(np.pad(weight_G, (0, padded - len(weight_G)), constant_values=1.0), jnp.float32)


def _frozen(statistics: Tree, batches: list[Batch]) -> Tree:
    """Means and deviations of the stored features of training windows, and their axes of most variance."""
    moments, products = _Moments(), 0.0
    for features in _features(batches):
        moments.add(features)
    mean, scale = (np.asarray(of) for of in (moments.mean(), moments.deviation()))
    for features in _features(batches):
        standard = np.clip((features - mean) / scale, -CLIP_SD, CLIP_SD)
        products = products + standard.T @ standard
    axes_FxK = leading_axes(products / moments.number, statistics["axes_FxK"].shape[1])
    return {**statistics, "mean": jnp.asarray(mean), "scale": jnp.asarray(scale), "axes_FxK": jnp.asarray(axes_FxK)}


def _features(batches: list[Batch]) -> Iterator[np.ndarray]:
    """Stored features of patches, float64 [patches, F], a row of a batch at a time: all of them are gigabytes."""
    for batch in batches:
        for segment_T, features_TxPxF in zip(batch.segment_BxT, batch.features_BxTxPxF, strict=True):
            real_TxPxF = features_TxPxF[segment_T >= 0]
            yield real_TxPxF.reshape(-1, real_TxPxF.shape[-1]).astype(np.float64)


def gene_shares(sections: list[Section], genes: int) -> np.ndarray:
    """Each gene's share of the detections of sections that measured the whole panel, or would have, float64 [genes],
    above 0; where they measured different genes, of the one composition that explains them all.

    One that none of them measured has half a detection among all: nothing is known of it.
    """
    found_G, total_of = np.zeros(genes), {}
    for section in _counted(sections):
        of_section_G = section.gene_totals_G
        found_G += of_section_G
        mask = np.asarray(section.measured_gene_G, bool).tobytes()
        total_of[mask] = total_of.get(mask, 0.0) + float(of_section_G.sum())
    if len(total_of) <= 1:
        return (found_G + 0.5) / (found_G.sum() + 0.5 * genes)
    masks_MxG = np.stack([np.frombuffer(mask, bool) for mask in total_of])
    return composition(found_G, np.array(list(total_of.values())), masks_MxG)


def _counted(sections: list[Section]) -> list[Section]:
    """About so many, with all genes that any of them measured.

    All of each patient's: where a patient has two, every second one may be of one region, or of one assay.
    """
    patients = list(dict.fromkeys(section.patient for section in sections))
    chosen = set(patients[:: math.ceil(len(sections) / _SECTIONS_COUNTED)])
    counted = [section for section in sections if section.patient in chosen]
    counted = counted[:: math.ceil(len(counted) / _SECTIONS_COUNTED)]
    if len(counted) == len(sections):
        return counted
    measured_G = np.logical_or.reduce([section.measured_gene_G for section in counted])
    for section in sections:
        if measured_G.all():
            break
        if (section.measured_gene_G & ~measured_G).any():
            counted.append(section)
            measured_G = measured_G | section.measured_gene_G
    return counted


class _Moments:
    """Mean and standard deviation by column, gathered in float64."""

    def __init__(self):
        self.number, self.sum, self.squares = 0, 0.0, 0.0

    def add(self, rows: np.ndarray) -> None:
        self.number += len(rows)
        self.sum = self.sum + rows.sum(0)
        self.squares = self.squares + (rows**2).sum(0)

    def mean(self) -> jax.Array:
        return jnp.asarray(self.sum / self.number, jnp.float32)

    def deviation(self) -> jax.Array:
        mean = self.sum / self.number
        return jnp.asarray(np.sqrt(np.maximum(self.squares / self.number - mean**2, 1e-6)), jnp.float32)
