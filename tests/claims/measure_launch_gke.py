"""Holds what `--backend=gke` writes against its strict model, and against the published schemas: OUT.json [CRDS].

CRDS: a folder with the CustomResourceDefinitions of JobSet and Kueue (config/components/crd/bases of
kubernetes-sigs/jobset and kubernetes-sigs/kueue), TARIO_CRDS by default; without it only the model is asked. Then the
same with one field of each object changed, to what is not allowed, in every place where the model has a field. Hosts
are held against those that libtpu counts, where it is installed.
"""

import copy
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "launch")]

from pod_sweep import TOPOLOGIES, pod_sweep  # noqa: E402

from launch.gke import GkeBackend  # noqa: E402
from launch.gke_model import validate  # noqa: E402
from launch.local import Local  # noqa: E402
from launch.site import Gke, Site  # noqa: E402
from tario_jax.config import InputError  # noqa: E402
from tario_jax.parallel.topology import topology_devices, why_not  # noqa: E402

SITES = {
    "plain": Gke(image="tario"),
    "full": Gke(image="tario", spot=True, service_account="tario", priority="low", evaluate_on="v5e:2x2"),
}


def main() -> None:
    out = Path(sys.argv[1])
    folder = sys.argv[2] if len(sys.argv) > 2 else os.environ.get("TARIO_CRDS")
    published = schemas(Path(folder)) if folder else {}
    faults, of_published, refused, corrupted, without_path, lines = 0, 0, 0, 0, 0, []
    for site, gke in SITES.items():
        with tempfile.TemporaryDirectory() as place:
            sweep = pod_sweep(ROOT, **TOPOLOGIES, gpus="16xH100")
            backend = GkeBackend(sweep, Path(place) / "sweep", Site(gke=gke), Local())
            files = {name: list(yaml.safe_load_all(text)) for name, text in backend.files().items()}
        for name, objects in files.items():
            for one in objects:
                try:
                    validate(one, name)
                except InputError as error:
                    faults += 1
                    lines.append(f"{site} {error}")
                for error in published_errors(published, one):
                    of_published += 1
                    lines.append(f"{site} {name}: published: {error}")
                for path, changed in corruptions(one):
                    corrupted += 1
                    try:
                        validate(changed, name)
                    except InputError as error:
                        refused += 1
                        last = next(part for part in reversed(path) if isinstance(part, str))
                        if last not in str(error) and str(path[0]) not in str(error):
                            without_path += 1
                            lines.append(f"no path: {path}: {error}")
                    else:
                        lines.append(f"accepted: {name}: {path}")
    hosts = wrong_hosts() if why_not() is None else None
    lines.append(f"{sum(map(len, files.values()))} objects of {len(files)} files, twice; {faults} faults by the model, "
                 f"{of_published if published else 'not asked'} by the published schemas ({', '.join(published)}); "
                 f"{refused} of {corrupted} corrupted copies refused, {without_path} without their path; "
                 f"{'unknown' if hosts is None else hosts} topologies with other hosts than libtpu counts")  # fmt: skip
    print("\n".join(lines))
    out.write_text(json.dumps({
        "faults": faults, "published_faults": of_published if published else 1, "accepted": corrupted - refused,
        "without_path": without_path, "corrupted": corrupted, "wrong_hosts": 1 if hosts is None else hosts,
        "table": "\n".join(lines),
    }))  # fmt: skip


def schemas(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each kind and version, strict: a field that is not in it would be dropped by the server without a word."""
    found = {}
    for path in sorted(folder.rglob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            if isinstance(one, dict) and one.get("kind") == "CustomResourceDefinition":
                spec = one["spec"]
                for version in spec["versions"]:
                    api = f"{spec['group']}/{version['name']} {spec['names']['kind']}"
                    found[api] = strict(version["schema"]["openAPIV3Schema"])
    return found


def strict(schema: Any) -> Any:
    """With additionalProperties false where properties are told, and Kubernetes' own words understood."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: strict(value) for name, value in schema.items() if name not in ("format", "description", "default")}
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema["additionalProperties"] = False
    return schema


def published_errors(published: dict[str, dict[str, Any]], one: dict[str, Any]) -> Iterator[str]:
    if not published:
        return
    api = f"{one['apiVersion']} {one['kind']}"
    if api not in published:
        yield f"{api} is not published"
        return
    schema = copy.deepcopy(published[api])
    schema["properties"]["metadata"] = {"type": "object"}
    for error in Draft202012Validator(schema).iter_errors(one):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:160]}"


def corruptions(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Copies of an object with one thing wrong in each place: another type, a field that there is not, or none."""
    for place, node in places(value):
        if place and not free(place):
            yield place, replaced(value, place, {"of": ["another", "type"]})
        if isinstance(node, dict) and not free(place) and place[-1:] not in (("labels",), ("nodeSelector",)):
            yield (*place, "unknown_field"), replaced(value, (*place, "unknown_field"), 1)


def free(place: tuple) -> bool:
    """Objects whose fields are for the user to name."""
    maps = ("labels", "annotations", "nodeSelector", "nodeLabels", "limits", "requests", "namespaceSelector")
    return any(name in maps for name in place)


def places(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from places(inner, (*path, name))


def replaced(value: Any, path: tuple, new: Any) -> Any:
    changed = copy.deepcopy(value)
    node = changed
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = new
    return changed


def wrong_hosts() -> int:
    """Topologies whose JobSet asks for another number of hosts, or of chips, than libtpu's processes and devices."""
    wrong = 0
    for run, hardware in pod_sweep(ROOT).hardware.items():
        with tempfile.TemporaryDirectory() as place:
            backend = GkeBackend(pod_sweep(ROOT), Path(place) / "sweep", Site(gke=SITES["plain"]), Local())
            train = backend.objects()[run][0]["spec"]["replicatedJobs"][0]
        job = train["template"]["spec"]
        chips = job["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"]
        devices = topology_devices(hardware.topology, hardware.slices)
        hosts = train["replicas"] * job["completions"]
        wrong += (hosts, hosts * chips) != (len({device.process_index for device in devices}), len(devices))
    return wrong


if __name__ == "__main__":
    main()
