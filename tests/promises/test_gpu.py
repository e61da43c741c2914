"""What only a machine with GPUs can show: `pytest -m gpu -rA`, one command; tests/benchmarks/README.md says what to send back.

Each test starts programs of its own, because the CPU is the oracle of the other tests and the process of pytest sees no GPU.
`TFPAR_GPU_TESTS=cpu pytest -m gpu` runs the same on simulated replicas, to try the tests themselves where there is no GPU.
"""

import functools
import json
import os
import subprocess
import sys

import pytest
from same import same_files

from tfpar import machine, results, scaling
from tfpar.scaling.report import PARTS

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]
ON_CPU = os.environ.get("TFPAR_GPU_TESTS") == "cpu"
HIDDEN = os.environ.get("CUDA_VISIBLE_DEVICES") == "-1"  # by conftest.py, or by the user
QUICK = ["--global-batch-size", "64", "--shards", "2", "--stage", "2@0.1", "--seed", "1", "--deterministic"]
BOTH_PRECISIONS = pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])


@functools.cache
def gpus():
    """Return the names of the GPUs that a process may use which sees what pytest was started with."""
    if ON_CPU:
        return ["0", "1"]
    with pytest.MonkeyPatch.context() as patch:
        if HIDDEN:
            patch.delenv("CUDA_VISIBLE_DEVICES")
        return machine.gpus()


def need(count):
    if len(gpus()) < count:
        found = f"needs {count} GPU{'s'[: count > 1]}, TensorFlow finds {len(gpus())}"
        pytest.skip(f"{found}; TFPAR_GPU_TESTS=cpu tries the test itself on the CPU")


def python(place, *arguments, count=1):
    """Run `python ARGUMENTS` on so many GPUs, show what it prints, and return that."""
    need(count)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES" or not HIDDEN}
    environment |= {
        "CUDA_VISIBLE_DEVICES": "-1" if ON_CPU else ",".join(map(str, range(count))),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=900
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train(place, name, *words, count=1):
    """Train the digits on so many GPUs, and return the run."""
    simulated = ["--simulate", str(count)] if ON_CPU else []
    python(place, "-m", "tfpar", "train", "digits", "--run", name, *QUICK, *simulated, *words, count=count)
    return results.Run(place / name)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--model", "resnet20"],
        ["--xla", "--model", "resnet20"],  # XLA has no deterministic gradient of max pooling
        ["--precision", "mixed_bfloat16"],
        ["--precision", "mixed_float16"],
        ["--batch-norm", "keras"],
    ],
    ids=lambda words: " ".join(words) or "small_cnn",
)
def test_the_same_bits_again_in_longer_calls_and_on_two_gpus(words, tmp_path):
    first = train(tmp_path, "first", *words, "--steps-per-call", "1")
    assert same_files(first, train(tmp_path, "again", *words, "--steps-per-call", "4"))
    assert first.history["accuracy"].to_pylist()[-1] > 0.3
    need(2)
    assert same_files(first, train(tmp_path, "two", *words, "--steps-per-call", "4", count=2))


FUSED = """
import json, sys, keras, numpy as np, tensorflow as tf
from tfpar import devices, models, steps
devices.strategy()
gradients = []
for batch_norm in ("fused", "keras"):
    keras.utils.set_random_seed(0)
    model = models.resnet((32, 32, 3), 10, depth=20)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    draws = np.random.default_rng(0)
    batch = draws.integers(0, 256, (64, 32, 32, 3), np.uint8), draws.integers(0, 10, 64).astype(np.int32)
    gradients.append(steps.Step(model, batch_norm=batch_norm).gradient(tuple(map(tf.constant, batch))).numpy())
fused, keras_own = gradients
print(json.dumps({"difference": float(np.linalg.norm(fused - keras_own) / np.linalg.norm(keras_own))}))
"""


def test_fused_batch_normalization_computes_what_keras_does(tmp_path):
    found = json.loads(python(tmp_path, "-c", FUSED).splitlines()[-1])
    assert 0 < found["difference"] < 1e-2


@BOTH_PRECISIONS
def test_mixed_precision_with_xla_learns(precision, tmp_path):
    run = train(tmp_path, "run", "--precision", precision, "--xla", "--model", "resnet20")
    assert run.history["loss"].to_pylist()[-1] < run.history["loss"].to_pylist()[0]


def test_profile_names_the_kernels(tmp_path):
    simulated = ["--simulate", "1"] if ON_CPU else []
    python(tmp_path, "-m", "tfpar", "train", "digits", "--run", "run", "--profile", *simulated)
    found = json.loads((tmp_path / "run.profile" / "profile.json").read_text())
    assert found["operations"] and all(seconds > 0 for seconds in found["operations"].values())
    assert (tmp_path / "run.profile" / "profile.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [1, 2])
def test_scaling_measures(count, tmp_path):
    sizes = "1,2"[: 2 * count - 1]
    words = ["--devices", sizes, "--seconds", "30", "--out", "scaling"]
    python(tmp_path, "-m", "tfpar", "scaling", "digits", *words, count=count)
    report = scaling.load(tmp_path / "scaling")
    assert report.content["device"] == ("worker" if ON_CPU else "GPU")
    for row in report.rows:
        assert sum(row[f"{name}_ms"] for name in PARTS) == pytest.approx(row["step_ms"], rel=0.03)


MEMORY = """
import json, sys, keras, numpy as np, tensorflow as tf
from tfpar import devices, engine, models, prepare, steps
from tfpar.diagnose import memory
strategy = devices.strategy()
draws = np.random.default_rng(0)
pixels, labels = draws.integers(0, 256, (256, 64, 64, 3), np.uint8), np.arange(256) % 10
data = prepare.dataset((pixels, labels), "pixels")
model = models.resnet(data.image_shape, data.num_classes, depth=20)
model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
estimated = memory.estimate(model, data, [], global_batch_size=128)
step = steps.Step(model)
step(iter(engine.train_batches(data.train, strategy, global_batch_size=128)), 3)
peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if tf.config.list_logical_devices("GPU") else None
print(json.dumps({"estimated": sum(estimated.parts.values()), "parts": estimated.parts, "measured": peak}))
"""


def test_the_memory_estimate_is_near_the_measured_peak(tmp_path):
    found = json.loads(python(tmp_path, "-c", MEMORY).splitlines()[-1])
    assert found["estimated"] > 1e7
    if not ON_CPU:  # TensorFlow counts no peak of a CPU
        assert 0.5 < found["measured"] / found["estimated"] < 2
