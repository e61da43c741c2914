"""Training in stages: its files, its continuation, its refusals."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from networks import LOSS, tiny
from same import rows, same_files

from tfpar import check, devices, engine, errors, files, prepare, results, train
from tfpar.results import predictions as predictions_file
from tfpar.results import reading
from tfpar.train import checkpoint, loop

STAGES = [train.Stage(2, 0.2, 0.02), train.Stage(1, 0.02)]
SETTING = {"stages": STAGES, "global_batch_size": 96, "shards": 2, "augment": "crop-flip", "verbose": 0}


def run(digits, directory, *, replicas=1, model=None, **setting):
    return train.run(model or tiny(devices.strategy(simulate=replicas)), digits, directory, **(SETTING | setting))


@pytest.fixture(scope="module")
def small(digits, tmp_path_factory):
    """A part of the digits, so that an epoch is a few steps."""
    images, labels = digits.train.images[:300], digits.train.labels[:300]
    held_out = (digits.validation.images[:70], digits.validation.labels[:70])
    return prepare.dataset(((images, labels), held_out), tmp_path_factory.mktemp("small") / "data")


@contextlib.contextmanager
def traced_once():
    """Fail where a run traces its step or its inference again for a new stage."""
    finish, traced = loop.Training._finish, []

    def counted(self):
        traced.append([function.experimental_get_tracing_count() for function in (self.step.run, self.inference.run)])
        return finish(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop.Training, "_finish", counted)
        yield
    assert traced == [[1, 1]]


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    with traced_once():
        return run(small, tmp_path_factory.mktemp("run") / "unbroken")


class InterruptAt(keras.callbacks.Callback):
    """Send a signal to this process after a number of steps."""

    def __init__(self, calls, number=signal.SIGTERM):
        super().__init__()
        self.left, self.number = calls, number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def test_every_file_is_there(unbroken):
    present = {p.relative_to(unbroken.directory).as_posix() for p in unbroken.directory.rglob("*") if p.is_file()}
    stage = [
        f"stages/{n:02d}/{name}" for n in (1, 2) for name in ("predictions.parquet", "metrics.json", "model.keras")
    ]
    assert {"run.json", "history.csv", "model.keras", "report.html", *stage} <= present
    assert any(name.startswith("tensorboard/") for name in present) and any(
        name.startswith("checkpoints/") for name in present
    )
    assert not [name for name in present if name.split("/")[-1].startswith(".") and name != ".lock"]
    assert unbroken.finished and unbroken.stages == 2


def test_history(unbroken, small):
    table = unbroken.history
    epoch = engine.steps_per_epoch(small.train, global_batch_size=96)
    assert table.column_names == list(reading.HISTORY) and table["step"].to_pylist() == [epoch, 2 * epoch, 3 * epoch]
    assert table["stage"].to_pylist() == [1, 1, 2] and table["epoch"].to_pylist() == [1, 2, 3]
    last = (0.2 - 0.18 * (2 * epoch - 1) / (2 * epoch)) * 96 / 256
    assert table["learning_rate"].to_pylist()[1:] == [pytest.approx(last), pytest.approx(0.02 * 96 / 256)]
    assert rows(unbroken)[2]["val_loss"] == repr(unbroken.metrics(stage=2)["loss"])


def test_metrics_are_exact(unbroken, small):
    for stage in (1, 2):
        assert check.exact_metrics(unbroken, stage=stage)
        table, model = unbroken.predictions(stage=stage), unbroken.model(stage=stage)
        assert table["source"].to_pylist() == small.validation.sources
        assert np.array_equal(table["label"].to_numpy(), small.validation.labels)
        logits = model.predict(small.validation.images, verbose=0)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert np.allclose(predictions_file.probabilities_of(table), expected, atol=1e-5)
        assert unbroken.metrics(stage=stage)["loss"] == pytest.approx(
            float(LOSS(small.validation.labels, logits)), rel=1e-5
        )
        assert rows(unbroken)[[1, 2][stage - 1]]["val_accuracy"] == repr(unbroken.metrics(stage=stage)["accuracy"])


def test_two_replicas_give_the_same_files_and_a_new_stage_traces_nothing_again(unbroken, small, tmp_path):
    with traced_once():
        assert same_files(unbroken, run(small, tmp_path / "r", replicas=2, steps_per_call=3))


@pytest.mark.parametrize(
    "calls", [pytest.param(1, marks=pytest.mark.by_hand), 5, pytest.param(8, marks=pytest.mark.slow)]
)
def test_interrupted_anywhere_it_ends_the_same(unbroken, small, tmp_path, calls):
    """One step per call and four steps an epoch: inside an epoch, at its end, at the end of a stage."""
    with pytest.raises(train.Interrupted) as stopped:
        run(small, tmp_path / "r", steps_per_call=1, callbacks=[InterruptAt(calls)])
    assert stopped.value.step == calls
    assert same_files(unbroken, run(small, tmp_path / "r", replicas=2, callbacks=[InterruptAt(0)]))


def adamw(replicas):
    model = devices.strategy(simulate=replicas)
    return tiny(model, optimizer=lambda: keras.optimizers.AdamW(0.01, global_clipnorm=1.0), seed=5)


@pytest.mark.by_hand
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_interrupted_at_every_step_it_ends_the_same(small, tmp_path, policy):
    """Each of the twelve steps, AdamW, 2 replicas before and 1 after."""
    keras.config.set_dtype_policy(policy)
    whole = run(small, tmp_path / "whole", model=adamw(1))
    for calls in range(1, 13):
        with pytest.raises(train.Interrupted):
            run(small, tmp_path / str(calls), model=adamw(2), steps_per_call=1, callbacks=[InterruptAt(calls)])
        assert same_files(whole, run(small, tmp_path / str(calls), model=adamw(1)))


@pytest.mark.slow
def test_interrupted_three_times_over(unbroken, small, tmp_path):
    for replicas in (2, 1, 2):
        with pytest.raises(train.Interrupted):
            run(small, tmp_path / "r", replicas=replicas, steps_per_call=1, callbacks=[InterruptAt(3, signal.SIGINT)])
    assert same_files(unbroken, run(small, tmp_path / "r"))


def test_interrupted_in_the_inference_after_a_stage(unbroken, small, tmp_path, monkeypatch):
    original = predictions_file.table

    def stopping(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(predictions_file, "table", stopping)
    with pytest.raises(train.Interrupted):
        run(small, tmp_path / "r")
    monkeypatch.undo()
    assert same_files(unbroken, run(small, tmp_path / "r"))


def test_a_finished_run_is_answered_without_writing(unbroken, small):
    before = {p: p.stat().st_mtime_ns for p in unbroken.directory.rglob("*")}
    assert run(small, unbroken.directory).metrics() == unbroken.metrics()
    assert before == {p: p.stat().st_mtime_ns for p in unbroken.directory.rglob("*")}


@pytest.mark.slow
def test_a_stage_added_at_the_end(small, tmp_path, unbroken):
    run(small, tmp_path / "r", stages=STAGES[:1])
    assert same_files(unbroken, run(small, tmp_path / "r"))


OTHER = [
    ({"seed": 1}, "seed is 0 in the run, 1 now"),
    ({"augment": "none"}, 'augment is "crop-flip" in the run, "none" now'),
    ({"global_batch_size": 48}, "global_batch_size is 96 in the run, 48 now"),
    ({"shards": 4}, "shards is 2 in the run, 4 now"),
    ({"all_reduce": "fast"}, "all_reduce is"),
    (
        {"stages": [train.Stage(2, 0.1)]},
        r"stages is \[\[2, 0.2, 0.02\], \[1, 0.02, null\]\] in the run, \[\[2, 0.1, null\]\] now",
    ),
    ({"class_weights": [1.0] * 10}, "class_weights is null in the run"),
]


@pytest.mark.parametrize(("setting", "text"), OTHER)
def test_other_settings_are_refused_with_both_values(unbroken, small, setting, text):
    with pytest.raises(errors.SettingsError, match=text):
        run(small, unbroken.directory, **setting)


def test_another_model_optimizer_or_data_is_refused(unbroken, small, digits):
    with pytest.raises(errors.SettingsError, match=r"optimizer is .*SGD.* in the run, .*AdamW.* now"):
        run(small, unbroken.directory, model=tiny(optimizer=keras.optimizers.AdamW))
    with pytest.raises(errors.SettingsError, match="the data's fingerprint is"):
        run(digits, unbroken.directory)
    other = tiny()
    wider = keras.Model(other.inputs, keras.layers.Dense(10, dtype="float32")(other.layers[-2].output), name="tiny")
    wider.layers[-3].trainable = False
    wider.compile(keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=5e-4), LOSS, metrics=["accuracy"])
    with pytest.raises(errors.SettingsError, match="model_config is"):
        run(small, unbroken.directory, model=wider)


def test_a_second_run_on_the_same_directory_is_refused(small, tmp_path):
    (tmp_path / "r").mkdir()
    with (
        files.locked(tmp_path / "r" / ".lock", "the test"),
        pytest.raises(errors.OutputError, match="another run is using this directory"),
    ):
        run(small, tmp_path / "r")


def test_a_directory_with_something_else_is_left_alone(small, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(errors.OutputError, match="exists and is not a"):
        run(small, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_fresh_keeps_the_old_run_beside(small, tmp_path, unbroken):
    first = run(small, tmp_path / "r", seed=9).metrics()
    again = run(small, tmp_path / "r", fresh=True)
    assert same_files(unbroken, again)
    old = results.Run(tmp_path / "r.1")
    assert old.metrics() == first and old.settings["seed"] == 9


def test_checkpoint_after_every_step_and_damage_falls_back(unbroken, small, tmp_path, capsys):
    with pytest.raises(train.Interrupted):
        run(small, tmp_path / "r", checkpoint_seconds=0, callbacks=[InterruptAt(6)])
    places = sorted((tmp_path / "r" / "checkpoints").iterdir())
    assert len(places) == 2
    content = bytearray((places[1] / "variables.bin").read_bytes())
    content[1000] ^= 1
    (places[1] / "variables.bin").write_bytes(content)
    assert same_files(unbroken, run(small, tmp_path / "r", callbacks=[InterruptAt(0)]))
    assert f"{places[1] / 'variables.bin'}: damaged" in capsys.readouterr().out


class Counting(keras.callbacks.Callback):
    """Counts every hook, and can be carried through an interruption."""

    def __init__(self):
        super().__init__()
        self.state = {"begun": 0, "epochs": 0, "steps": 0, "trail": []}

    def on_train_begin(self, logs=None):
        self.state["begun"] += 1

    def on_epoch_begin(self, epoch, logs=None):
        self.state["trail"].append(epoch)

    def on_train_batch_end(self, batch, logs=None):
        self.state["steps"] += 1

    def on_epoch_end(self, epoch, logs=None):
        self.state["epochs"] += 1

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


@pytest.mark.slow
@pytest.mark.parametrize(
    "calls", [pytest.param(2, marks=pytest.mark.by_hand), 4, pytest.param(8, marks=pytest.mark.by_hand)]
)
def test_callbacks_with_a_state_are_carried_exactly(small, tmp_path, calls, capsys):
    whole = Counting()
    run(small, tmp_path / "a", steps_per_call=1, callbacks=[whole])
    with pytest.raises(train.Interrupted):
        run(small, tmp_path / "b", steps_per_call=1, callbacks=[Counting(), InterruptAt(calls)])
    resumed = Counting()
    run(small, tmp_path / "b", steps_per_call=1, callbacks=[resumed, keras.callbacks.TerminateOnNaN()])
    assert resumed.state == whole.state == {"begun": 2, "epochs": 3, "steps": 12, "trail": [0, 1, 2]}
    assert "callback TerminateOnNaN has no get_state" in capsys.readouterr().out


def test_callbacks_see_the_validation_numbers_and_may_end_a_stage(small, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"} <= set(logs)
            self.model.stop_training = epoch == 0

    history = run(small, tmp_path / "r", callbacks=[Stop()]).history
    assert history["stage"].to_pylist() == [1, 2] and history["step"].to_pylist() == [4, 8]


def test_the_run_tells_what_bits_depend_on(unbroken):
    facts = json.loads((unbroken.directory / "run.json").read_text())
    assert {"tensorflow", "keras", "processor", "instructions", "cores"} <= set(facts["environment"])
    assert {"seed", "shards", "global_batch_size", "stages", "optimizer", "precision", "data"} <= set(facts["settings"])


def test_another_environment_is_named_item_by_item(small, tmp_path, capsys):
    with pytest.raises(train.Interrupted):
        run(small, tmp_path / "r", steps_per_call=1, callbacks=[InterruptAt(2)])
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    facts["environment"] |= {"cores": 999, "intra_op_threads": 998}
    facts["environment"]["computed"]["sum"] = "another"
    del facts["environment"]["arithmetic"], facts["environment"]["oneDNN"]  # as an earlier version wrote it
    (tmp_path / "r" / "run.json").write_text(json.dumps(facts))
    run(small, tmp_path / "r")
    line = next(line for line in capsys.readouterr().out.splitlines() if "environment changed" in line)
    for item in (
        "cores 999 -> ",
        "intra_op_threads 998 -> ",
        "arithmetic 1 -> 3",
        "test computation gives other bits: sum)",
    ):
        assert item in line
    assert "oneDNN" not in line


@functools.cache
def environment_with(*variables):
    """Return what a fresh process finds: TensorFlow reads these variables once."""
    given = {name: value for name, value in os.environ.items() if name not in READ_ONCE}
    given |= {"TF_ENABLE_ONEDNN_OPTS": "1"} | dict(variables)
    program = "import json; from tfpar.train import identity; print(json.dumps(identity.environment()))"
    done = subprocess.run([sys.executable, "-c", program], env=given, capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout)


READ_ONCE = ("TF_NUM_INTRAOP_THREADS", "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "TF_XLA_FLAGS")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "named"),
    [
        ({"TF_NUM_INTRAOP_THREADS": "7"}, "intra_op_threads"),
        ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "oneDNN"),
        pytest.param({"ONEDNN_MAX_CPU_ISA": "SSE41"}, "instructions", marks=pytest.mark.by_hand),
        pytest.param(
            {"TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit"}, "XLA flags", marks=pytest.mark.by_hand
        ),
    ],
)
def test_what_changes_bits_changes_the_environment(variable, named):
    found = environment_with(), environment_with(*variable.items())
    assert named in {key for key in found[0] if found[0][key] != found[1][key]}
    assert found[0]["computed"] != found[1]["computed"] or named == "intra_op_threads"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"global_batch_size": 97}, "cannot be cut into 2 equal shards; take a multiple of 2, such as 98"),
        ({"stages": []}, "at least one stage"),
        ({"stages": [train.Stage(0, 0.1)]}, "epochs=0: give a whole number from 1"),
        ({"seed": -1}, "seed=-1: give"),
        ({"steps_per_call": 0}, "auto, or a whole number"),
        ({"class_weights": [1.0]}, "1 class weights for 10 classes"),
        ({"shards": 3, "global_batch_size": 96, "replicas": 2}, "3 shards cannot be divided evenly among 2 replicas"),
        ({"all_reduce": "x"}, "ordered or fast"),
    ],
)
def test_wrong_settings(small, tmp_path, setting, text):
    with pytest.raises(errors.SettingsError, match=text):
        run(small, tmp_path / "r", **setting)
    assert not (tmp_path / "r" / "run.json").exists()


def test_an_optimizer_with_a_schedule_is_refused(small, tmp_path):
    def scheduled():
        return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 100))

    with pytest.raises(errors.SettingsError, match="CosineDecay; give it a plain number"):
        run(small, tmp_path / "r", model=tiny(optimizer=scheduled))


def test_a_model_for_other_pictures_is_refused(small, tmp_path):
    with pytest.raises(errors.SettingsError, match="the data has"):
        run(small, tmp_path / "r", model=tiny(shape=(9, 9, 1)))


def test_a_model_that_takes_floats_is_refused(small, tmp_path):
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
    model.compile("sgd", LOSS)
    with pytest.raises(errors.SettingsError, match="takes float32 images; begin it with"):
        run(small, tmp_path / "r", model=model)
    with pytest.raises(errors.SettingsError, match="not compiled"):
        run(small, tmp_path / "r", model=keras.Model(inputs, model.outputs))


def test_other_first_weights_are_refused(unbroken, small):
    with pytest.raises(errors.SettingsError, match='weights is "none" in the run, "imagenet" now'):
        run(small, unbroken.directory, weights="imagenet")


def test_killed_before_run_json_was_whole_the_same_call_begins(small, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".lock").touch()
    (tmp_path / "r" / ".4711.run.json").write_text("{")
    assert run(small, tmp_path / "r", stages=[train.Stage(1, 0.1)]).finished
    assert not (tmp_path / "r" / ".4711.run.json").exists()


def test_a_run_whose_checkpoints_are_gone_is_not_silently_begun_anew(small, tmp_path):
    import shutil

    first = run(small, tmp_path / "r", stages=STAGES[:1])
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    with pytest.raises(errors.DataError, match="none is valid, so the run cannot continue"):
        run(small, tmp_path / "r")
    assert results.Run(tmp_path / "r").metrics() == first.metrics()


def test_a_run_that_ended_while_its_first_checkpoint_was_written_begins_anew(
    small, unbroken, tmp_path, monkeypatch, capsys
):
    def full(directory, *_arguments, **_options):
        (directory / "000001").mkdir(parents=True)
        raise errors.InputOutputFailed("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", full)
        with pytest.raises(errors.InputOutputFailed):
            run(small, tmp_path / "b")
    assert results.Run(tmp_path / "b").stages == 1
    assert same_files(unbroken, run(small, tmp_path / "b"))
    assert "no checkpoint yet, so the first stage is trained again" in capsys.readouterr().out


@pytest.mark.slow
def test_a_callback_that_ends_a_stage_inside_an_epoch_and_a_signal(small, tmp_path):
    class EndAt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1

    whole = run(small, tmp_path / "a", steps_per_call=1, callbacks=[EndAt()])
    with pytest.raises(train.Interrupted):
        run(small, tmp_path / "b", steps_per_call=1, callbacks=[EndAt(), InterruptAt(2)])
    assert same_files(whole, run(small, tmp_path / "b", steps_per_call=1, callbacks=[EndAt(), InterruptAt(0)]))
    assert whole.history["step"].to_pylist() == [2, 4]


@pytest.mark.arithmetic
def test_a_diverged_run_is_said_to_be_wrong_everywhere(small, tmp_path):
    """With the largest rate the weights overflow on every processor; with 1e9 the loss was NaN on one, 3e23 on another."""
    diverged = run(small, tmp_path / "r", stages=[train.Stage(1, 3e38)], warmup_epochs=0)
    assert diverged.metrics()["loss"] is None and diverged.metrics()["top5_accuracy"] == 0
    json.loads((diverged.directory / "stages/01/metrics.json").read_text(), parse_constant=lambda word: 1 / 0)


def test_the_lines_of_an_epoch_fit_80_columns(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = run(small, tmp_path / "run", stages=[train.Stage(1, 0.1)], verbose=1)
    said = re.sub("\x1b\\[[0-9;]*m|\x08", "", capsys.readouterr().out)  # colours, and steps back
    lines = [line.rsplit("\r", 1)[-1] for line in said.split("\n")]
    (told,) = (line for line in lines if line.startswith("validation: "))
    row = done.history.to_pylist()[0]
    assert told.startswith(
        f"validation: loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.4f}; learning rate "
    )
    assert told.endswith(f"; {row['images_per_second']:,.0f} images/s") and len(told) <= 80
    bars = [line for line in lines if " - loss: " in line]
    assert bars and all(len(bar) <= 80 and "val_" not in bar for bar in bars)
