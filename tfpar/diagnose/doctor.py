"""What this machine and these versions can do, and what to fix: one line for each thing that training depends on.

Nothing is imported here that may be broken. What only TensorFlow knows, another process finds out, with a deadline: it
imports TensorFlow, lists the GPUs, takes two steps of training on two shards, and computes one gradient ten times.

Example:
    $ tfpar doctor
    good  python        3.11.7 (tried: 3.10 to 3.13)
    good  tensorflow    2.21.0 (tried: 2.20 to 2.21)
    fix   keras         3.8.0
                        -> tfpar needs 3.12 or later; pip install --upgrade keras
    ...
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfpar import errors
from tfpar.workers import rendezvous

SECONDS = 180  # for the process that imports TensorFlow and trains
WIDTH = 80
# The tests passed with the lowest and with the highest.
TRIED = {"tensorflow": ("2.20", "2.21"), "keras": ("3.12", "3.15")}
PYTHONS = ((3, 10), (3, 13))
PACKAGES = ["tensorflow-datasets", "numpy", "pyarrow", "pillow", "matplotlib", "scikit-learn", "tensorboard"]
LEAST_DISK, LEAST_MEMORY, LEAST_SHARED = 2e9, 2e9, 1e9  # bytes


class Finding(NamedTuple):
    """One line of the table: `good`, `note` (worth knowing) or `fix` (training cannot work), and what to do."""

    state: str
    name: str
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything, and return what was found; it takes about half a minute."""
    found = [*_versions(), *_keras(), *_resources(), *_workers(), *_threads()]
    return found + list(_tensorflow(_tried_in_another_process()))


def table(findings: list[Finding]) -> str:
    """Return the findings as a table of 80 columns, what to do on a line of its own."""
    lines = []
    for state, name, found, remedy in findings:
        start = f"{state:4}  {name:13} "
        lines += _wrapped(start, found)
        lines += _wrapped(" " * len(start) + "-> ", remedy) if remedy else []
    return "\n".join(lines)


def _wrapped(start: str, text: str) -> list[str]:
    """Return the lines of a text, the first after `start`, the others below where that one begins."""
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


def works(findings: list[Finding]) -> bool:
    """Tell whether training would work here."""
    return all(finding.state != "fix" for finding in findings)


# ---- the parts


def _versions() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    right = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    tried = " to ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    yield Finding(
        "good" if right else "fix", "python", f"{version} (tried: {tried})", "" if right else f"take Python {tried}"
    )
    for name, (lowest, highest) in TRIED.items():
        version = _version(name)
        if version is None:
            yield Finding("fix", name, "not installed", f"pip install {name}")
        elif _numbers(version) < _numbers(lowest):
            yield Finding("fix", name, version, f"tfpar needs {lowest} or later; pip install --upgrade {name}")
        elif _numbers(version)[:2] > _numbers(highest):
            yield Finding("note", name, version, f"newer than {highest}, the last that was tried; run the tests")
        else:
            yield Finding("good", name, f"{version} (tried: {lowest} to {highest})")
    missing = [name for name in PACKAGES if _version(name) is None]
    if missing:
        yield Finding("fix", "packages", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    else:
        yield Finding("good", "packages", f"all {len(PACKAGES)} others that tfpar needs")


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def configured_backend() -> tuple[str, Path]:
    """Return Keras' backend as environment and keras.json have it, and where that file lies; Keras is not imported."""
    path = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")) / "keras.json"
    backend = os.environ.get("KERAS_BACKEND")
    if not backend and path.is_file():
        with contextlib.suppress(ValueError, OSError, AttributeError):  # Keras, too, ignores one it cannot read
            backend = json.loads(path.read_bytes()).get("backend")
    return backend or "tensorflow", path


def _keras() -> Iterator[Finding]:
    backend, path = configured_backend()
    if backend == "tensorflow":
        yield Finding("good", "backend", "tensorflow")
    else:
        remedy = f'set KERAS_BACKEND=tensorflow, or "backend": "tensorflow" in {path}'
        yield Finding("fix", "backend", backend, remedy)
    if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
        yield Finding("fix", "legacy Keras", "TF_USE_LEGACY_KERAS is set, so tf.keras is Keras 2", "unset it")
    else:
        yield Finding("good", "legacy Keras", "off")


def _resources() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free
    writable = os.access(".", os.W_OK)
    if not writable:
        yield Finding("note", "disk", "this directory is not writable", "give --run and data directories elsewhere")
    else:
        yield _amount("disk", free, LEAST_DISK, "free here", "runs and prepared data need room; free some")
    available = meminfo("MemAvailable")
    if available is not None:
        yield _amount("memory", available, LEAST_MEMORY, "available", "close programs, or take a smaller batch")
    if os.path.isdir("/dev/shm"):
        size = shutil.disk_usage("/dev/shm").total
        yield _amount(
            "/dev/shm", size, LEAST_SHARED, "in all", "NCCL needs it for several GPUs; in a container: --shm-size=2g"
        )


def _amount(name: str, there: float, least: float, word: str, remedy: str) -> Finding:
    enough = there >= least
    return Finding("good" if enough else "note", name, f"{there / 1e9:.1f} GB {word}", "" if enough else remedy)


def meminfo(key: str) -> int | None:
    """Return one of the system's numbers of memory in bytes; None where it does not say (not Linux)."""
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def _workers() -> Iterator[Finding]:
    """Look at TF_CONFIG, or the TFPAR_ variables: the list of workers, which of them this is, whether names resolve and the own port is free."""
    try:
        found = rendezvous.cluster()
    except errors.SettingsError as error:
        yield Finding("fix", "TF_CONFIG", *str(error).rsplit("; ", 1))
        return
    if not found:
        yield Finding("good", "TF_CONFIG", "one worker")
        return
    hosts = [address.rpartition(":")[0] for address in found.addresses]
    unknown = [host for host in hosts if not _resolves(host)]
    port = int(found.addresses[found.index].rpartition(":")[2])
    if unknown:
        told = f"does not resolve: {', '.join(unknown)}"
        yield Finding("fix", "TF_CONFIG", told, "check the names, or start their machines first")
    elif not _port_is_free(port):
        told = f"port {port} of this worker is in use"
        yield Finding("fix", "TF_CONFIG", told, "end what uses it, or name another")
    else:
        yield Finding("good", "TF_CONFIG", f"worker {found.index} of {len(hosts)}")
        told = f"TensorFlow's server will listen on every address, port {port}, without a password"
        yield Finding(
            "note", "firewall", told, "let the firewall admit the other workers to this port, and nobody else"
        )


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host.strip("[]"), None))
    except OSError:
        return False


