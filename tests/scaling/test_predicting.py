"""Predictions follow the formulas, meet every measured size, carry their bands, and name what is missing."""

import itertools
import json
import math
import time
from statistics import NormalDist

import numpy as np
import pytest

from tfpar import cli, errors, scaling
from tfpar.scaling import formulas

V100 = scaling.MACHINES["8xV100-EDR"]
SHARES = {"inside": 0.8 * 150e9, "outside": 0.8 * 12.5e9}
MEASURED = scaling.Measured(0.3485, 128, 102.2e6)


def row(measured=MEASURED, machine=V100, devices=64, **more):
    return scaling.predict(measured, machine, [devices], **more).to_pylist()[0]


# ---- the formulas


def test_the_exchange_is_the_ring_of_the_contract():
    inside, outside = 102.2e6 / SHARES["inside"], 102.2e6 / SHARES["outside"]
    expected = {
        1: 0,
        2: 41e-6 + 2 * 1 / 2 * inside,
        8: 41e-6 + 2 * 7 / 8 * inside,
        32: 41e-6 + 2 * 7 / 8 * inside + 2 * 3 / 4 * outside + 14e-6 * 2,
    }
    assert np.allclose(formulas.exchange(list(expected), V100, 102.2e6), list(expected.values()), rtol=1e-12)


def test_the_exchange_by_pairs_shares_the_link_of_a_machine():
    inside, outside = 102.2e6 / SHARES["inside"], 102.2e6 / SHARES["outside"]
    expected = {1: 0, 4: 2 * 41e-6 + 2 * inside, 32: 5 * 41e-6 + 3 * inside + 2 * 8 * outside}
    found = formulas.exchange(list(expected), V100, 102.2e6, all_reduce="ordered")
    assert np.allclose(found, list(expected.values()), rtol=1e-12)


def test_the_slowest_of_n_without_samples():
    expected = [0.03 * NormalDist().inv_cdf((n - 3 / 8) / (n + 1 / 4)) for n in (1, 2, 1000)]
    assert np.allclose(formulas.jitter([1, 2, 1000]), expected) and expected[0] == 0


def test_the_slowest_of_two_and_three_is_the_mean_over_all_draws():
    sample = np.random.default_rng(0).lognormal(0, 0.3, 30)
    for n in (1, 2, 3):
        drawn = np.mean([max(draw) for draw in itertools.product(sample, repeat=n)])
        assert math.isclose(formulas.jitter([n], sample)[0], drawn / sample.mean() - 1, abs_tol=1e-12)


def test_a_rare_pause_shows_on_many_devices():
    """One step in 1,000 is 20% longer: nothing on two devices, nearly all of it on 10,000, which mean and sigma do not see."""
    sample = np.r_[np.full(99_900, 1.0), np.full(100, 1.2)]
    two, many = formulas.jitter([2, 10_000], sample)
    assert two < 0.001 and 0.19 < many < 0.21
    by_sigma = sample.std() * NormalDist().inv_cdf(1 - 1e-4)
    assert by_sigma < 0.04 < many


def test_beyond_the_sample_the_slope_of_the_last_decade_goes_on():
    sample = np.random.default_rng(1).exponential(0.1, 3000) + 1
    known = formulas.jitter([100, 1000], sample)
    slope = (known[1] - known[0]) / math.log(10)
    assert math.isclose(formulas.jitter([100_000], sample)[0], known[1] + slope * math.log(100), rel_tol=1e-12)


def test_many_sizes_are_interpolated_closely():
    sample = np.r_[np.full(5990, 1.0), np.full(10, 1.2)]
    many, few = formulas.jitter(range(1, 2001), sample), formulas.jitter([15, 150, 900], sample)
    assert np.allclose(many[[14, 149, 899]], few, rtol=0.02)


# ---- what a prediction is based on


def test_from_one_device():
    found = row()
    parts = [found[f"{name}_ms"] for name in ("compute", "jitter", "exchange", "software")]
    assert found["basis"] == "one device" and parts[-1] == 0 and sum(parts) == pytest.approx(found["step_ms"])
    exchange, z = formulas.exchange([64], V100, 102.2e6)[0], NormalDist().inv_cdf((64 - 3 / 8) / 64.25)
    assert found["step_ms"] == pytest.approx(1e3 * (0.3485 * (1 + 0.03 * z) + exchange))
    loss = 1 / found["efficiency"] - 1
    assert found["low"] == pytest.approx(1 / (1 + 3.7 * loss)) and found["high"] == pytest.approx(1 / (1 + 0.34 * loss))
    assert found["images_per_second"] == pytest.approx(64 * 128 / found["step_ms"] * 1e3)


