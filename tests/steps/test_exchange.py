"""On any number of replicas, the exchange returns the sum of the tree, bit for bit, within the documented number of rounds."""

import collections
import json
import math
import queue
import threading

import numpy as np
import pytest
from processes import together

from tfpar.steps import exchange


def parts_of(shards):
    """Return vectors whose sum depends on the order of the additions."""
    draw = np.random.default_rng(shards)
    return [(draw.standard_normal(64) * 10.0 ** draw.integers(-6, 6, 64)).astype(np.float32) for _ in range(shards)]


def in_threads(shards, replicas):
    """Let a thread for each replica sum the parts in pairs; return what each found, and how often each met another."""
    parts, count = parts_of(shards), shards // replicas
    lines, met, found = collections.defaultdict(lambda: queue.Queue()), collections.Counter(), {}
    lock = threading.Lock()

    def replica(r):
        def reduce(vector, a, b):
            with lock:
                to, back = lines[r, a + b - r], lines[a + b - r, r]
            to.put(vector)
            met[r] += 1
            return np.asarray(vector) + back.get(timeout=30)

        own = parts[r * count : (r + 1) * count]
        found[r] = exchange.sum_in_pairs(own, replica=r, replicas=replicas, reduce=reduce)

    threads = [threading.Thread(target=replica, args=(r,), daemon=True) for r in range(replicas)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found, met


CASES = [(v, r) for r in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 16, 17) for v in (r, 2 * r, 3 * r, 5 * r)]


@pytest.mark.parametrize(("shards", "replicas"), CASES)
def test_pairs_give_the_bits_of_the_tree(shards, replicas):
    found, met = in_threads(shards, replicas)
    expected = np.asarray(exchange.tree(parts_of(shards))).tobytes()
    assert [np.asarray(found[r]).tobytes() for r in range(replicas)] == [expected] * replicas
    if shards == replicas and math.log2(replicas).is_integer():
        assert set(met.values()) <= {round(math.log2(replicas))}
    assert max(met.values(), default=0) <= 2 * math.ceil(math.log2(shards))


def test_the_order_of_these_sums_matters():
    parts = parts_of(12)
    assert np.asarray(exchange.tree(parts)).tobytes() != sum(parts[1:], parts[0]).tobytes()


def test_subtrees():
    cases = [(v, r) for v in (1, 2, 4, 6, 8, 12) for r in range(1, 13) if v % r == 0]
    whole = {(v, r) for v, r in cases if exchange.Exchange(v, r).sends == 1}
    assert {(8, 8), (8, 4), (12, 4), (12, 2), (6, 2), (12, 1)} <= whole
    assert not {(6, 3), (12, 3), (12, 6)} & whole


PROGRAM = """
import json, sys
import numpy as np, tensorflow as tf
from tfpar import devices
from tfpar.steps import exchange
from tfpar.workers.group import WorkerGroup
from test_exchange import parts_of

strategy = devices.strategy()
group = WorkerGroup(strategy)
found = {}
for count, all_reduce in ((1, "ordered"), (3, "ordered"), (1, "fast")):
    shards = count * group.size
    exchanges = exchange.Exchange(shards, group.size, all_reduce, several_workers=True)
    parts = [tf.constant(part) for part in parts_of(shards)[group.index * count : (group.index + 1) * count]]
    rows = tf.constant([[group.index, -0.0]], tf.float32)

    def on_replica():
        context = tf.distribute.get_replica_context()
        total, placed = exchanges(context, parts, rows)
        return total, placed, exchange.in_order(context, rows)

    for _ in range(2):  # the same graph again, and a graph traced anew
        run = tf.function(lambda: strategy.run(on_replica), autograph=False)
        for _ in range(2):
            found[f"{count} {all_reduce}"] = [
                np.asarray(strategy.experimental_local_results(v)[0]).tobytes().hex() for v in run()
            ]
group.wait()
with open(f"{group.index}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [pytest.param(3, marks=pytest.mark.by_hand), 11])
def test_between_processes(tmp_path, count):
    """Eleven: TensorFlow sorts workers by name as text, so worker 10 would come after worker 1."""
    together(tmp_path, ["-c", PROGRAM], count=count)
    found = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(count)]
    rows = np.array([[r, -0.0] for r in range(count)], np.float32).tobytes().hex()
    for name in ("1 ordered", "3 ordered", "1 fast"):
        total = np.asarray(exchange.tree(parts_of(int(name[0]) * count))).tobytes().hex()
        assert {tuple(each[name][1:]) for each in found} == {(rows, rows)}, name
        assert len({each[name][0] for each in found}) == 1
        assert name == "1 fast" or found[0][name][0] == total, name
