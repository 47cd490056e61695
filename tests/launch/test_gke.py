"""JobSets and queues: their fields, their model, and how many hosts they ask for."""

import collections
import copy
import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from pod_sweep import TOPOLOGIES, pod_sweep
from refusals import refused

from launch.gke import GkeBackend, on_share
from launch.gke_model import validate
from launch.held import NOTHING, Unheard
from launch.jobs import KINDS
from launch.local import Local
from launch.site import Gke, Site
from launch.sweep_file import read_sweep
from tario_jax.parallel.clusters import find_cluster
from tario_jax.parallel.topology import topology_devices, why_not

SITE = Site(
    gke=Gke(image="registry/tario:tpu", spot=True, service_account="tario", priority="low", evaluate_on="v5e:2x2")
)


@pytest.fixture
def backend(repository, tmp_path):
    return GkeBackend(pod_sweep(repository), tmp_path / "sweep", SITE, Local())


def jobset(backend, run: str) -> dict:
    return backend.objects()[run][0]


def test_hosts_and_slices_are_those_of_the_mesh(backend):
    asked = {}
    for run in TOPOLOGIES:
        train = jobset(backend, run)["spec"]["replicatedJobs"][0]
        job = train["template"]["spec"]
        pod = job["template"]["spec"]
        assert job["parallelism"] == job["completions"] and pod["containers"][0]["resources"]["limits"] == {
            "google.com/tpu": 4
        }
        asked[run] = (train["replicas"], job["completions"], pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"])
    assert asked == {
        "e16": (1, 4, "4x4"),
        "e256": (1, 64, "16x16"),
        "p512": (1, 128, "8x8x8"),
        "two_p256": (2, 64, "4x8x8"),
    }


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("run", TOPOLOGIES)
def test_the_compiler_counts_as_many_processes(backend, run):
    train = jobset(backend, run)["spec"]["replicatedJobs"][0]
    hardware = backend._sweep.hardware[run]
    devices = topology_devices(hardware.topology, hardware.slices)
    assert (
        len({device.process_index for device in devices})
        == train["replicas"] * train["template"]["spec"]["completions"]
    )


def test_a_run_trains_then_evaluates_and_says_what_fails_for_good(backend):
    spec = jobset(backend, "two_p256")["spec"]
    train, evaluate = spec["replicatedJobs"]
    assert evaluate["dependsOn"] == [{"name": "train", "status": "Complete"}] and "dependsOn" not in train
    command = train["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:4] == ["python", "-m", "launch.attempt", "/sweeps/sweep/two_p256"]
    assert command[command.index("--") + 1 :] == [
        "train", "--config=configs/sweeps/pods_here.py:two_p256", "--corpus=gs://tissue/corpus",
        "--workdir=/sweeps/sweep/two_p256", "--start-timeout-s=1800"]  # fmt: skip
    rule = train["template"]["spec"]["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet" and spec["failurePolicy"]["maxRestarts"] == 100
    pod = train["template"]["spec"]["template"]["spec"]
    grace_s = backend._sweep.configs["two_p256"].train.grace_s
    assert pod["terminationGracePeriodSeconds"] > grace_s  # SIGTERM, a last checkpoint, and only then SIGKILL
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true" and pod["serviceAccountName"] == "tario"
    on = evaluate["template"]["spec"]["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert on == "2x2" and evaluate["template"]["spec"]["completions"] == 1


def test_queues_have_quota_for_each_kind_of_slice(backend):
    objects = {(one["kind"], one["metadata"]["name"]): one for one in backend.objects()["queues"]}
    groups = objects["ClusterQueue", "tario-pods-here"]["spec"]["resourceGroups"]
    quota = {flavor["name"]: flavor["resources"][0]["nominalQuota"] for flavor in groups[0]["flavors"]}
    assert quota == {"tario-v5e-4x4": 16, "tario-v5e-16x16": 256, "tario-v5p-8x8x8": 512, "tario-v5p-4x8x8": 512,
                     "tario-v5e-2x2": 4}  # fmt: skip
    labels = objects["ResourceFlavor", "tario-v5p-4x8x8"]["spec"]["nodeLabels"]
    assert labels["cloud.google.com/gke-tpu-topology"] == "4x8x8"
    assert objects["LocalQueue", "tario-pods-here"]["spec"] == {"clusterQueue": "tario-pods-here"}
    labels = jobset(backend, "e16")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "tario-pods-here" and labels["kueue.x-k8s.io/priority-class"] == "low"


@pytest.mark.parametrize("topologies", [
    {"small": "v5e:2x2"}, {"small": "v5e:2x2", "other": "v5e:4x4", "twice": "2xv5e:4x4"},
])  # fmt: skip
@pytest.mark.parametrize("slices_at_once", [1, 3])
@pytest.mark.parametrize("evaluate_on", ["cpu", "v5e:2x2"])
def test_what_is_admitted_together_is_within_the_quota(repository, tmp_path, topologies, slices_at_once, evaluate_on):
    """`slices_at_once` runs of each kind, each with all of its pods, as Kueue counts them."""
    site = Site(gke=Gke(image="registry/tario:tpu", evaluate_on=evaluate_on, slices_at_once=slices_at_once))
    backend = GkeBackend(pod_sweep(repository, **topologies), tmp_path / "sweep", site, Local())
    (queue,) = [one for one in backend.objects()["queues"] if one["kind"] == "ClusterQueue"]
    quota = {(flavor["name"], one["name"]): one["nominalQuota"] for group in queue["spec"]["resourceGroups"]
             for flavor in group["flavors"] for one in flavor["resources"]}  # fmt: skip
    largest = {"small": "v5e-2x2"} | ({"twice": "v5e-4x4"} if "twice" in topologies else {})
    asked = collections.Counter()
    for run in largest:
        for job in jobset(backend, run)["spec"]["replicatedJobs"]:
            pod = job["template"]["spec"]["template"]["spec"]
            grid = pod.get("nodeSelector", {}).get("cloud.google.com/gke-tpu-topology")
            pods = slices_at_once * job["replicas"] * job["template"]["spec"]["completions"]
            for resource, number in pod["containers"][0]["resources"]["requests"].items():
                if resource != "memory":
                    asked[f"tario-v5e-{grid}" if grid else "tario-cpu", resource] += pods * number
    if evaluate_on == "cpu" or len(largest) == 1:  # else runs of a kind wait for a slice that evaluates
        assert all(number <= quota[key] for key, number in asked.items()), (asked, quota)
    assert set(asked) <= set(quota)
    assert quota["tario-cpu", "memory"] == f"{quota['tario-cpu', 'cpu'] // 16 * 64}Gi"


def test_the_processes_find_each_other(backend):
    """Two slices of 64 hosts as GKE's variables tell them; hosts of GPUs by flags."""
    hosts = ",".join(f"host{n}" for n in range(64))
    several = {"TPU_WORKER_HOSTNAMES": hosts, "TPU_WORKER_ID": "3", "MEGASCALE_NUM_SLICES": "2",
               "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "host0:8080"}  # fmt: skip
    found = find_cluster(several)
    assert len(found) == backend._sweep.hardware["two_p256"].hosts and found.process == 67


def test_hosts_of_gpus_are_told_where_they_are(repository, tmp_path):
    backend = GkeBackend(pod_sweep(repository, gpus="16xH100"), tmp_path / "sweep", SITE, Local())
    one = jobset(backend, "gpus")
    train = one["spec"]["replicatedJobs"][0]
    command = train["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    name = one["metadata"]["name"]
    assert command[-3:] == [f"--coordinator={name}-train-0-0.{name}:8482", "--processes=2",
                            "--process=$(JOB_COMPLETION_INDEX)"]  # fmt: skip
    assert train["template"]["spec"]["completions"] == 2 and one["spec"]["network"]["subdomain"] == name


CORRUPTED = (
    (("spec", "replicatedJobs", 0, "template", "spec", "parallelism"), 63, "parallelism is 63, completions 64"),
    (("spec", "replicatedJobs", 0, "template", "spec", "completions"), "64",
     "JobSet.spec.replicatedJobs[0].template.spec.completions"),
    (("spec", "replicatedJobs", 0, "replicas"), 0, "JobSet.spec.replicatedJobs[0].replicas"),
    (("spec", "replicatedJobs", 0, "nmae"), "train", "JobSet.spec.replicatedJobs[0]"),
    (("spec", "replicatedJobs", 1, "dependsOn", 0, "name"), "tarin", "spec.replicatedJobs[1].dependsOn: names 'tarin'"),
    (("spec", "replicatedJobs", 1, "dependsOn", 0, "status"), "Done",
     "JobSet.spec.replicatedJobs[1].dependsOn[0].status"),
    (("spec", "failurePolicy", "rules", 0, "action"), "Fail", "JobSet.spec.failurePolicy.rules[0].action"),
    (("spec", "failurePolicy", "maxRestarts"), -1, "JobSet.spec.failurePolicy.maxRestarts"),
    (("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"), [0],
     "holds 0, which is no failure"),
    (("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0, "onExitCodes", "containerName"),
     "trian", "the container is 'train'"),
    (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "restartPolicy"), "Always", "restartPolicy"),
    (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "resources", "requests"),
     {"google.com/tpu": 8}, "google.com/tpu differs"),
    (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "volumeMounts", 0, "name"),
     "sweep", "no volume is called 'sweep'"),
    (("metadata", "name"), "Sweep", "JobSet.metadata.name"), (("metadata", "name"), "s" * 60, "at most 63 characters"),
    (("metadata", "labels", "tario-sweep"), "bad value!", "JobSet.metadata.labels"),
    (("metadata", "labels", "bad key!"), "x", "JobSet.metadata.labels"),
    (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "env", 0, "name"), "a b",
     "env[0]"),
    (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "image"), "a b", "image"),
    (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "ports", 0),
     {"containerPort": 8471}, "a port stands twice"),
    (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "nodeSelector",
      "cloud.google.com/gke-tpu-topology"), "2x2x1", "a slice of 2x2x1 has 4"),
    (("apiVersion",), "jobset.x-k8s.io/v1", "JobSet.apiVersion"), (("kind",), "Jobset", "kind is 'Jobset'"),
)  # fmt: skip


