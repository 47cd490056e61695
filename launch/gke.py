"""The runs of a sweep on GKE: a JobSet each, and the queues of Kueue that admit them when their slices are free.

A run's JobSet trains on all hosts of its slices, then evaluates. Its pods restart together when one of them ends: after
a preemption from the checkpoint that SIGTERM left, after a fault from the newest one; a user's mistake (status 2) fails
the JobSet at once. GKE tells the processes where they are (TPU_WORKER_ID, MEGASCALE_*), Kueue starts what there is
quota for, and nothing of a run before all of its slices are there.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from launch.files import run_script, write_files
from launch.gke_model import validate
from launch.hardware import Hardware
from launch.held import Held, Unheard
from launch.jobs import CORPUS, KINDS, SCALING, Job, is_done, jobs_of
from launch.local import Local
from launch.site import Site
from launch.statuses import MISTAKE
from launch.sweep_file import Sweep
from tario_jax.config import InputError

_SLICE_PER_POOL = "cloud.google.com/gke-nodepool"
_LABEL = "tario-sweep"
_PORT = 8482
_SAVED_S = 15  # beyond train.grace_s, before a pod is killed
_COME_S = 1800  # that hosts wait for each other: a slice that was taken away comes back when there is one


class GkeBackend:
    """Objects in WORKDIR/launch/gke: queues.yaml, and a file for the cohort, each run, and the report."""

    def __init__(self, sweep: Sweep, workdir: Path, site: Site, how: Local, *, to_do: bool = True):
        """to_do: as of `jobs_of`."""
        site.needs("gke", "image")
        sweep = in_container(sweep)
        self._sweep, self._workdir, self._site, self._how = sweep, workdir, site.gke, how
        self._there = on_share(workdir, site.gke.mounted_at)
        self._jobs = jobs_of(sweep, self._there, to_do=to_do)
        self._queue = site.gke.queue or _dns(f"tario-{sweep.name}")
        for run, hardware in sweep.hardware.items():
            if hardware is None:
                raise InputError(f"{run}: GKE is to lend what? say --topology=v5e:16x16 or so, or get_topologies() in "
                                 f"{sweep.file}")  # fmt: skip

    @property
    def folder(self) -> Path:
        return self._workdir / "launch" / "gke"

    def objects(self, kinds: Iterable[str] = KINDS) -> dict[str, list[dict[str, Any]]]:
        """By name of the file, what it holds; each was held against the model of what JobSet and Kueue accept.

        kinds: of jobs that a JobSet does.
        """
        found, kinds = {"queues": self._queues()}, tuple(kinds)
        for name, jobs in self._jobs.items():
            if some := [job for job in jobs if job.kind in kinds]:
                found[name] = [self._jobset(name, some)]
        for file, several in found.items():
            for one in several:
                validate(one, f"{file}.yaml")
        return found

    def files(self, kinds: Iterable[str] = KINDS) -> dict[str, str]:
        return {f"{name}.yaml": _yaml(several, self._sweep) for name, several in self.objects(kinds).items()}

    # Kueue

    def _queues(self) -> list[dict[str, Any]]:
        """A flavor for each kind of slice, a queue of the cluster with their quota, and the namespace's way to it.

        Of all runs of the file, whichever were asked for: others of them may be waiting in it.
        """
        kinds: dict[str, Hardware] = {}
        chips: dict[str, int] = {}  # of a run
        for hardware in filter(None, self._sweep.whole.values()):
            name = _flavor(hardware)
            kinds[name], chips[name] = hardware, max(hardware.chips, chips.get(name, 0))
        runs_at_once = len(kinds) * self._site.slices_at_once
        for hardware in self._evaluated_on():  # Kueue admits a run with all of its jobs: beside those that train
            name = _flavor(hardware)
            kinds[name], chips[name] = hardware, hardware.chips + chips.get(name, 0)
        resources = sorted({hardware.resource for hardware in kinds.values()})
        groups = []
        for resource in resources:
            flavors = [
                {"name": name, "resources": [{"name": resource,
                                              "nominalQuota": chips[name] * self._site.slices_at_once}]}
                for name, hardware in kinds.items() if hardware.resource == resource
            ]  # fmt: skip
            groups.append({"coveredResources": [resource], "flavors": flavors})
        jobs_at_once = max(4, runs_at_once)
        cpu, memory = jobs_at_once * self._site.cpu_cores, jobs_at_once * self._site.cpu_memory_gb
        groups.append({
            "coveredResources": ["cpu", "memory"],
            "flavors": [{"name": "tario-cpu", "resources": [{"name": "cpu", "nominalQuota": cpu},
                                                            {"name": "memory", "nominalQuota": f"{memory}Gi"}]}],
        })  # fmt: skip
        objects = [_object("ResourceFlavor", name, spec={"nodeLabels": hardware.node_labels})
                   for name, hardware in kinds.items()]  # fmt: skip
        objects.append(_object("ResourceFlavor", "tario-cpu", spec={}))
        objects.append(_object("ClusterQueue", self._queue, spec={
            "namespaceSelector": {}, "resourceGroups": groups, "preemption": {"withinClusterQueue": "LowerPriority"},
        }))  # fmt: skip
        objects.append(_object("LocalQueue", self._queue, namespace=self._site.namespace,
                               spec={"clusterQueue": self._queue}))  # fmt: skip
        return objects

    def _evaluated_on(self) -> list[Hardware]:
        return [] if self._site.evaluate_on == "cpu" else [Hardware.of(self._site.evaluate_on)]

    # JobSets

    def _jobset(self, run: str, jobs: list[Job]) -> dict[str, Any]:
        name = self.jobset_name(run)
        replicated = []
        for job in jobs:
            hardware = self._sweep.hardware.get(run) if job.kind == "train" else next(iter(self._evaluated_on()), None)
            if job.run in (CORPUS, SCALING):
                hardware = None
            replicated.append(self._replicated(name, job, hardware))
        if len(replicated) > 1:
            replicated[1]["dependsOn"] = [{"name": replicated[0]["name"], "status": "Complete"}]
        labels = {"kueue.x-k8s.io/queue-name": self._queue, _LABEL: _label(self._sweep.name)}
        if self._site.priority:
            labels["kueue.x-k8s.io/priority-class"] = self._site.priority
        return _object("JobSet", name, namespace=self._site.namespace, labels=labels, spec={
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {
                "maxRestarts": self._site.max_restarts,
                "rules": [{"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": replicated,
        })  # fmt: skip

    def _replicated(self, jobset: str, job: Job, hardware: Hardware | None) -> dict[str, Any]:
        slices, hosts = (1, 1) if hardware is None else (hardware.slices, hardware.hosts_of_slice)
        if hardware is not None and hardware.is_gpu:  # hosts of GPUs are one job: nothing binds them as a slice does
            slices, hosts = 1, hardware.hosts
        template: dict[str, Any] = {"spec": {
            "parallelism": hosts, "completions": hosts, "completionMode": "Indexed", "backoffLimit": 0,
            "podFailurePolicy": {"rules": [{
                "action": "FailJob", "onExitCodes": {"containerName": job.kind, "operator": "In", "values": [MISTAKE]},
            }]},
            "template": {"spec": self._pod(jobset, job, hardware)},
        }}  # fmt: skip
        if hosts > 1 and not hardware.is_gpu:
            template["metadata"] = {"annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": _SLICE_PER_POOL}}
        return {"name": job.kind, "replicas": slices, "template": template}

    def _pod(self, jobset: str, job: Job, hardware: Hardware | None) -> dict[str, Any]:
        site, labels = self._site, {}
        grace_s = 30
        if job.kind == "train":
            grace_s = round(self._sweep.configs[job.run].train.grace_s) + _SAVED_S
        words = list(job.words)
        container: dict[str, Any] = {"name": job.kind, "image": site.image}
        if hardware is None:
            amounts = {"cpu": site.cpu_cores, "memory": f"{site.cpu_memory_gb}Gi"}
            container["env"] = [{"name": "JAX_PLATFORMS", "value": "cpu"}]
        else:
            amounts, labels = {hardware.resource: hardware.chips_of_host}, dict(hardware.node_labels)
            if job.kind == "train" and not hardware.is_gpu:
                container["ports"] = [{"containerPort": _PORT}, {"containerPort": 8471}]
            if job.kind == "train" and hardware.hosts > 1:
                words.append(f"--start-timeout-s={_COME_S}")
            if hardware.is_gpu:  # where GKE puts the driver's libraries
                container["env"] = [{"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"}]
            if job.kind == "train" and hardware.is_gpu and hardware.hosts > 1:
                words += [f"--coordinator={jobset}-train-0-0.{jobset}:{_PORT}", f"--processes={hardware.hosts}",
                          "--process=$(JOB_COMPLETION_INDEX)"]  # fmt: skip
        container["command"] = ["python", "-m", "launch.attempt", str(job.folder(self._there)),
                                "--attempt=$(JOBSET).$(RESTART)", f"--retries={self._how.retries}",
                                f"--back-off-s={self._how.back_off_s:g}", "--", *words]  # fmt: skip
        # by JobSet and restart: all pods of an attempt call it alike
        for name, label in (
            ("JOBSET", "jobset.sigs.k8s.io/jobset-uid"),
            ("RESTART", "jobset.sigs.k8s.io/restart-attempt"),
        ):
            place = {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}}
            container.setdefault("env", []).append({"name": name, "valueFrom": place})
        container["resources"] = {"limits": amounts, "requests": dict(amounts)}
        container["volumeMounts"] = [{"name": "sweeps", "mountPath": site.mounted_at},
                                     {"name": "memory", "mountPath": "/dev/shm"}]  # fmt: skip
        if site.spot and hardware is not None:
            labels["cloud.google.com/gke-spot"] = "true"
        pod: dict[str, Any] = {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": grace_s, "containers": [container],
            "volumes": [{"name": "sweeps", "persistentVolumeClaim": {"claimName": site.volume_claim}},
                        # through which data.workers hand over their batches: by itself a pod has 64 MB of it
                        {"name": "memory", "emptyDir": {"medium": "Memory"}}],
        }  # fmt: skip
        if labels:
            pod["nodeSelector"] = labels
        if hardware is not None:
            pod["tolerations"] = [{"key": hardware.resource, "operator": "Exists", "effect": "NoSchedule"}]
        if hardware is not None and hardware.slices > 1:  # between slices: the hosts' own network
            pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
        if site.service_account:
            pod["serviceAccountName"] = site.service_account
        return pod

    def jobset_name(self, run: str) -> str:
        """A name that Kubernetes takes, with room for what JobSet adds to those of pods; unique for sweep and run."""
        whole = f"{self._workdir.resolve().name}-{run}"
        text = _dns(whole)
        digest = hashlib.sha256(f"{self._there}/{run}".encode()).hexdigest()[:5]
        return f"{text[:32].rstrip('-')}-{digest}"

    # what is submitted

    def held(self) -> Held:
        """What the cluster holds; nothing where no kubectl is. Raises `Unheard` where it reaches no cluster."""
        if not shutil.which("kubectl"):
            return Held()
        told = subprocess.run(["kubectl", "get", "jobsets", f"--namespace={self._site.namespace}",
                               f"--selector={_LABEL}={_label(self._sweep.name)}", "--output=json"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        try:
            items = json.loads(told.stdout)["items"] if told.returncode == 0 else None
        except (ValueError, KeyError):
            items = None
        if items is None:
            why = " ".join(told.stderr.split())[:200] or "no whole answer"
            raise Unheard(f"kubectl get jobsets: {why}; try again when it reaches the cluster")
        states = {one["metadata"]["name"]: one for one in items}
        queued, ended = {}, {}
        for run in self._jobs:
            if (one := states.get(self.jobset_name(run))) is None:
                continue
            status, suspended = one.get("status", {}), one.get("spec", {}).get("suspend", False)
            if over := status.get("terminalState"):
                said = [each.get("message", "") for each in status.get("conditions", ()) if each.get("type") == over]
                ended[run] = f"its JobSet: {over.lower()}{f', {said[0]}' if said and said[0] else ''}"
                continue
            restarts = f", {status['restarts']} restarts" if status.get("restarts") else ""
            queued[run] = ("waits for quota in Kueue" if suspended else "in the cluster") + restarts
        return Held(queued, ended)

    def write(self, kinds: Iterable[str], held: Held, *, rewrite: bool, say: Callable[[str], None]) -> list[str]:
        """Writes the objects and submit.sh; returns what that would start."""
        kinds = tuple(kinds)
        started = self._to_start(kinds, held)
        lines = ["kubectl apply --filename=queues.yaml"]
        # of a JobSet nothing can be changed: what is started again is made anew
        for run in started:
            lines.append(f"kubectl delete --ignore-not-found --filename={run}.yaml")
            lines.append(f"kubectl apply --filename={run}.yaml")
        script = (f"#!/usr/bin/env bash\n# {self._sweep.file}: submits what is missing of it.\n"
                  "# Made anew at each `python -m launch`, by what is done and what is queued: not to be edited.\n"
                  'set -euo pipefail\ncd "$(dirname "$0")"\n\n' + "\n".join(lines) + "\n")  # fmt: skip
        write_files(self.folder, self.files(kinds) | {"submit.sh": script}, always=("submit.sh",), rewrite=rewrite,
                    say=say)  # fmt: skip
        return started

    def _to_start(self, kinds: tuple[str, ...], held: Held) -> list[str]:
        """The cohort alone until it is there; then the runs; the report when they are done."""
        missing = [
            run for run, jobs in self._jobs.items()
            if any(job.kind in kinds and not is_done(job, self._sweep, self._workdir) for job in jobs)
        ]  # fmt: skip
        if CORPUS in missing:
            return [CORPUS] if CORPUS not in held.queued else []
        runs = [run for run in missing if run != SCALING]
        if runs or held.queued:
            return [run for run in runs if run not in held.queued]
        return missing

    def submit(self, say: Callable[[str], None]) -> None:
        if not shutil.which("kubectl"):
            raise InputError(
                f"--backend=gke: no kubectl on this machine; install it, or submit {self.folder} elsewhere"
            )
        run_script(self.folder / "submit.sh")
        say(f"submitted by {self.folder / 'submit.sh'}; `kubectl get jobsets` and --status show them")


_API = {"JobSet": "jobset.x-k8s.io/v1alpha2"}


def _object(kind: str, name: str, *, spec: dict[str, Any], namespace: str | None = None,
            labels: dict[str, str] | None = None) -> dict[str, Any]:  # fmt: skip
    metadata: dict[str, Any] = {"name": name}
    if namespace is not None:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": _API.get(kind, "kueue.x-k8s.io/v1beta2"), "kind": kind, "metadata": metadata, "spec": spec}


def _flavor(hardware: Hardware) -> str:
    """Of one slice of a kind: queues count chips, nodes are of one topology."""
    one = dataclasses.replace(hardware, slices=1)
    return re.sub(r"[^a-z0-9]+", "-", f"tario-{one}".lower())


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:63].strip("_.-")


def _dns(text: str) -> str:
    """As Kubernetes takes it for a name, if it is not too long."""
    text = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return text if text[:1].isalpha() else f"t-{text}"


def in_container(sweep: Sweep) -> Sweep:
    """The sweep with its file as the image has it: in configs/ of the checkout."""
    checkout = Path(__file__).resolve().parents[1]
    file = sweep.file.resolve()
    if not file.is_relative_to(checkout / "configs"):
        raise InputError(f"{sweep.file}: lies outside of {checkout / 'configs'}, of which the image is made; expected "
                         "a sweep within it, as configs/sweeps/")  # fmt: skip
    return dataclasses.replace(sweep, file=file.relative_to(checkout))


def on_share(workdir: Path, mounted_at: str) -> Path:
    """The workdir as a job finds it: where it lies here if that is below the share, else by its name alone."""
    here, share = workdir.resolve(), Path(mounted_at).resolve()
    return Path(mounted_at) / (here.relative_to(share) if here.is_relative_to(share) else here.name)


def _yaml(objects: list[dict[str, Any]], sweep: Sweep) -> str:
    try:
        import yaml
    except ImportError:
        raise InputError("--backend=gke: needs PyYAML and jsonschema; pip install 'tario-jax[launch]'") from None
    head = f"# Of {sweep.file}. Made by `python -m launch`; edit it as you like: an edited file is kept.\n"
    return head + yaml.safe_dump_all(objects, sort_keys=False, default_flow_style=False, width=120)
