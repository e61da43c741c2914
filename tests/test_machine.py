"""What the machine says of itself, read from pretended files."""

import keras
import pytest
from tensorflow.python.util import _pywrap_util_port

from tfpar import errors, machine, steps

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
        ("avx2 avx512f", "AVX2", ("bfloat16",)),
        ("avx2 avx512f", "AVX512_CORE", ()),
        ("sse4_2 avx2", "AVX2", ()),
    ],
)
def test_instructions_too_low_for_16_bits(monkeypatch, flags, limit, too_low):
    monkeypatch.setattr(machine, "cpuinfo", {"flags": flags}.get)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert tuple(dtype for dtype in ("bfloat16", "float16", "float32") if machine.too_low_for(dtype)) == too_low


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
        with pytest.raises(errors.SettingsError, match=r"ONEDNN_MAX_CPU_ISA=AVX2 .* bfloat16 .*; unset it"):
            steps.Step(model)
    else:
        steps.Step(model)
