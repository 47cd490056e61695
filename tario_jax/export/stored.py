"""The arrays of a checkpoint, read in parts: in memory is a part of an array, and a shard or two of the checkpoint."""

import json
from pathlib import Path

import numpy as np
import tensorstore as ts

from tario_jax.config import InputError


class StoredLeaves:
    """The leaves of a tree that Orbax wrote, by dotted name."""

    def __init__(self, folder: Path):
        """folder: of one item of a checkpoint, such as `checkpoints/300/parameters`."""
        try:
            about = json.loads((folder / "_METADATA").read_text())
            keys = [[part["key"] for part in leaf["key_metadata"]] for leaf in about["tree_metadata"].values()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder}: is no item of a checkpoint ({type(error).__name__}); expected what 'tario "
                             "train' wrote") from None  # fmt: skip
        self.names = tuple(".".join(map(str, path)) for path in keys)
        self._folder, self._driver = folder, "zarr3" if about.get("use_zarr3") else "zarr"

    def open(self, name: str) -> ts.TensorStore:
        """Raises `InputError` where the leaf is not there."""
        # not as a URL: a folder may have % or # in its name
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{self._folder}/"}, "path": f"{name}/"}
        # else zeros are read where a run that still trains has removed the checkpoint meanwhile
        spec = {"driver": self._driver, "kvstore": store, "fill_missing_data_reads": False}
        return self._told(name, ts.open(spec, open=True, read=True))

    def parts(self, name: str, most_bytes: int):
        """The leaf as float32 arrays along its first axis, of at most so many bytes where rows allow it."""
        store = self.open(name)
        if not store.shape:
            yield np.asarray(self._told(name, store.read()), np.float32)
            return
        rows = max(1, int(most_bytes * store.shape[0] // max(4 * store.size, 1)))
        for first in range(0, store.shape[0], rows):
            yield np.asarray(self._told(name, store[first : min(first + rows, store.shape[0])].read()), np.float32)

    def _told(self, name: str, future: ts.Future):
        try:
            return future.result()
        except ValueError as error:
            raise InputError(f"{self._folder}: {name} cannot be read ({' '.join(str(error).split())[:120]}); where the "
                             "run still trains, export again") from None  # fmt: skip
