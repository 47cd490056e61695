"""What of JobSet and Kueue this project writes, as a strict model: every field, its type and its bounds.

Held against what the published schemas say (JobSet v1alpha2, Kueue v1beta2, and the Job and Pod that JobSet embeds):
a field that is not written by this project is refused. Rules that a schema of types
cannot say, and the API server or a webhook would answer with, are checked by `_rules` below.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from tario_jax.config import InputError

_DNS = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_NAME = {"type": "string", "pattern": _DNS, "maxLength": 63}
_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT, "minItems": 1}
_VALUE = {"type": "string", "maxLength": 63, "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"}
_KEY = {"pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"}
_LABELS = {"type": "object", "propertyNames": _KEY, "additionalProperties": _VALUE}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_POSITIVE = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
_QUANTITY = {"anyOf": [_COUNT, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}]}
_QUANTITIES = {"type": "object", "additionalProperties": _QUANTITY, "minProperties": 1}


def _only(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object of these fields and no others."""
    return {"type": "object", "properties": required | (optional or {}), "required": list(required),
            "additionalProperties": False}  # fmt: skip


def _list(of: dict[str, Any], least: int = 1, most: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": least} | ({} if most is None else {"maxItems": most})


def _kind(api: str, kind: str, spec: dict[str, Any], *, namespaced: bool) -> dict[str, Any]:
    place = {"namespace": _NAME} if namespaced else {}
    metadata = _only({"name": _NAME} | place, {"labels": _LABELS})
    return _only({"apiVersion": {"const": api}, "kind": {"const": kind}, "metadata": metadata, "spec": spec})


_VARIABLE = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}
_ENV = {"oneOf": [
    _only({"name": _VARIABLE, "value": {"type": "string"}}),
    _only({"name": _VARIABLE, "valueFrom": _only({"fieldRef": _only({"fieldPath": _TEXT})})}),
]}  # fmt: skip
_CONTAINER = _only(
    {"name": _NAME, "image": {"type": "string", "pattern": r"^\S+$"}, "command": _TEXTS, "env": _list(_ENV),
     "resources": _only({"limits": _QUANTITIES, "requests": _QUANTITIES}),
     "volumeMounts": _list(_only({"name": _NAME, "mountPath": {"type": "string", "pattern": "^/"}}))},
    {"ports": _list(_only({"containerPort": {"type": "integer", "minimum": 1, "maximum": 65535}}))},
)  # fmt: skip
_TOLERATION = _only({"key": _TEXT, "operator": {"enum": ["Exists", "Equal"]},
                     "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]}},
                    {"value": _TEXT})  # fmt: skip
_POD = _only(
    {"restartPolicy": {"const": "Never"}, "terminationGracePeriodSeconds": _POSITIVE,
     "containers": _list(_CONTAINER, 1, 1),
     "volumes": _list({"oneOf": [_only({"name": _NAME, "persistentVolumeClaim": _only({"claimName": _NAME})}),
                                 _only({"name": _NAME, "emptyDir": _only({"medium": {"const": "Memory"}})})]})},
    {"nodeSelector": _LABELS, "tolerations": _list(_TOLERATION), "serviceAccountName": _NAME,
     "hostNetwork": {"type": "boolean"}, "dnsPolicy": {"enum": ["ClusterFirst", "ClusterFirstWithHostNet"]}},
)  # fmt: skip
_EXIT_CODES = _only({"containerName": _NAME, "operator": {"enum": ["In", "NotIn"]},
                     "values": _list({"type": "integer", "minimum": 0, "maximum": 255}, 1, 255)})  # fmt: skip
_JOB = _only(
    {"spec": _only({
        "parallelism": _POSITIVE, "completions": _POSITIVE, "completionMode": {"const": "Indexed"},
        "backoffLimit": _COUNT,
        "podFailurePolicy": _only({"rules": _list(_only({
            "action": {"enum": ["FailJob", "Ignore", "Count"]}, "onExitCodes": _EXIT_CODES}), 1, 20)}),
        "template": _only({"spec": _POD}),
    })},
    {"metadata": _only({"annotations": {"type": "object", "additionalProperties": {"type": "string"}}})},
)  # fmt: skip
_REPLICATED = _only(
    {"name": _NAME, "replicas": _POSITIVE, "template": _JOB},
    {"dependsOn": _list(_only({"name": _NAME, "status": {"enum": ["Ready", "Complete"]}}), 1, 5)},
)
_REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"]
_JOBSET = _only({
    "network": _only({"enableDNSHostnames": {"type": "boolean"}, "subdomain": _NAME}),
    "failurePolicy": _only({"maxRestarts": _COUNT, "rules": _list(_only({
        "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "maxLength": 128},
        "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
        "onJobFailureReasons": _list({"enum": _REASONS})}))}),
    "replicatedJobs": _list(_REPLICATED),
})  # fmt: skip
_QUOTA = _only({"name": _TEXT, "nominalQuota": _QUANTITY})
_GROUP = _only({"coveredResources": _list(_TEXT, 1, 64),
                "flavors": _list(_only({"name": _NAME, "resources": _list(_QUOTA, 1, 64)}), 1, 64)})  # fmt: skip
_CLUSTER_QUEUE = _only({
    "namespaceSelector": {"type": "object", "maxProperties": 0}, "resourceGroups": _list(_GROUP, 1, 16),
    "preemption": _only({"withinClusterQueue": {"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]}}),
})  # fmt: skip
_FLAVOR = _only({}, {"nodeLabels": _LABELS | {"maxProperties": 8}})

KUEUE, JOBSET = "kueue.x-k8s.io/v1beta2", "jobset.x-k8s.io/v1alpha2"
MODEL = {
    "JobSet": _kind(JOBSET, "JobSet", _JOBSET, namespaced=True),
    "ResourceFlavor": _kind(KUEUE, "ResourceFlavor", _FLAVOR, namespaced=False),
    "ClusterQueue": _kind(KUEUE, "ClusterQueue", _CLUSTER_QUEUE, namespaced=False),
    "LocalQueue": _kind(KUEUE, "LocalQueue", _only({"clusterQueue": _NAME}), namespaced=True),
}
"""By kind, JSON Schema of 2020-12."""


def validate(value: Any, file: str) -> None:
    """Raises `InputError` that names the file and the path of the first fault."""
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        raise InputError("--backend=gke: needs PyYAML and jsonschema; pip install 'tario-jax[launch]'") from None
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in MODEL:
        raise InputError(f"{file}: kind is {kind!r}; expected one of {', '.join(MODEL)}")
    found = sorted(Draft202012Validator(MODEL[kind]).iter_errors(value), key=lambda error: len(error.absolute_path))
    if found:
        error = found[-1]  # the deepest: it says most
        raise InputError(f"{file}: {kind}{_dotted(error.absolute_path)}: {' '.join(error.message.split())[:200]}")
    for path, told in _rules(kind, value):
        raise InputError(f"{file}: {kind}.{path}: {told}")


def _dotted(path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _rules(kind: str, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults between fields: JobSet's webhook, and the CEL rules of JobSet's and Kueue's schemas that apply to the
    fields of the model.

    Not here, since they speak of updates (oldSelf), or of fields that this project does not write: startupPolicy beside
    dependsOn, volumeClaimPolicies, coordinator, borrowingLimit, cohorts, flavorFungibility, topologyName, and the
    tolerations of a ResourceFlavor.
    """
    spec = value["spec"]
    if kind == "ClusterQueue":
        for at, group in enumerate(spec["resourceGroups"]):
            for flavor, one in enumerate(group["flavors"]):
                if [resource["name"] for resource in one["resources"]] != group["coveredResources"]:
                    yield (f"spec.resourceGroups[{at}].flavors[{flavor}].resources",
                           "are not those of coveredResources, in their order")  # fmt: skip
        named = [flavor["name"] for group in spec["resourceGroups"] for flavor in group["flavors"]]
        if len(set(named)) < len(named):
            yield "spec.resourceGroups", "a flavor stands in two places; expected each once"
    if kind == "JobSet":
        yield from _rules_of_jobset(value["metadata"]["name"], spec)


def _rules_of_jobset(name: str, spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    before: list[str] = []
    named = [rule["name"] for rule in spec["failurePolicy"]["rules"]]
    if len(set(named)) < len(named):
        yield "spec.failurePolicy.rules", "two rules are called alike"
    for at, replicated in enumerate(spec["replicatedJobs"]):
        path, job = f"spec.replicatedJobs[{at}]", replicated["template"]["spec"]
        if replicated["name"] in before:
            yield f"{path}.name", f"{replicated['name']} stands twice"
        for one in replicated.get("dependsOn", ()):
            if one["name"] not in before:
                yield f"{path}.dependsOn", f"names {one['name']!r}, which is no replicated job before it"
        before.append(replicated["name"])
        pod = f"{name}-{replicated['name']}-{replicated['replicas'] - 1}-{job['completions'] - 1}-abcde"
        if len(pod) > 63 or not name[0].isalpha():
            yield "metadata.name", f"pods would be called {pod}; expected at most 63 characters, a letter first"
        if job["parallelism"] != job["completions"]:
            yield (
                f"{path}.template.spec",
                f"parallelism is {job['parallelism']}, completions {job['completions']}; all start at once",
            )
        container = job["template"]["spec"]["containers"][0]
        for rule, one in enumerate(job["podFailurePolicy"]["rules"]):
            codes = one["onExitCodes"]
            if codes["containerName"] != container["name"]:
                yield (f"{path}.template.spec.podFailurePolicy.rules[{rule}].onExitCodes.containerName",
                       f"names {codes['containerName']!r}, and the container is {container['name']!r}")  # fmt: skip
            if 0 in one["onExitCodes"]["values"] and one["onExitCodes"]["operator"] == "In":
                yield (
                    f"{path}.template.spec.podFailurePolicy.rules[{rule}].onExitCodes.values",
                    "holds 0, which is no failure",
                )
        at_resources = f"{path}.template.spec.template.spec.containers[0].resources"
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        for resource in sorted({*limits, *requests}):
            if limits.get(resource) != requests.get(resource):
                yield at_resources, f"{resource} differs in limits and requests"
            if "/" in resource and not str(limits.get(resource)).isdecimal():
                yield at_resources, f"{resource} is {limits.get(resource)!r}; expected a whole number"
        ports = [port["containerPort"] for port in container.get("ports", ())]
        if len(set(ports)) < len(ports):
            yield f"{path}.template.spec.template.spec.containers[0].ports", "a port stands twice"
        grid = job["template"]["spec"].get("nodeSelector", {}).get("cloud.google.com/gke-tpu-topology")
        if grid is not None and not re.fullmatch(r"\d+(x\d+)+", grid):
            yield f"{path}.template.spec.template.spec.nodeSelector", f"{grid!r} is no topology"
        elif grid is not None:
            chips = math.prod(int(side) for side in grid.split("x"))
            asked = job["completions"] * int(limits.get("google.com/tpu", 0))
            if chips != asked:
                yield (f"{path}.template.spec.completions",
                       f"asks for {asked} chips, and a slice of {grid} has {chips}")  # fmt: skip
        volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
        for mount in container["volumeMounts"]:
            if mount["name"] not in volumes:
                yield (
                    f"{path}.template.spec.template.spec.containers[0].volumeMounts",
                    f"no volume is called {mount['name']!r}",
                )
