"""Each public attribute and argument of Keras is the subject of a row of `keras_rows`, or stands in `keras_attributes`."""

import inspect
import re
import warnings

import keras
import keras_rows as table
import pytest
from keras_attributes import UNTOUCHED

TESTED = "3.15"
ROWS = [
    name
    for rows in (
        table.HONOURED,
        table.REFUSED,
        table.REFUSED_BY_A_RUN,
        table.CALLBACKS,
        table.CALLBACKS_REFUSED_BY_A_RUN,
        table.GIVEN,
    )
    for name in rows
]


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def arguments(function):
    return set(inspect.signature(function).parameters) - {"self", "kwargs"}


def classes(module):
    return {name for name in public(module) if inspect.isclass(getattr(module, name))}


def of_rows(pattern):
    return {found for name in ROWS for found in re.findall(pattern, name)}


layer = public(keras.Layer)
EXISTING = {
    "Model": public(keras.Model) - layer,
    **{name: public(getattr(keras, name)) for name in ("Layer", "Loss", "Metric", "Optimizer")},
    "Callback": public(keras.callbacks.Callback),
    "compile": arguments(keras.Model.compile),
    "fit": arguments(keras.Model.fit),
    "Optimizer of": arguments(keras.optimizers.SGD.__init__),
    "optimizers": classes(keras.optimizers),
    "callbacks": classes(keras.callbacks),
}
IN_ROWS = {
    "Model": of_rows(r"\bModel\.(\w+)") - layer,
    "Layer": of_rows(r"\b(?:Layer|Model)\.(\w+)") & layer,
    **{name: of_rows(rf"\b{name}\.(\w+)") - {"__call__"} for name in ("Loss", "Metric", "Optimizer", "Callback")},
    **{name: of_rows(rf"\b{name}\((\w+)\)") for name in ("compile", "fit")},
    "Optimizer of": of_rows(r"\bOptimizer\((\w+)\)") | {"learning_rate", "momentum", "nesterov"},
    **{
        name: of_rows(r"\b([A-Z]\w+)\b") & EXISTING[name] - {"Optimizer", "Callback"}
        for name in ("optimizers", "callbacks")
    },
}


@pytest.mark.parametrize("of", UNTOUCHED)
def test_every_attribute_has_a_row_or_a_reason(of):
    listed = [name for names in UNTOUCHED[of].values() for name in names.split()]
    assert len(listed) == len(set(listed)) and not set(listed) & IN_ROWS[of]
    wrong = EXISTING[of] ^ (set(listed) | IN_ROWS[of])
    if keras.__version__.startswith(TESTED):
        assert not wrong
    elif wrong:
        warnings.warn(f"Keras {keras.__version__}: no row and no reason, or gone: {of}: {sorted(wrong)}", stacklevel=1)
