"""Chips, hosts and the names of clouds."""

import math

import pytest
from refusals import refused

from launch.hardware import Hardware, of_accelerator_type
from tario_jax.parallel.topology import topology_devices, why_not

# topology: chips, hosts, Cloud TPU's name of a slice, GKE's label, machine of a node
KNOWN = {
    "v5e:2x2": (4, 1, "v5litepod-4", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t"),
    "v5e:4x4": (16, 4, "v5litepod-16", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t"),
    "v5e:16x16": (256, 64, "v5litepod-256", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t"),
    "v5p:2x2x1": (4, 1, "v5p-8", "tpu-v5p-slice", "ct5p-hightpu-4t"),
    "v5p:4x8x8": (256, 64, "v5p-512", "tpu-v5p-slice", "ct5p-hightpu-4t"),
    "v5p:8x8x8": (512, 128, "v5p-1024", "tpu-v5p-slice", "ct5p-hightpu-4t"),
    "2xv5p:4x8x8": (512, 128, "v5p-512", "tpu-v5p-slice", "ct5p-hightpu-4t"),
    "v6e:8x16": (128, 32, "v6e-128", "tpu-v6e-slice", "ct6e-standard-4t"),
}


@pytest.mark.parametrize("text", KNOWN)
def test_a_topology_has_its_chips_hosts_and_names(text):
    chips, hosts, name, label, machine = KNOWN[text]
    found = Hardware.of(text)
    assert str(found) == text and (found.chips, found.hosts) == (chips, hosts)
    assert found.accelerator_type == name and found.machine_type == machine
    assert found.node_labels == {"cloud.google.com/gke-tpu-accelerator": label,
                                 "cloud.google.com/gke-tpu-topology": text.rpartition(":")[2]}  # fmt: skip
    assert found.resource == "google.com/tpu" and found.chips_of_host == 4
    assert of_accelerator_type(name) == Hardware.of(text.removeprefix("2x"))


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("text", KNOWN)
def test_the_compiler_counts_the_same_chips_hosts_and_slices(text):
    found = Hardware.of(text)
    devices = topology_devices(found.topology, found.slices)
    assert len(devices) == found.chips
    assert len({device.process_index for device in devices}) == found.hosts
    assert len({getattr(device, "slice_index", None) or 0 for device in devices}) == found.slices


def test_gpus_come_by_hosts_of_eight():
    for text, hosts, of_host in (("1xH100", 1, 1), ("8xH100", 1, 8), ("16xH200", 2, 8)):
        found = Hardware.of(text)
        assert (found.hosts, found.chips_of_host, found.chips) == (hosts, of_host, int(text.split("x")[0]))
        assert str(found) == text and found.resource == "nvidia.com/gpu"
    assert Hardware.of("8xH100").machine_type == "a3-highgpu-8g"
    assert math.isclose(Hardware.of("8xH100").chip.rates.matmul_flops, 989e12)
    refused(lambda: Hardware.of("8xH100").accelerator_type, "Cloud TPU has no GPUs")


@pytest.mark.parametrize(("text", "words"), [
    ("v5p-512", ("--topology=v5p-512", "expected a chip and its grid", "v5p-512 is v5p:4x8x8")),
    ("v5litepod-16", ("v5litepod-16 is v5e:4x4",)),
    ("v5e:3x4", ("no slice of v5e has this grid", "16x16")),
    ("v5e:4x4x4", ("no slice of v5e has this grid",)),
    ("v5p:8x8x4", ("no slice of v5p", "from the least to the greatest")),
    ("v5p:4x4x6", ("no slice of v5p",)),
    ("v5p:16x16x32", ("no slice of v5p", "16x20x28")),
    ("2xv5e:2x2", ("slices of one host each",)),
    ("12xH100", ("hosts have 8 H100",)),
    ("v9:2x2", ("not known",)), ("", ("not known",)), ("0xv5e:4x4", ("not known",)),
])  # fmt: skip
def test_what_nobody_lends_is_refused(text, words):
    refused(lambda: Hardware.of(text), *words)


def test_a_grid_that_cloud_tpu_has_no_name_for_is_told():
    refused(lambda: Hardware.of("v5p:4x4x16").accelerator_type, "v5p-512 stands for 4x8x8")
    assert Hardware.of("v5p:4x4x16").accelerator_flags == ["--type=v5p", "--topology=4x4x16"]
    assert [Hardware.of(text).vms for text in ("v5e:2x4", "v6e:2x2", "v5e:4x4", "v5p:2x2x2")] == [1, 1, 4, 2]
    for name in ("v5p-7", "v5e-16", "v5litepod-12", "tpu"):
        refused(lambda name=name: of_accelerator_type(name), "no such accelerator type")