def test_a_measured_size_is_what_was_measured():
    measured = scaling.Measured(0.3485, 128, 102.2e6, steps={4: 0.36, 8: 0.37, 16: 0.40})
    rows = scaling.predict(measured, V100, [1, 4, 8, 16]).to_pylist()
    assert [each["step_ms"] for each in rows] == pytest.approx([348.5, 360, 370, 400])
    assert {each["basis"] for each in rows} == {"measured"}
    assert all(each["low"] == each["high"] == each["efficiency"] for each in rows)


def test_from_two_sizes_inside_a_machine():
    measured = scaling.Measured(0.3, 128, 102.2e6, steps={2: 0.33})
    formula = [row(scaling.Measured(0.3, 128, 102.2e6), devices=n)["step_ms"] for n in (2, 8, 16)]
    eight, sixteen = row(measured, devices=8), row(measured, devices=16)
    assert eight["basis"] == "two sizes inside a machine" and eight["software_ms"] == pytest.approx(330 - formula[0])
    assert eight["step_ms"] == pytest.approx(formula[1] + 330 - formula[0])
    assert (eight["low"], eight["high"]) == pytest.approx((eight["efficiency"] - 0.04, eight["efficiency"] + 0.04))
    assert sixteen["basis"] == "two sizes, formula between machines" and sixteen["efficiency"] - sixteen["low"] > 0.1
    assert sixteen["step_ms"] == pytest.approx(formula[2] + 330 - formula[0])


def test_from_two_sizes_on_several_machines():
    measured = scaling.Measured(0.3485, 128, 102.2e6, steps={8: 0.3546, 16: 0.3582})
    found, z = row(measured, devices=32), [NormalDist().inv_cdf((n - 3 / 8) / (n + 1 / 4)) for n in (16, 32)]
    expected = 0.3546 + (0.3582 - 0.3546) * (1 - 1 / 4) / (1 - 1 / 2) + 0.3485 * 0.03 * (z[1] - z[0])
    assert found["basis"] == "two sizes, several machines" and found["step_ms"] == pytest.approx(1e3 * expected)
    faster = scaling.Measured(0.3485, 128, 102.2e6, steps={8: 0.3546, 16: 0.3500})
    assert row(faster, devices=32)["step_ms"] > 354.6  # noise does not make the network help


def test_workers_with_one_device_each_count_as_machines():
    measured = scaling.Measured(0.1, 32, 1e6, steps={2: 0.12})
    assert row(measured, "cpu-1GbE", 4)["basis"] == "two sizes, several machines"


def test_what_one_machine_measured_stays_in_one_machine():
    """Two workers of one machine say nothing about the network between two machines."""
    measured = scaling.Measured(0.1, 32, 1e6, steps={2: 0.12}, one_machine=True)
    found = row(measured, "cpu-1GbE", 4)
    own = scaling.Machine(2, 10, 0.125)
    assert found["basis"] == "two sizes, formula between machines" and found == row(measured, own, 4)
    assert found["exchange_ms"] > 1e3 * 2 * 1 / 2 * 1e6 / 0.125e9  # over that network
    with pytest.raises(errors.SettingsError, match="give a machine of 8 or more"):
        row(scaling.Measured(0.1, 32, 1e6, steps={8: 0.12}, one_machine=True), "4xT4-10GbE")


def test_software_that_hides_the_exchange_never_makes_a_step_shorter_than_all_measured_ones():
    overlapped = scaling.Measured(0.1, 32, 500e6, steps={8: 0.11})
    found = row(overlapped, scaling.Machine(8, 0.5, 1), 2)
    assert found["step_ms"] == pytest.approx(100) and found["software_ms"] < 0


def test_the_input_of_a_machine_limits_its_devices():
    limited = scaling.Measured(0.1, 100, 1e6, input_images_per_second=4000)
    rows = scaling.predict(limited, V100, [2, 8, 16]).to_pylist()
    free = row(scaling.Measured(0.1, 100, 1e6), devices=2)
    assert rows[0] == free and [each["step_ms"] for each in rows[1:]] == pytest.approx([200, 200])
    assert rows[1]["high"] <= max(1 / (1 + 0.34), rows[1]["efficiency"])


