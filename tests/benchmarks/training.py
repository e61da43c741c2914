"""Training: images per second of ResNet-20 at 32 px, batch 128, by tfpar's step in 1 to 8 shards and by its peers.

    python -m tests.benchmarks.training
    python -m tests.benchmarks.training --profile      # which kernels TensorFlow and PyTorch spend their time in

`loop` is a hand-written `tf.function` of Keras' layers on data that never changes. `tfpar-1-keras-batch-norm` computes batch
normalization as Keras does; `-bfloat16` is `mixed_bfloat16`, and PyTorch's autocast. `fit` is the recipe of
TensorFlow's distributed Keras tutorial (`cache().shuffle().batch()`, a MirroredStrategy over the one device, `fit`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

import numpy as np

from tests import benchmarks

SIDE, CLASSES, BATCH, STEPS = 32, 10, 128, 4
NAMES = [
    "loop", "tfpar-1", "tfpar-2", "tfpar-4", "tfpar-8", "tfpar-1-keras-batch-norm", "tfpar-1-bfloat16", "fit", "fit-one-device", "torch",
    "torch-bfloat16",
]  # fmt: skip


def arrays():
    random = np.random.default_rng(0)
    pixels = np.empty((4096, SIDE, SIDE, 3), np.uint8)
    pixels[:] = random.integers(0, 256, pixels.shape, np.uint8)
    return pixels, random.integers(0, CLASSES, len(pixels)).astype(np.int32)


def compiled(strategy=None, **options):
    import keras

    from tfpar import devices, models

    keras.utils.set_random_seed(0)
    with (strategy or devices.strategy()).scope():
        model = models.resnet((SIDE, SIDE, 3), CLASSES, depth=20)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        model.compile(
            optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"], **options
        )
    return model


def loop():
    """Return a function that takes STEPS steps in TensorFlow's own manner, on constant data."""
    import tensorflow as tf

    model, (pixels, labels) = compiled(), arrays()
    pixels, labels = tf.constant(pixels[:BATCH]), tf.constant(labels[:BATCH])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(pixels, training=True))
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)
        return loss

    return lambda: [step() for _ in range(STEPS)][-1].numpy()


def tfpar(shards: int, batch_norm: str = "fused"):
    from tfpar import devices, engine, steps

    step = steps.Step(compiled(), shards=shards, batch_norm=batch_norm)
    batches = iter(engine.train_batches(arrays(), devices.strategy(), global_batch_size=BATCH))
    return lambda: [step(batches, 1) for _ in range(STEPS)]


def fit(strategy=None):
    import keras
    import tensorflow as tf

    class Clock(keras.callbacks.Callback):
        """The time from the end of the first step to that of the last, without the start and the end of `fit`."""

        def on_train_batch_end(self, batch, logs=None):
            self.ends.append(time.perf_counter())

    model, clock = compiled(strategy), Clock()
    dataset = tf.data.Dataset.from_tensor_slices(arrays()).cache().shuffle(4096).repeat().batch(BATCH)
    dataset = dataset.prefetch(tf.data.AUTOTUNE)

    def thing():
        clock.ends = []
        model.fit(dataset, steps_per_epoch=STEPS + 1, verbose=0, callbacks=[clock], shuffle=False)
        return clock.ends[-1] - clock.ends[0]

    return thing


def torch(batch: int = BATCH, steps: int = STEPS, wrap=lambda model: model, bfloat16: bool = False):
    """Return the same network, optimizer and batch in PyTorch, channels last, on constant data.

    `wrap` may distribute it; with `bfloat16` the forward pass is under autocast.
    """
    import torch
    from torch import nn

    def unit(inputs, outputs, stride):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.body = unit(inputs, outputs, stride)
            self.short = nn.Identity()
            if inputs != outputs:
                self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

        def forward(self, x):
            return nn.functional.relu(self.body(x) + self.short(x))

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [Block(16, 16, 1) for _ in range(3)]
    layers += [
        Block(16, 32, 2),
        Block(32, 32, 1),
        Block(32, 32, 1),
        Block(32, 64, 2),
        Block(64, 64, 1),
        Block(64, 64, 1),
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    model = wrap(model.to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    pixels, labels = arrays()
    pixels = torch.from_numpy(pixels[:batch]).permute(0, 3, 1, 2).float().div(255)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels[:batch]).long()

    def thing():
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = nn.functional.cross_entropy(model(pixels), labels)
            loss.backward()
            optimizer.step()
        return float(loss)

    return thing


def _made(name: str):
    import keras
    import tensorflow as tf

    if name.startswith("tfpar-"):
        if name.endswith("bfloat16"):
            keras.config.set_dtype_policy("mixed_bfloat16")
        return tfpar(int(name.split("-")[1]), "keras" if name.endswith("batch-norm") else "fused")
    return {
        "loop": loop,
        "fit": lambda: fit(tf.distribute.MirroredStrategy(["CPU:0"])),
        "fit-one-device": fit,
        "torch": torch,
    }[name]()


def _contender(name: str) -> None:
    thing = torch(bfloat16=name.endswith("bfloat16")) if name.startswith("torch") else _made(name)

    def turn() -> float:
        started = time.perf_counter()
        took = thing()
        seconds = took if name.startswith("fit") else time.perf_counter() - started
        return STEPS * BATCH / seconds

    benchmarks.answer(turn)


def profile() -> None:
    """Print where one turn of tfpar's step and of PyTorch goes, kernel by kernel."""
    import torch as pytorch

    thing = torch()
    thing()
    with pytorch.profiler.profile(activities=[pytorch.profiler.ProfilerActivity.CPU]) as profiler:
        thing()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))
    import tensorflow as tf

    from tfpar.diagnose import profiling

    thing = tfpar(1)
    thing()
    with tempfile.TemporaryDirectory() as place:
        with tf.profiler.experimental.Profile(place):
            thing()
        operations = profiling.operations_of(place)
    for name, seconds in list(operations.items())[:12]:
        print(profiling._row(name, seconds, sum(operations.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.profile:
        return profile()
    numbers = benchmarks.take_turns(__spec__.name, given.only, turns=given.turns)
    benchmarks.table(numbers, "loop", "images per second")
    benchmarks.write("training", numbers)


if __name__ == "__main__":
    _contender(*sys.argv[2:]) if sys.argv[1:2] == ["--contender"] else main()
