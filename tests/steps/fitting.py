"""What a user's program does on every worker: plain `fit`, `evaluate`, `predict`, with a callback.

fitting.py DATA OUT WHICH: WHICH is install, repair or plain; what came of it is written to OUT by the chief.
"""

import hashlib
import json
import sys

import keras
from networks import tiny

from tfpar import devices, engine, prepare, steps
from tfpar.steps import keras_repairs
from tfpar.workers import group


def main(data, out, which):
    strategy = devices.strategy()
    data = prepare.load(data, verify=False)
    model = tiny(strategy)
    if which == "install":
        steps.install(model, shards=4, steps_per_call=4, steps_per_epoch=10)
    elif which == "repair":
        keras_repairs.repair(model)
    epochs = []
    seen = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(sorted(logs)))
    batches = engine.train_batches(data.train, strategy, global_batch_size=96)
    split = data.validation
    found = {}
    for name, attempt in {
        "fit": lambda: model.fit(batches, steps_per_epoch=10, epochs=2, verbose=0, callbacks=[seen]).history,
        "validated": lambda: (
            model.fit(batches, steps_per_epoch=10, verbose=0, validation_data=(split.images, split.labels)).history
        ),
        "evaluate": lambda: model.evaluate(split.images, split.labels, batch_size=50, verbose=0, return_dict=True),
        "predict": lambda: hashlib.sha256(model.predict(split.images, batch_size=50, verbose=0).tobytes()).hexdigest(),
    }.items():
        try:
            found[name] = attempt()
        except ValueError as error:
            found[name] = f"ValueError: {error}"[:200]
    found["weights"] = hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()
    found["callback"] = epochs
    if group.WorkerGroup(strategy).chief:
        with open(out, "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
