"""What KubeRay's RayJob may hold, and what of a manifest it would not take. Plain: nobody is asked.

The fields are those of the CRD `ray.io_rayjobs.yaml`, version v1 of KubeRay 1.7.0 (helm-chart/kuberay-operator/crds),
noted down by hand. Pod templates are `Pod` here: Kubernetes' own schema judges them. The API server refuses an unknown
field too (kubectl validates strictly), and a misspelt one that it did not would be dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Shape = Any
"""A type, or types; a set of the values that there are; [shape of each]; {field: shape}, one that must be there with
`!` after its name; `Strings` for a mapping of strings."""


class Pod:
    """A pod template, or a part of one."""


class Strings:
    """Names and strings."""


NUMBER = (int, float)
GROUP: dict[str, Shape] = {"template!": Pod, "rayStartParams": Strings, "resources": Strings, "labels": Strings}
DELETION = {"policy": {"DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"}}
CREDENTIAL = {"value": str, "valueFrom": Pod}
NETWORK = {"egressRules": [Pod], "ingressRules": [Pod]}
RAY_CLUSTER: dict[str, Shape] = {
    "rayVersion": str,
    "suspend": bool,
    "managedBy": str,
    "enableInTreeAutoscaling": bool,
    "headServiceAnnotations": Strings,
    "authOptions": {"mode": {"disabled", "token"}, "secretName": str, "enableK8sTokenAuth": bool},
    "tlsOptions": {"enabled": bool},
    "upgradeStrategy": {"type": {"Recreate", "None"}},
    "historyServerOptions": {"collectorOptions": Pod},
    "networkPolicy": {
        "mode": {"DenyAll", "DenyAllIngress", "DenyAllEgress"}, "head": NETWORK, "worker": NETWORK,
        "workerGroups": [{"groupName!": str, **NETWORK}],
    },
    "autoscalerOptions": {
        "version": {"v1", "v2"}, "upscalingMode": {"Default", "Aggressive", "Conservative"}, "idleTimeoutSeconds": int,
        "image": str, "imagePullPolicy": str, "command": [str], "args": [str], "env": [Pod], "envFrom": [Pod],
        "resources": Pod, "securityContext": Pod, "volumeMounts": [Pod],
    },
    "gcsFaultToleranceOptions": {
        "backend": {"redis", "rocksdb"}, "redisAddress": str, "redisUsername": CREDENTIAL, "redisPassword": CREDENTIAL,
        "externalStorageNamespace": str,
        "storage": {
            "claimName": str, "size": (int, str), "storageClassName": str, "subPath": str, "accessModes": [str],
            "deletionPolicy": {"DeleteWithCluster", "Retain"},
        },
    },
    "headGroupSpec!": {**GROUP, "serviceType": str, "headService": Pod, "enableIngress": bool, "ingressOptions": Pod},
    "workerGroupSpecs": [{
        **GROUP, "groupName!": str, "replicas": int, "minReplicas!": int, "maxReplicas!": int, "numOfHosts": int,
        "idleTimeoutSeconds": int, "priority": int, "suspend": bool, "scaleStrategy": {"workersToDelete": [str]},
    }],
}  # fmt: skip
RAY_JOB: dict[str, Shape] = {
    "apiVersion!": {"ray.io/v1"},
    "kind!": {"RayJob"},
    "metadata!": {"name!": str, "namespace": str, "labels": Strings, "annotations": Strings},
    "spec!": {
        "entrypoint": str, "entrypointNumCpus": NUMBER, "entrypointNumGpus": NUMBER, "entrypointResources": str,
        "runtimeEnvYAML": str, "jobId": str, "metadata": Strings, "clusterSelector": Strings, "managedBy": str,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "submitterPodTemplate": Pod, "submitterConfig": {"backoffLimit": int},
        "backoffLimit": int, "activeDeadlineSeconds": int, "preRunningDeadlineSeconds": int, "suspend": bool,
        "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int,
        "deletionStrategy": {
            "onSuccess": DELETION, "onFailure": DELETION,
            "deletionRules": [{
                "policy!": DELETION["policy"],
                "condition!": {"jobStatus": {"SUCCEEDED", "FAILED"}, "jobDeploymentStatus": {"Failed"},
                               "ttlSeconds": int},
            }],
        },
        "rayClusterSpec": RAY_CLUSTER,
    },
}  # fmt: skip


def problems(value: Any, shape: Shape = RAY_JOB, path: str = "") -> Iterator[str]:
    """What is wrong with a manifest, field by field."""
    if shape is Pod:
        return
    if shape is Strings:
        shape = {str(name): str for name in value} if isinstance(value, Mapping) else dict
    if isinstance(shape, dict) and isinstance(value, Mapping):
        known = {name.removesuffix("!"): inner for name, inner in shape.items()}
        yield from (f"{path}.{name}: unknown" for name in value if name not in known)
        yield from (f"{path}.{n[:-1]}: missing" for n in shape if n.endswith("!") and n[:-1] not in value)
        for name in value:
            yield from problems(value[name], known.get(name, Pod), f"{path}.{name}")
    elif isinstance(shape, list) and isinstance(value, list):
        for number, each in enumerate(value):
            yield from problems(each, shape[0], f"{path}[{number}]")
    elif isinstance(shape, set):
        if value not in shape:
            yield f"{path}: {value!r} is none of {', '.join(sorted(shape))}"
    elif (
        isinstance(shape, dict | list)
        or not isinstance(value, shape)
        or (isinstance(value, bool) and shape is not bool)
    ):
        yield f"{path}: {value!r} is of the wrong type"
