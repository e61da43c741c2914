"""Weight decay of both kinds, beside NumPy; and the same bits for it on every number of replicas."""

import keras
import numpy as np
import pytest
from networks import LOSS
from same import same_files

from tfpar import cli, devices, engine, errors, models, prepare, results, steps
from tfpar.models import decay

layers = keras.layers
RATE, DECAY, MOMENTUM = 0.05, 0.1, 0.9


def by_hand(images, labels, weights, *, l2, exclude):
    """Return kernel and bias of a softmax regression after one step of SGD with Nesterov's momentum for each batch."""
    weights, moments = [value.astype(np.float64) for value in weights], [np.zeros(v.shape) for v in weights]
    decays = (DECAY, 0 if exclude else DECAY)
    for x, y in zip(images, labels, strict=True):
        x = x.reshape(len(x), -1) / 255
        logits = x @ weights[0] + weights[1]
        wrong = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(10)[y]
        gradients = x.T @ wrong / len(x), wrong.mean(axis=0)
        for weight, moment, gradient, each in zip(weights, moments, gradients, decays, strict=True):
            if l2:
                gradient = gradient + each * weight
            else:
                weight *= 1 - RATE * each
            moment *= MOMENTUM
            moment -= RATE * gradient
            weight += MOMENTUM * moment - RATE * gradient
    return weights


@pytest.mark.parametrize("exclude", [(), ("bias", "norm")])
@pytest.mark.parametrize("l2", [False, True])
def test_five_steps_are_those_of_numpy(digits, l2, exclude):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(10, bias_initializer="normal")(x))
    optimizer = keras.optimizers.SGD(RATE, MOMENTUM, nesterov=True, weight_decay=0.0 if l2 else DECAY)
    optimizer.exclude_from_weight_decay(var_list=decay.excluded(model, exclude))
    if l2:
        decay.add_l2(model, DECAY, exclude=exclude)
    model.compile(optimizer, LOSS)
    batches = engine.train_batches(digits.train, devices.strategy(simulate=1), global_batch_size=40, seed=3)
    given = list(zip(*(tuple(np.array(v) for v in batch) for batch in batches.take(5)), strict=True))
    expected = by_hand(*given, model.get_weights(), l2=l2, exclude=exclude)
    steps.Step(model, shards=2)(iter(batches), 5)
    for found, right in zip(model.get_weights(), expected, strict=True):
        assert np.abs(found - right).max() < 2e-6


def test_with_momentum_l2_shrinks_ten_times_as_fast():
    """No other gradient: the logarithm of the weight falls by its decay."""
    fell = {}
    for l2 in (False, True):
        optimizer = keras.optimizers.SGD(0.1, MOMENTUM, nesterov=True, weight_decay=0.0 if l2 else 1e-3)
        weight = keras.Variable(1.0, name="kernel")
        for _ in range(400):
            optimizer.apply([1e-3 * weight.value if l2 else 0 * weight.value], [weight])
        fell[l2] = -np.log(float(weight.value))
    assert fell[True] / fell[False] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("exclude", [(), ("bias", "norm")])
def test_layers_inside_a_network_of_keras_too_and_after_loading(exclude, tmp_path):
    keras.utils.set_random_seed(0)
    model = models.build("MobileNetV2", (32, 32, 3), 3)
    decay.add_l2(model, 0.5, exclude=exclude)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    kernels = [v.path for v in model.trainable_variables if v.name == "kernel"]
    assert len(kernels) == 53 and kernels[1].endswith("depthwise/kernel")
    for each in (model, loaded):
        decaying = [v for v in each.trainable_variables if not exclude or v.name == "kernel"]
        assert [v for v in each.trainable_variables if v.regularizer] == decaying
        assert float(sum(each.losses)) == pytest.approx(
            sum(0.25 * float((v.numpy() ** 2).sum()) for v in decaying), rel=1e-4
        )
    model.layers[-2].trainable = False  # the network of Keras: what is frozen has no penalty
    assert len(model.losses) == (1 if exclude else 2)


def test_what_takes_no_regularizer_or_has_one_is_refused():
    def network(*between):
        inputs = keras.Input((4,))
        x = inputs
        for layer in between:
            x = layer(x)
        return keras.Model(inputs, x)

    shared = layers.Dense(4)
    decay.add_l2(network(shared, shared, layers.Embedding(2, 3)), 0.1)
    with pytest.raises(
        errors.SettingsError, match="scale of layer rms takes no regularizer; take weight decay of the decoupled kind"
    ):
        decay.add_l2(network(layers.RMSNormalization(name="rms")), 0.1)
    decay.add_l2(network(layers.RMSNormalization()), 0.1, exclude=["norm"])
    with pytest.raises(errors.SettingsError, match="kernel of layer d has a regularizer already"):
        decay.add_l2(network(layers.Dense(2, kernel_regularizer="l1", name="d")), 0.1)
    with pytest.raises(errors.SettingsError, match="has no weights yet"):
        decay.add_l2(keras.Sequential([layers.Dense(2)]), 0.1)
    with pytest.raises(errors.SettingsError, match="exclude='x'"):
        decay.excluded(network(layers.Flatten()), ["x"])


@pytest.mark.slow
def test_a_command_has_the_bits_of_one_replica_and_continues_with_the_same_decay_only(
    digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    few = [
        (split.images[:count], split.labels[:count]) for split, count in ((digits.train, 300), (digits.validation, 70))
    ]
    prepare.dataset(few, "few")
    words = ["train", "few", "--shards", "4", "--stage", "1@0.2", "--weight-decay-exclude", "bias,norm"]
    l2 = [*words, "--weight-decay-kind", "l2"]
    for replicas in ("1", "4"):
        assert cli.main([*l2, "--run", replicas, "--simulate", replicas]) == 0
    assert same_files(results.Run("1"), results.Run("4"))
    assert len(results.Run("1").model().losses) == 7 and results.Run("1").settings["optimizer"]["weight_decay"] == 0
    assert cli.main([*l2, "--run", "dry", "--dry-run"]) == 0
    assert results.Run("1").settings["excluded_from_weight_decay"]
    for given in (words, [*l2, "--weight-decay", "0.001"], l2[:-4] + l2[-2:]):
        capsys.readouterr()
        assert cli.main([*given, "--run", "1"]) == 78
        assert "begun with other settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*words, "--weight-decay-exclude", "bias,kernels"])
