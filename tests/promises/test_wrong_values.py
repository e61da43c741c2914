"""Wrong values to the public functions: each is one of errors.KINDS, names the value and the rule, and does no work."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfpar import check, devices, engine, errors, models, prepare, results, scaling, schedule, steps, train, validate
from tfpar import settings as run_settings
from tfpar.diagnose import memory, profiling
from tfpar.prepare import arrays, sources

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPLIT = (np.zeros((6, 4, 4, 1), np.uint8), np.arange(6, dtype=np.int32) % 3)

texts = st.text(max_size=8)
things = st.one_of(
    st.none(), st.booleans(), texts, st.binary(max_size=8), st.lists(st.integers(), max_size=2), st.just(object()), st.just({}),
    st.complex_numbers(), st.floats(allow_nan=True), st.just(np.zeros((2, 2))), st.just(np.float64("nan")), st.just(print),
)  # fmt: skip


def whole(lowest, highest):
    """What is no whole number of this range."""
    return st.one_of(things, st.integers(max_value=lowest - 1), st.integers(min_value=highest + 1))


def number(lowest, highest):
    """What is no number of this range."""
    out = st.floats(allow_nan=True).filter(lambda value: not lowest <= value <= highest)
    return st.one_of(things.filter(lambda value: not isinstance(value, float)), out)


def refused(function, *arguments, **options):
    """Call, and check that it is refused as something a user can cause, with what to do."""
    with pytest.raises(errors.KINDS) as said:
        function(*arguments, **options)
    assert isinstance(said.value, (ValueError, OSError, RuntimeError))
    assert len(str(said.value)) > 20 and any(
        word in str(said.value) for word in ("give", "write", "no such", "Make", "must be", "take")
    )


not_truths = things.filter(lambda value: not isinstance(value, bool))
SEEDS, BATCHES, SIDES = whole(0, 2**32 - 1), whole(1, 2**24), whole(1, 4096)
PREPARE = {
    "image_size": st.one_of(SIDES.filter(lambda v: v is not None and not isinstance(v, list)), st.lists(st.integers(1, 9), min_size=3, max_size=4), st.tuples(SIDES, SIDES)),
    "validation_fraction": number(1e-6, 0.999999), "seed": SEEDS, "on_bad_image": things,
    "tfds_manual_dir": things.filter(lambda v: v is not None and not isinstance(v, str)), "fresh": not_truths,
    "splits": not_truths.filter(lambda v: v is not None),
}  # fmt: skip


@quick
@given(st.data())
def test_prepare(tmp_path, data):
    name = data.draw(st.sampled_from(sorted(PREPARE)))
    refused(prepare.dataset, "digits", tmp_path / "d", **{name: data.draw(PREPARE[name])})
    assert not (tmp_path / "d").exists()


not_paths = st.one_of(
    things.filter(lambda v: not isinstance(v, str)),
    st.just(""),
    st.just("a\0b"),
    st.just("x" * 5000),
    st.just("\ud800"),
)


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        (validate.number, ("n", -1.0, 0, 1)), (validate.number, ("n", 2, 0, 1)), (validate.number, ("n", float("inf"), 0, float("inf"))),
        (validate.integer, ("n", 1.0, 0, 1)), (validate.integer, ("n", True, 0, 1)), (validate.path, ("n", "a\0b")), (validate.choice, ("augment", "c", ["a", "b"])),
        (validate.class_weights, ([1, -1], 2)), (validate.class_weights, (b"12", 2)), (validate.class_weights, (np.array(1.0), 2)), (sources.find, (print,)), (sources.find, ({1, 2},)),
        (schedule.checked, (b"\1\1\0",)),
        (run_settings._check_steps, ("n", np.zeros((2, 2)))),
    ],
)  # fmt: skip
def test_each_rule(rule, arguments):
    refused(rule, *arguments)


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), tf.constant(3)])
def test_whole_numbers_of_every_library(value):
    assert validate.integer("n", value, 0, 9) == 3


@quick
@given(not_paths)
def test_paths(value):
    refused(prepare.dataset, "digits", value)
    refused(prepare.load, value)
    refused(results.Run, value)


@quick
@given(
    st.one_of(
        things, st.lists(things, max_size=3), st.tuples(things, things), texts.map(lambda t: f"no-{t}"), not_paths
    )
)
def test_sources(value):
    refused(sources.find, value)


@quick
@given(
    st.one_of(
        things,
        st.tuples(things, things),
        st.just((SPLIT[0], SPLIT[1][:5])),
        st.just((SPLIT[0] / 2, SPLIT[1])),
        st.just((SPLIT[0][:0], SPLIT[1][:0])),
    )
)
def test_splits(value):
    refused(engine.steps_per_epoch, value, global_batch_size=2)
    refused(engine.inference_batches, value, devices.strategy())
    refused(engine.train_batches, value, devices.strategy(), global_batch_size=2)


weights = st.one_of(
    things.filter(lambda v: v is not None), st.lists(st.floats(0, 1), max_size=2), st.tuples(*[number(0, 1e9)] * 3),
)  # fmt: skip
BATCH = {
    "global_batch_size": BATCHES, "seed": SEEDS, "first_step": whole(0, 2**62), "augment": things, "class_weights": weights,
}  # fmt: skip


@quick
@given(st.data())
def test_train_batches(data):
    name = data.draw(st.sampled_from(sorted(BATCH)))
    refused(
        engine.train_batches, SPLIT, devices.strategy(), **({"global_batch_size": 2} | {name: data.draw(BATCH[name])})
    )


@quick
@given(BATCHES)
def test_steps_per_epoch(value):
    refused(engine.steps_per_epoch, SPLIT, global_batch_size=value)


@quick
@given(things)
def test_no_strategy(value):
    refused(engine.train_batches, SPLIT, value, global_batch_size=2)
    refused(engine.inference_batches, SPLIT, value)
    refused(devices.describe, value)


@quick
@given(whole(1, 4096).filter(lambda value: value is not None))
def test_descriptions_of_devices(value):
    refused(devices.describe, devices.strategy(), shards=value)
    if not isinstance(value, int):
        refused(devices.describe, devices.strategy(), global_batch_size=value)


@quick
@given(whole(1, validate.MOST_REPLICAS).filter(lambda value: value is not None))
def test_simulated_replicas(value):
    refused(devices.strategy, simulate=value)


shapes = st.one_of(
    things, st.tuples(whole(1, 2**16), st.just(8), st.just(1)), st.just((8, 8)), st.just((8, 8, 0)), st.just((1, 1, 1))
)


@quick
@given(shapes, st.sampled_from(["small_cnn", "resnet20", "MobileNetV2"]))
def test_shapes_of_models(value, name):
    refused(models.build, name, value, 3)


@quick
@given(whole(1, 2**20), st.sampled_from(["small_cnn", "resnet20", "MobileNetV2"]))
def test_classes_of_models(value, name):
    refused(models.build, name, (32, 32, 3), value)


@quick
@given(things, st.sampled_from(["small_cnn", "MobileNetV2"]))
def test_names_weights_and_depths_of_models(value, name):
    refused(models.build, value, (32, 32, 3), 3)
    refused(models.resnet, (32, 32, 3), 3, depth=value)
    if value is not None:
        refused(models.build, name, (32, 32, 3), 3, weights=value)


@quick
@given(st.one_of(things, st.from_regex(r"[0-9@:.e+-]{0,12}", fullmatch=True).filter(lambda t: not _parses(t))))
def test_stages_as_text(value):
    refused(schedule.parse, value)


def _parses(text):
    try:
        schedule.parse(text)
    except errors.SettingsError:
        return False
    return True


@quick
@given(st.from_regex(r"[0-9]{1,3}@[0-9]\.[0-9]{1,3}(:[0-9]\.[0-9])?", fullmatch=True))
def test_a_stage_that_is_read_is_one_that_holds(text):
    if _parses(text):
        stage = schedule.parse(text)
        assert schedule.checked(stage) == stage and stage.epochs >= 1 and stage.learning_rate > 0


wrong_stages = st.one_of(
    things, st.tuples(whole(1, 999_999), st.just(0.1), st.none()), st.tuples(st.just(1), number(0, 3e38), st.none()),
    st.tuples(st.just(1), st.just(0.1), number(0, 3e38).filter(lambda v: v is not None)), st.just((1, 0, None)), st.just((1,)),
)  # fmt: skip


@quick
@given(wrong_stages)
def test_stages(value):
    refused(schedule.checked, value)


TRAIN = {
    "global_batch_size": BATCHES.filter(lambda v: v is not None), "shards": whole(1, 4096).filter(lambda v: v is not None), "seed": SEEDS,
    "augment": things, "all_reduce": things, "class_weights": weights, "warmup_epochs": number(0, 999_999).filter(lambda v: v is not None),
    "steps_per_call": whole(1, 512), "checkpoint_seconds": number(0, 1e9), "callbacks": things.filter(lambda v: v is not None and (not isinstance(v, list) or len(v))),
    "verbose": whole(0, 2).filter(lambda v: v is not None and not isinstance(v, bool)), "fresh": not_truths, "scale_learning_rate": not_truths,
    "weights": things.filter(lambda v: not isinstance(v, str)), "stages": st.one_of(things, st.lists(wrong_stages, min_size=1, max_size=2)),
}  # fmt: skip


@pytest.fixture(scope="module")
def trainable(tmp_path_factory):
    data = prepare.dataset(
        (np.zeros((12, 4, 4, 1), np.uint8), np.arange(12) % 3), tmp_path_factory.mktemp("wrong") / "data"
    )
    model = models.small_cnn(data.image_shape, data.num_classes)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, data


@quick
@given(st.data())
def test_train(trainable, tmp_path, data):
    name = data.draw(st.sampled_from(sorted(TRAIN)))
    options = {"stages": [train.Stage(1, 0.1)], "global_batch_size": 4} | {name: data.draw(TRAIN[name])}
    refused(train.run, *trainable, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


INSTALL = {
    "shards": whole(1, 4096).filter(lambda v: v is not None), "seed": SEEDS, "first_step": whole(0, 2**62),
    "batch_norm": things.filter(lambda v: v is not None), "steps_per_call": whole(1, 512),
    "steps_per_epoch": whole(1, 2**62).filter(lambda v: v is not None),
}  # fmt: skip


@quick
@given(st.data())
def test_install(trainable, data):
    name = data.draw(st.sampled_from(sorted(INSTALL)))
    refused(steps.install, trainable[0], **{"steps_per_call": 2, "steps_per_epoch": 9, name: data.draw(INSTALL[name])})
    assert "fit" not in vars(trainable[0])


@quick
@given(things.filter(lambda value: value is not None and not callable(value)))
def test_rates_of_a_step(trainable, value):
    refused(steps.Step, trainable[0], learning_rate=value)


@quick
@given(things)
def test_no_model_no_data(trainable, tmp_path, value):
    model, data = trainable
    refused(memory.estimate, value, data, [train.Stage(1, 0.1)])
    refused(profiling.profile, value, data, tmp_path / "run")
    refused(train.run, value, data, tmp_path / "run", stages=[train.Stage(1, 0.1)])
    refused(train.run, model, value, tmp_path / "run", stages=[train.Stage(1, 0.1)])
    assert isinstance(data, arrays.Dataset) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["no", 5, [1]])
def test_truth_values_and_what_was_verified(trainable, value):
    model, data = trainable
    refused(check.same_gradient, model, data.train.images[:2], data.train.labels[:2], busy=value)
    refused(scaling.Measured, 0.1, 32, 1e6, one_machine=value)
    refused(prepare.load, data.directory, known=value)