def test_the_band_is_wider_beyond_the_samples():
    sample = np.random.default_rng(0).normal(0.1, 0.002, 900)
    steps = {8: 0.105, 16: 0.107}
    within, beyond = (
        row(scaling.Measured(0.1, 32, 1e6, steps=steps, samples=sample), devices=n) for n in (256, 100_000)
    )
    assert within["high"] - within["low"] == pytest.approx(0.08, abs=1e-9)
    assert beyond["high"] - beyond["low"] > 0.09


# ---- time, price, knee


def test_hours_and_cost():
    found = row(price=2.0, images=1_281_167, epochs=35)
    hours = 35 * (1 + 64 * 128 / 46_000) * 1_281_167 / found["images_per_second"] / 3600
    assert found["hours"] == pytest.approx(hours) and found["cost"] == pytest.approx(64 * 2 * hours)
    assert "cost" not in row(images=10, epochs=1) and "hours" not in row()


def test_the_knee_is_the_last_doubling_that_still_saves_a_quarter():
    def knee(**more):
        return int(scaling.predict(MEASURED, "8xH100-NDR", [8], **more).schema.metadata[b"knee"])

    table = scaling.predict(MEASURED, "8xH100-NDR", [2**i for i in range(17)], images=1, epochs=1)
    hours = table["hours"].to_numpy()
    saved = [2 ** (i + 1) for i in range(16) if hours[i + 1] <= 0.75 * hours[i]]
    assert saved == [2**i for i in range(1, len(saved) + 1)]  # from one device on, without a gap
    assert knee() == saved[-1] and 64 <= knee() <= 512
    assert knee(critical_batch=1000) < knee() < knee(critical_batch=1e7)
    slow = scaling.predict(scaling.Measured(0.01, 32, 500e6), "cpu-1GbE", [2])
    assert slow.schema.metadata[b"knee"] == b"1"  # two are slower than one, though thousands would be faster
    inside = scaling.predict(MEASURED, scaling.Machine(4, 100, None), [2])
    assert inside.schema.metadata[b"knee"] == b"4"


def test_ten_thousand_devices_take_no_time():
    sample = np.random.default_rng(0).normal(0.35, 0.01, 12_000)
    measured = scaling.Measured(0.35, 128, 102.2e6, steps={8: 0.36, 16: 0.37}, samples=sample)
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        assert scaling.predict(measured, V100, range(1, 10_001)).num_rows == 10_000
        taken.append(time.perf_counter() - started)
    assert min(taken) < 0.1


def test_a_report_gives_its_measurement():
    class Report:
        def measured(self):
            return MEASURED

    assert row(Report()) == row()


def test_one_number_of_devices_is_one_row():
    assert scaling.predict(MEASURED, V100, 64) == scaling.predict(MEASURED, V100, [64])


# ---- what is refused


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: row(machine="8xV101"), "8xV100-EDR"),
        (lambda: row(machine=scaling.Machine(8, 100, None)), "GB/s outside"),
        (lambda: scaling.Machine(8, None, 10), "GB/s inside"),
        (lambda: scaling.Machine(0, 1, 1), "devices of a machine"),
        (lambda: scaling.Machine(2, -1, 1), "GB/s inside"),
        (lambda: row(scaling.Measured(0.1, 1, 1, steps={16: 0.2})), "measure 8 devices too"),
        (lambda: row(scaling.Measured(0.1, 1, 1, steps={16: 0.2}), scaling.Machine(8, 1, None), 2), "GB/s outside"),
        (lambda: row(devices=0), "devices=0"),
        (lambda: row(devices=2.5), "devices=2.5"),
        (lambda: scaling.Measured(0, 1, 1), "seconds of a step on 1"),
        (lambda: scaling.Measured(0.1, 1, 1, steps={2: math.nan}), "seconds of a step on 2"),
        (lambda: scaling.Measured(0.1, 1, 1, steps={"2": 1.0}), "devices='2'"),
        (lambda: scaling.Measured(0.1, 0, 1), "batch=0"),
        (lambda: scaling.Measured(0.1, 1, 1, samples=[0.1] * 29), "30 or more"),
        (lambda: scaling.Measured(0.1, 1, 1, samples=[-0.1] * 30), "30 or more"),
        (lambda: scaling.Measured(0.1, 1, 1, all_reduce="slow"), "ordered or fast"),
        (lambda: scaling.Measured(0.1, 1, 1, input_images_per_second=0), "input_images_per_second"),
        (lambda: row(price=1), "images and epochs"),
        (lambda: row(images=1, epochs=1, critical_batch=0), "critical_batch=0"),
        (lambda: scaling.Measured(0.1, 1, 1, steps=[0.1]), "steps=.*a dictionary"),
        (lambda: scaling.Measured(0.1, 1, 1, samples="x"), "30 or more"),
        (lambda: scaling.Measured(0.1, 1, 1, samples=None), "30 or more"),
        (lambda: scaling.load(None), "directory=None"),
        (lambda: row(images=1), "images and epochs"),
        (lambda: row(images=1, epochs=0), "epochs=0"),
        (lambda: row("digits"), "scaling.Measured"),
        (lambda: row(machine=7), "scaling.Machine"),
    ],
)
def test_wrong_figures_are_refused(wrong, words):
    with pytest.raises(errors.SettingsError, match=words):
        wrong()


