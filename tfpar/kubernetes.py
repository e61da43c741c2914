"""The same training on Kubernetes: an Indexed Job with a headless Service, or a JobSet, as plain manifests.

One pod is one worker with all its GPUs. Every pod runs the same `tfpar train`, with the same words as on a laptop: it
works in `/tfpar`, where the claims are mounted as `data` (read-only) and `runs`. Kubernetes sets `JOB_COMPLETION_INDEX`,
which says which worker a pod is; a pattern of host names says where the others are (see `workers`). Exit codes decide
what follows: 42 (stopped, saved) and 75 (another worker was lost) do not count as failures, a failure that a restart
cannot fix ends the Job, and everything else counts.

Example:
    >>> found = kubernetes.manifests(["train", "data/fashion"], workers=2, gpus=1, image="registry.example/tfpar:1")
    >>> print(kubernetes.text(found))
"""

import argparse
import copy
import importlib.metadata
import posixpath
import re
import sys
from collections.abc import Sequence

from tfpar import errors, files, validate
from tfpar.arguments import parser
from tfpar.settings import Settings
from tfpar.signals import Interrupted
from tfpar.yaml import text

__all__ = ["dockerfile", "manifests", "text"]

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
IMAGE = rf"([\w.-]+(:\d+)?/)?{SUBDOMAIN}([_/]+{SUBDOMAIN})*(:\w[\w.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?"
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
QUANTITY = rf"(\d{{1,15}}(?:\.\d{{1,9}})?)({'|'.join(UNITS)})"
PLACE = "/tfpar"  # where the command runs; the claims are mounted below it
USER = 1000
RESTARTS = 10  # failures that count; as `tfpar launch`
# Kubernetes pauses up to ten minutes between the pods of a failing Job; the other pods must wait longer than that.
WAIT_SECONDS = 1200
SAVE_SECONDS = 120  # after SIGTERM, for a checkpoint


def manifests(
    command: Sequence[str],
    *,
    workers: int,
    gpus: int,
    image: str,
    target: str = "job",
    name: str = "train",
    namespace: str | None = None,
    queue: str | None = None,
    data_claim: str = "data",
    run_claim: str = "runs",
    cpus: int = 4,
    memory: str = "8Gi",
    shm: str = "1Gi",
    port: int = 12345,
    deadline: int = 86400,
) -> list[dict]:
    """Return the manifests of a training, ready for `text`.

    Args:
        command: the words after `tfpar`, such as `["train", "data/fashion", "--run", "runs/fashion"]`; paths lie in the
            volumes `data` and `runs`.
        workers: pods; gpus: of each, 0 trains on CPUs; cpus: cores of each, and threads.
        image: with tfpar installed, see `dockerfile`.
        target: `"job"` needs nothing but Kubernetes 1.31; `"jobset"` starts all workers again together.
        queue: of Kueue.
        data_claim: volume claim, made beforehand; run_claim: another, ReadWriteMany where there are several workers.
        memory: of each worker; shm: the part of it that processes may share, as `"1Gi"`.
        deadline: seconds after which all is stopped; the same manifests continue.

    Raises:
        errors.SettingsError: a name, number or word that cannot work, with the rule and the remedy.

    Example:
        >>> [m["kind"] for m in kubernetes.manifests(["train", "digits"], workers=2, gpus=0, image="tfpar:1")]
        ['Service', 'Job', 'NetworkPolicy']
    """
    workers, gpus = validate.integer("workers", workers, 1, 256), validate.integer("gpus", gpus, 0, 64)
    target = validate.choice("target", target, ("job", "jobset"))
    name = _job_name(name, workers, target)
    port, deadline = validate.integer("port", port, 1024, 65535), validate.integer("deadline", deadline, 60, 2**31 - 1)
    pod = _pod(
        _words(command, replicas=workers * max(gpus, 1)),
        image=_matching("image", image, IMAGE, 255, "the name of an image, such as registry.example/tfpar:1"),
        environment={
            "TFPAR_NUM_WORKERS": str(workers),
            "TFPAR_HOST_TEMPLATE": f"{name if target == 'job' else f'{name}-workers-0'}-{{i}}.{name}",
            "TFPAR_PORT": str(port),
            "TFPAR_WAIT_SECONDS": str(WAIT_SECONDS),
        },
        port=port,
        resources=_resources(cpus, memory, shm, gpus),
        volumes=_volumes(_name("data_claim", data_claim, 253), _name("run_claim", run_claim, 253), shm),
    )
    meta = {"name": name, "labels": {"app.kubernetes.io/name": "tfpar"}}
    if namespace is not None:
        meta["namespace"] = _matching("namespace", namespace, LABEL, 63, "small letters, digits and - (at most 63)")
    queued = {"kueue.x-k8s.io/queue-name": _name("queue", queue, 63)} if queue is not None else {}
    own = meta | {"labels": meta["labels"] | queued}
    if target == "job":
        spec = _job(workers, deadline, pod | {"subdomain": name}, saved="Ignore", restarts=RESTARTS)
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": own, "spec": spec}
        return [_service(meta, port), job, _policy(meta, {"batch.kubernetes.io/job-name": name}, port, gpus)]
    # The first failure that counts ends the child Job, and with it the gang: JobSet starts all of them again.
    spec = _job(workers, deadline, pod, saved="FailJob", restarts=0)
    jobset = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": own, "spec": _set(name, spec)}
    return [jobset, _policy(meta, {"jobset.sigs.k8s.io/jobset-name": name}, port, gpus)]


