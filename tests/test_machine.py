"""What the machine says of itself, read from pretended files."""

import keras
import pytest
from tensorflow.python.util import _pywrap_util_port

from tfpar import errors, machine, steps
from tfpar.steps import accepted
from tfpar.train import inference

AMX = "sse4_2 avx avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16"


@pytest.mark.parametrize(
    ("flags", "limit", "too_low"),
    [
        (AMX, "", ()),
        (AMX, "AVX2", ("bfloat16", "float16")),
        (AMX, "sse41", ("bfloat16", "float16")),
        (AMX, "AVX512_CORE", ("float16",)),
        (AMX, "avx512_core_bf16", ("float16",)),
        (AMX, "AVX512_CORE_FP16", ()),
        (AMX, "AVX512_CORE_AMX", ()),
        (AMX, "ALL", ()),
        (AMX, "nonsense", ()),  # which oneDNN ignores
        ("avx2 avx512f", "AVX2", ("bfloat16",)),
        ("avx2 avx512f", "AVX512_CORE", ()),
        ("sse4_2 avx2", "AVX2", ()),
    ],
)
def test_instructions_too_low_for_16_bits(monkeypatch, flags, limit, too_low):
    monkeypatch.setattr(machine, "cpuinfo", {"flags": flags}.get)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert tuple(dtype for dtype in ("bfloat16", "float16", "float32") if machine.too_low_for(dtype)) == too_low


def test_the_older_name_of_the_variable_counts_too(monkeypatch):
    monkeypatch.setattr(machine, "cpuinfo", {"flags": AMX}.get)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "avx2")
    assert machine.too_low_for("bfloat16") == "DNNL_MAX_CPU_ISA=avx2" and machine.instructions().endswith(
        "at most avx2"
    )


@pytest.mark.parametrize("onednn", [True, False])
def test_a_step_that_onednn_cannot_compute_is_refused(monkeypatch, onednn):
    monkeypatch.setattr(machine, "cpuinfo", {"flags": AMX}.get)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(_pywrap_util_port, "IsMklEnabled", lambda: onednn)
    layers = [
        keras.Input((4, 4, 1), dtype="uint8"),
        keras.layers.Flatten(),
        keras.layers.Dense(2, dtype="mixed_bfloat16"),
    ]
    model = keras.Sequential(layers)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if onednn:
        for refusing in (steps.Step, inference.Inference, accepted.check_dtypes):
            with pytest.raises(errors.SettingsError, match=r"ONEDNN_MAX_CPU_ISA=AVX2 .* bfloat16 .*; unset it"):
                refusing(model)
    else:
        steps.Step(model)
