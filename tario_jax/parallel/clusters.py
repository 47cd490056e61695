"""Which processes a run has, and which of them this one is: from flags, Slurm, GKE or Cloud TPU.

Pure functions of an environment. jax detects the same clusters, but it keeps the hosts' names to itself, takes a batch
job that was not started by srun for one of several processes, and gives a Slurm task that has a node for itself one of
the node's GPUs. Its ports are kept: what a firewall lets through for jax, it lets through here.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from tario_jax.config import InputError

_TPU_PORT = 8482
_MULTIPLE_SLICES = "MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, two at least."""

    started_by: str
    process: int  # this one, from 0
    hosts: tuple[str | None, ...]  # of each process; None where the environment does not tell
    coordinator: tuple[str, int]  # host and port of process 0
    local_devices: tuple[int, ...] | None = None  # the GPUs of this process among those that it sees; None: all

    def __len__(self) -> int:
        return len(self.hosts)

    def named(self, process: int) -> str:
        host = self.hosts[process]
        return f"process {process}" if host is None else f"process {process} on {host}"


def find_cluster(
    environment: Mapping[str, str], *, coordinator: str | None = None, processes: int | None = None,
    process: int | None = None, metadata: Callable[[str], str | None] = lambda key: None,
) -> Cluster | None:  # fmt: skip
    """The processes that this one belongs to; None where it is alone.

    coordinator, processes, process: the flags, which win over the environment; a coordinator alone moves that of the
    environment. metadata(key): an attribute of this TPU VM, None where there is none; asked on a TPU VM only.
    Raises `InputError` naming the flag or the variable that is wrong.
    """
    address = None if coordinator is None else _address(coordinator)
    if processes is not None or process is not None:
        return _of_flags(address, processes, process)
    found = _slurm(environment)
    if found is None and "tpu" in (environment.get("JAX_PLATFORMS") or "tpu"):
        found = _tpu(environment, metadata)
    if address is None:
        return found
    if found is None:
        raise InputError(
            f"--coordinator={coordinator}: no cluster was found here; say --processes=N and --process=I too"
        )
    return dataclasses.replace(found, coordinator=address)


