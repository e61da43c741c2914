"""The quantized twin of a Keras classifier: the same chain of layers, in which every number has its own trained width in bits.

Source of the method: Sun et al., HGQ: High Granularity Quantization, arXiv:2405.00645. The layers are those of HGQ2.
"""

import os

import keras
import numpy as np

from tfpar import errors, validate
from tfpar.fpga import tools
from tfpar.models import networks

MOST_BIT_OPERATIONS = 200_000  # twice what fits the largest ECP5: more is not worth a trace
BATCH = 128
COPIED = {"name", "filters", "units", "kernel_size", "strides", "padding", "dilation_rate", "activation"}


def quantized(model: keras.Model, *, weight_bits: int = 5, fraction_bits: int = 3) -> keras.Model:
    """Return a twin of a model with the same weights, whose weights and activations are fixed-point numbers.

    The twin takes `uint8[N, height, width, channels]` and gives logits `float32[N, classes]`, as the model does. `fit`
    trains it and narrows its numbers; before that it cannot become a circuit.

    Args:
        model: a chain of `Rescaling(1/256)` and then Conv2D, MaxPooling2D, Flatten and Dense, with `activation="relu"` or none.
        weight_bits: bits of each weight before training, without its sign.
        fraction_bits: bits of each activation after the binary point, before training.

    Raises:
        errors.SettingsError: the model has another layer, or a layer with a setting that the circuit cannot have.
        errors.Unavailable: the extra [fpga] is not installed.
    """
    kinds = _kinds()
    from hgq.config import LayerConfigScope, QuantizerConfigScope

    validate.integer("weight_bits", weight_bits, 1, 16)
    validate.integer("fraction_bits", fraction_bits, 0, 16)
    model = _checked(model, kinds, "build and train the model")

    def twin_of(layer):
        if type(layer) not in kinds:
            return type(layer).from_config(layer.get_config() | {"dtype": "float32"})
        return kinds[type(layer)](**{name: value for name, value in layer.get_config().items() if name in COPIED})

    with (
        QuantizerConfigScope(place=("weight", "bias"), default_q_type="kbi", overflow_mode="SAT_SYM", b0=weight_bits),
        QuantizerConfigScope(place="datalane", default_q_type="kif", overflow_mode="WRAP", f0=fraction_bits),
        LayerConfigScope(enable_ebops=True, beta0=0.0),
    ):
        twin = keras.models.clone_model(model, keras.Input(model.input_shape[1:], dtype="uint8"), twin_of)
    for layer, own in zip(model.layers, twin.layers, strict=True):
        if type(layer) in kinds:
            own.kernel.assign(layer.kernel)
            own.bias.assign(layer.bias if layer.use_bias else 0 * own.bias)
    return twin


def fit(twin: keras.Model, images, labels, *, epochs: int, beta: float, learning_rate: float = 5e-3) -> int:
    """Train a twin with `loss = crossentropy + beta * bit operations`, and return the effective bit operations of one image.

    The bit operations of a product are the bits of its weight times the bits of its input. Adam trains the twin, with a learning
    rate that falls as a cosine to 0. The penalty on a bit operation rises exponentially from `beta / 100` to `beta` in the first
    60% of the epochs, then it stays. At the end, each activation gets the integer bits that the images need. `epochs=0` does only
    this last part: the weights are rounded, without training.

    Args:
        twin: made by `quantized`.
        images, labels: `uint8[N, height, width, channels]` and whole numbers `[N]`.
        epochs: passes over the images.
        beta: the penalty on a bit operation, in units of the loss; 1e-6 to 1e-4 suit small networks. A larger penalty gives a
            smaller circuit and a lower accuracy.
        learning_rate: at the start.

    Raises:
        errors.SettingsError: a value is out of its range, or the images do not have the twin's shape.
    """
    images, labels = validate.split((images, labels))
    check(twin, images)
    epochs = validate.integer("epochs", epochs, 0, 10**6)
    beta, learning_rate = validate.number("beta", beta, 0, 1), validate.number("learning_rate", learning_rate, 0, 1)
    from hgq.utils import trace_minmax
    from hgq.utils.sugar import BetaScheduler

    if epochs:
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * -(-len(images) // BATCH))
        twin.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        price = BetaScheduler(lambda epoch: beta * 100 ** (min(1, epoch / (0.6 * epochs)) - 1))
        twin.fit(images, labels, BATCH, epochs, verbose=0, callbacks=[price])
    found = trace_minmax(twin, images)
    print(f"fit: {epochs} epochs, {found:,} bit operations for an image")
    return found


def load(path: str | os.PathLike) -> keras.Model:
    """Read a twin from a .keras file.

    Raises:
        errors.InputNotFound: there is no such file.
        errors.DataError: Keras cannot read it.
    """
    _kinds()  # Keras finds the layers of HGQ2 by name
    return networks.load(validate.path("twin", path), errors.DataError)


def check(twin: keras.Model, images) -> tuple[keras.Model, np.ndarray]:
    """Return a twin as a functional model, and images as an array; check that it is one, and takes them."""
    twin = _checked(twin, _kinds().values(), "give a twin made by fpga.quantized")
    images = np.asarray(images)
    if images.shape[1:] != twin.input_shape[1:] or images.dtype != np.uint8 or not len(images):
        raise errors.SettingsError(f"images={images.dtype}{[*images.shape]}: give uint8 images {twin.input_shape}")
    return twin, images


def bit_operations(twin: keras.Model) -> int:
    """Return the effective bit operations of one image: for each product, bits of the weight times bits of the activation.

    Raises:
        errors.SettingsError: the twin was never fitted, or is too large by far.
    """
    operations = sum(int(layer.ebops) for layer in twin.layers if hasattr(layer, "ebops"))
    if not 0 < operations <= MOST_BIT_OPERATIONS:
        found = f"bit operations of the twin for an image: {operations:,} (possible: 1 to {MOST_BIT_OPERATIONS:,})"
        raise errors.SettingsError(f"{found}. Train it with fpga.fit; a larger beta gives less of them")
    return operations


def _kinds() -> dict[type, type]:
    """Return the layers with weights, and the kind of each in a twin."""
    tools.require()
    from hgq.layers import QConv2D, QDense

    return {keras.layers.Conv2D: QConv2D, keras.layers.Dense: QDense}


def _checked(model: keras.Model, kinds, remedy: str) -> keras.Model:
    """Return a model as a functional one; refuse by name what cannot become a circuit."""
    known = (*kinds, keras.layers.MaxPooling2D, keras.layers.Flatten)
    rule = f"{remedy} of Rescaling(1/256) and then {', '.join(kind.__name__ for kind in known)}"
    ends = [*(getattr(model, "inputs", None) or ()), *(getattr(model, "outputs", None) or ())]
    if len(ends) != 2 or None in ends[0].shape[1:] or len(ends[1].shape) != 2:
        validate.reject("model", model, f"a functional or Sequential model from images of one size to logits; {rule}")
    model = keras.Model(*ends, name=model.name)
    for layer in model.operations[1:]:
        plain = getattr(layer, "activation", None) in (None, keras.activations.linear, keras.activations.relu)
        fine = type(layer) in known and plain and getattr(layer, "groups", 1) == 1
        if layer is model.operations[1]:  # a shift
            fine = isinstance(layer, keras.layers.Rescaling) and (layer.scale, layer.offset) == (1 / 256, 0)
        if not fine:
            what = f"layer {layer.name} ({type(layer).__name__}) cannot become a circuit"
            raise errors.SettingsError(f"{what}; {rule}, with relu or no activation, without groups")
    return model
