"""Processes that meet, or say who did not come; and a run of two that is the run of one."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config

from tario_jax.config import InputError, MeshConfig
from tario_jax.model.build import build
from tario_jax.parallel.clusters import Cluster
from tario_jax.parallel.mesh import make_mesh
from tario_jax.parallel.roll_call import _keep_alive, roll_call
from tario_jax.train.checkpoint import Checkpoints
from tario_jax.train.loop import train
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.state import abstract_state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def port() -> int:
    with socket.create_server(("", 0)) as found:
        return found.getsockname()[1]


def meet(port, come, *, processes=3, timeout_s=20.0, first=lambda: "corpus", counts=None):
    """What each of `come` gets of the roll call: a result, or an error."""

    def one(process):
        size = (counts or {}).get(process, processes)
        hosts = ("localhost", *(f"node{number}" for number in range(1, size)))
        try:
            return roll_call(Cluster("a test", process, hosts, ("localhost", port)), timeout_s, first)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(len(come)) as pool:
        return list(pool.map(one, come))


def test_all_wait_for_what_process_0_does_first(port):
    done = threading.Event()

    def first():
        time.sleep(0.3)
        done.set()
        return "corpus"

    assert meet(port, [1, 0, 2], first=first) == [None, "corpus", None]
    assert done.is_set()
    socket.create_server(("", port)).close()  # it is free for jax


def test_those_that_did_not_come_are_named_to_all_that_did(port):
    process_0, process_2 = meet(port, [0, 2], processes=4, timeout_s=0.8)
    assert "2 of 4 processes did not come" in process_0 and "process 1 on node1, process 3 on node3" in process_0
    assert f"port {port}" in process_0 and "--start-timeout-s" in process_0 and "\n" not in process_0
    assert process_2 == f"{process_0} (said by process 0)"
    (alone,) = meet(port, [1], timeout_s=0.8)
    assert "process 0 on localhost did not come" in alone and "refused" in alone and "\n" not in alone


def test_processes_that_disagree_and_what_stops_the_first_are_told_to_all(port):
    said = meet(port, [0, 1], counts={1: 5})
    assert all("process 1" in line and "one of 5" in line and "one of 3" in line for line in said)
    said = meet(port, [0, 1, 1])
    assert any("--process=1" in line and "number of its own" in line for line in said)

    def first():
        raise InputError("corpus: no such folder")

    assert all("corpus: no such folder" in line for line in meet(port, [0, 1, 2], first=first))


def test_a_stranger_at_the_port_is_not_counted_and_a_taken_port_is_said(port):
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(meet, port, [0, 1], processes=2)
        while not run.done():
            try:
                with socket.create_connection(("localhost", port), timeout=1) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            except OSError:
                time.sleep(0.05)
        assert run.result() == ["corpus", None]
    with socket.create_server(("", port)):
        (said,) = meet(port, [0])
    assert f"port {port} of this host is taken" in said


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the platform says no times of keepalive")
def test_a_host_that_is_gone_without_a_word_is_missed_within_two_minutes():
    with socket.socket() as connection:
        _keep_alive(connection)
        idle_s, every_s, times = (connection.getsockopt(socket.IPPROTO_TCP, name) for name in
                                  (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT))  # fmt: skip
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and idle_s + every_s * times <= 120


def environment(devices: int) -> dict[str, str]:
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }


def tario(*words: object, devices: int = 1, **more: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tario_jax.cli", *map(str, words)], text=True,
                            env=os.environ | environment(devices) | more,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


CONFIG = """
from tiny_tissue import tiny_config
from tario_jax.config import MeshConfig

def get_config():
    return tiny_config(data={"rows": 8}, model={"kv_heads": 2}, mesh=MeshConfig(fsdp=2, context=2, tensor=2),
                       train={"steps": 4, "validate_every": 4, "checkpoint_every": 2, "validation_rows": 8})
"""


def test_a_node_that_does_not_come_ends_the_command_with_its_name(tmp_path, tiny_corpus, port):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0",
             "SLURM_STEP_NODELIST": "localhost,node[07-08]"}  # fmt: skip
    words = "train", f"--config={config}", f"--corpus={tiny_corpus.root}", f"--workdir={tmp_path / 'run'}"
    started = tario(*words, f"--coordinator=localhost:{port}", "--start-timeout-s=1", **slurm)
    said, errors = started.communicate(timeout=120)
    assert (started.returncode, said) == (75, "")  # nobody's mistake: schedulers may start it again
    assert errors.startswith("tario: start: 2 of 3 processes did not come") and errors.count("\n") == 1
    assert "process 1 on node07, process 2 on node08" in errors
    assert not (tmp_path / "run").exists()


SCATTERED = """
import sys
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh
from tiny_tissue import PANEL, tiny_config
from tario_jax.config import MESH_AXES
from tario_jax.corpus.read import Corpus
from tario_jax.parallel.mesh import local_rows
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.deal import deal
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train.state import to_devices

