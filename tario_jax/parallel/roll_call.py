"""All processes of a run meet before jax starts, and one line says who did not come.

jax's own start ends each process that waited too long by an abort, without a word of who was missing. Here process 0
listens on the coordinator's port, hears of every other, and lets all go at once; jax then takes the port over.
"""

import contextlib
import errno
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tario_jax.config import Absent, InputError
from tario_jax.parallel.clusters import Cluster

Made = TypeVar("Made")
_LONGEST = 65536  # bytes of a message
_NAMED = 32  # of those that did not come
_SAID = {"process": int, "processes": int, "host": str}
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # 90 s: by default, 2 hours
_PATIENCE_S = 10.0  # for process 0's answer after its own deadline


def roll_call(cluster: Cluster, timeout_s: float, first: Callable[[], Made]) -> Made | None:
    """Returns when every process is there and process 0 has done `first()`, whose result it alone gets.

    Raises on every process that came, with one line: `Absent` where one did not come within timeout_s, else
    `InputError`: who disagrees on the number of processes, or what stopped process 0.
    """
    return _hear(cluster, timeout_s, first) if cluster.process == 0 else _answer(cluster, timeout_s)


def _hear(cluster: Cluster, timeout_s: float, first: Callable[[], Made]) -> Made:
    deadline = time.monotonic() + timeout_s
    heard: dict[socket.socket, bytes] = {}  # what each connection said so far
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(_listen(cluster))
        try:
            _gather(cluster, listening, heard, deadline, timeout_s, opened)
            _tell(heard, present=len(cluster))
            made = first()
        except InputError as error:
            _tell(heard, refused=f"{error} (said by process 0)", absent=isinstance(error, Absent))
            raise
        listening.close()  # jax listens here next
        _tell(heard, go=True)
        return made


def _listen(cluster: Cluster) -> socket.socket:
    host, port = cluster.coordinator
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken, perhaps by another run" if error.errno == errno.EADDRINUSE else "may not be opened"
        kind = Absent if error.errno == errno.EADDRINUSE else InputError  # the one before may be about to let it go
        raise kind(
            f"--coordinator={host}:{port}: port {port} of this host {why}; give another: --coordinator={host}:PORT"
        ) from None


def _gather(cluster: Cluster, listening: socket.socket, heard: dict[socket.socket, bytes], deadline: float,
            timeout_s: float, opened: contextlib.ExitStack) -> None:  # fmt: skip
    """Returns when all other processes have said who they are; `heard` then holds their connections."""
    came: dict[int, tuple[socket.socket, str]] = {}  # connection and host of each process
    ready = opened.enter_context(selectors.DefaultSelector())
    ready.register(listening, selectors.EVENT_READ)
    while len(came) < len(cluster) - 1:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Absent(_missing(cluster, set(range(1, len(cluster))) - came.keys(), timeout_s))
        for key, _ in ready.select(left):
            if key.fileobj is listening:
                connection = opened.enter_context(listening.accept()[0])
                ready.register(connection, selectors.EVENT_READ)
                heard[connection] = b""
                continue
            connection = key.fileobj
            text = _received(connection)
            heard[connection] += text
            if not text or len(heard[connection]) > _LONGEST:  # gone: it may come again
                ready.unregister(connection)
                came = {number: other for number, other in came.items() if other[0] is not connection}
                del heard[connection]
                connection.close()
            elif heard[connection].endswith(b"\n"):
                said = _read(heard[connection])
                if {name: type(value) for name, value in said.items()} != _SAID:
                    continue  # not one of ours
                number = said["process"]
                _refuse_stranger(cluster, said, came[number][1] if number in came else None)
                came[number] = connection, said["host"]


def _refuse_stranger(cluster: Cluster, said: dict[str, Any], twin: str | None) -> None:
    who = f"process {said['process']} on {said['host']}"
    if said["processes"] != len(cluster):
        raise InputError(
            f"--processes: {who} was started as one of {said['processes']}, process 0 as one of {len(cluster)}; "
            "start all with the same number"
        )
    if twin is not None or not 0 < said["process"] < len(cluster):
        where = "process 0 too" if twin is None else f"a process on {twin} too"
        raise InputError(f"--process={said['process']}: {who}, and {where}; give each process a number of its own")


def _missing(cluster: Cluster, absent: set[int], timeout_s: float) -> str:
    host, port = cluster.coordinator
    named = ", ".join(cluster.named(process) for process in sorted(absent)[:_NAMED])
    more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
    return (
        f"start: {len(absent)} of {len(cluster)} processes did not come to {host}:{port} within {timeout_s:g} s: "
        f"{named}{more}; see in their logs whether they started, open port {port} of {host} to them in the firewall, "
        "or wait longer with --start-timeout-s"
    )


def _answer(cluster: Cluster, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    host, port = cluster.coordinator
    said = {"process": cluster.process, "processes": len(cluster), "host": socket.gethostname()}
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 10.0)) as connection:
                _keep_alive(connection)
                connection.sendall(json.dumps(said).encode() + b"\n")
                if _wait(connection, timeout_s + _PATIENCE_S):
                    return None
                why = "process 0 hung up"
        except (OSError, TimeoutError) as error:
            why = error.strerror or str(error) or type(error).__name__
        time.sleep(min(0.5, max(left, 0.0)))
    raise Absent(
        f"start: {cluster.named(0)} did not come to {host}:{port} within {timeout_s:g} s ({why}); see in its log "
        f"whether it started, open port {port} of {host} in the firewall, or wait longer with --start-timeout-s"
    )


def _keep_alive(connection: socket.socket) -> None:
    """Reading ends with an error where the other host is gone without a word; as soon as the platform lets us say."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _wait(connection: socket.socket, timeout_s: float) -> bool:
    """Whether process 0 lets this one go; False where it hung up before all were there."""
    connection.settimeout(timeout_s)
    present = False
    with connection.makefile("rb") as lines:
        while line := lines.readline(_LONGEST):
            said = _read(line)
            if "refused" in said:
                raise (Absent if said.get("absent") else InputError)(said["refused"])
            if said.get("go"):
                return True
            if "present" not in said:
                raise InputError("--coordinator: what answers there is not process 0 of a run; is the port another's?")
            present = True
            connection.settimeout(None)  # it makes the corpus, however long that takes
    if present:
        raise Absent("start: process 0 ended before training; see its log")
    return False


def _read(line: bytes) -> dict[str, Any]:
    """A message; empty where it is none of ours."""
    with contextlib.suppress(ValueError):
        said = json.loads(line)
        return said if isinstance(said, dict) else {}
    return {}


def _received(connection: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionError):
        return connection.recv(4096)
    return b""


def _tell(connections: Iterable[socket.socket], **message: Any) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):  # it ended: jax will say so
            connection.sendall(json.dumps(message).encode() + b"\n")
