"""Cores, memory and instructions of this machine, read from the operating system without TensorFlow.

Example:
    >>> machine.instructions()
    '...'
"""

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys

BEST_FIRST = ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "avx", "sse4_2")
COMPUTE_IN_BFLOAT16 = ("amx_bf16", "avx512_bf16")
# Where the processor has the first, TensorFlow computes in this dtype with oneDNN, which cannot if it is limited to the second.
OF_ONEDNN = {
    "bfloat16": ("avx512f", "SSE41|AVX2?(_VNNI(_2)?)?"),
    "float16": ("avx512_fp16", "SSE41|AVX2?(_VNNI(_2)?)?|AVX512_CORE(_VNNI|_BF16)?"),
}
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # oneDNN reads the second where the first is not set


def cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def gpus() -> list[str]:
    """Return the GPUs that TensorFlow can use, as CUDA_VISIBLE_DEVICES names them; another process asks TensorFlow."""
    if not shutil.which("nvidia-smi"):
        return []
    program = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, given = int(done.stdout), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (given.split(",") if given else [str(index) for index in range(count)])[:count]


def cpuinfo(key: str) -> str:
    """Return the first value of a key in /proc/cpuinfo; empty where there is none (not Linux on x86)."""
    return _first("/proc/cpuinfo", key)


def meminfo(key: str) -> int | None:
    """Return one of the system's numbers of memory in bytes; None where it does not say (not Linux)."""
    kilobytes = _first("/proc/meminfo", key)
    return int(kilobytes.split()[0]) * 1024 if kilobytes else None


def instructions() -> str:
    """Return the best vector instructions that oneDNN and Eigen may use on this processor."""
    flags = cpuinfo("flags").split()
    best = next((name for name in BEST_FIRST if name in flags), platform.machine())
    limit = next(filter(None, map(os.environ.get, LIMITS)), None)
    return f"{best}, at most {limit}" if limit else best


def computes_in_bfloat16() -> bool:
    """Tell whether the processor has instructions for products of bfloat16, which are twice as fast or faster."""
    return instructions() in COMPUTE_IN_BFLOAT16


def too_low_for(dtype: str) -> str:
    """Return `ONEDNN_MAX_CPU_ISA=...` where it is too low for `dtype`, otherwise an empty text: below these instructions TensorFlow with
    oneDNN ends in an AbortedError in a convolution, and crashes in a product of matrices."""
    name = next(filter(os.environ.get, LIMITS), LIMITS[0])
    limit, (flag, low) = os.environ.get(name, ""), OF_ONEDNN.get(dtype, ("", ""))
    return f"{name}={limit}" if flag in cpuinfo("flags").split() and re.fullmatch(low, limit.upper()) else ""


def command() -> str | None:
    """Return the command that this process was started with, where it is tfpar's; None in a program of a user."""
    return shlex.join(["tfpar", *sys.argv[1:]]) if sys.argv[0].endswith(("/tfpar", "/tfpar/__main__.py")) else None


def _first(path: str, key: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.split(":")[0].strip() == key), "")
    return ""