process = int(sys.argv[3])
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, process)
sections, data = Corpus.open(sys.argv[1]).sections, tiny_config(data={"rows": 8}).data
layout = corpus_layout(sections, data, len(PANEL))
whole = BatchSource(sections, data, layout, steps=1)[0]
crossed = np.array(jax.devices()).reshape(2, 2).T  # hosts lie along the second axis
for sizes, held in (((1, 4, 1, 1), ((0, 1, 4, 5), (2, 3, 6, 7))), ((2, 1, 2, 1), (tuple(range(8)),) * 2)):
    mesh = Mesh(crossed.reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    rows = local_rows(mesh, 8)
    assert rows == held[process], rows
    placed = to_devices(BatchSource(sections, data, layout, steps=1, rows=rows)[0], mesh)
    for name, expected in deal(whole, mesh.shape["context"])._asdict().items():
        found = multihost_utils.process_allgather(getattr(placed, name), tiled=True)
        np.testing.assert_array_equal(found, expected, err_msg=name)
print("equal")
"""


def test_rows_of_a_process_need_not_lie_side_by_side(tmp_path, tiny_corpus, port):
    """On a torus of chips a host is a block of them: the axes of the mesh cross it."""
    program = tmp_path / "scattered.py"
    program.write_text(SCATTERED)
    started = [subprocess.Popen([sys.executable, program, str(tiny_corpus.root), str(port), str(process)], text=True,
                                env=os.environ | environment(2), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for process in range(2)]  # fmt: skip
    said = [one.communicate(timeout=120) for one in started]
    assert all(text.endswith("equal\n") for text, _ in said), said


def stored(workdir: Path, config):
    built = build(config.model, len(PANEL), config.data.patch_px, content=False)
    abstract = abstract_state(built, make_optimiser(config.optim, config.train.steps, built), make_mesh(MeshConfig()))
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps[-1] == 4
        return jax.device_get(checkpoints.restore(4, abstract).parameters)


def losses(workdir: Path) -> list[float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [value for line in lines for name, value in line.items() if name.endswith("nats_per_detection")]


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on_with_what_the_other_saved(tmp_path, tiny_corpus, port):
    """Two processes of four devices, and this one of one: each alone, and each after the other's step 2."""
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    scope: dict = {}
    exec(CONFIG, scope)
    config = scope["get_config"]()
    here = tiny_config(data={"rows": 8}, model={"kv_heads": 2}, train=vars(config.train))

    def by_two(workdir: Path, port: int) -> None:
        words = "train", f"--config={file}", f"--corpus={tiny_corpus.root}", f"--workdir={workdir}"
        flags = f"--coordinator=localhost:{port}", "--processes=2"
        started = [tario(*words, *flags, f"--process={number}", devices=4) for number in range(2)]
        said = [one.communicate(timeout=240) for one in started]
        assert [one.returncode for one in started] == [0, 0], said
        for number, (text, _) in enumerate(said):
            assert f"process {number} of 2 on " in text and "started by flags" in text
        assert "step      4/4" in said[0][0] and "step" not in said[1][0]  # the first one tells

    alone, two, after_two, after_one = (tmp_path / name for name in ("alone", "two", "after_two", "after_one"))
    train(here, tiny_corpus, alone, lambda line: None)
    by_two(two, port)
    shutil.copytree(two, after_two)
    shutil.rmtree(after_two / "checkpoints" / "4")
    train(here, tiny_corpus, after_two, lambda line: None)
    shutil.copytree(alone, after_one)
    shutil.rmtree(after_one / "checkpoints" / "4")
    by_two(after_one, port)
    expected = stored(alone, here)
    for workdir in (two, after_two, after_one):
        found = stored(workdir, here)
        off = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6), found, expected)
        assert max(jax.tree.leaves(off)) < 1e-5
        np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-6)
    assert (two / "config.json").exists()


@pytest.mark.slow
def test_processes_of_another_config_are_refused_before_a_step(tmp_path, tiny_corpus, port):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    words = "train", f"--config={file}", f"--corpus={tiny_corpus.root}", f"--workdir={tmp_path / 'run'}"
    flags = f"--coordinator=localhost:{port}", "--processes=2"
    started = [tario(*words, *flags, f"--process={number}", f"--config.train.seed={number}", devices=4)
               for number in range(2)]  # fmt: skip
    for one in started:
        _, errors = one.communicate(timeout=120)
        assert one.returncode, errors
        if one.returncode == 2:
            assert "tario: process 1 differs from process 0 in the config, the corpus or the code" in errors
