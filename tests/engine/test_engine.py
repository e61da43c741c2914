"""The order of the images, and that replicas see what the order says."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfpar import devices, engine, errors
from tfpar.engine import augmentation, distribute
from tfpar.engine import batches as batches_file


def split_of(examples, side=4, channels=1):
    images = np.arange(examples, dtype=np.uint8)[:, None, None, None] * np.ones((1, side, side, channels), np.uint8)
    return images, (np.arange(examples) % 3).astype(np.int32), [str(i) for i in range(examples)]


def seen(split, replicas, steps, **arguments):
    """Return what all replicas together see, as arrays [steps, B, ...]."""
    strategy = devices.strategy(simulate=replicas)
    batches = iter(engine.train_batches(split, strategy, **arguments))
    steps = [[strategy.experimental_local_results(member) for member in next(batches)] for _ in range(steps)]
    return [
        np.stack([np.concatenate([np.asarray(part) for part in step[m]]) for step in steps])
        for m in range(len(steps[0]))
    ]


@pytest.mark.parametrize("examples", [1, 2, 3, 7, 100, 257])
def test_every_round_is_a_permutation(examples):
    positions = tf.range(3 * examples, dtype=tf.int64)
    rounds = engine.order(positions, examples=examples, seed=4).numpy().reshape(3, examples)
    assert np.array_equal(np.sort(rounds, axis=1), np.tile(np.arange(examples), (3, 1)))
    if examples >= 100:
        assert not np.array_equal(rounds[0], rounds[1])


def test_order_needs_no_state_and_depends_on_the_seed():
    positions = tf.constant([999, 5, 10**12 + 3, 2**40], tf.int64)
    once = engine.order(positions, examples=1000, seed=1).numpy()
    alone = [int(engine.order(positions[i : i + 1], examples=1000, seed=1)[0]) for i in range(4)]
    assert once.tolist() == alone
    assert not np.array_equal(once, engine.order(positions, examples=1000, seed=2).numpy())


def test_neighbouring_rounds_are_not_correlated():
    rounds = engine.order(tf.range(100_000, dtype=tf.int64), examples=5000, seed=0).numpy().reshape(20, 5000)
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(rounds)]
    assert abs(np.mean(pairs)) < 0.02  # one standard error is 0.003; with the cipher's default rounds it is 0.05


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("augment", engine.AUGMENTATIONS)
def test_any_number_of_replicas_sees_the_same(replicas, augment):
    split = split_of(50)
    arguments = {"global_batch_size": 12, "seed": 3, "augment": augment, "class_weights": [1, 2, 3]}
    one, many = seen(split, 1, 9, **arguments), seen(split, replicas, 9, **arguments)
    for a, b in zip(one, many, strict=True):
        assert np.array_equal(a, b)
    order = engine.order(tf.range(9 * 12, dtype=tf.int64), examples=50, seed=3).numpy().reshape(9, 12)
    assert np.array_equal(one[0][:, :, 0, 0, 0], order)  # every image of this split is of one value
    assert np.array_equal(one[2], np.float32([1, 2, 3])[one[1]])
    noise = (np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8), split[1])
    assert np.array_equal(seen(noise, 1, 9, **arguments)[0], seen(noise, replicas, 9, **arguments)[0])


@pytest.mark.parametrize("replicas", [1, 4])
def test_first_step_starts_anywhere(replicas):
    split = (np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8), np.zeros(50, np.int32))
    whole = seen(split, replicas, 12, global_batch_size=8, augment="crop-flip")
    later = seen(split, replicas, 5, global_batch_size=8, augment="crop-flip", first_step=7)
    assert np.array_equal(whole[0][7:], later[0])


@pytest.mark.parametrize(("replicas", "like_gpus"), [(1, False), (2, False), (3, True)])
def test_batches_made_together_are_the_batches_made_one_by_one(replicas, like_gpus, monkeypatch):
    if like_gpus:  # one pipeline for all replicas
        monkeypatch.setattr(distribute, "_input_options", lambda strategy: None)
    split = (np.random.default_rng(0).integers(0, 256, (150, 8, 8, 1), np.uint8), np.arange(150, dtype=np.int32) % 3)
    arguments = {"global_batch_size": 12, "augment": "crop-flip", "class_weights": [1, 2, 3], "first_step": 5}
    strategy, made = devices.strategy(simulate=replicas), []
    for together in (1, 2, 3, 16):
        monkeypatch.setattr(distribute, "MOST_TOGETHER", together)
        train = seen(split, replicas, 20, **arguments)
        inferred = [
            strategy.experimental_local_results(batch[0]) for batch in engine.inference_batches(split, strategy)
        ]
        made.append((*train, np.stack([np.concatenate(parts) for parts in inferred])))
    assert np.array_equal(made[0][0], seen(split, 1, 20, **arguments)[0])
    for one_by_one, *at_once in zip(*made, strict=True):
        assert all(np.array_equal(one_by_one, each) for each in at_once)


@pytest.mark.parametrize(("examples", "batch", "epoch"), [(3, 8, 1), (8, 8, 1), (9, 8, 2), (1, 4, 1)])
def test_sets_smaller_than_the_batch_still_train(examples, batch, epoch):
    split = split_of(examples)
    assert engine.steps_per_epoch(split, global_batch_size=batch) == epoch
    images = seen(split, 4, 2 * examples, global_batch_size=batch)[0][:, :, 0, 0, 0]
    assert np.bincount(images.ravel()).tolist() == [2 * batch] * examples


def test_augmentation_flips_half_and_shifts_within_reach():
    ramp = (np.arange(16, dtype=np.uint8) * 10)[None, None, :, None] * np.ones((1, 16, 1, 1), np.uint8)
    split = (np.repeat(ramp, 64, 0), np.zeros(64, np.int32))
    flipped = seen(split, 1, 8, global_batch_size=64, augment="flip")[0]
    falling = flipped[:, :, 0, 0, 0] == 150
    assert 0.4 < falling.mean() < 0.6 and set(flipped[:, :, 0, 0, 0].ravel()) == {0, 150}
    shifted = seen(split, 1, 8, global_batch_size=64, augment="crop-flip")[0]
    middle = shifted[:, :, 8, 8, 0].ravel().astype(int)
    assert set(middle) == {60, 70, 80, 90, 100} | {50}  # the middle is 80 or, flipped, 70; two pixels either way
    assert not np.array_equal(shifted[0], shifted[1])


@pytest.mark.parametrize(("examples", "replicas"), [(1, 4), (64, 2), (65, 2), (130, 4), (200, 1)])
def test_inference_covers_the_split_once_in_order(examples, replicas):
    split = split_of(examples)
    strategy = devices.strategy(simulate=replicas)
    batches = [strategy.experimental_local_results(b[0]) for b in engine.inference_batches(split, strategy)]
    assert {part.shape[0] for batch in batches for part in batch} == {batches_file.INFERENCE_CHUNK}
    images = np.concatenate([np.asarray(part)[:, 0, 0, 0] for batch in batches for part in batch])
    assert np.array_equal(images[:examples], np.arange(examples)) and set(images[examples:]) <= {examples - 1}
    assert len(batches) == -(-examples // (64 * replicas))


def test_the_mapped_pixels_are_not_copied(digits):
    tensor = batches_file._constant(digits.train.images)
    digits.train.images[0, 0, 0, 0] += 1
    assert tensor[0, 0, 0, 0].numpy() == digits.train.images[0, 0, 0, 0]
    digits.train.images[0, 0, 0, 0] -= 1


def test_arguments_are_checked():
    split = split_of(10)
    with pytest.raises(
        errors.SettingsError,
        match="global batch 10 cannot be divided evenly among 4 replicas; take a multiple of 4, such as 12",
    ):
        engine.train_batches(split, devices.strategy(simulate=4), global_batch_size=10)
    with pytest.raises(errors.SettingsError, match="augment='x': give none"):
        engine.train_batches(split, devices.strategy(simulate=1), global_batch_size=10, augment="x")


def test_fit_takes_it_as_it_is(digits):
    from networks import tiny

    strategy = devices.strategy(simulate=2)
    batches = engine.train_batches(digits.train, strategy, global_batch_size=64, class_weights=[1.0] * 10)
    assert len(tiny(strategy).fit(batches, steps_per_epoch=3, epochs=2, verbose=0).history["loss"]) == 2


@pytest.mark.parametrize("augment", ["flip", "crop-flip"])
def test_one_large_picture_a_batch_has_a_known_size(augment):
    split = (np.zeros((3, 600, 600, 3), np.uint8), np.arange(3))
    batches = engine.train_batches(split, devices.strategy(), global_batch_size=1, augment=augment)
    assert batches.element_spec[0].shape == (1, 600, 600, 3)


@pytest.mark.parametrize(("count", "kind"), [(64, "int32"), (50_000, "int64")])
def test_places_in_a_huge_batch_are_counted_in_64_bits(count, kind):
    """A trace alone: such a batch of 50,000 pictures takes 7.5 GB."""
    batch, draws = tf.TensorSpec([count, 224, 224, 3], tf.uint8), tf.TensorSpec([count, 3], tf.float32)
    graph = augmentation.flipped_and_shifted.get_concrete_function(batch, draws, True).graph
    (places,) = [op.inputs[1].dtype for op in graph.get_operations() if op.type == "GatherV2"]
    assert places == kind


@pytest.mark.parametrize(
    "form", [list, tuple, tf.constant, np.float16, lambda w: tf.cast(w, tf.bfloat16), lambda w: np.asarray(w) > 1]
)
def test_weights_of_a_tuple_in_every_form(form):
    images, labels = split_of(6)[:2]
    given = form([0.0, 2.0] * 3)
    batches = engine.train_batches((images, labels, given), devices.strategy(), global_batch_size=6)
    chosen, _, weights = next(iter(batches))
    for image, weight in zip(chosen.numpy(), weights.numpy(), strict=True):
        (number,) = [i for i in range(6) if np.array_equal(images[i], image)]
        assert weight == float(given[number])


@pytest.mark.parametrize(
    "weights", [[1.0] * 5, [-1.0] * 6, [np.nan] * 6, np.ones((6, 1)), 2.0, [[1.0]] * 5 + [[1.0, 2.0]]]
)
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(errors.SettingsError, match="give a number from 0 to 1e9 for each"):
        engine.train_batches((*split_of(6)[:2], weights), devices.strategy(), global_batch_size=6)


@pytest.mark.parametrize("form", [list, np.asarray, lambda names: np.asarray(names, object)])
def test_names_as_the_third_of_a_tuple_are_no_weights(form):
    names = form([f"{i}.png" for i in range(6)])
    batches = engine.train_batches((*split_of(6)[:2], names), devices.strategy(), global_batch_size=6)
    assert len(next(iter(batches))) == 2


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint32])
def test_labels_of_any_whole_kind_come_as_int32(kind):
    split = (split_of(10)[0], np.arange(10).astype(kind))
    batches = engine.train_batches(split, devices.strategy(), global_batch_size=5, class_weights=[1.0] * 9 + [2.0])
    _, labels, weights = next(iter(batches))
    assert labels.dtype == "int32" and np.array_equal(weights, np.where(labels.numpy() == 9, 2.0, 1.0))
    assert next(iter(engine.inference_batches(split, devices.strategy())))[1].dtype == "int32"


def test_the_last_step_whose_positions_can_be_counted():
    last = 2**62 // 8
    split = split_of(10)
    batch = next(iter(engine.train_batches(split, devices.strategy(), global_batch_size=8, first_step=last)))
    chosen = engine.order(last * 8 + np.arange(8), examples=10, seed=0).numpy()
    assert np.array_equal(batch[1], split[1][chosen])
    with pytest.raises(errors.SettingsError, match=f"first_step={last + 1}"):
        engine.train_batches(split, devices.strategy(), global_batch_size=8, first_step=last + 1)
