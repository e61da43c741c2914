"""What this machine and these versions can do, and what to fix: one line for each thing that training depends on.

Nothing is imported here that may be broken. What only TensorFlow knows, another process finds out, with a deadline: it
imports TensorFlow, lists the GPUs, takes two steps of training on two shards, and computes one gradient ten times.

Example:
    $ tfpar doctor
    good  python        3.11.7 (tried: 3.10 to 3.13)
    good  tensorflow    2.21.0 (tried: 2.20 to 2.21)
    fix   keras         3.8.0
                        -> install keras 3.12 or later
    ...
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfpar import errors, machine
from tfpar.workers import rendezvous

SECONDS = 180  # for the process that imports TensorFlow and trains
WIDTH = 80
# The tests passed with the lowest and with the highest.
TRIED = {"python": ("3.10", "3.13"), "tensorflow": ("2.20", "2.21"), "keras": ("3.12", "3.15")}
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
    found = [*_versions(), backend(), *_resources(), *_workers(), *_processor()]
    return found + list(_tensorflow(_tried_in_another_process()))


def table(findings: list[Finding]) -> str:
    """Return the findings as a table of 80 columns, what to do on a line of its own."""
    lines = []
    for state, name, found, remedy in findings:
        start = f"{state:4}  {name:13} "
        for first, text in ((start, found), (" " * len(start) + "-> ", remedy)):
            indents = {"initial_indent": first, "subsequent_indent": " " * len(first)}
            lines += textwrap.wrap(text, WIDTH, break_on_hyphens=False, **indents)
    return "\n".join(lines)


def works(findings: list[Finding]) -> bool:
    """Tell whether training would work here."""
    return all(finding.state != "fix" for finding in findings)


# ---- the parts


def _judged(good: bool, name: str, found: str, remedy: str, *, otherwise: str = "note") -> Finding:
    """Return a finding that is good, or says what to do."""
    return Finding("good", name, found) if good else Finding(otherwise, name, found, remedy)


def _versions() -> Iterator[Finding]:
    for name, (lowest, highest) in TRIED.items():
        version = platform.python_version() if name == "python" else _version(name)
        if version is None:
            yield Finding("fix", name, "not installed", f"pip install {name}")
        elif _numbers(version) < _numbers(lowest):
            yield Finding("fix", name, version, f"install {name} {lowest} or later")
        elif _numbers(version)[:2] > _numbers(highest):
            yield Finding("note", name, version, f"newer than {highest}, the last that was tried; run the tests")
        else:
            yield Finding("good", name, f"{version} (tried: {lowest} to {highest})")
    missing = [name for name in PACKAGES if _version(name) is None]
    found = f"missing: {', '.join(missing)}" if missing else f"all {len(PACKAGES)} others that tfpar needs"
    yield _judged(not missing, "packages", found, f"pip install {' '.join(missing)}", otherwise="fix")


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def backend() -> Finding:
    """Return what environment and keras.json say of Keras' backend; Keras is not imported."""
    path = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")) / "keras.json"
    named = os.environ.get("KERAS_BACKEND")
    if not named and path.is_file():
        with contextlib.suppress(ValueError, OSError, AttributeError):  # Keras, too, ignores one it cannot read
            named = json.loads(path.read_bytes()).get("backend")
    named = named or "tensorflow"
    remedy = f'set KERAS_BACKEND=tensorflow, or "backend": "tensorflow" in {path}'
    return _judged(named == "tensorflow", "backend", named, remedy, otherwise="fix")


def _resources() -> Iterator[Finding]:
    if os.access(".", os.W_OK):
        remedy = "runs and prepared data need room; free some"
        yield _amount("disk", shutil.disk_usage(".").free, LEAST_DISK, "free here", remedy)
    else:
        yield Finding("note", "disk", "this directory is not writable", "give --run and data directories elsewhere")
    available = machine.meminfo("MemAvailable")
    if available is not None:
        yield _amount("memory", available, LEAST_MEMORY, "available", "close programs, or take a smaller batch")
    if os.path.isdir("/dev/shm"):
        remedy = "NCCL needs it for several GPUs; in a container: --shm-size=2g"
        yield _amount("/dev/shm", shutil.disk_usage("/dev/shm").total, LEAST_SHARED, "in all", remedy)


def _amount(name: str, there: float, least: float, word: str, remedy: str) -> Finding:
    return _judged(there >= least, name, f"{there / 1e9:.1f} GB {word}", remedy)


