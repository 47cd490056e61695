"""A PyTorch checkpoint without PyTorch: both layouts, any strides, and nothing that it asks for is run."""

import collections
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from tario_jax.he_features.torch_file import read_state


class FloatStorage:
    """As PyTorch's, in name."""


class LongStorage:
    pass


class _Tensor:
    """What PyTorch pickles of a tensor: a storage by its key, an offset, a shape, strides."""

    def __init__(self, key: str, kind: type, numbers: int, offset: int, shape: tuple, strides: tuple):
        self.storage = ("storage", kind, key, "cpu", numbers, None)
        self.layout = offset, shape, strides

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (_Key(self.storage), *self.layout, False, collections.OrderedDict())


class _Key:
    def __init__(self, told: tuple):
        self.told = told


class _Pickler(pickle.Pickler):
    def persistent_id(self, told):
        return told.told if isinstance(told, _Key) else None


def pickled(value) -> bytes:
    content = io.BytesIO()
    _Pickler(content, 2).dump(value)
    return content.getvalue()


@pytest.fixture
def torch_names(monkeypatch) -> None:
    """The names that a checkpoint holds, for the time of writing one."""
    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in (FloatStorage, LongStorage):
        monkeypatch.setattr(kind, "__module__", "torch")
        setattr(torch, kind.__name__, kind)

    def _rebuild_tensor_v2(*told):
        raise AssertionError("is only named here")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    inner._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", inner)


NUMBERS = np.arange(40, dtype=np.float32)


def state(offset: int = 4, strides: tuple = (1, 3)) -> collections.OrderedDict:
    return collections.OrderedDict(
        turned=_Tensor("7", FloatStorage, 40, offset, (3, 5), strides), one=_Tensor("9", LongStorage, 1, 0, (), ())
    )


def stream(path: Path, value) -> Path:
    """The layout of before torch 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = (0x1950A86A20F9469CFC6C, 1001, system, value, ["7", "9"])
    parts = [(40, NUMBERS), (1, np.array([5], "<i8"))]
    stored = b"".join(number.to_bytes(8, "little") + array.tobytes() for number, array in parts)
    path.write_bytes(b"".join(pickled(part) for part in head) + stored)
    return path


def archive(path: Path, value) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", pickled(value))
        file.writestr("model/byteorder", "little")
        file.writestr("model/data/7", NUMBERS.tobytes())
        file.writestr("model/data/9", np.array([5], "<i8").tobytes())
    return path


@pytest.mark.parametrize("layout", [stream, archive])
def test_tensors_of_any_strides_are_read(torch_names, tmp_path, layout):
    found = read_state(layout(tmp_path / "x.pth", state()))
    np.testing.assert_array_equal(found["turned"], NUMBERS[4:19].reshape(5, 3).T)
    assert found["turned"].flags.c_contiguous and found["turned"].dtype == np.float32
    assert found["one"].shape == () and found["one"] == 5


@pytest.mark.parametrize("layout", [stream, archive])
def test_a_tensor_beyond_its_storage_is_refused(torch_names, tmp_path, layout):
    refused(lambda: read_state(layout(tmp_path / "x.pth", state(offset=26))), "x.pth", "reaches to element 40", "of 40")
    refused(lambda: read_state(layout(tmp_path / "x.pth", state(strides=(-1, 3)))), "x.pth", "strides")


class _Harm:
    def __init__(self, told: Path):
        self.told = told

    def __reduce__(self):
        return os.mkdir, (str(self.told),)


@pytest.mark.parametrize("layout", [stream, archive])
def test_nothing_that_a_file_asks_for_is_run(torch_names, tmp_path, layout):
    made = tmp_path / "made"
    refused(lambda: read_state(layout(tmp_path / "x.pth", {"a": _Harm(made)})), "mkdir", "not allowed")
    assert not made.exists()


def test_what_is_no_state_dict_is_said_in_a_line(torch_names, tmp_path):
    refused(lambda: read_state(tmp_path / "none.pth"), "none.pth", "no such file")
    refused(lambda: read_state(archive(tmp_path / "x.pth", ["a list"])), "holds no state dict")
    whole = stream(tmp_path / "y.pth", state())
    whole.write_bytes(whole.read_bytes()[:-30])
    refused(lambda: read_state(whole), "y.pth", "PyTorch state dict")
    (tmp_path / "s.safetensors").write_bytes(b"\x8d\x00\x00\x00\x00\x00\x00\x00" + b"{" * 200)  # a pickle of 2**64?
    refused(lambda: read_state(tmp_path / "s.safetensors"), "s.safetensors", "PyTorch state dict")
    with zipfile.ZipFile(tmp_path / "d.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/data.pkl", pickled(state()))
        at = file.getinfo("model/data.pkl").header_offset
    broken = bytearray((tmp_path / "d.pth").read_bytes())
    broken[at + 30 + len("model/data.pkl")] ^= 0xFF
    (tmp_path / "d.pth").write_bytes(broken)
    refused(lambda: read_state(tmp_path / "d.pth"), "d.pth", "PyTorch state dict")
    (tmp_path / "z.pth").write_bytes(b"neither of both")
    refused(lambda: read_state(tmp_path / "z.pth"), "z.pth", "PyTorch state dict")
