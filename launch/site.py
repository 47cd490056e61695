"""What of a cluster or a cloud project only its users know: a typed file, site.toml, overridden by --site.a.b=value."""

import dataclasses
import re
import tomllib
from pathlib import Path

from launch.hardware import Hardware
from tario_jax.config import InputError
from tario_jax.config_files import override


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(f"site: {message}")


def _check_word(name: str, text: str) -> None:
    _check(not re.search(r"[\s'\"#`$\\]", text), f"{name} is {text!r}; expected a word, without spaces and quotes")


def _check_one_host(name: str, text: str) -> None:
    _check(text == "cpu" or Hardware.of(text).hosts == 1, f"{name} is {text!r}; expected cpu, or what one host has")


@dataclasses.dataclass(frozen=True)
class Slurm:
    """Of every job of an array."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time_minutes: int = 1440  # then the run is told to end, saves, and is queued again
    grace_s: int = 120  # from that signal to the end; at least train.grace_s of the runs
    cpus_per_task: int = 0  # 0: the partition's own
    memory_gb: int = 0  # of a node; 0: the partition's own
    setup: str = ""  # lines of bash before the job, each of which must succeed: source .venv/bin/activate
    evaluate_minutes: int = 240
    evaluate_gpus: int = 1  # of the one node that evaluates; 0: on its CPUs

    def __post_init__(self):
        for name in ("partition", "account", "qos", "constraint"):
            _check_word(f"slurm.{name}", getattr(self, name))
        for name in ("time_minutes", "grace_s", "evaluate_minutes"):
            _check(getattr(self, name) > 0, f"slurm.{name} is {getattr(self, name)}; expected more than 0")
        for name in ("cpus_per_task", "memory_gb", "evaluate_gpus"):
            _check(getattr(self, name) >= 0, f"slurm.{name} is {getattr(self, name)}; expected at least 0")
        _check(self.time_minutes * 60 > 2 * self.grace_s, f"slurm.time_minutes is {self.time_minutes}, and "
               f"slurm.grace_s {self.grace_s}: expected more time than twice the grace")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Gke:
    """A cluster with JobSet and Kueue."""

    image: str = ""  # of launch/Dockerfile, pushed where the cluster can pull it
    namespace: str = "default"
    queue: str = ""  # Kueue's LocalQueue, and ClusterQueue; else tario- and the name of the sweep
    volume_claim: str = "tario-sweeps"  # ReadWriteMany: the workdir of the sweep lies on it
    mounted_at: str = "/sweeps"
    service_account: str = ""
    priority: str = ""  # Kueue's WorkloadPriorityClass
    spot: bool = False
    max_restarts: int = 100  # of a run: preemptions count
    evaluate_on: str = "cpu"  # or a slice of one host, as v5e:2x2
    cpu_cores: int = 16  # of the node that makes the cohort, or evaluates
    cpu_memory_gb: int = 64
    slices_at_once: int = 1  # of each kind of slice, in Kueue's quota

    def __post_init__(self):
        _check_word("gke.image", self.image)
        for name in ("namespace", "queue", "volume_claim"):
            value = getattr(self, name)
            _check(not value and name == "queue" or bool(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", value)),
                   f"gke.{name} is {value!r}; expected small letters, digits and - between them")  # fmt: skip
        _check(self.mounted_at.startswith("/"), f"gke.mounted_at is {self.mounted_at!r}; expected a path from /")
        for name in ("cpu_cores", "cpu_memory_gb", "slices_at_once"):
            _check(getattr(self, name) > 0, f"gke.{name} is {getattr(self, name)}; expected more than 0")
        _check(self.max_restarts >= 0, f"gke.max_restarts is {self.max_restarts}; expected at least 0")
        _check_one_host("gke.evaluate_on", self.evaluate_on)


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A project with TPU VMs."""

    project: str = ""
    zone: str = ""
    image: str = ""  # of launch/Dockerfile with BACKEND=tpu
    share: str = ""  # what all hosts mount: an NFS export, as 10.0.0.2:/sweeps
    mounted_at: str = "/sweeps"
    spot: bool = True
    network: str = ""
    subnetwork: str = ""
    service_account: str = ""
    valid_until: str = "24h"  # waiting in the queue longer ends the request
    evaluate_on: str = "cpu"  # worker 0's own, after training

    def __post_init__(self):
        for name in ("project", "zone", "image", "share", "network", "subnetwork", "service_account"):
            _check_word(f"tpu.{name}", getattr(self, name))
        _check(self.mounted_at.startswith("/"), f"tpu.mounted_at is {self.mounted_at!r}; expected a path from /")
        _check(bool(re.fullmatch(r"\d+[smhd]", self.valid_until)),
               f"tpu.valid_until is {self.valid_until!r}; expected a duration, as 24h")  # fmt: skip
        _check(self.evaluate_on == "cpu", f"tpu.evaluate_on is {self.evaluate_on!r}; expected cpu: a slice's worker "
               "alone cannot start its chips")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Site:
    slurm: Slurm = Slurm()
    gke: Gke = Gke()
    tpu: Tpu = Tpu()

    def needs(self, group: str, *names: str) -> None:
        """Raises `InputError` where one of them is not said."""
        for name in names:
            if not getattr(getattr(self, group), name):
                raise InputError(f"--backend={group}: needs {group}.{name}; say it in a file for --site, or as "
                                 f"--site.{group}.{name}=…")  # fmt: skip


def read_site(file: Path | None, assignments: dict[str, str]) -> Site:
    """Raises `InputError` for a field that does not exist, naming the one that was meant, and for a wrong value."""
    site = Site()
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"--site={file}: {error.strerror}; expected a file as launch/site.toml") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"--site={file}: {error}; expected TOML, as launch/site.toml") from None
        for group, fields in values.items():
            for name, value in fields.items() if isinstance(fields, dict) else [("", fields)]:
                dotted = f"{group}.{name}" if name else group
                if not isinstance(value, str | int | float):
                    raise InputError(f"{file}: {dotted} is a {type(value).__name__}; expected text, a number, or true "
                                     "or false")  # fmt: skip
                site = override(site, {dotted: value if isinstance(value, str) else repr(value)}, f"{file}: ")
    return override(site, assignments, "--site.")