@pytest.mark.parametrize(("path", "value", "words"), CORRUPTED, ids=[words for *_, words in CORRUPTED])
def test_a_corrupted_jobset_is_refused_with_the_path(backend, path, value, words):
    one = copy.deepcopy(jobset(backend, "two_p256"))
    validate(one, "run.yaml")
    put(one, path, value)
    refused(lambda: validate(one, "run.yaml"), "run.yaml: ", words)


@pytest.mark.parametrize(("path", "value", "words"), [
    (("spec", "resourceGroups", 0, "flavors", 0, "resources", 0, "name"), "cpu", "are not those of coveredResources"),
    (("spec", "resourceGroups", 0, "flavors", 1, "name"), "tario-v5e-4x4", "a flavor stands in two places"),
    (("spec", "resourceGroups", 0, "flavors", 0, "resources", 0, "nominalQuota"), "many", "nominalQuota"),
    (("spec", "preemption", "withinClusterQueue"), "Always", "ClusterQueue.spec.preemption.withinClusterQueue"),
    (("spec", "cohort"), "all", "ClusterQueue.spec"),
])  # fmt: skip
def test_a_corrupted_queue_is_refused_with_the_path(backend, path, value, words):
    (queue,) = [copy.deepcopy(one) for one in backend.objects()["queues"] if one["kind"] == "ClusterQueue"]
    put(queue, path, value)
    refused(lambda: validate(queue, "queues.yaml"), "queues.yaml: ", words)


