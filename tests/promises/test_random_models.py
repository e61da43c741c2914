"""Random small models: one shard takes plain Keras' step, and the replicas change no bit.

A hundred without random layers: after one step every weight differs from plain Keras by at most 1e-5 of the largest update of its
tensor, after three by at most 1e-3. Fifty with random layers, any optimizer and mixed precision: the same bits with 1 and 2 replicas.
"""

import re

import keras
import model_parts as parts
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tfpar import devices, errors, steps
from tfpar.steps import objective

layers = keras.layers
CLASSES, BATCH = 5, 8
MOST = {1: 1e-5, 3: 1e-3}  # by steps


def examples(few, many):
    """Return decorators for a part of the examples in every test run and all of them by hand."""
    common = {
        "derandomize": True, "deadline": None, "database": None, "phases": [Phase.generate],
        "suppress_health_check": list(HealthCheck),
    }  # fmt: skip
    return settings(max_examples=few, **common), settings(max_examples=many, **common)


def batch(seed=0):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8)
    return images, draw.integers(0, CLASSES, BATCH, dtype=np.int32)


@st.composite
def models(draw, random=False):
    """Draw the description of a model: what `build` takes."""
    sparse = draw(st.booleans())
    names = draw(st.lists(st.sampled_from(sorted(parts.DETERMINISTIC)), min_size=2, max_size=5))
    described = {
        "names": names,
        "head": draw(st.sampled_from(["Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D"])),
        "loss": draw(st.sampled_from(sorted(parts.SPARSE if sparse else parts.ONE_HOT))),
        "metrics": draw(
            st.lists(
                st.sampled_from(sorted(parts.METRICS_OF_INTEGERS if sparse else parts.METRICS_OF_ONE_HOT)),
                max_size=2,
                unique=True,
            )
        ),
        "seed": draw(st.integers(0, 999)),
    }
    if random:
        described |= {
            "first": draw(st.lists(st.sampled_from(sorted(parts.AUGMENTING)), max_size=2)),
            "between": draw(st.lists(st.sampled_from(sorted(parts.RANDOM)), min_size=1, max_size=3)),
            "seeded": draw(st.sampled_from([None, 3])),
            "optimizer": draw(st.sampled_from(sorted(parts.OPTIMIZERS))),
            "policy": draw(st.sampled_from(["float32", "mixed_float16", "mixed_bfloat16"])),
        }
    return described


def build(of):
    """Return the compiled model of a description."""
    keras.utils.set_random_seed(of["seed"])
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Rescaling(1.0)(inputs)
    for name in of.get("first", []):
        x = parts.AUGMENTING[name](of["seeded"])(x)
    x = layers.Conv2D(parts.CHANNELS, 3, use_bias=False)(layers.Rescaling(1 / 255, -0.5)(x))
    between = iter(of.get("between", []))
    for i, name in enumerate(of["names"]):
        follows = next((later for later in of["names"][i + 1 :] if later not in parts.PASSING), "")
        if min(x.shape[1:3]) > 3:  # otherwise nothing can be cut off
            x = parts.DETERMINISTIC[name](x, follows not in parts.NORMALIZING)
        if (noise := next(between, None)) is not None:
            x = parts.RANDOM[noise](of["seeded"])(x)
            x = layers.Reshape((-1, x.shape[-2] if len(x.shape) == 4 else 1, parts.CHANNELS))(x)
    logits = layers.Dense(CLASSES, dtype="float32")(getattr(layers, of["head"])()(x))
    model = keras.Model(inputs, logits)
    loss = (parts.SPARSE | parts.ONE_HOT)[of["loss"]]()
    metrics = [(parts.METRICS_OF_INTEGERS | parts.METRICS_OF_ONE_HOT)[name]() for name in of["metrics"]]
    optimizer = parts.OPTIMIZERS[of["optimizer"]]() if "optimizer" in of else keras.optimizers.SGD(0.1, momentum=0.9)
    # Per cent of labels that are 0 are large numbers.
    weights = 1e-7 if "Percentage" in of["loss"] else None
    model.compile(optimizer, loss, metrics=metrics, loss_weights=weights, jit_compile=False)
    return model


def endless(strategy=None):
    data = tf.data.Dataset.from_tensors(batch()).unbatch().batch(BATCH, drop_remainder=True).repeat()
    return iter(data if strategy is None else strategy.experimental_distribute_dataset(data))


def values_of(model):
    return [weight.astype(np.float64) for weight in model.get_weights()]


