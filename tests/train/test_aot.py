"""The step compiled for pods that are not here. Needs libtpu; bad input does not."""

import json
import os
import signal
import subprocess

import pytest
from refusals import refused

from tario_jax.cli.main import main
from tario_jax.config import Config, DataConfig
from tario_jax.parallel.topology import topology_devices, why_not
from tario_jax.train import aot

_SMALL = ("--config.model.width=256", "--config.model.layers=4", "--config.model.mlp_width=512",
          "--config.model.gene_dim=128", "--config.model.stem_width=32")  # fmt: skip


def compile_(cli_tario, *arguments: str) -> subprocess.CompletedProcess:
    return cli_tario("compile", "--config=configs/tario2_200m.py", *_SMALL, *arguments, timeout_s=800)


@pytest.mark.parametrize(("arguments", "words"), [
    (("--topology=v9:2x2",), ("--topology=v9:2x2", "no such chip", "v5e, v5p, v6e")),
    (("--topology=v5p-512",), ("no such chip",)),
    (("--topology=v5p:512",), ("expected a chip and its grid",)),
    (("--topology=v5p:4x8",), ("--topology=v5p:4x8", "no slice of v5p has this grid", "16x20x28")),
    (("--topology=v5e:32x32",), ("--topology=v5e:32x32", "no slice of v5e has this grid", "16x16")),
    (("--topology=v5e:2x4x2",), ("no slice of v5e has this grid",)),
    (("--topology=v5e:2x2", "--mesh=fsdp=2,fsdp=4"), ("fsdp stands twice",)),
    (("--topology=v5e:2x2", "--mesh="), ("expected AXIS=N",)),
    (("--topology=v5e:2x2", "--mesh=fsdp:4"), ("--mesh=fsdp:4", "expected AXIS=N")),
    (("--topology=v5e:2x2", "--mesh=rows=4"), ("axes replica, fsdp, context, tensor",)),
    (("--topology=v5e:2x2", "--mesh=fsdp=4", "--search"), ("--mesh=fsdp=4: --search chooses the mesh",)),
    (("--topology=v5e:2x2", "--tries=2"), ("--tries=2: only --search tries several meshes",)),
])  # fmt: skip
def test_one_line_where_it_cannot_be(repository, capsys, arguments, words):
    assert main(["compile", f"--config={repository / 'configs/tario2_200m.py'}", *_SMALL, *arguments]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and all(word in line for word in words), line


def test_a_missing_compiler_is_named(monkeypatch):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    refused(lambda: topology_devices("v5e:2x2"), "libtpu", "is not installed", "pip install 'tario-jax[tpu]'")


needs_libtpu = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_libtpu
def test_a_small_step_on_eight_chips(cli_tario, tmp_path):
    """State falls as 1 / (fsdp x tensor), the ring's messages are on context, and a wrong mesh is one line."""
    told = {}
    for name, mesh in (("ring", "fsdp=2,context=4"), ("spread", "fsdp=4,tensor=2")):
        done = compile_(cli_tario, "--topology=v5e:2x4", f"--mesh={mesh}", "--batch=8", f"--json={tmp_path / name}",
                        "--config.model.attention=ring")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "verdict: fits" in done.stdout
        told[name] = json.loads((tmp_path / name).read_text())
    assert any(one["kind"] == "collective-permute" and one["axes"] == ["context"]
               for one in told["ring"]["collectives"])  # fmt: skip
    state = {name: told[name]["state_bytes"] for name in told}
    assert 3.5 < state["ring"] / state["spread"] <= 4  # of a model this small, vectors are a part
    assert {axis for one in told["spread"]["collectives"] for axis in one["axes"]} <= {"fsdp", "tensor"}
    done = compile_(cli_tario, "--topology=v5e:2x4", "--mesh=fsdp=8", "--batch=12")
    assert done.returncode == 2 and "--config.data.rows=12: expected a multiple of replica × fsdp = 8" in done.stderr
    done = compile_(cli_tario, "--topology=v5e:2x4", "--mesh=fsdp=3", "--batch=12")
    assert done.returncode == 2 and "does not multiply to 8 devices" in done.stderr
    done = compile_(cli_tario, "--topology=v5e:2x4", "--mesh=context=8", "--config.data.tile_um=1152")
    assert done.returncode == 2 and "--config.mesh.context=8: a row holds 1 tiles" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_libtpu
def test_search_compiles_the_best_until_one_fits(cli_tario, tmp_path):
    done = compile_(cli_tario, "--topology=v5e:2x2", "--batch=4", "--search", f"--json={tmp_path / 'found'}",
                    "--config.data.window_um=576")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found").read_text())
    assert found["fits"] and found["mesh"] == found["candidates"][0]["mesh"] and "verdict: fits" in done.stdout
    refusal = compile_(cli_tario, "--topology=v5e:2x2", "--batch=3", "--search", "--config.data.tile_um=1152",
                       "--config.model.kv_heads=1")  # fmt: skip
    assert refusal.returncode == 2 and "--search: no mesh of 4 chips divides" in refusal.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_libtpu
def test_what_does_not_fit_is_told_with_its_bytes(cli_tario, tmp_path):
    done = cli_tario("compile", "--config=configs/tario2_1b.py", "--topology=v5e:2x2", "--mesh=fsdp=4", "--batch=16",
                     f"--json={tmp_path / 'told'}", timeout_s=800)  # fmt: skip
    assert done.returncode == 1, done.stderr
    told = json.loads((tmp_path / "told").read_text())
    assert (
        not told["fits"]
        and told["roofline"]["mfu"] is None
        and told["memory_bytes"]["total"] > told["chip_memory_bytes"]
    )
    assert "verdict: does not fit" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_libtpu
def test_offload_takes_what_layers_leave_from_the_chip_to_its_host(cli_tario, tmp_path):
    """Of many thin layers, so that what they leave is most of the memory; over context too, by the ring."""
    told = {}
    for remat in ("save_attention", "offload"):
        done = compile_(cli_tario, "--topology=v5e:2x2", "--mesh=fsdp=2,context=2", "--batch=4",
                        f"--json={tmp_path / remat}", f"--config.model.remat={remat}", "--config.model.attention=ring",
                        "--config.model.layers=64", '--config.model.pattern=("global",)',
                        "--config.data.window_um=576")  # fmt: skip
        assert done.returncode == 0, done.stderr
        told[remat] = json.loads((tmp_path / remat).read_text())["memory_bytes"]
        assert ("; of its host " in done.stdout) == (remat == "offload")
    kept, sent = told["save_attention"], told["offload"]
    assert kept["host"] == 0 < sent["host"]
    assert sent["temporaries"] < kept["temporaries"] - 0.5 * sent["host"]
    assert sent["total"] < kept["total"]


def _crash(*_):
    os.abort()


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end, kind, words", [(_crash, aot.CompilerCrash, ("crashes", "model.remat")),
                                              (_killed, aot.CompilerKilled, ("killed", "memory"))])  # fmt: skip
