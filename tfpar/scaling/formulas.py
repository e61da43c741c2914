"""The formulas of a prediction: the exchange, the slowest of N devices, and the epochs of a large batch.

`N` devices are in `k` machines of `g` devices each, `S` is the gradient in bytes, `C` the seconds of a step on one device, `inside`
and `outside` are the bandwidths of `Machine` in bytes per second. The batch of a device stays the same (weak scaling). A link
carries 80% of the bandwidth in its data sheet; published measurements of A100, H200 and B200 machines reach 73 to 82%.

```
t(N)        = max(input, C (1 + jitter(N)) + exchange(N) + software)
exchange(N) = 41 us + 2 (g-1)/g S / (0.8 inside)  + for k > 1:  2 (k-1)/k S / (0.8 outside) + 14 us log2 k            "fast"
              41 us log2(g k) + log2(g) S / (0.8 inside) + log2(k) S g / (0.8 outside)                               "ordered"
jitter(N)   = expected largest of N step times / their mean - 1
              from n samples x_1 <= .. <= x_n: sum of x_i ((i/n)^N - ((i-1)/n)^N); beyond N = n/3 with the last decade's slope
              without samples: 0.03 z(N), z(N) = inverse normal((N - 3/8) / (N + 1/4))
software    = the measured step - what the formula gives, at the largest size that was measured inside a machine; else 0
machines    : t(k) = t(1) + max(0, t(k1) - t(1)) (1 - 1/k) / (1 - 1/k1) + C (jitter(N) - jitter(N1)), from 1 and k1 machines
batch       : t(b) = c0 + c1 b, from two measured batches (computed in tests/benchmarks/published.py alone)
epochs(B)   = E (1 + B / B_crit)
knee        = the last doubling of the devices, from one on, that still saves a quarter of the time
```

The ring sends each byte at most twice (Patarasuk and Yuan 2009). 14 us is NCCL's constant for a hop between machines
(`src/graph/tuning.cc`), 41 us the smallest all-reduce of 8 H200. In the exchange by pairs (`ordered`) each device sends its
whole gradient in each of `log2 N` rounds, and the `g` devices of a machine share its link. The sum over the sorted samples is
the mean of the largest of N draws from them; the largest of many draws grows with ln N (Gumbel 1958). `z` is from Blom 1958;
0.03 was fitted on published points (tests/benchmarks/published.py). `epochs` is from McCandlish et al. 2018: E = 35 and
B_crit = 46,000 describe 15 MLPerf batches of ResNet-50 on ImageNet, from 408 to 67,456 images, to 3% in the mean. Another
task has another B_crit.

Example:
    >>> machine = scaling.MACHINES["8xV100-EDR"]
    >>> 1e3 * formulas.exchange([8, 32], machine, 102.2e6)  # milliseconds
    array([ 1.531..., 16.88...])
"""

import math
from statistics import NormalDist

import numpy as np

ONE_DEVICE, INSIDE = "one device", "two sizes inside a machine"
BETWEEN, SEVERAL = "two sizes, formula between machines", "two sizes, several machines"
MEASURED = "measured"
LINK_SHARE, JITTER, CRITICAL_BATCH = 0.8, 0.03, 46_000
SMALLEST_EXCHANGE, HOP = 41e-6, 14e-6  # seconds
LEAST_SAMPLES = 30  # the slope of the last decade needs n/30 and n/3
_EXACT = 50  # sizes; between more, interpolation in ln N


def exchange(devices, machine, gradient_bytes: float, *, all_reduce: str = "fast") -> np.ndarray:
    """Return the seconds of an exchange: `float64[N]`, 0 for one device."""
    n = np.asarray(devices, float)
    inside, outside = (1e9 * LINK_SHARE * (speed or math.inf) for speed in (machine.inside, machine.outside))
    g, k = np.minimum(n, machine.devices), np.ceil(n / machine.devices)
    if all_reduce == "ordered":
        alone, shared = np.log2(g) * gradient_bytes / inside, np.log2(k) * g * gradient_bytes / outside
        return SMALLEST_EXCHANGE * np.log2(g * k) + alone + shared
    network = np.where(k > 1, 2 * (k - 1) / k * gradient_bytes / outside + HOP * np.log2(k), 0)
    return np.where(n > 1, SMALLEST_EXCHANGE + 2 * (g - 1) / g * gradient_bytes / inside + network, 0)


def jitter(devices, samples=()) -> np.ndarray:
    """Return the expected time of the slowest of N devices over the mean, minus 1: `float64[N]`, 0 for one device.

    Args:
        devices: N, at least 1.
        samples: seconds of the steps of one device, 30 or more; without them, the normal distribution with sigma 3%.
    """
    n = np.asarray(devices, float)
    if not len(samples):
        normal = NormalDist()
        return JITTER * np.array([normal.inv_cdf((each - 3 / 8) / (each + 1 / 4)) for each in n.tolist()])
    x, known = np.sort(np.asarray(samples, float)), len(samples) / 3
    logs, mean = np.log(np.arange(1, len(x) + 1) / len(x)), x.mean()

    def largest(size: float) -> float:
        top = int(len(x) * max(0, 1 - 40 / size))  # what lies below weighs less than exp(-40)
        return (np.diff(np.exp(size * logs[top:]), prepend=0) * x[top:]).sum() / mean - 1

    sizes = np.unique(np.append(n[n <= known], 1))
    if len(sizes) > _EXACT:
        sizes = np.unique(np.geomspace(1, sizes[-1], _EXACT).round())
    within = np.interp(np.log(n), np.log(sizes), [largest(size) for size in sizes])
    slope = (largest(known) - largest(known / 10)) / math.log(10)
    return np.where(n <= known, within, largest(known) + slope * np.log(n / known))
