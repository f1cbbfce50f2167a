"""The queues of a fleet: against theory, against SimPy, and against themselves in other blocks of time."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.fleet import queues
from sim.fleet.queues import Batchers, OneQueue, Service, first_come, first_come_any, in_turn, poisson


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def standard_error(values: np.ndarray, n_groups: int = 40) -> float:
    """Of the mean of values that depend on those before."""
    means = [group.mean() for group in np.array_split(values, n_groups)]
    return float(np.std(means, ddof=1) / math.sqrt(n_groups))


def waits_of(rate: float, service_s: float, servers: int, n: int, seed: int = 0) -> np.ndarray:
    arrived = poisson(rng(seed), rate, 0.0, n / rate)
    return (first_come(arrived, service_s, np.full(servers, -np.inf)) - arrived)[n // 10 :]


def queue_of_m_d_c(rate: float, service_s: float, servers: int, most: int = 250) -> float:
    """Mean number waiting in M/D/c (Crommelin): the number there is a chain from one service time to the next."""
    a = rate * service_s
    arrivals = np.array([math.exp(-a + k * math.log(a) - math.lgamma(k + 1)) for k in range(most)])
    there = np.zeros(most)
    there[0] = 1.0
    for _ in range(1000):
        left = np.concatenate([[there[: servers + 1].sum()], there[servers + 1 :]])
        there = np.convolve(left, arrivals)[:most]
        there /= there.sum()
    return float((np.maximum(np.arange(most) - servers, 0) * there).sum())


def test_one_server_waits_as_pollaczek_and_khinchine_say():
    waits = waits_of(rate=80.0, service_s=0.01, servers=1, n=200_000)
    assert waits.mean() == pytest.approx(0.8 * 0.01 / (2 * 0.2), abs=4 * standard_error(waits))


@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (5, 0.85), (20, 0.9)])
def test_several_servers_of_equal_service_wait_as_crommelin_says(servers: int, load: float):
    rate = load * servers / 0.01
    waits = waits_of(rate, 0.01, servers, n=150_000)
    assert waits.mean() == pytest.approx(queue_of_m_d_c(rate, 0.01, servers) / rate, abs=4 * standard_error(waits))


def test_several_servers_of_exponential_service_wait_as_erlang_says():
    servers, load, mean_s, n = 4, 0.8, 0.01, 100_000
    offered = servers * load
    arrived = poisson(rng(1), offered / mean_s, 0.0, n * mean_s / offered)
    service_s = rng(2).standard_exponential(len(arrived)) * mean_s
    waits = (first_come_any(arrived, service_s, [0.0] * servers) - arrived)[n // 10 :]
    tail = offered**servers / math.factorial(servers) / (1 - load)
    waits_at_all = tail / (sum(offered**k / math.factorial(k) for k in range(servers)) + tail)
    assert (waits > 1e-12).mean() == pytest.approx(waits_at_all, abs=0.01)
    assert waits.mean() == pytest.approx(waits_at_all * mean_s / (servers * (1 - load)), abs=4 * standard_error(waits))


def bulk_queue(rate: float, service: Service, batch: int, most: int = 100) -> tuple[float, float]:
    """(mean number waiting, mean batch) of one server that takes all that wait, at most `batch`."""
    step = np.zeros((most, most))  # from the number at one start of a call to that at the next
    for here in range(1, most):
        a, left = rate * service.of(min(here, batch)), max(here - batch, 0)
        for k in range(most - left):
            step[here, max(left + k, 1)] += math.exp(-a + k * math.log(a) - math.lgamma(k + 1))
    chain = np.full(most, 1 / most)
    for _ in range(500):
        chain = chain @ step
        chain /= chain.sum()
    size = np.minimum(np.arange(most), batch)
    takes = service.call_s + service.row_s * size
    area = (np.maximum(np.arange(most) - batch, 0) * takes + rate * takes**2 / 2) @ chain
    empty = sum(p * math.exp(-rate * t) for here, (p, t) in enumerate(zip(chain, takes, strict=True)) if here <= batch)
    length = takes @ chain + empty / rate
    return float(area / length), float(size @ chain)


@pytest.mark.parametrize("servers_from", [0, 100], ids=["side by side", "one by one"])
def test_batches_are_as_large_as_a_bulk_queue_makes_them(monkeypatch: pytest.MonkeyPatch, servers_from: int):
    monkeypatch.setattr(queues, "SIDE_BY_SIDE", servers_from)
    service, rate, servers = Service(0.004, 0.001), 400.0, 5
    station = Batchers(servers, service, 8)
    times, counts = station.draw(rng(3), rate * servers, 0.0, 60.0)
    served = station.serve(times, counts, 1000.0)
    waiting, size = bulk_queue(rate, service, 8)
    assert served.n == len(times)
    rows, call = served.rows()
    waits = served.started[call] - served.arrived[rows]
    assert served.count.mean() == pytest.approx(size, rel=0.02)
    assert waits.mean() == pytest.approx(waiting / rate, rel=0.03)  # Little's law
    assert served.wait_s == pytest.approx(waits.sum())


@given(st.integers(1, 4), st.integers(0, 60), st.integers(0, 1000), st.sampled_from([1, 256]))
def test_first_come_is_a_heap_of_servers_where_all_take_the_same_time(servers: int, n: int, seed: int, wide: int):
    arrived = np.sort(rng(seed).integers(0, 200, n) / 4)
    free = np.sort(rng(seed + 1).integers(0, 6, servers) / 4)  # no further apart than one service
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queues, "WIDE", wide)
        started = first_come(arrived, 1.25, free)
    assert started.tolist() == first_come_any(arrived, np.full(n, 1.25), free.tolist()).tolist()


def test_arrivals_are_a_poisson_process():
    times = poisson(rng(7), 1000.0, 5.0, 105.0)
    gaps = np.diff(times) * 1000
    assert ((times >= 5) & (times < 105)).all()
    assert len(times) == pytest.approx(100_000, abs=4 * math.sqrt(100_000))
    for share in (0.1, 0.5, 0.99):
        assert np.quantile(gaps, share) == pytest.approx(-math.log(1 - share), rel=0.03)
    counts = np.histogram(times, bins=1000)[0]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)
    assert len(poisson(rng(7), 0.0, 0.0, 10.0)) == 0


@given(st.integers(1, 40), st.integers(0, 1000))
def test_a_device_takes_its_examples_in_turn(n: int, seed: int):
    arrived, takes = np.sort(rng(seed).random((3, n)) * n, axis=1), rng(seed + 1).random((3, n))
    started = in_turn(arrived, takes)
    for row, own, service_s in zip(started, arrived, takes, strict=True):
        assert row == pytest.approx(first_come_any(own, service_s, [-math.inf]))


def calls_one_by_one(arrived: np.ndarray, service: Service, batch: int, wait_s: float, patience_s: float):
    """(calls as (arrivals, start), those that left) of one server, event by event, as `cloud.tier_batcher` acts."""
    simpy = pytest.importorskip("simpy")
    world, queue, calls, gone = simpy.Environment(), deque(), [], []
    came = world.event()

    def arrive():
        nonlocal came
        for at in arrived:
            yield world.timeout(at - world.now)
            queue.append(at)
            signal, came = came, world.event()
            signal.succeed()

    def serve():
        while True:
            if not queue:
                yield came
            yield world.timeout(0)  # whatever comes at this very time has come
            while wait_s and queue and len(queue) < batch and world.now < queue[0] + wait_s - 1e-9:
                yield came | world.timeout(queue[0] + wait_s - world.now)
            while queue and queue[0] <= world.now - patience_s:
                gone.append(queue.popleft())
            taken = [queue.popleft() for _ in range(min(batch, len(queue)))]
            if taken:
                calls.append((taken, world.now))
                yield world.timeout(service.of(len(taken)))

    world.process(arrive())
    world.process(serve())
    world.run(until=10_000)
    return calls, gone


@pytest.mark.parametrize("servers_from", [0, 100], ids=["side by side", "one by one"])
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 12), max_size=40), st.integers(1, 5), st.sampled_from([0.0, 0.75]),
    st.sampled_from([math.inf, 4.0]), st.integers(0, 40),
)  # fmt: skip
def test_calls_are_those_of_a_model_in_simpy(servers_from, gaps, batch, wait_s, patience_s, cut):
    """Times are eighths, so that they are exact; the second half comes in another block of time."""
    arrived = np.cumsum(gaps) / 8
    service = Service(0.5, 0.25)
    station = Batchers(1, service, batch, wait_s, patience_s)
    middle = cut + 1 / 16
    first, second = arrived[arrived < middle], arrived[arrived >= middle]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queues, "SIDE_BY_SIDE", servers_from)
        parts = [station.serve(part, np.array([len(part)]), until) for part, until in ((first, middle), (second, 1e6))]
    mine = [
        (part.arrived[at : at + n].tolist(), start)
        for part in parts
        for at, n, start in zip(part.first.tolist(), part.count.tolist(), part.started.tolist(), strict=True)
    ]
    calls, gone = calls_one_by_one(arrived, service, batch, wait_s, patience_s)
    assert mine == calls
    assert sum(part.n_expired for part in parts) == len(gone)


@pytest.mark.parametrize("batch", [1, 8])
def test_blocks_of_time_change_nothing(batch: int):
    service = Service(0.01, 0.002)
    times = poisson(rng(5), 300.0, 0.0, 20.0)

    def make():
        return OneQueue(3, service) if batch == 1 else Batchers(1, service, batch)

    whole = make().serve(times, np.array([len(times)]), 1e9)
    station, starts = make(), []
    for number in range(50):
        own = times[(times >= number * 0.4) & (times < (number + 1) * 0.4)]
        starts.append(station.serve(own, np.array([len(own)]), (number + 1) * 0.4).started)
    starts.append(station.serve(np.empty(0), np.array([0]), 1e9).started)
    assert np.concatenate(starts) == pytest.approx(whole.started, abs=1e-9)


def test_more_servers_take_what_waits():
    station = Batchers(1, Service(1.0), 1)
    station.serve(np.zeros(4), np.array([4]), 0.5)
    station.resize(3, 0.5)
    served = station.serve(np.empty(0), np.zeros(3, int), 10.0)
    assert sorted(served.started.tolist()) == [0.5, 0.5, 1.0]


def test_a_server_that_dies_leaves_its_queue_to_the_others():
    station = Batchers(2, Service(1.0), 1)
    station.serve(np.zeros(6), np.array([3, 3]), 0.5)
    station.resize(1, 0.5)
    assert station.serve(np.empty(0), np.zeros(1, int), 10.0).started.tolist() == [1.0, 2.0, 3.0, 4.0]
