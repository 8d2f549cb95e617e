"""`cluster.yaml`, `kuberay.yaml` and `Dockerfile` are what Ray's launcher, EC2, Kubernetes and KubeRay take, and agree
with each other and with the docs; no cloud is asked."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import kubernetes_validate as validate
import pytest
import yaml

from raycap.cluster.fitting import count_that_fits, shortage, starts
from raycap.cluster.resources import ROLLOUT, as_they_start, gpus_of, idle_workers, wants_of
from raycap.recipe import Recipe, load_recipe

from .ray_job_fields import problems

ROOT = Path(__file__).parent.parent


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def recipe_of(command: list[str]) -> Recipe:
    """Of `python .../scst.py recipe=NAME KEY=VALUE ...`, storage and data included."""
    assert command[0] == "python"
    assert Path(command[1]).parts[-2:] == ("jobs", "scst.py")
    return load_recipe(command[2].removeprefix("recipe="), command[3:], {})


def fits_when_all_nodes_have_come(recipe: Recipe, first: list[dict[str, float]], last: list[dict[str, float]]) -> None:
    """The learner and perhaps some workers before; nobody without a place or without work in the end."""
    assert recipe.cluster.autoscaling
    wants = wants_of("scst", recipe, lambda role: gpus_of(role, recipe, last))
    assert shortage(last, wants) == ""
    assert starts(last, as_they_start(wants)) == "all"
    assert shortage(first, wants[:1]) == ""
    assert count_that_fits(first, wants, ROLLOUT) < recipe.cluster.rollout_workers, "and nodes are asked for"
    assert idle_workers(recipe) == ""


# cluster.yaml


@pytest.mark.ray
def test_the_launcher_takes_cluster_yaml() -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = load("cluster.yaml")
    validate_config(fillout_defaults(copy.deepcopy(config)))
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0, "nothing that works may land beside the Exchange"
    assert "InstanceMarketOptions" in kinds["actor"]["node_config"]
    assert "InstanceMarketOptions" not in kinds["learner"]["node_config"]
    assert sum(kind["max_workers"] for kind in kinds.values()) <= config["max_workers"]
    for key, value in (("head_node_type", "nothing"), ("initialisation_commands", []), ("docker", {"picture": "x"})):
        broken = {**copy.deepcopy(config), key: value}
        with pytest.raises(Exception, match=r"head_node_type|nothing|initialisation|picture"):
            validate_config(fillout_defaults(broken))


def what_ec2_refuses(node_config: Mapping[str, Any]) -> list[str]:
    """By the parameters of RunInstances in botocore's copy of EC2's description."""
    session = pytest.importorskip("botocore.session", reason="botocore is for development only")
    from botocore.validate import ParamValidator

    shape = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    whole = {**node_config, "MinCount": 1, "MaxCount": 1}  # which the launcher adds
    report = ParamValidator().validate(whole, shape)
    return [*report.generate_report().splitlines(), *_no_such_values(whole, shape)]


def _no_such_values(value: Any, shape: Any, path: str = "") -> Iterator[str]:
    """The validator does not look at enumerations."""
    if shape.type_name == "structure" and isinstance(value, Mapping):
        for name in value.keys() & shape.members.keys():
            yield from _no_such_values(value[name], shape.members[name], f"{path}.{name}")
    elif shape.type_name == "list" and isinstance(value, list):
        for each in value:
            yield from _no_such_values(each, shape.member, f"{path}[]")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path}: no {value!r}"


def test_ec2_takes_the_machines() -> None:
    kinds = load("cluster.yaml")["available_node_types"]
    for kind in kinds.values():
        assert what_ec2_refuses(kind["node_config"]) == []
        assert kind["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100, "GB"
    node = kinds["actor"]["node_config"]
    disk = node["BlockDeviceMappings"][0]
    for broken, said in (
        ({**{n: v for n, v in node.items() if n != "InstanceType"}, "InstancType": "g5.2xlarge"}, "InstancType"),
        ({**node, "InstanceType": "g5.2xlarg"}, "g5.2xlarg"),
        ({**node, "BlockDeviceMappings": [{**disk, "Ebs": {"VolumeSize": "150"}}]}, "VolumeSize"),
        ({**node, "BlockDeviceMappings": [{**disk, "Ebs": {"VolumeType": "gp9"}}]}, "gp9"),
        ({**node, "InstanceMarketOptions": {"MarketType": "cheap"}}, "cheap"),
    ):
        assert any(said in line for line in what_ec2_refuses(broken)), said


SIZES = {"g5.2xlarge": {"CPU": 8, "GPU": 1}, "g5.4xlarge": {"CPU": 16, "GPU": 1}, "m6i.2xlarge": {"CPU": 8}}
"""As AWS lists them (EC2 instance types, G5 and M6i)."""


def machines(config: Mapping[str, Any], count: str) -> list[dict[str, float]]:
    return [kind["resources"] for kind in config["available_node_types"].values() for _ in range(kind[count])]


def test_the_machines_are_as_large_as_is_said_and_the_documented_job_fits_on_them() -> None:
    config = load("cluster.yaml")
    for name, kind in config["available_node_types"].items():
        size = SIZES[kind["node_config"]["InstanceType"]]
        assert kind["resources"] == ({"CPU": 0} if name == config["head_node_type"] else size)
    recipe = recipe_of(documented_command())
    head = [{"CPU": 0.0}]
    fits_when_all_nodes_have_come(
        recipe, head + machines(config, "min_workers"), head + machines(config, "max_workers")
    )
    mounted = re.findall(r"-v (\S+):(\S+)", " ".join(config["docker"]["run_options"]))
    assert mounted == [("/mnt/raycap", "/mnt/raycap")]
    assert f"amazonaws.com:/ {mounted[0][0]}" in " ".join(config["initialization_commands"])
    assert {Path(p).parts[:3] for p in (recipe.storage, recipe.data.root) if p} == {("/", "mnt", "raycap")}


def documented_command() -> list[str]:
    """The job that docs/cluster.md submits to what `ray up cluster.yaml` made."""
    section = (ROOT / "docs/cluster.md").read_text().partition("## In the cloud")[2].partition("\n## ")[0]
    command = re.search(r"-- \\\n((?: {8}.*\n)+)", section)
    assert command is not None
    assert section.index("ray up cluster.yaml") < section.index("ray dashboard cluster.yaml") < command.start()
    return shlex.split(command[1].replace("\\\n", " "))


def test_the_launcher_mounts_little_and_what_is_there() -> None:
    """`ray up` reads all that is mounted to tell whether it changed, whatever rsync leaves out."""
    config = load("cluster.yaml")
    files = [ROOT / local for local in config["file_mounts"].values()]
    assert all(file.is_file() for file in files)
    assert sum(file.stat().st_size for file in files) < 100_000
    assert any(remote in " ".join(config["setup_commands"]) for remote in config["file_mounts"])


def without_comments(text: str) -> str:
    return re.sub(r"(?m)(^| )#.*$", "", text)


def test_what_must_be_changed_in_cluster_yaml_stands_at_its_top() -> None:
    """Of use to nobody as it is; whoever has changed the first block has changed all."""
    block, _, below = without_comments((ROOT / "cluster.yaml").read_text()).partition("\ncluster_name:")
    assert len(re.findall("REPLACE", block)) == 2, "machine image and file system"
    assert not re.search(r"REPLACE|ami-|amazonaws|rayproject|eu-central", below)
    config = load("cluster.yaml")
    assert {kind["node_config"]["ImageId"] for kind in config["available_node_types"].values()} == {"ami-REPLACE"}
    assert any("fs-REPLACE" in command for command in config["initialization_commands"])


def test_what_must_be_changed_in_kuberay_yaml_is_marked_and_stands_once() -> None:
    lines = (ROOT / "kuberay.yaml").read_text().splitlines()
    yours = [without_comments(line) for line in lines if line.endswith("# yours")]
    for what in ("REGISTRY", "claimName", "nodeSelector:"):
        assert sum(what in line for line in yours) == 1
        assert sum(what in without_comments(line) for line in lines) == 1
    assert {c["image"] for pod in pods().values() for c in pod["spec"]["containers"]} == {"REGISTRY/raycap:0.1.0"}


COMMANDS = ("initialization", "setup", "head_setup", "head_start_ray", "worker_start_ray")


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_shell_can_read_the_commands(kind: str) -> None:
    for command in load("cluster.yaml")[f"{kind}_commands"]:
        read = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert read.returncode == 0, read.stderr


# Dockerfile


def instructions() -> list[tuple[str, list[str]]]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    words = [shlex.split(line) for line in lines]
    return [(first, [word for word in rest if not word.startswith("--chown")]) for first, *rest in words]


def pinned(package: str) -> str:
    """Its version in requirements.txt."""
    found = re.search(rf"(?m)^{package}(?:\[.*\])?==(\S+)$", (ROOT / "requirements.txt").read_text())
    assert found is not None
    return found[1]


def test_the_images_have_our_ray_and_a_python_that_is_new_enough() -> None:
    (base,) = [rest[0] for name, rest in instructions() if name == "FROM"]
    assert load("cluster.yaml")["docker"]["image"] == base
    tag = re.fullmatch(r"rayproject/ray:(\S+)-py3(\d+)-gpu", base)
    assert tag is not None
    assert tag[1] == pinned("ray") == load("kuberay.yaml")["spec"]["rayClusterSpec"]["rayVersion"]
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert int(tag[2]) >= int(least.removeprefix(">=3."))


def copied() -> dict[str, str]:
    """What the image holds of the checkout: its path there, by ours."""
    folder, paths = "", {}
    for name, rest in instructions():
        if name == "WORKDIR":
            folder = rest[0]
        if name == "COPY":
            *sources, target = rest
            paths |= {
                s: f"{folder}/{target}" if len(sources) == 1 and target != "./" else f"{folder}/{s}" for s in sources
            }
    return paths


def test_the_image_holds_what_the_job_and_the_installation_ask_for() -> None:
    paths = copied()
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for source in paths:
        assert (ROOT / source).exists()
        sent = [not rule.startswith("!") for rule in rules if fnmatch(source, rule.removeprefix("!"))]
        assert sent[-1] is False, f"{source} is not sent to the build"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "requirements.txt", project["readme"], *project["license-files"], "raycap"} <= set(paths)
    job = load("kuberay.yaml")["spec"]["entrypoint"].split()[1]
    assert job == f"{paths['jobs']}/scst.py"
    assert (ROOT / "jobs/scst.py").is_file()
    assert f"raycap:{project['version']}" in (ROOT / "Dockerfile").read_text()


# kuberay.yaml


def pods() -> dict[str, dict[str, Any]]:
    """Pod templates by group."""
    cluster = load("kuberay.yaml")["spec"]["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"]} | {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
    return {name: group["template"] for name, group in groups.items()}


@pytest.mark.parametrize("group", ["head", "learner", "actors"])
def test_kubernetes_takes_the_pods(group: str) -> None:
    template = pods()[group]
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": group}, "spec": template["spec"]}
    validate.validate(whole, "1.30", strict=True)
    with pytest.raises(validate.ValidationError):
        validate.validate({**whole, "spec": {**whole["spec"], "containres": []}}, "1.30", strict=True)
    mounted = {mount["name"] for c in template["spec"]["containers"] for mount in c.get("volumeMounts", ())}
    assert mounted == {volume["name"] for volume in template["spec"]["volumes"]} == {"raycap"}


def test_pods_are_allowed_onto_the_nodes_that_they_want() -> None:
    """Clouds keep others off nodes with GPUs (GKE does) and off spot nodes (AKS does)."""
    for name, pod in pods().items():
        tolerated = {t["key"] for t in pod["spec"].get("tolerations", ()) if t["operator"] == "Exists"}
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == ("nvidia.com/gpu" in tolerated), name
        spot = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
        assert (spot <= tolerated) == ("nodeSelector" in pod["spec"]) == (name == "actors")
        assert ("affinity" in pod["spec"]) == (name != "actors"), "what the job cannot do without keeps off them"


def test_kuberay_takes_the_job() -> None:
    """Its fields, and what its operator checks beside them (controllers/ray/utils/validation.go)."""
    job = load("kuberay.yaml")
    assert list(problems(job)) == []
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,39}[a-z0-9])?", job["metadata"]["name"])
    assert spec["shutdownAfterJobFinishes"] or not spec["ttlSecondsAfterFinished"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.rayClusterSpec.enableInTreeAutoscaler", True, ".spec.rayClusterSpec.enableInTreeAutoscaler: unknown"),
        ("spec.rayClusterSpec.rayVersion", 2.6, ".spec.rayClusterSpec.rayVersion: 2.6 is of the wrong type"),
        ("spec.rayClusterSpec.headGroupSpec", {}, ".spec.rayClusterSpec.headGroupSpec.template: missing"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, ".num-cpus: 0 is of the wrong type"),
        (
            "spec.rayClusterSpec.autoscalerOptions.upscalingMode",
            "Fast",
            ".upscalingMode: 'Fast' is none of Aggressive,",
        ),
        ("spec.rayClusterSpec.workerGroupSpecs", [{"groupName": "a"}], ".workerGroupSpecs[0].minReplicas: missing"),
        ("spec.rayClusterSpec.workerGroupSpecs", {}, ".workerGroupSpecs: {} is of the wrong type"),
        ("spec.backoffLimit", True, ".spec.backoffLimit: True is of the wrong type"),
        ("spec.ttlSecondsAfterFinish", 1, ".spec.ttlSecondsAfterFinish: unknown"),
        ("x-mine", {}, ".x-mine: unknown"),
    ],
)
def test_a_manifest_with_a_fault_is_refused_by_name(path: str, value: Any, said: str) -> None:
    job = load("kuberay.yaml")
    *above, last = path.split(".")
    place = job
    for name in above:
        place = place[name]
    place[last] = value
    assert any(said in problem for problem in problems(job)), list(problems(job))


def test_the_ray_job_s_nodes_have_room_for_what_it_starts() -> None:
    job = load("kuberay.yaml")["spec"]
    templates, nodes = pods(), {"first": [{"CPU": 0.0}], "all": [{"CPU": 0.0}]}
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        asked = templates[group["groupName"]]["spec"]["containers"][0]["resources"]["limits"]
        node = {"CPU": float(asked["cpu"]), "GPU": float(asked["nvidia.com/gpu"])}
        nodes["first"] += [node] * group["minReplicas"]
        nodes["all"] += [node] * group["maxReplicas"]
    recipe = recipe_of(job["entrypoint"].split())
    fits_when_all_nodes_have_come(recipe, nodes["first"], nodes["all"])
    (where,) = {m["mountPath"] for p in templates.values() for c in p["spec"]["containers"] for m in c["volumeMounts"]}
    assert all(str(path).startswith(f"{where}/") for path in (recipe.storage, recipe.data.root))
    documented = recipe_of(documented_command())
    assert documented.model_copy(update={"storage": recipe.storage, "data": recipe.data}) == recipe, (
        "one job, two doors"
    )
