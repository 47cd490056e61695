"""A sweep for pods: a small run on each kind of hardware that the tests ask about."""

from pathlib import Path

from launch.hardware import Hardware
from launch.sweep_file import Sweep
from tario_jax.config import Config, SourceConfig

TOPOLOGIES = {"e16": "v5e:4x4", "e256": "v5e:16x16", "p512": "v5p:8x8x8", "two_p256": "2xv5p:4x8x8"}


def pod_sweep(repository: Path, **topologies: str) -> Sweep:
    """Named as a file of the checkout that need not be there; its corpus is in a bucket."""
    topologies = topologies or TOPOLOGIES
    config = Config(source=SourceConfig(kind="corpus", path="gs://tissue/corpus"))
    return Sweep(repository / "configs/sweeps/pods_here.py", dict.fromkeys(topologies, config),
                 {run: Hardware.of(text) for run, text in topologies.items()},
                 {run: f":{run}" for run in topologies})  # fmt: skip