def dockerfile() -> str:
    """Return a Dockerfile that installs a checkout of tfpar with the versions that are installed here."""
    needed = [line for line in importlib.metadata.requires("tfpar") if "extra ==" not in line]
    packages = sorted(re.match(r"[\w.-]+", line)[0] for line in needed)
    pins = " \\\n    ".join(f'"{package}=={importlib.metadata.version(package)}"' for package in packages)
    return f"""# In a checkout of tfpar: tfpar kubernetes --dockerfile > Dockerfile; docker build -t registry.example/tfpar:1 .
FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim
COPY . /opt/tfpar
# and-cuda brings the libraries for NVIDIA GPUs, some gigabytes; without it the image is for CPUs.
RUN pip install --no-cache-dir "/opt/tfpar[and-cuda]" \\
    {pins}
RUN useradd --uid {USER} --create-home tfpar && mkdir {PLACE} && chown {USER}:{USER} {PLACE}
USER {USER}:{USER}
WORKDIR {PLACE}
CMD ["tfpar", "doctor"]
"""


# ---- what a user gives


class _Refusing(argparse.ArgumentParser):
    """A parser that never ends the program."""

    def error(self, message):
        raise errors.SettingsError(f"{self.prog}: {message}")

    def exit(self, status=0, message=None):
        raise errors.SettingsError(f"{self.prog}: help is not a training; give the words of tfpar train")


def _words(command: Sequence[str], *, replicas: int) -> list[str]:
    """Return the container's command; refuse what would fail only in the cluster."""
    if isinstance(command, str) or not all(isinstance(word, str) and not _SURROGATE.search(word) for word in command):
        validate.reject("command", command, 'a list of words in valid Unicode, such as ["train", "data/fashion"]')
    given = parser({}, kind=_Refusing).parse_args(command)
    if given.command != "train":
        validate.reject("command", given.command, "train and its words: a manifest runs tfpar train")
    for option, why in _NOT_THERE.items():
        if getattr(given, option):
            raise errors.SettingsError(f"--{option}: {why}")
    Settings(shards=given.shards, global_batch_size=given.global_batch_size).resolved(replicas)
    # A source's name alone is found where `tfpar prepare` or the first `tfpar train` would put it.
    data = given.data if "/" in given.data or given.data == "data" else f"data/{files.name_of(given.data)}"
    _in_volume("DATA", data, "data", f"{PLACE}/data")
    _in_volume("--run", given.run or f"runs/{files.name_of(given.data)}", "runs/NAME", f"{PLACE}/runs/")
    network = given.model.removeprefix("caffe:") if given.model.startswith("caffe:") else None
    for option, path in (("--weights", given.weights), ("--model", network), ("--solver", given.solver)):
        if path not in (None, "imagenet"):
            _in_volume(option, path, "data/FILE", f"{PLACE}/data/")
    return ["tfpar", *(word.replace("$", "$$") for word in command)]  # Kubernetes puts variables in for $(NAME)


_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: no text can hold it
_NOT_THERE = {
    "fresh": "every restart of a pod would start over; leave it out and give another --run",
    "simulate": "replicas are simulated on one machine; give --workers instead",
    "profile": "it trains nothing, and a Job would do it again and again; run it in a pod of its own",
}


def _in_volume(option: str, path: str, example: str, volume: str) -> None:
    full, mounted = posixpath.normpath(posixpath.join(PLACE, path)), volume.rstrip("/")
    if not f"{full}/".startswith(f"{mounted}/") or f"{full}/" == volume:
        validate.reject(option, path, f"a path in the volume, such as {example} (it is mounted at {mounted})")


def _matching(kind: str, value, pattern: str, most: int, rule: str) -> str:
    if not isinstance(value, str) or len(value) > most or not re.fullmatch(pattern, value, re.ASCII):
        validate.reject(kind, value, rule)
    return value


def _name(kind: str, value, most: int) -> str:
    return _matching(kind, value, SUBDOMAIN, most, f"small letters, digits, - and . (at most {most})")


def _job_name(name, workers: int, target: str) -> str:
    """Return a name that suits a Service, and leaves room for what is put behind it in the names of pods."""
    behind = len("-workers-0" if target == "jobset" else "") + len(f"-{workers - 1}-abcde")
    rule = f"at most {63 - behind} small letters, digits and -, that begin with a letter and end without -"
    return _matching("name", name, rf"(?=[a-z]){LABEL}", 63 - behind, rule)


