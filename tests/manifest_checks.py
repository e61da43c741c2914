"""What is wrong with a manifest of `kubernetes`, perhaps edited since, that no schema sees.

A schema knows keys and types. That a mount has a volume, that a name leads to a pod, that an exit code leads to the right
end, and that an enumeration has the word: nobody says so before the cluster does, and some of it the cluster never says.

Example:
    >>> service, job, policy = kubernetes.manifests(["train", "digits"], workers=2, gpus=0, image="tfpar:1")
    >>> service["metadata"]["name"] = "other"
    >>> manifest_checks.check([service, job, policy])
    ['TFPAR_HOST_TEMPLATE is train-{i}.train, must be train-{i}.other', "subdomain is 'train', must be 'other'"]
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from tfpar.kubernetes import IMAGE, LABEL, QUANTITY, SUBDOMAIN, UNITS

AT_LEAST_TO_SAVE = 30  # seconds

# What must stand there: of the Job, of its pods, of the container (Pod Security "restricted" and what the workers need).
JOB = {
    "completionMode": "Indexed", "podReplacementPolicy": "Failed", "template.spec.restartPolicy": "Never", "suspend": None,
}  # fmt: skip
POD = {
    "automountServiceAccountToken": False, "enableServiceLinks": False, "securityContext.runAsNonRoot": True,
    "securityContext.seccompProfile.type": "RuntimeDefault", "hostNetwork": None, "hostPID": None, "hostIPC": None,
    "initContainers": None,
}  # fmt: skip
CONTAINER = {
    "workingDir": "/tfpar", "securityContext.allowPrivilegeEscalation": False, "securityContext.readOnlyRootFilesystem": True,
    "securityContext.capabilities": {"drop": ["ALL"]}, "securityContext.privileged": None, "securityContext.runAsUser": None,
    "securityContext.runAsNonRoot": None, "securityContext.seccompProfile": None,
}  # fmt: skip
SERVICE = {"clusterIP": "None", "publishNotReadyAddresses": True, "type": None}
NETWORK = {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
# What follows when a worker ends with a code: in a Job, and in the Job of a JobSet. None counts.
ENDS = {2: "FailJob", 65: "FailJob", 66: "FailJob", 73: "FailJob", 78: "FailJob", 42: "Ignore", 75: "Ignore", 1: None, 69: None,
        70: "FailJob", 74: None, 137: None, 143: None}  # fmt: skip
SET_ACTIONS = {
    "FailJobSet",
    "RestartJobSet",
    "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob",
    "RestartJobAndIgnoreMaxRestarts",
}
SET_REASONS = {
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
}


def check(manifests: Sequence[dict]) -> list[str]:
    """Return a line for everything that is wrong, where a schema would not say so; an empty list at best.

    Args:
        manifests: as `kubernetes.manifests` returns them, or read from the text.
    """
    kinds = {_at(manifest, "kind", ""): manifest for manifest in manifests}
    if len(kinds) < len(manifests) or set(kinds) not in (
        {"Job", "Service", "NetworkPolicy"},
        {"JobSet", "NetworkPolicy"},
    ):
        named = ", ".join(_at(manifest, "kind", "none") for manifest in manifests)
        return [f"the kinds are {named}; must be Service, Job and NetworkPolicy, or JobSet and NetworkPolicy"]
    if "Job" in kinds:
        job, version = _at(kinds["Job"], "spec", {}), ("Job", "batch/v1")
        found = itertools.chain(_service(kinds["Service"], kinds["Job"]), _job(job, in_set=False))
    else:
        job, version = (
            _at(kinds["JobSet"], "spec.replicatedJobs.0.template.spec", {}),
            ("JobSet", "jobset.x-k8s.io/v1alpha2"),
        )
        found = itertools.chain(_set(kinds["JobSet"]), _job(job, in_set=True))
    policy = _policy(kinds["NetworkPolicy"], kinds[version[0]], job)
    return [*_differences(kinds[version[0]], {"apiVersion": version[1]}), *found, *policy]


def _at(value, path: str, default=None):
    """Return what lies at a path such as `spec.containers.0.name`; the default where it is of another kind, too."""
    for key in path.split("."):
        if isinstance(value, list):
            value = value[int(key)] if key.isdecimal() and int(key) < len(value) else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return default if value is None or (default is not None and type(value) is not type(default)) else value


def amount(value) -> float | None:
    """Return the number that a quantity such as `"16Gi"` stands for; None where it is none."""
    written = re.fullmatch(QUANTITY, value, re.ASCII) if isinstance(value, str) else None
    return float(written[1]) * UNITS[written[2]] if written else None


def _differences(value, wanted: dict) -> Iterator[str]:
    for path, right in wanted.items():
        given = _at(value, path)
        if given != right or type(given) is not type(right):
            yield f"{path} is {given!r}, must be {right!r}"


def _policy(policy: dict, owner: dict, job: dict) -> Iterator[str]:
    """Look at who may connect to the pods: those of the same job alone, on the port of the workers, or on all with GPUs."""
    kind, name = _at(owner, "kind"), _at(owner, "metadata.name")
    own = {"batch.kubernetes.io/job-name" if kind == "Job" else "jobset.sigs.k8s.io/jobset-name": name}
    container = _at(job, "template.spec.containers.0", {})
    gpus = _at(container, "resources.limits", {}).get("nvidia.com/gpu")
    ports = [{"protocol": "TCP", "port": _at(container, "ports.0.containerPort")}]
    allowed = {"from": [{"podSelector": {"matchLabels": own}}]} | ({} if gpus else {"ports": ports})
    wanted = {
        "apiVersion": "networking.k8s.io/v1", "metadata.namespace": _at(owner, "metadata.namespace"),
        "spec": {"podSelector": {"matchLabels": own}, "policyTypes": ["Ingress"], "ingress": [allowed]},
    }  # fmt: skip
    yield from (f"NetworkPolicy: {line}" for line in _differences(policy, wanted))


# ---- names


def _service(service: dict, job: dict) -> Iterator[str]:
    name, subdomain = _at(job, "metadata.name"), _at(service, "metadata.name")
    pod = _at(job, "spec.template.spec", {})
    yield from _names(name, job, f"{name}-", subdomain)
    yield from _differences(_at(service, "spec"), SERVICE)
    yield from _differences(service, {"metadata.namespace": _at(job, "metadata.namespace")})
    yield from _differences(_at(service, "spec"), {"selector": {"batch.kubernetes.io/job-name": name}})
    yield from _differences(pod, {"subdomain": subdomain})
    yield from _differences(pod, {"containers.0.ports.0.containerPort": _at(service, "spec.ports.0.port")})


def _set(jobset: dict) -> Iterator[str]:
    name, network, one = _at(jobset, "metadata.name"), _at(jobset, "spec.network"), _at(jobset, "spec.replicatedJobs.0")
    job = _at(one, "template", {})
    yield from _names(name, job, f"{name}-{_at(one, 'name')}-0-", _at(network, "subdomain", name))
    yield from _differences(network, NETWORK)
    yield from _differences(one, {"replicas": 1})
    yield from _differences(job, {"spec.template.spec.subdomain": None})
    if len(_at(jobset, "spec.replicatedJobs", [])) != 1:
        yield "replicatedJobs: must be one, whose pods are the workers"
    policy = _at(jobset, "spec.failurePolicy", {})
    if _at(policy, "restartStrategy") != "BlockingRecreate":
        yield f"restartStrategy is {_at(policy, 'restartStrategy')}, must be BlockingRecreate: old workers hold the run"
    if _at(policy, "maxRestarts", 0) < 1:
        yield "maxRestarts: must be at least 1, or nothing is ever started again"
    rules = _at(policy, "rules", [])
    if len({_at(rule, "name", "") for rule in rules}) < len(rules):
        yield "failurePolicy.rules: each must have a name of its own"
    for rule in rules:
        yield from _set_rule(rule)
    for reason, message, action in (
        ("PodFailurePolicy", "failed with exit code 42 matching FailJob rule", "RestartJobSetAndIgnoreMaxRestarts"),
        (
            "PodFailurePolicy",
            "has condition DisruptionTarget matching FailJob rule",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        ("PodFailurePolicy", "failed with exit code 78 matching FailJob rule", "FailJobSet"),
        ("DeadlineExceeded", "Job was active longer than specified deadline", "FailJobSet"),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", None),
    ):
        given = next((_at(rule, "action") for rule in rules if _applies(rule, reason, message)), None)
        if given != action and (action or given != "RestartJobSet"):
            yield f"failurePolicy: '{message}' ({reason}) leads to {given}, must lead to {action or 'RestartJobSet'}"


def _set_rule(rule: dict) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", _at(rule, "name", "")):
        yield f"failurePolicy: {_at(rule, 'name')!r} is no name for a rule; letters, digits and _"
    if _at(rule, "action", "") not in SET_ACTIONS:
        yield f"failurePolicy: {_at(rule, 'action')!r} is no action of JobSet"
    if not all(reason in SET_REASONS for reason in map(str, _at(rule, "onJobFailureReasons", []))):
        yield f"failurePolicy: {_at(rule, 'onJobFailureReasons')} has what is no reason of a Job"


def _applies(rule: dict, reason: str, message: str) -> bool:
    reasons, patterns = _at(rule, "onJobFailureReasons", []), _at(rule, "onJobFailureMessagePatterns", [])
    return (not reasons or reason in reasons) and (not patterns or any(_found(p, message) for p in patterns))


def _found(pattern, message: str) -> bool:
    try:
        return bool(re.search(pattern, message))
    except (re.error, TypeError):  # it finds nothing in the cluster either
        return False


def _names(name, job: dict, before: str, subdomain) -> Iterator[str]:
    """Check the names of pods and where the workers look for each other."""
    if not isinstance(name, str) or not re.fullmatch(rf"(?=[a-z]){LABEL}", name):
        yield f"name {name!r}: must be small letters, digits and -, begin with a letter and end without -"
    workers = _at(job, "spec.completions", 0)
    longest = f"{before}{workers - 1}-abcde"
    if len(longest) > 63:
        yield f"name {name!r}: pods would be called like {longest}, which is longer than 63"
    container = _at(job, "spec.template.spec.containers.0")
    variables = {_at(one, "name", ""): _at(one, "value") for one in _at(container, "env", [])}
    for variable, right in (
        ("TFPAR_NUM_WORKERS", str(workers)),
        ("TFPAR_HOST_TEMPLATE", f"{before}{{i}}.{subdomain}"),
        ("TFPAR_PORT", str(_at(container, "ports.0.containerPort"))),
    ):
        if variables.get(variable) != right:
            yield f"{variable} is {variables.get(variable)}, must be {right}"


# ---- the Job and its pods


def _job(job: dict, *, in_set: bool) -> Iterator[str]:
    yield from _differences(job, JOB)
    if _at(job, "completions") != _at(job, "parallelism") or _at(job, "completions", 0) < 1:
        yield f"completions {_at(job, 'completions')}, parallelism {_at(job, 'parallelism')}: must be the number of workers"
    limit = _at(job, "backoffLimit", -1)
    if (limit != 0) if in_set else (limit < 1):
        yield f"backoffLimit is {limit}, must be {'0: JobSet starts all workers again' if in_set else 'at least 1'}"
    if _at(job, "activeDeadlineSeconds", 0) < 1:
        yield "activeDeadlineSeconds: must be given, or workers that wait for each other wait for ever"
    pod = _at(job, "template.spec", {})
    containers = _at(pod, "containers", [])
    rules = _at(job, "podFailurePolicy.rules", [])
    for rule in rules:
        yield from _pod_rule(rule, [_at(one, "name") for one in containers])
    saved = "FailJob" if in_set else "Ignore"
    for code, action in (ENDS | {42: saved}).items():
        given = next((_at(rule, "action") for rule in rules if _covers(_at(rule, "onExitCodes"), code)), None)
        if given != action:
            yield f"podFailurePolicy: exit code {code} leads to {given or 'Count'}, must lead to {action or 'Count'}"
    moved = [_at(rule, "action") for rule in rules if _at(rule, "onPodConditions.0.type") == "DisruptionTarget"]
    if moved != [saved]:
        yield f"podFailurePolicy: the condition DisruptionTarget must lead to {saved}"
    if len(containers) != 1:
        yield f"{len(containers)} containers, must be one"
    yield from _pod(pod)


def _pod_rule(rule: dict, containers: list) -> Iterator[str]:
    codes = _at(rule, "onExitCodes.values", [])
    if _at(rule, "action") not in ("FailJob", "Ignore", "Count"):
        yield f"podFailurePolicy: {_at(rule, 'action')!r} is no action; FailJob, Ignore or Count"
    by_code = _at(rule, "onExitCodes") is not None
    if by_code == (_at(rule, "onPodConditions") is not None):
        yield "podFailurePolicy: a rule has either onExitCodes or onPodConditions"
    if by_code and (
        _at(rule, "onExitCodes.operator") != "In"
        or codes != sorted({code for code in codes if isinstance(code, int) and code})
        or not codes
    ):
        yield f"podFailurePolicy: {_at(rule, 'onExitCodes')}: must be In, with values that rise and are not 0"
    if _at(rule, "onExitCodes.containerName", (containers or [None])[0]) not in containers:
        yield f"podFailurePolicy: there is no container {_at(rule, 'onExitCodes.containerName')}"
    if any(_at(one, "status") != "True" for one in _at(rule, "onPodConditions", [])):
        yield 'podFailurePolicy: onPodConditions must have status "True"'


def _covers(codes, code: int) -> bool:
    return _at(codes, "operator") == "In" and code in _at(codes, "values", [])


def _pod(pod: dict) -> Iterator[str]:
    container = _at(pod, "containers.0", {})
    yield from _differences(pod, POD)
    yield from _differences(container, CONTAINER)
    if _at(pod, "securityContext.runAsUser", 1) < 1:
        yield "runAsUser is 0: must not be root"
    if _at(pod, "terminationGracePeriodSeconds", 30) < AT_LEAST_TO_SAVE:
        yield f"terminationGracePeriodSeconds: must be at least {AT_LEAST_TO_SAVE}, the time of a save"
    if not re.fullmatch(IMAGE, _at(container, "image", ""), re.ASCII):
        yield f"image {_at(container, 'image')!r}: must be the name of an image"
    words = _at(container, "command", [])
    if words[:2] != ["tfpar", "train"] or "--fresh" in words:
        yield "command: must be tfpar train, without --fresh: a restart would start over"
    port = _at(container, "ports.0.containerPort", 0)
    if not 1024 <= port <= 65535:
        yield f"containerPort {port}: must be from 1024 to 65535"
    names = [_at(one, "name", "") for one in _at(container, "env", [])]
    yield from (f"env {name}: given twice" for name in {*names} if names.count(name) > 1)
    yield from _resources(_at(container, "resources", {}))
    yield from _volumes(
        _at(pod, "volumes", []), _at(container, "volumeMounts", []), _at(container, "resources.limits.memory")
    )


def _resources(resources: dict) -> Iterator[str]:
    requests, limits = _at(resources, "requests", {}), _at(resources, "limits", {})
    if requests != limits:
        yield f"resources: requests {requests} and limits {limits} must be equal"
    for name, value in (*limits.items(), *requests.items()):
        if not amount(value) or (name == "nvidia.com/gpu" and not str(value).isdecimal()):
            yield f"resources: {name} {value!r} is no amount"
    for name in {"cpu", "memory"} - set(limits):
        yield f"resources: {name} must be limited"


def _volumes(volumes: list, mounts: list, memory) -> Iterator[str]:
    named = {_at(volume, "name", ""): volume for volume in volumes}
    mounted = {_at(mount, "mountPath", ""): mount for mount in mounts}
    if len(named) < len(volumes) or len(mounted) < len(mounts):
        yield "volumes: every volume must have a name, and every mount a place, of its own"
    for name in {_at(mount, "name", "") for mount in mounts} ^ set(named):
        yield f"volumes: {name} must be both among the volumes and among the mounts"
    for place, (kind, read_only) in PLACES.items():
        volume = named.get(_at(mounted.get(place), "name", ""))
        if _at(volume, kind) is None:
            yield f"{place}: must be mounted from a volume of kind {kind}"
        if bool(_at(mounted.get(place), "readOnly")) != read_only:
            yield f"{place}: readOnly must be {read_only}"
        if _at(volume, "emptyDir.medium", "") not in ("", "Memory"):
            yield f"{place}: medium {_at(volume, 'emptyDir.medium')!r} must be Memory"
        if kind == "persistentVolumeClaim" and not re.fullmatch(SUBDOMAIN, _at(volume, f"{kind}.claimName", "")):
            yield f"{place}: claimName {_at(volume, f'{kind}.claimName')!r} must be the name of a claim"
        if _at(volume, f"{kind}.readOnly", False) and not read_only:
            yield f"{place}: the claim must be writable"
    shared = _at(named.get(_at(mounted.get("/dev/shm"), "name", "")), "emptyDir", {})
    size = amount(_at(shared, "sizeLimit"))
    if _at(shared, "medium") != "Memory" or not size or size > (amount(memory) or 0):
        yield f"/dev/shm: {shared} must be Memory, with a sizeLimit up to the memory of the container"


PLACES = {  # mountPath: the kind of its volume, and whether it is read-only
    "/tfpar/data": ("persistentVolumeClaim", True), "/tfpar/runs": ("persistentVolumeClaim", False),
    "/dev/shm": ("emptyDir", False), "/tmp": ("emptyDir", False),
}  # fmt: skip