def put(value, path, new) -> None:
    for part in path[:-1]:
        value = value[part]
    value[path[-1]] = new


def test_names_are_short_enough_and_each_run_has_its_own(repository, tmp_path):
    long = {f"a_{'very_' * 12}long_name_{n}": "2xv5p:8x16x16" for n in range(3)}
    backend = GkeBackend(pod_sweep(repository, **long), tmp_path / "Sweep.1", SITE, Local())
    names = [backend.jobset_name(run) for run in long]
    assert len(set(names)) == 3
    backend.objects()  # whose model knows how long a pod's name becomes


def test_workdirs_of_one_name_are_kept_apart_on_the_share(repository, tmp_path):
    """Those of two people, say. Outside of the share a workdir is told by its name."""
    site = dataclasses.replace(SITE, gke=dataclasses.replace(SITE.gke, mounted_at=str(tmp_path / "sweeps")))
    names, folders = set(), []
    for user in ("ann", "ben"):
        backend = GkeBackend(pod_sweep(repository), tmp_path / "sweeps" / user / "study", site, Local())
        names.add(backend.jobset_name("e16"))
        pod = jobset(backend, "e16")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        command = pod["containers"][0]["command"]
        assert f"--workdir={command[3]}" in command
        folders.append(command[3])
    assert folders == [f"{tmp_path}/sweeps/{user}/study/e16" for user in ("ann", "ben")] and len(names) == 2
    assert str(on_share(tmp_path / "elsewhere/study", "/sweeps")) == "/sweeps/study"
    (tmp_path / "linked").symlink_to(tmp_path / "sweeps")  # as the share may be here
    linked = on_share(tmp_path / "sweeps/ann/study", str(tmp_path / "linked"))
    assert linked == tmp_path / "linked/ann/study"