def _resources(cpus, memory, shm, gpus: int) -> dict:
    if _memory("shm", shm) > _memory("memory", memory):
        raise errors.SettingsError(f"shm={shm}, memory={memory}: what processes share counts as memory; give less shm")
    each = {"cpu": str(validate.integer("cpus", cpus, 1, 1024)), "memory": memory}
    return each | ({"nvidia.com/gpu": str(gpus)} if gpus else {})


def _memory(kind: str, value) -> float:
    """Return the bytes that a quantity such as `"16Gi"` stands for."""
    rule = "an amount of memory such as 16Gi, at least 64Mi"
    number, unit = re.fullmatch(QUANTITY, _matching(kind, value, QUANTITY, 30, rule)).groups()
    size = float(number) * UNITS[unit]
    return size if size >= 64 * 2**20 else validate.reject(kind, value, rule)


# ---- the parts of a manifest


def _service(meta: dict, port: int) -> dict:
    """Return the headless Service that gives every pod a host name, also before the pod is ready."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": meta["name"]},
        "ports": [{"name": "tensorflow", "port": port, "protocol": "TCP"}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def _policy(meta: dict, pods: dict, port: int, gpus: int) -> dict:
    """Return the NetworkPolicy: only pods of the same job may connect, because TensorFlow's server has no password.

    On CPUs the workers use one port; on GPUs NCCL opens others as it needs them.
    """
    ports = {} if gpus else {"ports": [{"protocol": "TCP", "port": port}]}
    allowed = {"from": [{"podSelector": {"matchLabels": {**pods}}}], **ports}
    spec = {"podSelector": {"matchLabels": pods}, "policyTypes": ["Ingress"], "ingress": [allowed]}
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return kind | {"metadata": copy.deepcopy(meta), "spec": spec}


def _job(workers: int, deadline: int, pod: dict, *, saved: str, restarts: int) -> dict:
    """Return the spec of a Job; `saved` is the action that follows when a worker was stopped and its state is saved."""

    def rule(action: str, *codes: int) -> dict:
        return {"action": action, "onExitCodes": {"containerName": "tfpar", "operator": "In", "values": [*codes]}}

    rules = [
        rule("FailJob", *errors.FINAL),
        rule("Ignore", errors.WorkerLost.exit_code),  # the worker that was lost is counted
        rule(saved, Interrupted.exit_code),
        {"action": saved, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    return {
        "completionMode": "Indexed",
        "completions": workers,
        "parallelism": workers,
        "backoffLimit": restarts,
        "activeDeadlineSeconds": deadline,
        "podReplacementPolicy": "Failed",  # two pods of one index would write into one run
        "podFailurePolicy": {"rules": rules},
        "template": {"metadata": {"labels": {"app.kubernetes.io/name": "tfpar"}}, "spec": pod},
    }


def _set(name: str, job: dict) -> dict:
    """Return the spec of a JobSet. Its rules read reason and message of a failed Job; an unknown message ends the set."""
    rules = [
        {
            "name": "saved",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": [
                f"exit code {Interrupted.exit_code} matching", "condition DisruptionTarget matching"
            ],
        },
        {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]},
    ]  # fmt: skip
    return {
        "failurePolicy": {"maxRestarts": RESTARTS, "restartStrategy": "BlockingRecreate", "rules": rules},
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
        "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
    }


def _pod(words: list[str], *, image: str, environment: dict, port: int, resources: dict, volumes: tuple) -> dict:
    # TensorFlow counts the cores of the node, not those of the container; and bits depend on the number of threads.
    environment = {"HOME": "/tmp", "PYTHONUNBUFFERED": "1", "TF_NUM_INTRAOP_THREADS": resources["cpu"]} | environment
    container = {
        "name": "tfpar",
        "image": image,
        "command": words,
        "workingDir": PLACE,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "ports": [{"containerPort": port, "protocol": "TCP"}],
        "resources": {"requests": {**resources}, "limits": {**resources}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        },
        "volumeMounts": volumes[1],
    }  # fmt: skip
    tolerated = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"tolerations": tolerated} if "nvidia.com/gpu" in resources else {}),
        "containers": [container],
        "volumes": volumes[0],
    }  # fmt: skip


def _volumes(data_claim: str, run_claim: str, shm: str) -> tuple[list[dict], list[dict]]:
    """Return the volumes, and where they are mounted."""
    table = (
        ("data", {"persistentVolumeClaim": {"claimName": data_claim, "readOnly": True}}, f"{PLACE}/data"),
        ("runs", {"persistentVolumeClaim": {"claimName": run_claim}}, f"{PLACE}/runs"),
        # NCCL needs more than the 64 MiB there are.
        ("shm", {"emptyDir": {"medium": "Memory", "sizeLimit": shm}}, "/dev/shm"),
        ("tmp", {"emptyDir": {}}, "/tmp"),
    )
    mounts = [{"name": name, "mountPath": path} for name, _, path in table]
    mounts[0]["readOnly"] = True
    return [{"name": name} | volume for name, volume, _ in table], mounts
