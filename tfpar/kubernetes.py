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
import importlib.metadata
import json
import posixpath
import re
import string
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfpar import errors, files, validate
from tfpar.arguments import check_not_empty, parser
from tfpar.settings import Settings
from tfpar.signals import Interrupted

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
IMAGE = rf"([\w.-]+(:\d+)?/)?{SUBDOMAIN}([_/]+{SUBDOMAIN})*(:\w[\w.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?"
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
QUANTITY = rf"(\d{{1,15}}(?:\.\d{{1,9}})?)({'|'.join(UNITS)})"
PLACE = "/tfpar"  # where the command runs; the claims are mounted below it
# Texts that YAML reads as such without quotes.
_PLAIN = re.compile(r"[A-Za-z/_][A-Za-z0-9/_.@:-]*(?<!:)", re.ASCII)
_WORDS_OF_YAML = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
FILE = Path(__file__)  # beside it lie the manifests and the Dockerfile


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
    in_set = validate.choice("target", target, ("job", "jobset")) == "jobset"
    name = _job_name(name, workers, target)
    port, deadline = validate.integer("port", port, 1024, 65535), validate.integer("deadline", deadline, 60, 2**31 - 1)
    rule = "small letters, digits and - (at most 63)"
    of_job = "jobset.sigs.k8s.io/jobset-name" if in_set else "batch.kubernetes.io/job-name"
    if _memory("shm", shm) > _memory("memory", memory):
        raise errors.SettingsError(f"shm={shm}, memory={memory}: what processes share counts as memory; give less shm")
    found = _filled(
        name=name,
        workers=workers,
        port=port,
        deadline=deadline,
        namespace=None if namespace is None else _matching("namespace", namespace, LABEL, 63, rule),
        queue=None if queue is None else _name("queue", queue, 63),
        image=_matching("image", image, IMAGE, 255, "the name of an image, such as registry.example/tfpar:1"),
        command=_words(command, replicas=workers * max(gpus, 1)),
        cpus=validate.integer("cpus", cpus, 1, 1024),
        memory=memory,
        shm=shm,
        data_claim=_name("data_claim", data_claim, 253),
        run_claim=_name("run_claim", run_claim, 253),
        host_template=f"{name}-workers-0-{{i}}.{name}" if in_set else f"{name}-{{i}}.{name}",
        subdomain=None if in_set else name,
        gpus=str(gpus) if gpus else None,
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if gpus else None,
        ports=None if gpus else [{"protocol": "TCP", "port": port}],
        own_pods={of_job: name},
        restarts_of_job=0 if in_set else 10,
        when_saved="FailJob" if in_set else "Ignore",
        final=errors.FINAL,
        worker_lost=errors.WorkerLost.exit_code,
        interrupted=Interrupted.exit_code,
    )
    if not in_set:
        return [found["Service"], found["Job"], found["NetworkPolicy"]]
    found["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"] = found["Job"]["spec"]
    return [found["JobSet"], found["NetworkPolicy"]]


def _filled(**values) -> dict[str, dict]:
    """Return the manifests by their kinds, with these values in `kubernetes.jsonc`."""
    without_comments = re.sub(r"(?m)^ *//.*$", "", FILE.with_suffix(".jsonc").read_text(encoding="utf-8"))
    written = {name: json.dumps(value) for name, value in values.items()}
    filled = string.Template(without_comments).substitute(written)
    return json.loads(filled, object_hook=lambda found: {k: v for k, v in found.items() if v is not None})


def dockerfile() -> str:
    """Return a Dockerfile that installs a checkout of tfpar with the versions that are installed here."""
    needed = [line for line in importlib.metadata.requires("tfpar") if "extra ==" not in line]
    packages = sorted(re.match(r"[\w.-]+", line)[0] for line in needed)
    pins = " \\\n    ".join(f'"{package}=={importlib.metadata.version(package)}"' for package in packages)
    python = "{}.{}".format(*sys.version_info)
    template = string.Template(FILE.with_suffix(".Dockerfile").read_text(encoding="utf-8"))
    return template.substitute(python=python, pins=pins)


# ---- what a user gives


class _Refusing(argparse.ArgumentParser):
    """A parser that never ends the program."""

    def error(self, message):
        raise errors.SettingsError(f"{self.prog}: {message}")

    def exit(self, status=0, message=None):
        raise errors.SettingsError(f"{self.prog}: help is not a training; give the words of tfpar train")


def _words(command: Sequence[str], *, replicas: int) -> list[str]:
    """Return the container's command; refuse what would fail only in the cluster."""
    command = [*command] if isinstance(command, Iterable) and not isinstance(command, (str, bytes)) else [command]
    if not all(isinstance(word, str) and not _SURROGATE.search(word) for word in command):
        validate.reject("command", command, 'a list of words in valid Unicode, such as ["train", "data/fashion"]')
    given = parser({}, kind=_Refusing).parse_args(command)
    check_not_empty(given)
    if given.command != "train":
        validate.reject("command", given.command, "train and its words: a manifest runs tfpar train")
    for option, why in _NOT_THERE.items():
        if getattr(given, option):
            raise errors.SettingsError(f"--{option.replace('_', '-')}: {why}")
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
    "dry_run": "it trains nothing; run it in a pod of its own",
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


def _memory(kind: str, value) -> float:
    """Return the bytes that a quantity such as `"16Gi"` stands for."""
    rule = "an amount of memory such as 16Gi, at least 64Mi"
    number, unit = re.fullmatch(QUANTITY, _matching(kind, value, QUANTITY, 30, rule)).groups()
    size = float(number) * UNITS[unit]
    return size if size >= 64 * 2**20 else validate.reject(kind, value, rule)


# ---- YAML


def text(documents: Sequence[dict]) -> str:
    """Return documents as YAML, the same text for the same documents.

    Raises:
        TypeError: there is something else in them than dictionaries, lists, texts, whole numbers and truth values.

    Example:
        >>> kubernetes.text([{"kind": "Job", "args": ["1", 1, True]}])
        'kind: Job\\nargs:\\n  - "1"\\n  - 1\\n  - true\\n'
    """
    return "---\n".join("\n".join(_lines(document)) + "\n" for document in documents)


def _lines(value) -> list[str]:
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            below = _lines(item)
            if isinstance(item, (dict, list)) and item:
                lines += [f"{_scalar(key)}:", *(f"  {line}" for line in below)]
            else:
                lines.append(f"{_scalar(key)}: {below[0]}")
        return lines
    if isinstance(value, list) and value:
        blocks = [_lines(item) for item in value]
        return [line for block in blocks for line in (f"- {block[0]}", *(f"  {more}" for more in block[1:]))]
    return [_scalar(value)]


def _scalar(value) -> str:
    if isinstance(value, (bool, int, dict, list)):  # dictionaries and lists that are empty
        return json.dumps(value)
    if not isinstance(value, str):
        raise TypeError(f"{value!r}: a manifest holds dictionaries, lists, texts, whole numbers and truth values")
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML:
        return value
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
