"""Where a step's time goes: parts that add up, operations by kind, a picture, a trace; and the model is as before."""

import json

import numpy as np
import pytest
from networks import tiny

from tfpar import devices, errors
from tfpar.diagnose import profiling
from tfpar.steps.exchange import Exchange


@pytest.mark.parametrize("replicas", [1, 2])
def test_profile_names_the_parts_and_leaves_the_model_alone(digits, tmp_path, replicas, monkeypatch):
    monkeypatch.setattr(profiling, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(profiling, "TURNS", 2)
    model = tiny(devices.strategy(simulate=replicas))
    before = [np.asarray(weight).copy() for weight in model.get_weights()]
    found = profiling.profile(model, digits, tmp_path / "profile", global_batch_size=96, shards=4, augment="crop-flip")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert list(found.parts) == ["waiting for input", "compute", "all-reduce", "update", "Python"]
    assert min(found.parts.values()) >= 0 and found.parts["update"] > 0 and found.images == 96
    assert "Conv2D" in found.operations and not [kind for kind in found.operations if "Call" in kind]
    told = str(found)
    assert (
        "images a second" in told and "compute" in told and told.endswith(found.advice) and found.advice.endswith(".")
    )
    assert json.loads((tmp_path / "profile" / "profile.json").read_text())["parts"] == found.parts
    assert (tmp_path / "profile" / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))


def test_parts_are_the_differences_of_the_experiments():
    seconds = {"whole": 10.0, "same batch": 9.0, "same batch, several a call": 5.5, "exchange": 1.0, "update": 0.5}
    parts = profiling._parts(seconds, per_call=4)  # a call costs (9 - 5.5) / (1 - 1/8) = 4, shared by its 4 steps
    assert parts == {"waiting for input": 1.0, "compute": 3.5, "all-reduce": 1.0, "update": 0.5, "Python": 1.0}


def test_advice_follows_the_largest_part(monkeypatch):
    step = type("Step", (), {"exchange": Exchange(4, 4), "jit_compile": False, "model": tiny()})
    base = {"waiting for input": 0.0, "compute": 1.0, "all-reduce": 0.0, "update": 0.0, "Python": 0.0}

    def advice(**parts):
        return profiling._advice(base | {name.replace("_", " "): v for name, v in parts.items()}, {"Conv2D": 1.0}, step)

    assert "faster disk" in advice(waiting_for_input=0.5)
    assert "--steps-per-call" in advice(Python=0.5)
    assert "--all-reduce fast" in profiling._advice(base | {"all-reduce": 0.5}, {}, step)
    assert "Conv2D" in advice() and "XLA" not in advice()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.setattr(profiling.machine, "instructions", lambda: "amx_bf16")
    assert "--precision mixed_bfloat16" in advice()
    monkeypatch.setattr(profiling.tf.config, "list_logical_devices", lambda kind: [kind])
    assert "XLA is off: --xla" in advice()
    step.jit_compile = True
    assert "XLA" not in advice()


def test_profile_refuses_what_training_would(digits, tmp_path):
    with pytest.raises(errors.SettingsError, match="global batch 97"):
        profiling.profile(tiny(), digits, tmp_path / "profile", global_batch_size=97, shards=4)
    assert not (tmp_path / "profile").exists()
