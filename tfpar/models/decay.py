"""Weight decay: every step makes the weights a little smaller. There are two kinds, which are not the same training.

| `--weight-decay-kind` | with the rate r and `--weight-decay W`, each step also | who means this |
|---|---|---|
| `decoupled` (default) | sets w to w - r W w, beside the gradient: the argument `weight_decay` of Keras' optimizers | AdamW (arXiv:1711.05101) |
| `l2` | adds W w to the gradient: the penalty W / 2 times the sum of w^2 in the loss, `keras.regularizers.L2(W / 2)` on each weight | most papers, Caffe, `torch.optim.SGD(weight_decay=W)` |

With l2 the momentum and the second moments of the optimizer see W w too. So SGD with momentum 0.9 shrinks a weight about 1 / (1 - 0.9) =
10 times as fast as with the decoupled kind at the same W. The losses of a run do not contain the penalty; those of `fit` do.

Most recipes let no bias and no weight of a normalization layer decay: `--weight-decay-exclude bias,norm`. For the decoupled kind that is Keras'
`optimizer.exclude_from_weight_decay(var_list=...)`. (Its `var_names` are patterns of TensorFlow's names, such as `bias:0`: `bias$` finds none.)

Example:
    >>> model = models.small_cnn((8, 8, 1), 10)
    >>> optimizer = keras.optimizers.SGD(0.1, weight_decay=5e-4)
    >>> optimizer.exclude_from_weight_decay(var_list=decay.excluded(model, ("bias", "norm")))
    >>> decay.add_l2(model, 5e-4, exclude=("bias", "norm"))          # or so, with an optimizer without weight_decay
    >>> len(model.losses)          # the kernels of six convolutions and of the last layer
    7
"""

from collections.abc import Iterator, Sequence

import keras

from tfpar import errors, validate

OTHERWISE = "take weight decay of the decoupled kind, or exclude bias,norm"
NAMES = {"bias": {"bias"}, "norm": {"gamma", "beta", "scale"}}  # of variables in Keras' layers


def excluded(model: keras.Model, exclude: Sequence[str]) -> list[keras.Variable]:
    """Return the weights that do not decay, also those inside other models and in frozen layers.

    Args:
        model: of Keras, built.
        exclude: any of `"bias"` and `"norm"`, scales and shifts of normalization layers (and the scales of ConvNeXt).
    """
    names = set().union(*(NAMES[validate.choice("exclude", word, tuple(NAMES))] for word in exclude))
    return [variable for _, variable in _weights(model) if variable.name in names]


def _weights(model: keras.Model) -> Iterator[tuple[keras.Layer, keras.Variable]]:
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables:
            yield layer, variable


def add_l2(model: keras.Model, weight_decay: float, *, exclude: Sequence[str] = ()) -> None:
    """Give all layers of a built model, also those inside other models, a regularizer whose gradient is the decay times the weight.

    It is saved with the model. It counts for the layers that train: a frozen layer has no penalty.

    Args:
        model: of Keras.
        weight_decay: from 0 to 1.
        exclude: as for `excluded`.

    Raises:
        errors.SettingsError: the model is not built; a layer has a regularizer already, or has no argument for one.
    """
    if not model.built:
        raise errors.SettingsError(f"weight decay l2: {model.name} has no weights yet; begin it with keras.Input(...)")
    left_out = {id(variable) for variable in excluded(model, exclude)}
    regularizer = keras.regularizers.L2(validate.number("weight_decay", weight_decay, 0, 1) / 2)
    for layer, variable in _weights(model):
        if id(variable) not in left_out:
            if variable.regularizer:
                why = f"{variable.name} of layer {layer.name} has a regularizer already"
                raise errors.SettingsError(f"{why}; {OTHERWISE}")
            regularize(layer, variable, regularizer)


def regularize(
    layer: keras.Layer, variable: keras.Variable, regularizer: keras.regularizers.Regularizer | None
) -> None:
    """Give a weight of a built layer a regularizer, or take it away; it is saved with the layer.

    Raises:
        errors.SettingsError: the layer has no argument for one.
    """
    names = (variable.name, variable.name.removesuffix("_kernel"), "depthwise")
    known = [f"{name}_regularizer" for name in names if hasattr(layer, f"{name}_regularizer")]
    if not known:
        raise errors.SettingsError(f"{variable.name} of layer {layer.name} takes no regularizer; {OTHERWISE}")
    setattr(layer, known[0], regularizer)  # what its configuration holds
    variable.regularizer = regularizer  # what its loss holds
