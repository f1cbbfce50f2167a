"""The cheap load generator of bench/overload.py: many devices' calls, in a process of its own.

A worker: reads a job as a line of JSON, answers with a line of JSON (bench/processes.py starts it). Open loop
(`rate`): calls are sent by a schedule of random gaps, whatever became of those before, and a call's time counts from
when it was due, so that a generator that runs late makes figures worse, not better. Closed loop (`in_flight`): so
many calls are always under way. A call that is not answered by its deadline is given up, as by any client.
"""

from __future__ import annotations

import random
import select
import time
from collections import Counter, deque
from functools import cache
from typing import Any

import grpc
from frames import Call, Connection, Ended
from payloads import requests
from processes import busy_s, cpu_s, serve_jobs

from coe.protocol.service import path

CODES = {code.value[0]: code.name for code in grpc.StatusCode}
NO_RETRY_S = 1.0  # a negative push-back says: do not try again
prepared = cache(requests)


class Flood:
    """The calls of one job.

    Args:
        rate: calls per second, open loop; 0: closed loop with `in_flight`.
        devices: the calls are theirs in turn; of these the share `polite` sends nothing while the server has asked
            it to hold back.
    """

    def __init__(
        self,
        *,
        address: str,
        payload: str,
        rows: int,
        deadline_s: float,
        connections: int,
        devices: int,
        polite: float,
        rate: float = 0.0,
        in_flight: int = 0,
        seed: int = 0,
    ) -> None:
        self._made, _ = prepared(payload, rows)
        self._deadline_s = deadline_s
        self._dial = lambda: Connection(address, path("ModelInfer"), round(deadline_s * 1000))
        self._connections = [self._dial() for _ in range(connections)]
        self._poll = select.epoll()
        self._numbers: dict[int, int] = {}  # of a connection, by its socket
        for number, connection in enumerate(self._connections):
            self._watch(number, connection)
        self._rate, self._in_flight = rate, in_flight
        self._gaps = random.Random(seed)
        self._paused_until = [0.0] * devices
        self._n_polite = round(devices * polite)
        self._under_way: deque[tuple[Call, int]] = deque()  # in the order of their deadlines
        self._n_open = 0
        self.n_due = 0
        self.counts: Counter[str] = Counter()
        self.words: dict[str, str] = {}  # of the first call that ended so
        self.latencies_us: list[int] = []  # from when a call was due,
        self.accepted_us: list[int] = []  # and from when it was sent
        self.ok_by_second: Counter[int] = Counter()
        self.late_us: list[int] = []

    def run(self, start: float, end: float) -> None:
        """Calls that are due, or sent, from `start` to `end` on the monotonic clock; then their ends are awaited."""
        self._start, due = start, start
        while (now := time.monotonic()) < end or self._n_open:
            if now < end and self._rate:
                while due <= now and due < end:
                    self._offer(due, now)
                    due += self._gaps.expovariate(self._rate)
            elif start <= now < end:
                while self._n_open < self._in_flight:
                    self._offer(now, now)
            self._give_up(now)
            for connection in self._connections:
                connection.flush()
            for number, _ in self._poll.poll(0.001):
                self._receive(number)
        for connection in self._connections:
            connection.socket.close()

    def _offer(self, due: float, now: float) -> None:
        device = self.n_due % len(self._paused_until)
        self.n_due += 1
        if device < self._n_polite and self._paused_until[device] > now:
            self.counts["held_back"] += 1
            return
        self.late_us.append(round((now - due) * 1e6))
        call = Call(due, due + self._deadline_s, device, self._made[self.n_due % len(self._made)])
        number = device % len(self._connections)
        self._connections[number].send(call)
        self._under_way.append((call, number))
        self._n_open += 1

    def _give_up(self, now: float) -> None:
        while self._under_way and (self._under_way[0][0].is_over or self._under_way[0][0].deadline < now):
            call, number = self._under_way.popleft()
            if not call.is_over:
                self._connections[number].cancel(call)
                self._end("unanswered_in_time")

    def _receive(self, file: int) -> None:
        number = self._numbers[file]
        try:
            ended = self._connections[number].receive()
        except ConnectionError:
            for call in self._connections[number].abandoned():
                call.is_over = True
                self._end("connection_lost")
            self._connections[number] = self._dial()
            self._watch(number, self._connections[number])
            return
        now = time.monotonic()
        for end in ended:
            self._count(end, now)

    def _count(self, end: Ended, now: float) -> None:
        call = end.call
        if end.status == 0 and call.has_label:
            self._end("OK" if now <= call.deadline else "ok_too_late")
            if now <= call.deadline:
                self.latencies_us.append(round((now - call.due) * 1e6))
                self.accepted_us.append(round((now - call.sent) * 1e6))
                self.ok_by_second[int(now - self._start)] += 1
            return
        known = "no_label" if end.status == 0 else CODES.get(end.status, "unreadable")
        if end.words == "RST_STREAM with 7":
            known = "refused_stream"  # HTTP/2's own word: not looked at, and any gRPC client tries again by itself
        self._end(known)
        self.words.setdefault(known, end.words)
        if end.push_back_s is not None:
            self.counts["with_push_back"] += 1
            wait_s = end.push_back_s if end.push_back_s >= 0 else NO_RETRY_S
            self._paused_until[call.device] = now + wait_s

    def _end(self, how: str) -> None:
        self.counts[how] += 1
        self._n_open -= 1

    def _watch(self, number: int, connection: Connection) -> None:
        file = connection.socket.fileno()
        self._numbers[file] = number
        self._poll.register(file, select.EPOLLIN)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    pid, seconds, at = job.pop("pid"), job.pop("seconds"), job.pop("at", 0.0)
    flood = Flood(**job)
    start = at or time.monotonic() + 0.1
    time.sleep(max(0.0, start - time.monotonic()))
    own, served, busy = time.process_time(), cpu_s(pid), busy_s()
    flood.run(start, start + seconds)
    took = time.monotonic() - start  # the last answers come after the last call was due
    own, served, busy = time.process_time() - own, cpu_s(pid) - served, busy_s() - busy
    late = sorted(flood.late_us)
    return {
        "seconds": seconds,
        "took_s": took,
        "due": flood.n_due,
        "counts": flood.counts,
        "words": flood.words,
        "latencies_us": flood.latencies_us,
        "accepted_us": flood.accepted_us,
        "ok_by_second": [flood.ok_by_second[second] for second in range(int(seconds))],
        "sent_late_p99_s": late[len(late) * 99 // 100] / 1e6 if late else 0.0,
        "client_cores": own / took,
        "server_cores": served / took,
        "machine_cores": busy / took,
    }


if __name__ == "__main__":
    serve_jobs(answer)