def _workers() -> Iterator[Finding]:
    """Look at TF_CONFIG, or the TFPAR_ variables: the list of workers, which of them this is, its port, and all names."""
    try:
        found = rendezvous.cluster()
        if found:
            rendezvous.listening(found.addresses[found.index], found.index).close()
    except (errors.SettingsError, errors.Unavailable) as error:
        yield Finding("fix", "TF_CONFIG", *str(error).rsplit("; ", 1))
        return
    if not found:
        yield Finding("good", "TF_CONFIG", "one worker")
        return
    places = [rendezvous.place_of(address) for address in found.addresses]
    unknown = ", ".join(host for host, _ in places if not _resolves(host))
    names = f"does not resolve: {unknown}" if unknown else f"worker {found.index} of {len(places)}"
    remedy = "check the names, or start their machines first"
    yield _judged(not unknown, "TF_CONFIG", names, remedy, otherwise="fix")
    if not unknown:
        port = f"TensorFlow's server will listen on every address, port {places[found.index][1]}, without a password"
        yield Finding("note", "firewall", port, "admit the other workers to this port, and nobody else")


def _resolves(host: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(socket.getaddrinfo(host, None))
    return False


def _processor() -> Iterator[Finding]:
    yield Finding("good", "processor", f"{machine.cpuinfo('model name') or 'unnamed'} ({machine.instructions()})")
    fast = machine.computes_in_bfloat16()
    found = "the processor multiplies in bfloat16" if fast else "no instructions for it: float32 is faster here"
    yield _judged(not fast, "bfloat16", found, "try tfpar train --precision mixed_bfloat16")
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    told = f"{len(machine.cores())} cores, {', '.join(given) or 'TensorFlow takes them all'}"
    yield _judged(not given, "threads", told, "bits depend on the number of threads; keep it")


# ---- what TensorFlow knows

_TRIAL = """
import json
import tensorflow as tf
gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")]
cuda = tf.sysconfig.get_build_info().get("cuda_version", "")
print(json.dumps({"told": {"cuda": cuda, "built_with_cuda": tf.test.is_built_with_cuda(), "gpus": gpus}}), flush=True)
import numpy as np, keras
from tfpar import check, devices, engine, models, steps
strategy = devices.strategy()
with strategy.scope():
    model = models.small_cnn((8, 8, 1), 2)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
replicas = strategy.num_replicas_in_sync
step = steps.Step(model, shards=2 * replicas)
split = (np.zeros((8, 8, 8, 1), np.uint8), np.arange(8, dtype=np.int32) % 2)
step(iter(engine.train_batches(split, strategy, global_batch_size=4 * replicas)), 2)
model = models.resnet((96, 96, 3), 2)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
images = np.random.default_rng(0).integers(0, 256, (16, 96, 96, 3), dtype=np.uint8)
same = check.same_gradient(model, images, np.arange(16, dtype=np.int32) % 2)
print(json.dumps({"trained": devices.describe(strategy), "repeated": bool(same)}), flush=True)
"""


def _tried_in_another_process() -> dict:
    """Return what the trial said: `told`, `trained` and `repeated`, and why it failed, if it did."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    environment.pop("TF_CONFIG", None)  # other workers are not needed to try this machine
    command, options = [sys.executable, "-c", _TRIAL], {"text": True, "errors": "replace"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, env=environment, **options)
    except subprocess.TimeoutExpired:
        return {"failure": f"no step within {SECONDS} seconds"}
    last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    found = {"failure": last.strip()[:300] if done.returncode else "", "stderr": done.stderr}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


def _tensorflow(trial: dict) -> Iterator[Finding]:
    if trial.get("told"):
        yield from _gpus(trial["told"], trial["stderr"])
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    words = {None: "on for tfpar's commands; in your own programs as TensorFlow chooses", "1": "on", "0": "off"}
    yield _judged(onednn != "0", "oneDNN", words.get(onednn, onednn), "unset TF_ENABLE_ONEDNN_OPTS")
    flags = os.environ.get("TF_XLA_FLAGS")
    xla = f"TF_XLA_FLAGS={flags}" if flags else "as asked: tfpar train --xla, or compile(jit_compile=True)"
    yield _judged(not flags, "XLA", xla, "bits depend on it; keep it")
    if trial["failure"]:
        yield Finding("fix", "training", trial["failure"], "fix what stands above, or report it")
        return
    yield Finding("good", "training", f"two steps on {trial['trained']}")
    same = "were equal, on a busy machine" if trial["repeated"] else "differ"
    remedy = "on GPUs: tfpar train --deterministic; on a CPU please report it"
    yield _judged(trial["repeated"], "same bits", f"ten gradients of one batch {same}", remedy)


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
        lines = [line for line in stderr.splitlines() if "dlopen" in line or "failed call to cuInit" in line]
        reason = lines[0].split("] ")[-1][:200] if lines else "it gives no reason"
        found = f"a driver is there, TensorFlow sees none ({reason})"
        yield Finding("note", "GPUs", found, 'pip install "tensorflow[and-cuda]", and check nvidia-smi')