def test_a_crash_of_the_compiler_is_one_line(monkeypatch, end, kind, words):
    monkeypatch.setattr(aot, "_compile_here", end)
    with pytest.raises(aot.CompilerCrash) as error:
        aot.compile_apart(Config(), "v5e:2x2", 1)
    assert type(error.value) is kind and all(word in str(error.value) for word in ("--topology=v5e:2x2", *words))


_EXHAUSTED = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "


def test_memory_that_is_not_the_chips_is_not_told_as_the_chips():
    """As libtpu words it."""
    asked = f"{_EXHAUSTED}hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    assert aot._asked_bytes(asked, 7) == 20.5 * 2**30
    assert aot._asked_bytes("RESOURCE_EXHAUSTED: HLO temporaries (3.0G) are too many", 7) == 3 * 2**30 + 7
    assert aot._asked_bytes("INTERNAL: something else", 7) is None
    for text, words in (
        (
            f"{_EXHAUSTED}vmem. Used 32.42M of 16.00M vmem. Exceeded vmem capacity by 16.42M",
            ("does not fit vmem", "32.42M"),
        ),
        (f"{_EXHAUSTED}smem. Used 1.07M of 1.00M smem.", ("the kernel does not fit smem",)),
        ("RESOURCE_EXHAUSTED: no more", ("out of memory: RESOURCE_EXHAUSTED: no more",)),
    ):
        with pytest.raises(aot.OutOfMemory) as error:
            aot._asked_bytes(text, 7)
        assert all(word in str(error.value) for word in words)


def test_an_encoder_of_ones_own_is_refused_without_a_corpus():
    own = Config(data=DataConfig(frozen_encoder="mine"))
    told = refused(
        lambda: aot.pod_layout(own, 50), "data.frozen_encoder is 'mine'", "read no corpus", "efficientnet-lite0"
    )
    assert "tario encode" not in told
    known = Config(data=DataConfig(frozen_encoder="efficientnet-lite0"))
    assert aot.pod_layout(known, 50).frozen_features == 448
