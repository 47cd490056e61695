"""Which processes a run has: from made-up environments of Slurm, GKE and Cloud TPU, and from flags."""

import pytest
from refusals import refused

from tario_jax.parallel.clusters import Cluster, expand_nodes, find_cluster, why_alone

SLURM = {
    "SLURM_JOB_ID": "70001", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[08-09]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
GKE = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "job-0-0.svc,job-0-1.svc"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "job-0-0.svc:8080"}
TPU_VM = {"TPU_ML_PLATFORM": "JAX"}


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("node7", ["node7"]),
        ("node[01-03,7],login", ["node01", "node02", "node03", "node7", "login"]),
        ("a-1,b[9-11]-x", ["a-1", "b9-x", "b10-x", "b11-x"]),
        ("r[1-2]n[08,10]", ["r1n08", "r1n10", "r2n08", "r2n10"]),
    ],
)
def test_a_list_of_nodes_is_expanded(text, nodes):
    assert list(expand_nodes(text)) == nodes


@pytest.mark.parametrize("text", ["", "node[1", "node]", "a,,b", "node[x]", "a,"])
def test_what_is_no_list_of_nodes_is_refused(text):
    refused(lambda: expand_nodes(text), "SLURM_STEP_NODELIST", repr(text))


def test_tasks_of_srun_are_processes_on_their_nodes():
    found = find_cluster(SLURM)
    assert found == Cluster("Slurm", 2, ("gpu08", "gpu08", "gpu09", "gpu09"), ("gpu08", 61440 + 70001 % 4096), (0,))
    uneven = find_cluster(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1"})
    assert uneven.hosts == ("gpu08",) * 3 + ("gpu09",)
    dealt = find_cluster(SLURM | {"SLURM_DISTRIBUTION": "cyclic"})
    assert dealt.hosts == ("gpu08", None, None, None) and dealt.named(3) == "process 3"
    moved = find_cluster(SLURM, coordinator="gpu08:5000")
    assert moved.coordinator == ("gpu08", 5000) and moved.hosts == found.hosts


@pytest.mark.parametrize(
    ("more", "devices"),
    [
        ({}, (0,)),  # as jax: by its place on the node
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (2, 3)),  # its share
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "3"}, None),  # the one that Slurm bound to it
        # srun --gpus-per-task: it sees its own two, numbered from 0
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, None),
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_TRES_PER_TASK": "cpu=8,gres/gpu=2"}, None),
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_PER_TASK": "2",
          "SLURM_GPU_BIND": "none"}, (2, 3)),
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_TRES_PER_TASK": "cpu=8"}, (1,)),
        ({"SLURM_STEP_NODELIST": "gpu[1-4]", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": "0,1"},
         None),
    ],
)  # fmt: skip
def test_tasks_of_a_node_share_its_gpus_and_one_alone_has_all(more, devices):
    assert find_cluster(SLURM | more).local_devices == devices


def test_one_task_and_a_batch_script_are_one_process():
    assert find_cluster({}) is None and why_alone({}) is None
    one = SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert find_cluster(one) is None and why_alone(one) is None
    script = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert find_cluster(script) is None
    assert "4 tasks" in why_alone(script) and "srun" in why_alone(script)


def test_workers_of_gke_are_processes_slice_by_slice():
    assert find_cluster(GKE) == Cluster("GKE", 1, ("job-0-0.svc", "job-0-1.svc"), ("job-0-0.svc", 8482))
    found = find_cluster(GKE | SLICES)
    assert (found.process, found.coordinator) == (3, ("job-0-0.svc", 8482))
    assert found.hosts == ("job-0-0.svc", "worker 1 of slice 0", "job-0-0.svc", "job-0-1.svc")
    assert find_cluster(GKE | {"JAX_PLATFORMS": "cpu"}) is None
    assert find_cluster(GKE | {"JAX_PLATFORMS": ""}) == find_cluster(GKE)  # to jax: not set
    assert find_cluster({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}) is None


def test_workers_of_a_cloud_tpu_are_processes():
    stored = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "a:1:10.0.0.2,b:2:10.0.0.3",
        "tpu-env": "X: 'y'\n",
    }
    found = find_cluster(TPU_VM, metadata=stored.get)
    assert found == Cluster("Cloud TPU", 1, ("10.0.0.2", "10.0.0.3"), ("10.0.0.2", 8482))
    slices = "".join(f"{name}: '{value}'\n" for name, value in SLICES.items())
    several = find_cluster(TPU_VM, metadata=(stored | {"tpu-env": slices}).get)
    assert (several.process, len(several), several.coordinator) == (3, 4, ("job-0-0.svc", 8482))
    assert find_cluster(TPU_VM) is None  # a TPU VM alone

    def asked(key):
        raise AssertionError("metadata of a machine without TPU")

    assert find_cluster({}, metadata=asked) is None
    assert find_cluster(TPU_VM | {"TPU_SKIP_MDS_QUERY": "1"}, metadata=asked) is None


def test_flags_win_over_the_environment():
    found = find_cluster(SLURM, coordinator="node1:99", processes=2, process=1)
    assert found == Cluster("flags", 1, ("node1", None), ("node1", 99))
    assert find_cluster(SLURM, processes=1) is None
    assert find_cluster({}, coordinator="[fe80::1]:99", processes=2, process=0).coordinator == ("fe80::1", 99)


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({}, {"coordinator": "node1"}, ["--coordinator=node1", "HOST:PORT"]),
        ({}, {"coordinator": "node1:0", "processes": 2, "process": 0}, ["--coordinator=node1:0", "HOST:PORT"]),
        ({}, {"coordinator": "node1:x"}, ["--coordinator=node1:x", "HOST:PORT"]),
        ({}, {"coordinator": "node1:99"}, ["--processes=N", "--process=I"]),
        ({}, {"processes": 2}, ["--processes=2", "--process=I"]),
        ({}, {"process": 2}, ["--process=2", "--processes=N"]),
        ({}, {"processes": 2, "process": 1}, ["--coordinator=HOST:PORT"]),
        ({}, {"coordinator": "a:9", "processes": 2, "process": 2}, ["--process=2", "0 to 1"]),
        ({}, {"coordinator": "a:9", "processes": 2, "process": -1}, ["--process=-1", "0 to 1"]),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "x"}, {}, ["SLURM_STEP_NUM_TASKS='x'"]),
        (SLURM | {"SLURM_PROCID": "4"}, {}, ["SLURM_PROCID=4", "0 to 3"]),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2"}, {}, ["SLURM_STEP_TASKS_PER_NODE", "4 tasks on 2 nodes"]),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, {}, ["CUDA_VISIBLE_DEVICES", "3 GPUs for 2 tasks"]),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, ["TPU_WORKER_ID"]),
        (GKE | {"TPU_WORKER_ID": "2"}, {}, ["TPU worker 2", "2 workers"]),
        (GKE | SLICES | {"MEGASCALE_SLICE_ID": "2"}, {}, ["slice 2", "2 slices"]),
        (GKE | SLICES | {"MEGASCALE_COORDINATOR_ADDRESS": ""}, {}, ["MEGASCALE_COORDINATOR_ADDRESS"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(environment, flags, words):
    refused(lambda: find_cluster(environment, **flags), *words)