def compare(of):
    """Take three steps with plain Keras and with tfpar's step."""
    ours, theirs = build(of), build(of)
    theirs.set_weights(ours.get_weights())
    images, labels = batch()
    given = keras.utils.to_categorical(labels, CLASSES) if of["loss"] in parts.ONE_HOT else labels
    step, batches = steps.Step(ours, shards=1), endless()
    start = values_of(ours)
    for taken in range(1, 4):
        for model in (ours, theirs):
            model.reset_metrics()
        step(batches, 1)
        logs = theirs.train_on_batch(images, given, return_dict=True)
        if taken not in MOST:
            continue
        for variable, before, found, expected in zip(
            ours.weights, start, values_of(ours), values_of(theirs), strict=True
        ):
            assert np.array_equal(np.isnan(found), np.isnan(expected)), variable.path
            # A unit in the last place of the weights: for a small update it is more than 1e-5.
            unit = np.spacing(np.nanmax(np.abs(expected), initial=0).astype(np.float32))
            update, apart = (np.nanmax(np.abs(expected - other), initial=0) for other in (before, found))
            assert apart <= MOST[taken] * update + unit, (taken, variable.path, apart, update)
    ours, theirs = (
        {re.sub(r"_\d+$", "", k): np.asarray(v) for k, v in of.items()} for of in (ours.get_metrics_result(), logs)
    )
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def bits(of, replicas):
    """Return the bits after three steps of two shards."""
    strategy = devices.strategy(simulate=replicas)
    keras.config.set_dtype_policy(of["policy"])
    try:
        with strategy.scope():
            model = build(of)
        step = steps.Step(model, shards=2)
        step(endless(strategy if replicas > 1 else None), 3)
    finally:
        keras.config.set_dtype_policy("float32")
    seeds = {id(generator.state) for layer in model._flatten_layers() for generator in layer._seed_generators}
    return [
        np.asarray(v).tobytes() for v in [*model.weights, *model.optimizer.variables] if id(v) not in seeds
    ], step.counts.losses


def compare_replicas(of):
    found = []
    for replicas in (1, 2):
        try:
            found.append(bits(of, replicas))
        except errors.SettingsError as refused:
            assert "\n" not in str(refused)
            found.append(str(refused))
    assert found[0] == found[1]


FEW, MANY = examples(2, 100)
FEW_RANDOM, MANY_RANDOM = examples(1, 50)


@pytest.mark.slow
@FEW
@given(models())
def test_one_shard_is_plain_keras(of):
    compare(of)


@pytest.mark.by_hand
@pytest.mark.timeout(7200)
@MANY
@given(models())
def test_one_shard_is_plain_keras_in_a_hundred_models(of):
    compare(of)


@pytest.mark.slow
@FEW_RANDOM
@given(models(random=True))
def test_replicas_change_no_bit(of):
    compare_replicas(of)


@pytest.mark.by_hand
@pytest.mark.timeout(7200)
@MANY_RANDOM
@given(models(random=True))
def test_replicas_change_no_bit_in_fifty_models(of):
    compare_replicas(of)


# ---- what is drawn


def classes(module):
    """Return the names of the classes of a module of Keras, without second names."""
    found = {}
    for name in sorted(dir(module)):
        if isinstance(getattr(module, name), type):
            found.setdefault(getattr(module, name), name)
    return {kind.__name__ if hasattr(module, kind.__name__) else name for kind, name in found.items()}


def test_every_layer_of_keras_is_drawn_or_left_out_for_a_reason():
    drawn = {name for key in (*parts.DETERMINISTIC, *parts.RANDOM, *parts.AUGMENTING) for name in key.split(", ")}
    left_out = {name for names in parts.NOT_DRAWN.values() for name in names.split()}
    assert not drawn & left_out
    if keras.__version__.startswith("3.15"):
        assert classes(layers) - drawn == left_out


def test_every_loss_that_is_honoured_is_drawn():
    named = objective.build.__doc__.split("| a loss or function")[0]
    assert set(re.findall(r"`([A-Z]\w+)(?:\(.*?\))?`", named)) == set(parts.SPARSE | parts.ONE_HOT)


def test_every_metric_of_keras_is_drawn_or_refused():
    drawn = set(parts.METRICS_OF_INTEGERS | parts.METRICS_OF_ONE_HOT)
    inputs = keras.Input((4,))
    for name in classes(keras.metrics) - drawn - {"Metric", "MeanMetricWrapper"}:
        model = keras.Model(inputs, layers.Dense(CLASSES)(inputs))
        model.compile("sgd", parts.SPARSE["SparseCategoricalCrossentropy"](), metrics=[made(name)])
        with pytest.raises(errors.SettingsError, match="metric") as refused:
            objective.build(model)
        assert "\n" not in str(refused.value)


def made(name):
    """Return a metric with the arguments that its class cannot do without."""
    return getattr(keras.metrics, name)(
        *[0.5] * name.endswith(("AtRecall", "AtPrecision", "AtSensitivity", "AtSpecificity"))
    )
