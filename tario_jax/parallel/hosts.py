"""Several processes as one run: they start together, and none is left waiting for one that ended."""

import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from tario_jax.config import InputError
from tario_jax.parallel.clusters import Cluster
from tario_jax.parallel.roll_call import roll_call

Made = TypeVar("Made")


def join(cluster: Cluster, timeout_s: float, say: Callable[[str], None], first: Callable[[], Made]) -> Made | None:
    """Starts `jax.distributed` when all processes are there and process 0 has done `first()`, whose result it gets.

    To be called before anything starts a device. Raises `InputError`, on every process that came, where one did not.
    """
    made = roll_call(cluster, timeout_s, first)
    host, port = cluster.coordinator
    # gRPC would go to it through http_proxy, and jax abort when nothing came back
    os.environ["no_grpc_proxy"] = host
    jax.config.update("jax_check_proxy_envs", False)
    # it hears SIGTERM on any process, and names all of them the step after which to end (train/stop.py)
    jax.config.update("jax_enable_preemption_service", True)
    jax.distributed.initialize(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}", len(cluster), cluster.process,
        local_device_ids=cluster.local_devices, cluster_detection_method="deactivate",
        initialization_timeout=max(1, round(timeout_s)),
    )  # fmt: skip
    say(f"process {cluster.process} of {len(cluster)} on {socket.gethostname()}, started by {cluster.started_by}")
    return made


def is_first() -> bool:
    """Whether this process writes what one process is to write."""
    return jax.process_index() == 0


def refuse_different(what: dict[str, int]) -> None:
    """Raises `InputError`, on all processes, naming the first of `what` that is not the same on each."""
    if jax.process_count() == 1:
        return
    found = multihost_utils.process_allgather(np.array(list(what.values()), np.int32))
    for name, values in zip(what, found.T, strict=True):
        other = np.flatnonzero(values != values[0])
        if len(other):
            raise InputError(f"process {other[0]} differs from process 0 in {name}")


def has_others() -> bool:
    """Whether this process was joined to others."""
    return jax.distributed.is_initialized()


def end(status: int) -> NoReturn:
    """Ends this process at once, and waits for no thread: of several processes, one that ends as those that are done
    would wait five minutes for the others, and they for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def tpu_metadata(key: str) -> str | None:
    """An attribute of this TPU VM; None where it has no such, or no server of metadata answers."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return None