def why_alone(environment: Mapping[str, str]) -> str | None:
    """What to do where a Slurm job has several tasks and this process is none of them."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if "SLURM_JOB_ID" in environment and tasks != "1" and _slurm(environment) is None:
        return f"one process, though this Slurm job has {tasks} tasks; to use them all, start it with srun"
    return None


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    is_port = port.isdecimal() and 0 < int(port) < 65536
    if not (colon and host and is_port) or host.startswith("[") != host.endswith("]"):
        raise InputError(f"--coordinator={text}: expected HOST:PORT of process 0, as node01:12321")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _of_flags(address: tuple[str, int] | None, processes: int | None, process: int | None) -> Cluster | None:
    if processes == 1 and process in (None, 0):
        return None
    if processes is None or process is None:
        given, missing = ("processes", "process=I") if process is None else ("process", "processes=N")
        raise InputError(f"--{given}={process if processes is None else processes}: say --{missing} too")
    if not 0 <= process < processes:
        raise InputError(f"--process={process}: expected 0 to {processes - 1}, as --processes={processes}")
    if address is None:
        raise InputError(f"--processes={processes}: say --coordinator=HOST:PORT too, where process 0 is reached")
    return Cluster("flags", process, (address[0], *[None] * (processes - 1)), address)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise InputError(f"{name}={text!r} in the environment: expected a whole number")
    return int(text)


# Slurm


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A task of srun. A script of sbatch has a process number too, but no step."""
    if not {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys():
        return None
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    processes, process = _number(environment, count), _number(environment, "SLURM_PROCID")
    if processes == 1:
        return None
    if not process < processes:
        raise InputError(f"SLURM_PROCID={process} in the environment: expected 0 to {processes - 1}, as {count}")
    nodes = expand_nodes(environment["SLURM_STEP_NODELIST"])
    tasks = _tasks_of_nodes(environment, len(nodes), processes)
    by_block = environment.get("SLURM_DISTRIBUTION", "block").startswith("block") or max(tasks) == 1
    hosts: list[str | None] = [node for node, number in zip(nodes, tasks, strict=True) for _ in range(number)]
    if not by_block:  # then only the first is where it would be by block
        hosts[1:] = [None] * (processes - 1)
    port = _number(environment, "SLURM_JOB_ID") % 4096 + 61440  # jax's
    node = _number(environment, "SLURM_NODEID") if "SLURM_NODEID" in environment else tasks.index(max(tasks))
    if node >= len(tasks):
        raise InputError(f"SLURM_NODEID={node} in the environment: expected 0 to {len(tasks) - 1}, the step's nodes")
    here = tasks[node]
    return Cluster("Slurm", process, tuple(hosts), (nodes[0], port), _gpus_of_task(environment, here))


def expand_nodes(text: str) -> tuple[str, ...]:
    """The nodes of a Slurm list: `node[01-03,7],login` is node01, node02, node03, node7, login."""
    part = r"(?:[^\[\],]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"
    if not re.fullmatch(f"{part}(?:,{part})*", text):
        raise InputError(f"SLURM_STEP_NODELIST={text!r} in the environment: not a list of nodes")
    found = []
    for pattern in re.findall(part, text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", pattern):
            ends = [plain] if plain else [number for span in ranges.split(",") for number in _numbers(span)]
            names = [name + end for name in names for end in ends]
        found += names
    return tuple(found)


def _numbers(span: str) -> list[str]:
    first, _, last = span.partition("-")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]


def _tasks_of_nodes(environment: Mapping[str, str], nodes: int, processes: int) -> list[int]:
    """Tasks of each node: `2(x3),1` is 2, 2, 2, 1."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE")
    if text is None:
        tasks = [processes // nodes + (node < processes % nodes) for node in range(nodes)]
    else:
        tasks = [int(number) for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
                 for _ in range(int(times or 1))]  # fmt: skip
    if len(tasks) != nodes or sum(tasks) != processes:
        raise InputError(f"SLURM_STEP_TASKS_PER_NODE={text!r} in the environment: is not {processes} tasks on "
                         f"{nodes} nodes")  # fmt: skip
    return tasks


def _gpus_of_task(environment: Mapping[str, str], tasks: int) -> tuple[int, ...] | None:
    """The GPUs of one of several tasks of a node: its share of those that it sees."""
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if tasks == 1 or len(visible) == 1 or _binds_gpus(environment):  # all of the node, or what Slurm bound to the task
        return None
    local = _number(environment, "SLURM_LOCALID")
    if not visible:
        return (local,)
    if len(visible) % tasks:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES={','.join(visible)} in the environment: {len(visible)} GPUs for {tasks} tasks of a "
            "node; expected a multiple: change srun's --ntasks-per-node or --gpus-per-node"
        )
    share = len(visible) // tasks
    return tuple(range(local * share, (local + 1) * share))


def _binds_gpus(environment: Mapping[str, str]) -> bool:
    """Whether each task sees its own GPUs alone: --gpus-per-task implies --gpu-bind=per_task, unless that is said."""
    per_task = "SLURM_GPUS_PER_TASK" in environment or "gres/gpu" in environment.get("SLURM_TRES_PER_TASK", "")
    return per_task and not environment.get("SLURM_GPU_BIND", "").endswith("none")


# TPUs


def _tpu(environment: Mapping[str, str], metadata: Callable[[str], str | None]) -> Cluster | None:
    """Workers of a TPU slice, or of several: GKE sets variables, a Cloud TPU VM has metadata."""
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if names:
        workers = [name.strip().partition(":")[0] for name in names.split(",")]
        slices = {name: environment.get(name, "") for name in _MULTIPLE_SLICES}
        if len(workers) == 1 and slices["MEGASCALE_NUM_SLICES"] in ("", "1"):
            return None
        return _of_slices("GKE", _number(environment, "TPU_WORKER_ID"), workers, slices)
    # jax sets both as it is imported: the one on TPU VMs, the other where no chip is
    if "TPU_ML_PLATFORM" not in environment or "TPU_SKIP_MDS_QUERY" in environment:
        return None
    worker, endpoints = metadata("agent-worker-number"), metadata("worker-network-endpoints")
    if worker is None or not endpoints:
        return None
    workers = [endpoint.rpartition(":")[2] for endpoint in endpoints.split(",")]  # name:id:ip, or only a name
    of_tpu = dict(re.findall(r"^\s*(\w+)\s*:\s*'?([^'\n]*)'?\s*$", metadata("tpu-env") or "", re.MULTILINE))
    slices = {name: environment.get(name) or of_tpu.get(name, "") for name in _MULTIPLE_SLICES}
    if len(workers) == 1 and slices["MEGASCALE_NUM_SLICES"] in ("", "1"):
        return None
    return _of_slices("Cloud TPU", int(worker), workers, slices)


def _of_slices(started_by: str, worker: int, workers: list[str], slices: dict[str, str]) -> Cluster:
    """Processes are numbered slice by slice; only the names of this slice are known, and the first of all."""
    several = slices["MEGASCALE_NUM_SLICES"] not in ("", "1")
    number, this = (_number(slices, name) for name in _MULTIPLE_SLICES[1:]) if several else (1, 0)
    first = slices["MEGASCALE_COORDINATOR_ADDRESS"].partition(":")[0] if several else workers[0]
    if not first:
        raise InputError(f"MEGASCALE_COORDINATOR_ADDRESS is not set, and there are {number} slices")
    if not (worker < len(workers) and this < number):
        raise InputError(
            f"TPU worker {worker} of slice {this}: expected one of {len(workers)} workers of {number} slices"
        )
    hosts = [
        name if index == this else f"worker {at} of slice {index}"
        for index in range(number) for at, name in enumerate(workers)
    ]  # fmt: skip
    hosts[0] = first
    return Cluster(started_by, this * len(workers) + worker, tuple(hosts), (first, _TPU_PORT))
