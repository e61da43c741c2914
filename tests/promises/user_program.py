"""A user's program: the README's diff, a callback of the user's own, the results read. `test_package.py` checks its types."""

import keras
import numpy as np
import pyarrow as pa

from tfpar import check, devices, engine, models, prepare, results, steps, train


class Best(keras.callbacks.Callback):
    best: float = 0.0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.best = max(self.best, (logs or {})["val_accuracy"])

    def get_state(self) -> dict[str, float]:
        return {"best": self.best}

    def set_state(self, state: dict[str, float]) -> None:
        self.best = state["best"]


def main(directory: str) -> float:
    data: prepare.Dataset = prepare.dataset("digits", f"{directory}/data", image_size=(8, 8))
    strategy = devices.strategy(simulate=2)
    batches = engine.train_batches(data.train, strategy, global_batch_size=128)
    epoch: int = engine.steps_per_epoch(data.train, global_batch_size=128)
    with strategy.scope():
        model: keras.Model = models.small_cnn(data.image_shape, data.num_classes)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(momentum=0.9), loss, metrics=["accuracy"])
    step: steps.Step = steps.install(model, shards=4)
    model.fit(batches, steps_per_epoch=epoch, epochs=1, shuffle=False, verbose=0)
    print(step.counts.step, "steps")
    best = Best()
    try:
        stages = [train.Stage(1, 0.1, 0.01), train.Stage(epochs=1, learning_rate=0.01)]
        run: results.Run = train.run(model, data, f"{directory}/run", stages=stages, shards=4, callbacks=[best])
    except train.Interrupted as stopped:
        print("stopped after step", stopped.step)
        return 0.0
    table: pa.Table = run.predictions(stage=1)
    pixels: np.ndarray = data.validation.images
    print(len(table), pixels.shape, run.history["loss"], results.compare(run, run, stages=(1, 2))["gained"])
    return best.best if check.exact_metrics(run) else float(run.metrics()["accuracy"])
