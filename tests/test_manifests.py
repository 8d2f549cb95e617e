"""`cluster.yaml` and `kuberay.yaml` are what Ray's launcher and Kubernetes take; no cloud is asked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate as validate
import pytest
import yaml

from raycap.cluster.resources import ROLLOUT, count_that_fits, gpus_of, shortage, wants_of
from raycap.recipe import load_recipe

ROOT = Path(__file__).parent.parent


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.ray
def test_the_launcher_takes_cluster_yaml() -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = load("cluster.yaml")
    validate_config(fillout_defaults(copy.deepcopy(config)))
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0, "nothing that works may land beside the Exchange"
    assert "InstanceMarketOptions" in kinds["actor"]["node_config"]
    assert sum(kind["max_workers"] for kind in kinds.values()) <= config["max_workers"]
    broken = {**copy.deepcopy(config), "head_node_type": "nothing"}
    with pytest.raises(Exception, match=r"head_node_type|nothing"):
        validate_config(fillout_defaults(broken))


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


def test_the_ray_job_is_one() -> None:
    """The fields that KubeRay's RayJob must have, and the counts that its validation compares."""
    job = load("kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) <= {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes",
                         "ttlSecondsAfterFinished", "rayClusterSpec"}  # fmt: skip
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert spec["entrypoint"].split()[:2] == ["python", "/home/ray/raycap/jobs/scst.py"]
    required = (ROOT / "requirements.txt").read_text()
    assert f"]=={cluster['rayVersion']}\n" in required[required.index("ray[") :].partition("\n")[0] + "\n"


def test_the_ray_job_s_nodes_have_room_for_what_it_starts() -> None:
    """All of it when every node has come; the learner and no worker before."""
    job = load("kuberay.yaml")["spec"]
    overrides = job["entrypoint"].split()[2:]
    recipe = load_recipe(overrides[0].removeprefix("recipe="), overrides[1:], {})
    assert recipe.cluster.autoscaling
    templates, nodes = pods(), {"first": [{"CPU": 0.0}], "all": [{"CPU": 0.0}]}
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        asked = templates[group["groupName"]]["spec"]["containers"][0]["resources"]["limits"]
        node = {"CPU": float(asked["cpu"]), "GPU": float(asked["nvidia.com/gpu"])}
        nodes["first"] += [node] * group["minReplicas"]
        nodes["all"] += [node] * group["maxReplicas"]
    wants = wants_of("scst", recipe, lambda role: gpus_of(role, recipe, nodes["all"]))
    assert shortage(nodes["all"], wants) == ""
    assert count_that_fits(nodes["first"], wants, ROLLOUT) == 0
    assert shortage(nodes["first"], wants[:1]) == ""
    assert shortage(nodes["first"], wants).startswith("needs 28 CPUs, the cluster has 8")
