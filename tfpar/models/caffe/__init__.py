"""Networks, weights and solvers of Caffe, as Keras models, optimizers and stages.

A converted network computes what Caffe computes (see `layers`), trains like any other model, and its saved file opens where tfpar is not
installed. Every layer keeps its name, with `.` for `/` and for other characters that Keras or TensorFlow does not allow. What no file
states, and what is left out, is printed, one line each.

Example:
    >>> model = caffe.load("lenet_train_test.prototxt", image_shape=data.image_shape)
    >>> solver = caffe.solver("lenet_solver.prototxt", model, examples=len(data.train.labels))
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(solver.optimizer, loss, metrics=["accuracy"])
    >>> run = train.run(model, data, "runs/lenet", **solver.settings())
"""

from tfpar.models.caffe.conversion import load, network
from tfpar.models.caffe.training import Solver, solver

__all__ = ["Solver", "load", "network", "solver"]