# ---- the command line

FIGURES = "scaling --step-ms 348.5 --batch 128 --gradient-mb 102.2"


def test_the_command_prints_what_the_library_returns(capsys):
    also = (
        "--also 8=354.6 --also 16=358.2 --machine 8xV100-EDR --devices 8,32 --price 2 --images 1000 --epochs 3 --json"
    )
    assert cli.main(f"{FIGURES} {also}".split()) == 0
    found = json.loads(capsys.readouterr().out)
    measured = scaling.Measured(0.3485, 128, 102.2e6, steps={8: 0.3546, 16: 0.3582})
    table = scaling.predict(measured, V100, [8, 32], price=2, images=1000, epochs=3)
    assert found["knee"] == int(table.schema.metadata[b"knee"])
    for printed, expected in zip(found["predictions"], table.to_pylist(), strict=True):
        assert printed == {name: pytest.approx(value) for name, value in expected.items()}


def test_the_command_takes_another_machine_and_another_exchange(capsys):
    words = f"{FIGURES} --per-machine 4 --inside 20 --outside 2 --devices 16 --all-reduce ordered"
    assert cli.main(words.split()) == 0
    measured = scaling.Measured(0.3485, 128, 102.2e6, all_reduce="ordered")
    expected = row(measured, scaling.Machine(4, 20, 2), 16)
    out = capsys.readouterr().out.splitlines()
    assert f"{expected['step_ms']:,.3f}" in out[1] and "one device" in out[1] and out[2].startswith("knee: ")


def test_the_command_predicts_from_a_report(monkeypatch, capsys):
    """Its exchange and its machine count, until a size of several machines is added."""
    measured = scaling.Measured(0.1, 32, 1e6, steps={2: 0.12}, all_reduce="ordered", one_machine=True)

    class Report:
        def measured(self):
            return measured

    monkeypatch.setattr(scaling, "load", {"there": Report()}.get)
    assert cli.main(["scaling", "--predict", "there", "--machine", "cpu-1GbE", "--devices", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == [row(measured, "cpu-1GbE", 4)]
    more = "scaling --predict there --also 4=130 --per-machine 2 --inside 10 --outside 1 --devices 8 --json"
    assert cli.main(more.split()) == 0
    added = scaling.Measured(0.1, 32, 1e6, steps={2: 0.12, 4: 0.13}, all_reduce="ordered")
    found = json.loads(capsys.readouterr().out)["predictions"][0]
    assert found == row(added, scaling.Machine(2, 10, 1), 8) and found["basis"] == "two sizes, several machines"


@pytest.mark.parametrize(
    "words",
    [
        "scaling",
        "scaling --devices 4 --machine 8xV100-EDR",
        "scaling --predict there --step-ms 1 --devices 4 --machine 8xV100-EDR",
        f"{FIGURES} --devices 4",
        f"{FIGURES} --machine 8xV100-EDR",
        f"{FIGURES} --devices 4 --machine 8xV101",
        f"{FIGURES} --devices 4 --machine 8xV100-EDR --inside 5",
        f"{FIGURES} --devices 64 --per-machine 8",
        f"{FIGURES} --devices 64 --per-machine 8 --inside 10",
        f"{FIGURES} --devices 64 --machine 8xV100-EDR --also 16=400",
        f"{FIGURES} --devices 64 --machine 8xV100-EDR --price 2",
        f"{FIGURES} --devices 4 --machine 8xV100-EDR --seconds 5",
        "scaling digits --price 2",
    ],
)
def test_a_wrong_command_ends_in_one_line(words, capsys):
    assert cli.main(words.split()) == 78
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("tfpar: ") and captured.err.count("\n") == 1
