"""Counted spots at px of an H&E image, made into a section: what Visium and HEST-1k have in common."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from tario_jax.corpus.section import SectionData, Spots
from tario_jax.sources.ingested import Tally
from tario_jax.sources.picture import Picture


@dataclasses.dataclass(frozen=True)
class SpotTable:
    """Spots in tissue; N spots, E entries (spot, gene) in CSR, of which several may be of one gene."""

    name_N: tuple[str, ...]
    fullres_xy_Nx2: np.ndarray  # px
    array_xy_Nx2: np.ndarray | None
    diameter_um: float
    indptr: np.ndarray  # int64 [N + 1]
    gene_E: np.ndarray  # positions in the panel
    count_E: np.ndarray
    spots: Tally  # still open, as `counts`
    counts: Tally

    def sections(
        self, identity: tuple[str, str, str], picture: Picture, genes: int, measured_gene_G: np.ndarray | None = None,
        quality: dict[str, float] | None = None,
    ) -> Iterator[SectionData]:  # fmt: skip
        """The one section (id, patient, cohort) of these spots; spots outside of the image are dropped.

        Its H&E is read from the file until the next one is asked for.
        """
        with picture.cut(self.fullres_xy_Nx2) as cut:
            yield self._on(cut, identity, picture, genes, measured_gene_G, quality)

    def _on(self, cut, identity, picture: Picture, genes: int, measured_gene_G, quality) -> SectionData:
        he, corner_px_2, inside_N = cut
        spot_E = np.repeat(np.arange(len(self.name_N)), np.diff(self.indptr))
        kept_E = inside_N[spot_E]
        self.spots.drop("outside the image", np.sum(~inside_N))
        self.spots.close(inside_N.sum())
        self.counts.drop("spots outside the image", self.count_E[~kept_E].sum(dtype=np.int64))
        indptr, gene_E, count_E = summed(
            (np.cumsum(inside_N) - 1)[spot_E[kept_E]], self.gene_E[kept_E], self.count_E[kept_E], inside_N.sum(), genes
        )
        self.counts.close(count_E.sum(dtype=np.int64))
        place_um_Nx2 = picture.to_um(self.fullres_xy_Nx2[inside_N], corner_px_2)
        return SectionData(
            *identity,
            width_um=he.shape[1] * picture.um_per_px,
            height_um=he.shape[0] * picture.um_per_px,
            he_um_per_px=picture.um_per_px,
            he=he,
            spots=Spots(
                x_um_N=place_um_Nx2[:, 0],
                y_um_N=place_um_Nx2[:, 1],
                diameter_um=self.diameter_um,
                indptr=indptr,
                gene_E=gene_E,
                count_E=count_E,
                name_N=tuple(name for name, inside in zip(self.name_N, inside_N, strict=True) if inside),
                array_xy_Nx2=None if self.array_xy_Nx2 is None else self.array_xy_Nx2[inside_N],
            ),
            measured_gene_G=measured_gene_G,
            registration="same_section_before",
            quality={
                "spots_dropped": float(sum(self.spots.dropped.values())),
                "counts_dropped": float(sum(self.counts.dropped.values())),
                **picture.origin(corner_px_2),
            } | (quality or {}),
        )  # fmt: skip


def summed(
    spot_E: np.ndarray, gene_E: np.ndarray, count_E: np.ndarray, spots: int, genes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indptr, gene, count) in CSR with the genes of a spot in order, entries of one spot and gene summed, none 0."""
    key_U, inverse_E = np.unique(spot_E.astype(np.int64) * genes + gene_E, return_inverse=True)
    count_U = np.bincount(inverse_E, count_E, len(key_U)).astype(np.int64)
    key_U, count_U = key_U[count_U > 0], count_U[count_U > 0]
    spot_U, gene_U = np.divmod(key_U, genes)
    indptr = np.searchsorted(spot_U, np.arange(spots + 1)).astype(np.int64)
    return indptr, gene_U.astype(np.int32), count_U.astype(np.int32)
