"""Windows of H&E alone: their bins are the patches, of which all but those of the first group are hidden."""

import dataclasses

from tario_jax.config import Config, DataConfig

GROUPS = 2  # half of the patches are seen
_NO_COUNTS = 128  # the least capacity


def as_trained(config: Config) -> Config:
    """What a run of this config keeps as its own: one that learns from H&E alone has no fields of counts."""
    return dataclasses.replace(config, data=of_he(config.data)) if config.train.learns == "he" else config


def of_he(data: DataConfig) -> DataConfig:
    """The same windows without anything that is of counts; the order of writing says which patches are hidden."""
    return data.of_one_scale(bin_um=data.patch_um, bin_mixture=(), groups=((GROUPS, 1.0),), near_bins=0,
                             depth_told=0.0, min_measured=DataConfig.min_measured, max_spots=0,
                             count_capacity=_NO_COUNTS)  # fmt: skip