def test_workers_have_memory_to_share(backend):
    for job in jobset(backend, "e16")["spec"]["replicatedJobs"]:
        pod = job["template"]["spec"]["template"]["spec"]
        (volume,) = (one["name"] for one in pod["volumes"] if one.get("emptyDir") == {"medium": "Memory"})
        assert {"name": volume, "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]


def test_files_are_yaml_that_says_the_same_and_edited_ones_stay(backend):
    said = []
    started = backend.write(KINDS, NOTHING, rewrite=False, say=said.append)
    assert started == list(TOPOLOGIES)  # the report comes when they are done
    path = backend.folder / "e256.yaml"
    assert list(yaml.safe_load_all(path.read_text())) == backend.objects()["e256"] and "&id" not in path.read_text()
    path.write_text(path.read_text().replace("maxRestarts: 100", "maxRestarts: 7"))
    backend.write(KINDS, NOTHING, rewrite=False, say=said.append)
    assert "maxRestarts: 7" in path.read_text() and any("e256.yaml: was edited, and is kept" in line for line in said)
    backend.write(KINDS, NOTHING, rewrite=True, say=said.append)
    assert "maxRestarts: 100" in path.read_text()


KUBECTL = """#!/usr/bin/env bash
echo "$@" >>"{log}"
if [ "$1" = get ]; then cat "{jobsets}" || exit 1; fi
"""


def test_what_the_cluster_holds_is_not_submitted_again(backend, tmp_path, monkeypatch):
    log, jobsets = tmp_path / "kubectl.txt", tmp_path / "jobsets.json"
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "kubectl"
    fake.write_text(KUBECTL.format(log=log, jobsets=jobsets))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    jobsets.write_text('{"items": []}')
    backend.write(("train", "evaluate"), backend.held(), rewrite=False, say=print)
    backend.submit(print)
    calls = log.read_text()
    assert "apply --filename=queues.yaml" in calls and calls.count("apply --filename=p512.yaml") == 1
    assert calls.index("delete --ignore-not-found --filename=p512.yaml") < calls.index("apply --filename=p512.yaml")
    jobsets.write_text(json.dumps({"items": [
        {"metadata": {"name": backend.jobset_name("e16")}, "spec": {"suspend": True}, "status": {}},
        {"metadata": {"name": backend.jobset_name("e256")}, "spec": {}, "status": {"restarts": 2}},
        {"metadata": {"name": backend.jobset_name("p512")}, "spec": {}, "status": {"terminalState": "Failed"}},
    ]}))  # fmt: skip
    held = backend.held()
    assert held.queued == {"e16": "waits for quota in Kueue", "e256": "in the cluster, 2 restarts"}
    assert held.ended == {"p512": "its JobSet: failed"}
    assert backend.write(("train", "evaluate"), held, rewrite=False, say=print) == ["p512", "two_p256"]
    for broken in ('{"items": [', "{}"):
        jobsets.write_text(broken)
        with pytest.raises(Unheard):
            backend.held()
    jobsets.unlink()  # and kubectl fails
    with pytest.raises(Unheard):
        backend.held()


def test_a_jobset_does_the_jobs_that_were_asked_for(backend):
    (one,) = backend.objects(("evaluate",))["e16"]
    (evaluate,) = one["spec"]["replicatedJobs"]
    assert evaluate["name"] == "evaluate" and "dependsOn" not in evaluate


def test_quota_is_of_the_whole_file(repository, tmp_path):
    """Others of its runs may wait in the same queue."""
    sweep = read_sweep(str(repository / "configs/sweeps/article_pods.py"), "p93_10m_36um",
                       assignments={"source.path": "gs://tissue/corpus"})  # fmt: skip
    objects = GkeBackend(sweep, tmp_path, SITE, Local()).objects(KINDS)
    flavors = {one["metadata"]["name"] for one in objects["queues"] if one["kind"] == "ResourceFlavor"}
    assert {"tario-v5e-4x4", "tario-v5p-8x8x8"} <= flavors and set(objects) == {"queues", "p93_10m_36um"}


def test_what_cannot_be_submitted_is_told(repository, tmp_path):
    refused(
        lambda: GkeBackend(pod_sweep(repository), tmp_path, Site(), Local()), "needs gke.image", "--site.gke.image="
    )
    sweep = pod_sweep(repository)
    outside = GkeBackend.__init__
    object.__setattr__(sweep, "file", Path("/elsewhere/mine.py"))
    refused(
        lambda: outside(GkeBackend.__new__(GkeBackend), sweep, tmp_path, SITE, Local()),
        "/elsewhere/mine.py: lies outside of",
    )
    object.__setattr__(sweep, "file", repository / "mine.py")  # the image has configs/ alone
    refused(lambda: GkeBackend(sweep, tmp_path, SITE, Local()), "mine.py: lies outside of")
    sweep = pod_sweep(repository)
    sweep.hardware["e16"] = None
    refused(lambda: GkeBackend(sweep, tmp_path, SITE, Local()), "e16: GKE is to lend what?")


def test_the_published_schemas_accept_it(backend, tmp_path):
    """TARIO_CRDS: a folder with the CustomResourceDefinitions of JobSet and Kueue, as their repositories have them."""
    folder = os.environ.get("TARIO_CRDS")
    if folder is None:
        pytest.skip("TARIO_CRDS is not set: the published schemas are not here")
    script = Path(__file__).parents[1] / "claims" / "measure_launch_gke.py"
    done = subprocess.run(
        [os.sys.executable, script, str(tmp_path / "out.json"), folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["published_faults"] == 0
