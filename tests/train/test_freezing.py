"""Stages that say what trains: the head first, then all, with the same bits on every number of replicas and after a kill."""

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from networks import LOSS, StopAfter
from same import same_files

from tfpar import cli, devices, errors, prepare, results, steps, train
from tfpar.schedule import Stage
from tfpar.train import freezing

layers = keras.layers
HEAD_FIRST = [
    Stage(1, 0.1, trainable="head"),
    Stage(1, 0.1, 0, ["body", "logits"], "cosine"),
    Stage(1, 0.1, trainable="conv*"),
]


class Scaled(layers.Layer):
    """A layer that has a weight of its own, and a layer inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.Dense(4, name="inner")

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x * self.scale)


def built(replicas=1):
    """Return a model with a nested one, BatchNormalization in both, and dropout."""
    keras.utils.set_random_seed(0)
    with devices.strategy(simulate=replicas).scope():
        inside = keras.Input((6, 6, 4))
        x = layers.BatchNormalization(momentum=0.5, name="norm")(
            layers.Conv2D(4, 3, use_bias=False, name="conv_inside")(inside)
        )
        body = keras.Model(inside, layers.ReLU()(x), name="body")
        inputs = keras.Input((8, 8, 1), dtype="uint8")
        x = layers.Conv2D(4, 3, name="conv_first")(layers.Rescaling(1 / 255)(inputs))
        x = layers.Dropout(0.2)(layers.Flatten()(body(layers.BatchNormalization(momentum=0.5)(x))))
        model = keras.Model(inputs, layers.Dense(3, name="logits")(x), name="nested")
        model.compile(keras.optimizers.Adam(), LOSS, metrics=["accuracy"])
    return model


def names(model):
    return {variable.path for variable in model.trainable_variables}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("head", {"logits/kernel", "logits/bias"}),
        ("conv_*", {"conv_first/kernel", "conv_first/bias", "conv_inside/kernel"}),
        ("body", {"conv_inside/kernel", "norm/gamma", "norm/beta"}),
        (["norm", "head"], {"norm/gamma", "norm/beta", "logits/kernel", "logits/bias"}),
    ],
)
def test_what_is_named_trains_and_nothing_else(given, expected):
    model = built()
    before = names(model)
    with freezing.at(model, [Stage(1, 1, trainable=given)], 0):
        assert {path.split("/", path.count("/") - 1)[-1] for path in names(model)} == expected
    with freezing.at_most(model, [Stage(1, 1, trainable=given)]):
        assert names(model) == before
    assert names(model) == before and all(layer.trainable for layer in model._flatten_layers())


def test_a_layer_around_others_has_weights_of_its_own():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="last")(Scaled(name="scaled")(inputs)))
    freezing.freeze(model, "inner")
    assert {path.split("/")[-2] for path in names(model)} == {"inner"}
    freezing.freeze(model, "scaled")
    assert len(names(model)) == 3
    freezing.freeze(model, ["last", "inner"])
    assert len(names(model)) == 4


def test_a_pattern_that_matches_nothing_is_refused_with_the_names():
    with pytest.raises(
        errors.SettingsError, match=r"trainable='block5_\*': no layer .* conv_first, .*conv_inside, norm, logits"
    ):
        freezing.freeze(built(), "block5_*")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (90, 8, 8, 1), np.uint8), np.arange(90) % 3
    return prepare.dataset((images, labels), tmp_path_factory.mktemp("data") / "data")


def trained(data, directory, *callbacks, replicas=1, stages=HEAD_FIRST, model=None):
    return train.run(
        model or built(replicas), data, directory, stages=stages, global_batch_size=16, shards=4, verbose=0, callbacks=callbacks,
        checkpoint_seconds=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return trained(data, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
def test_frozen_layers_stay_as_they_were(data, whole):
    after_head = whole.model(stage=1)
    assert whole.history["trained_weights"].to_pylist() == [195, 144 + 8 + 195, 40 + 144]
    for stage, trains in ((1, {"logits"}), (2, {"conv_inside", "norm", "logits"})):
        model, before = whole.model(stage=stage), built() if stage == 1 else after_head
        for now, earlier in zip(model.variables, before.variables, strict=True):
            moved = not np.array_equal(now, earlier)
            assert "seed_generator" in now.path or moved == bool(trains & {*now.path.split("/")}), (
                now.path
            )  # a frozen BatchNormalization keeps its averages
    assert "<td>head" in (whole.directory / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [pytest.param(2, marks=pytest.mark.by_hand), 4])
def test_the_bits_are_those_of_one_replica(data, whole, tmp_path, replicas):
    assert same_files(whole, trained(data, tmp_path / "run", replicas=replicas))


@pytest.mark.slow
def test_stopped_everywhere_it_has_the_same_bits(data, whole, tmp_path):
    """Stopped in each stage and at its end: 5 steps make an epoch, and an epoch makes a stage."""
    stops = 0
    for steps_until_stop in (2, 3, 4, 1, 3):
        with pytest.raises(train.Interrupted):
            trained(data, tmp_path / "run", StopAfter(steps_until_stop))
        stops += 1
    assert same_files(whole, trained(data, tmp_path / "run")) and stops == 5


@pytest.mark.slow
def test_the_loss_scale_of_float16_goes_on(data, tmp_path):
    """Stage 2 is stopped in the middle: the checkpoint holds the live loss scale and its counter."""

    def scaled():
        keras.config.set_dtype_policy("mixed_float16")
        model = built()
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(), initial_scale=2.0**40, dynamic_growth_steps=2
        )
        model.compile(optimizer, LOSS, metrics=["accuracy"])
        return model

    straight = trained(data, tmp_path / "straight", model=scaled())
    with pytest.raises(train.Interrupted):
        trained(data, tmp_path / "run", StopAfter(8), model=scaled())
    continued = trained(data, tmp_path / "run", model=(model := scaled()))
    assert same_files(straight, continued) and float(model.optimizer.dynamic_scale) != 2.0**40


@pytest.mark.slow
def test_a_model_that_was_given_frozen_is_unfrozen(data, tmp_path):
    def frozen():
        model = built()
        model.get_layer("body").trainable = False
        model.compile(keras.optimizers.Adam(), LOSS, metrics=["accuracy"])
        return model

    run = trained(data, tmp_path / "run", model=frozen(), stages=[Stage(1, 0.1), Stage(1, 0.1, trainable="all")])
    assert run.history["trained_weights"].to_pylist() == [40 + 8 + 195, 40 + 8 + 144 + 8 + 195]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: skipping variable loading for optimizer
        run.model()


def test_a_normalization_without_weights_that_train_is_frozen_too():
    inputs = keras.Input((8, 8, 1))
    x = layers.BatchNormalization(scale=False, center=False, name="bare")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten()(x)))
    with freezing.at(model, [Stage(1, 1, trainable="head")], 0):
        assert not model.get_layer("bare").trainable and len(model.trainable_variables) == 2


@pytest.mark.slow
@pytest.mark.by_hand
def test_two_workers_have_the_bits_of_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "digits", "--shards", "2", "--stage", "1@0.1/head", "--stage", "1@0.05:0~cosine/all"]
    # Each in processes of its own: a command turns oneDNN on only where TensorFlow is not imported yet.
    for given in ([*words, "--run", "one"], ["launch", "--workers", "2", "--", *words, "--run", "two"]):
        subprocess.run([sys.executable, "-m", "tfpar", *given], check=True, timeout=300)
    assert same_files(results.Run("one"), results.Run("two"))


@pytest.mark.slow
def test_stages_can_be_added_and_the_model_is_given_back(data, whole, tmp_path):
    model = built()
    trained(data, tmp_path / "run", stages=HEAD_FIRST[:2], model=model)
    assert len(model.trainable_variables) == 9
    assert same_files(whole, trained(data, tmp_path / "run", model=model))


class Unfreezes(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.get_layer("body").trainable = batch % 2 == 1


@pytest.mark.slow
def test_a_layer_that_is_frozen_otherwise_is_refused_with_the_remedy(data, tmp_path):
    with pytest.raises(errors.SettingsError, match=r"say it in the stages: Stage\(5, 0.1, trainable='head'\)"):
        trained(data, tmp_path / "run", Unfreezes(), stages=[Stage(1, 0.1)])
    model = built()
    step = steps.Step(model, shards=1)
    batch = data.train.images[:8], data.train.labels[:8]
    step.gradient(batch)
    model.get_layer("conv_first").trainable = False
    with pytest.raises(errors.SettingsError, match="for fit call compile again"):
        step.gradient(batch)


@pytest.mark.slow
def test_an_optimizer_that_knows_too_few_weights_is_refused(data, tmp_path):
    model = built()
    freezing.freeze(model, "head")
    model.compile(keras.optimizers.Adam(), LOSS, metrics=["accuracy"])
    model.fit(data.train.images[:8], data.train.labels[:8], verbose=0)
    with pytest.raises(errors.SettingsError, match="compile again"):
        trained(data, tmp_path / "run", model=model)


@pytest.mark.slow
def test_the_command_line_freezes_every_network(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", str(data.directory), "--global-batch-size", "30"]
    for head_alone in (["--freeze", "--stage", "1@0.1"], ["--stage", "1@0.1/head", "--stage", "1@0.01/head"]):
        assert cli.main([*words, "--run", "c", *head_alone]) == 78
        assert "only the head would train, on random weights; give --weights" in capsys.readouterr().err
    assert cli.main([*words, "--run", "b", "--stage", "1@0.1/head", "--stage", "1@0.1:0~cosine/all"]) == 0
    assert "learning rate 0.1 to 0, cosine x 0.117188 for a batch of 30; trains all" in capsys.readouterr().out
    words += ["--stage", "1@0.1", "--warmup-epochs", "0", "--no-scale-learning-rate"]
    assert cli.main([*words, "--run", "a", "--freeze", "--weights", "b"]) == 0
    assert "learning rate 0.1; trains head" in capsys.readouterr().out
    assert results.Run("a").settings["stages"] == [[1, 0.1, None, "head"]]
    words = words[:4]
    assert cli.main([*words, "--run", "c", "--freeze", "--stage", "1@0.1/all"]) == 78
    assert "--freeze is /head on every stage" in capsys.readouterr().err
    assert cli.main([*words, "--run", "c", "--stage", "1@0.1/block5_*"]) == 78
    assert "no layer with weights has this name" in capsys.readouterr().err and not (tmp_path / "c").exists()
