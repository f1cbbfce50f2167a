"""Several sources as one stream: fair, and with each source's own promises kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fakes import BOUND_S, until
from hypothesis import given
from hypothesis import strategies as st

from edge.sources import Example
from edge.sources.open import RoundRobinSource


class Part:
    """Examples a0, a1, ...; `gate` holds up the next one, `n` ends it. `log` is what the source saw."""

    def __init__(self, name: str, n: int | None = None, error: Exception | None = None) -> None:
        self.name, self.n, self.error = name, n, error
        self.gate = threading.Event()
        self.gate.set()
        self.log: list[str] = []

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        number = 0
        try:
            while not stop.is_set() and number != self.n:
                if not self.gate.wait(0.01):
                    continue
                yield Example(f"{self.name}{number}", np.zeros(1))
                self.log.append(f"after {self.name}{number}")
                number += 1
            if self.error is not None:
                raise self.error
        finally:
            self.log.append("closed")


def some(source: RoundRobinSource, n: int, before: Callable[[int], object] = lambda at: None) -> list[str]:
    """The first so many ids; then the source is closed, as an agent with a limit does."""
    examples = source.examples(threading.Event())
    found = []
    for at in range(n):
        before(at)
        found.append(next(examples).id)
    examples.close()
    return found


@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_every_example_of_every_part_comes_once_and_in_its_parts_order(sizes):
    parts = [Part("abcd"[at], n) for at, n in enumerate(sizes)]
    ids = [example.id for example in RoundRobinSource(parts).examples(threading.Event())]
    for part, n in zip(parts, sizes, strict=True):
        assert [name for name in ids if name[0] == part.name] == [f"{part.name}{number}" for number in range(n)]
        assert part.log[-1] == "closed"
    assert len(ids) == sum(sizes)


def test_sources_that_have_plenty_take_turns():
    parts = [Part("a"), Part("b"), Part("c")]

    def all_ready(at: int) -> None:
        time.sleep(0.02)  # each has its next example ready

    names = [name[0] for name in some(RoundRobinSource(parts), 12, all_ready)]
    assert all(set(names[at : at + 3]) == {"a", "b", "c"} for at in range(10))


def test_a_source_that_waits_holds_up_no_other():
    quiet, busy = Part("q"), Part("b")
    quiet.gate.clear()
    assert some(RoundRobinSource([quiet, busy]), 5) == [f"b{number}" for number in range(5)]


def test_a_source_goes_on_only_once_the_agent_asks_for_more():
    """So it may write down what it remembers, as its promise says."""
    part = Part("a")
    examples = RoundRobinSource([part]).examples(threading.Event())
    assert next(examples).id == "a0"
    time.sleep(0.05)
    assert part.log == []
    assert next(examples).id == "a1"
    assert part.log == ["after a0"]
    examples.close()


def test_a_source_that_is_closed_does_not_go_on_as_if_its_example_had_been_decided():
    first, second = Part("a"), Part("b")
    examples = RoundRobinSource([first, second]).examples(threading.Event())
    next(examples)
    time.sleep(0.05)  # the other one holds an example ready, too
    examples.close()
    assert first.log == ["closed"]
    assert second.log == ["closed"]


def test_what_is_ready_when_it_is_told_to_stop_is_still_given():
    stop, parts = threading.Event(), [Part("a"), Part("b")]
    examples = RoundRobinSource(parts).examples(stop)
    next(examples)
    time.sleep(0.05)
    stop.set()
    left = [example.id for example in examples]
    assert "b0" in left or left[:1] == ["a0"]
    assert len(left) <= 3
    assert all(part.log[-1] == "closed" for part in parts)


def test_it_ends_soon_after_it_is_told_to():
    stop, quiet = threading.Event(), Part("q")
    quiet.gate.clear()
    found: list[Example] = []
    thread = threading.Thread(target=lambda: found.extend(RoundRobinSource([quiet]).examples(stop)))
    thread.start()
    stop.set()
    thread.join(BOUND_S)
    assert not thread.is_alive()
    assert found == []


def test_the_error_of_one_is_raised_where_the_examples_are_taken():
    parts = [Part("a", 2, OSError("the folder is gone")), Part("b")]
    examples = RoundRobinSource(parts).examples(threading.Event())
    with pytest.raises(OSError, match="the folder is gone"):
        until(lambda: next(examples) is None)
    until(lambda: parts[1].log[-1:] == ["closed"])


def test_each_keeps_its_own_interval():
    slow, quick = Part("s"), Part("q")
    ids = some(RoundRobinSource([slow, quick], [60.0, 0.0]), 30)
    assert ids.count("s0") == 1
    assert not any(name.startswith("s") for name in ids if name != "s0")
