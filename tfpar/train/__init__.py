"""Train in stages; after each stage run inference on the validation set and save it.

Example:
    >>> with devices.strategy().scope():
    ...     model = models.small_cnn(data.image_shape, data.num_classes)
    ...     model.compile(keras.optimizers.SGD(momentum=0.9),
    ...                   keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> run = train.run(model, data, "runs/fashion", global_batch_size=256,
    ...                 stages=[train.Stage(epochs=10, learning_rate=0.1), train.Stage(epochs=5, learning_rate=0.01)])
    >>> run.metrics(stage=1)["accuracy"]

Stopped at any moment, the same call continues where it was, and ends with the same files as one never stopped. On several
workers (see `workers`) all of them make the same call, and the first alone prints and writes.
"""

from tfpar.schedule import Schedule, Stage
from tfpar.signals import Interrupted
from tfpar.train.start import run

__all__ = ["Interrupted", "Schedule", "Stage", "run"]