def _port_is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except (OSError, OverflowError):
            return False
    return True


def _threads() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    told = f"{cores} cores, {', '.join(given) if given else 'TensorFlow takes them all'}"
    yield Finding(
        "note" if given else "good", "threads", told, "bits depend on the number of threads; keep it" if given else ""
    )


# ---- what TensorFlow knows

_TRIAL = """
import json, os, sys
import tensorflow as tf
info = tf.sysconfig.get_build_info()
told = {"cuda": info.get("cuda_version", ""), "built_with_cuda": tf.test.is_built_with_cuda(),
        "gpus": [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
                 for gpu in tf.config.list_physical_devices("GPU")]}
print("told " + json.dumps(told), flush=True)
import numpy as np, keras
from tfpar import devices, engine, models, steps
strategy = devices.strategy()
with strategy.scope():
    model = models.small_cnn((8, 8, 1), 2)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
replicas = strategy.num_replicas_in_sync
step = steps.Step(model, shards=2 * replicas)
split = (np.zeros((8, 8, 8, 1), np.uint8), np.arange(8, dtype=np.int32) % 2)
step(iter(engine.train_batches(split, strategy, global_batch_size=4 * replicas)), 2)
print("trained " + devices.describe(strategy), flush=True)
from tfpar import check
model = models.resnet((96, 96, 3), 2)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
images = np.random.default_rng(0).integers(0, 256, (16, 96, 96, 3), dtype=np.uint8)
print("repeated " + str(check.same_gradient(model, images, np.arange(16, dtype=np.int32) % 2)), flush=True)
"""


def _tried_in_another_process() -> dict:
    """Return what the trial said: `told`, `trained`, and how it ended otherwise."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    environment.pop("TF_CONFIG", None)  # other workers are not needed to try this machine
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"no step within {SECONDS} seconds"}
    said = dict(
        line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("told ", "trained ", "repeated "))
    )
    failure = "" if done.returncode == 0 else _last_line(done.stderr) or f"ended with {done.returncode}"
    return {
        "told": json.loads(said.get("told", "null")),
        "trained": said.get("trained"),
        "repeated": said.get("repeated") == "True",
        "failure": failure,
        "stderr": done.stderr,
    }


def _tensorflow(trial: dict) -> Iterator[Finding]:
    told = trial.get("told")
    if told:
        yield from _gpus(told, trial["stderr"])
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    words = {None: "on for tfpar's commands; in your own programs as TensorFlow chooses", "1": "on", "0": "off"}
    slow = onednn == "0"
    yield Finding(
        "note" if slow else "good", "oneDNN", words.get(onednn, onednn), "unset TF_ENABLE_ONEDNN_OPTS" if slow else ""
    )
    flags = os.environ.get("TF_XLA_FLAGS")
    xla = f"TF_XLA_FLAGS={flags}" if flags else "as asked: tfpar train --xla, or compile(jit_compile=True)"
    yield Finding("note" if flags else "good", "XLA", xla, "bits depend on it; keep it" if flags else "")
    if trial["failure"]:
        yield Finding("fix", "training", trial["failure"], "fix what stands above, or report it")
    else:
        yield Finding("good", "training", f"two steps on {trial['trained']}")
        yield _repeated(trial.get("repeated", True))


def _repeated(same: bool) -> Finding:
    if same:
        return Finding("good", "same bits", "ten gradients of one batch were equal, on a busy machine")
    return Finding(
        "note", "same bits", "ten gradients of one batch differ",
        "on GPUs: tfpar train --deterministic; on a CPU please report it",
    )  # fmt: skip


def _gpus(told: dict, stderr: str) -> Iterator[Finding]:
    driver = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
    if told["gpus"]:
        yield Finding("good", "GPUs", ", ".join(told["gpus"]))
        yield Finding("good", "CUDA", f"TensorFlow was built for {told['cuda']}, and found its libraries")
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("note", "GPUs", "hidden by CUDA_VISIBLE_DEVICES", "unset it to use them")
    elif not driver:
        yield Finding("good", "GPUs", "no NVIDIA driver here: training runs on the CPU")
    elif not told["built_with_cuda"]:
        yield Finding("note", "GPUs", "this TensorFlow is built without CUDA", 'pip install "tensorflow[and-cuda]"')
    else:
        reasons = [
            line.split("] ")[-1] for line in stderr.splitlines() if "dlopen" in line or "failed call to cuInit" in line
        ]
        found = f"a driver is there, TensorFlow sees none ({reasons[0][:200] if reasons else 'it says no reason'})"
        yield Finding("note", "GPUs", found, 'pip install "tensorflow[and-cuda]", and check nvidia-smi')


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
