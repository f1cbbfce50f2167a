#!/usr/bin/env python3
"""Every fault of docs/reliability.md as a scenario on real processes: what was lost, twice, late, and how it ended.

  bench/faults.py                      every scenario; a table on standard error, JSON on standard output
  bench/faults.py --only kills link    some of them; --size 0.2: smaller, as the tests run it
  bench/faults.py --soak 30            half an hour of all of it at random

The agent runs as its systemd unit would run it (bench/unit.py): started again whatever its exit code but 2, killed by
a watchdog. "Ended" are the times it ended by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unit import AGENT, BOUND_S, DEADLINE_S, ROOT, SINK, SLACK_S, Bed

MEMBERS = ("raise", "nan", "shape", "memory")  # faults of one member on one file, which the agent survives
SCENARIOS: dict[str, tuple[Callable[[Bed], None], tuple[int | str, ...]]] = {}


def scenario(*ends: int | str) -> Callable[[Callable[[Bed], None]], Callable[[Bed], None]]:
    """Name a scenario by its function. `ends`: exit codes with which the agent itself ends because of the fault."""

    def add(run: Callable[[Bed], None]) -> Callable[[Bed], None]:
        SCENARIOS[run.__name__.replace("_", "-")] = run, ends
        return run

    return add


@scenario()
def members(bed: Bed) -> None:
    """One member raises, gives NaN, another number of classes, or has no memory, on some files."""
    bed.start()
    for kind in ("", *MEMBERS, ""):
        bed.put(20, kind)


@scenario(-signal.SIGSEGV)
def member_crashes(bed: Bed) -> None:
    """A member ends the process on one file: it is tried once more, then passed over."""
    bed.is_slow_allowed = True
    bed.start()
    bed.put(20)
    bed.put(0, "crash")
    bed.put(20)


@scenario("watchdog")
def member_hangs(bed: Bed) -> None:
    """A member hangs on one file."""
    bed.is_slow_allowed = True
    bed.start()
    bed.put(20)
    bed.put(0, "hang")
    bed.put(20)


@scenario()
def files(bed: Bed) -> None:
    """What cannot be read, and what is still written."""
    inside = bed.folder / "in"
    bed.start()
    bed.put(10)
    (inside / "loop.png").symlink_to("loop.png")
    (inside / "nothing.png").symlink_to("not-there")
    (inside / "folder.png").mkdir()
    os.mkfifo(inside / "pipe.png")
    (inside / bed.name("garbage")).write_bytes(b"this is no picture")
    data = bed.digit()
    with (inside / bed.name("slow")).open("wb") as slow, (inside / bed.name("empty")).open("wb") as empty:
        slow.write(data[:100])
        slow.flush()
        bed.put(10)
        time.sleep(4)
        slow.write(data[100:])
        empty.write(data)
    bed.put(10)


@scenario()
def folder_goes(bed: Bed) -> None:
    """The folder is missing at the start, comes, is replaced by a file, and comes back."""
    inside = bed.folder / "in"
    inside.rmdir()
    bed.start()
    time.sleep(3)
    inside.mkdir()
    bed.put(10)
    bed.wait(bed.is_answered)
    inside.rename(bed.folder / "old")
    inside.write_text("a file")
    time.sleep(2)
    inside.unlink()
    inside.mkdir()
    bed.put(10)


@scenario()
def sinks_fail(bed: Bed) -> None:
    """Beside a good sink: a corrupt database, a full disk, a folder that is not there."""
    (bed.folder / "corrupt.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    others = ["{kind: sqlite, path: corrupt.db}", "{path: /dev/full}", "{path: not/there/out.jsonl}"]
    bed.sinks = "sinks: [" + ", ".join(["{path: out.jsonl}", *others]) + "]"
    bed.start()
    bed.put(30)


@scenario()
def state_fails(bed: Bed) -> None:
    """The state folder cannot be made at the start; later it can."""
    (bed.folder / "state").write_text("a file")
    bed.start()
    bed.put(10)
    time.sleep(4)
    (bed.folder / "state").unlink()
    bed.put(10)


@scenario()
def other_task(bed: Bed) -> None:
    """The cloud serves another task; later it serves ours."""
    from programs import Cloud

    other = bed.folder / "other"
    other.mkdir()
    shutil.copy(ROOT / "coe/zoo/digits/resnet.onnx", other)
    config, labels = other / "cloud.yaml", ", ".join(f"x{number}" for number in range(10))
    config.write_text(
        f"task: other\nlabels: [{labels}]\nmodel: digits\n"
        "input: {kind: image, size: [28, 28], channels: 1, layout: NCHW, scale: 0.00392156862745098}\n"
        "tiers:\n  - {name: best, members: [resnet.onnx]}\n"
    )
    with Cloud(other, config) as cloud:
        bed.proxy.upstream = cloud.port
        bed.start()
        bed.put(30)
        bed.wait(bed.is_answered)
    bed.proxy.upstream = bed.cloud.port
    bed.put(10)


def answering(code: str) -> tuple[Any, int]:
    """A gRPC server that ends each call with this status."""
    from concurrent import futures

    import grpc

    class Refusing(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            def refuse(request: bytes, context: Any) -> bytes:
                context.abort(getattr(grpc.StatusCode, code), "as the scenario wants it")
                return b""

            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Refusing()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


@scenario()
def refusals(bed: Bed) -> None:
    """An expired token, a call that is not allowed, an unloaded model; then the cloud is as it was."""
    bed.start()
    bed.put(10)
    bed.wait(bed.is_answered)
    for code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND"):
        server, bed.proxy.upstream = answering(code)
        bed.proxy.fault = _refuse()  # connections of before are closed
        time.sleep(0.2)
        bed.proxy.fault = None
        bed.put(10)
        bed.wait(bed.is_answered)
        server.stop(None)
    bed.proxy.upstream = bed.cloud.port


@scenario()
def garbage(bed: Bed) -> None:
    """Something that is no gRPC server answers in the cloud's place."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with suppress(OSError), connection:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + os.urandom(200))

        threading.Thread(target=answer, daemon=True).start()
        bed.proxy.upstream = listener.getsockname()[1]
        bed.start()
        bed.put(20)
        bed.wait(bed.is_answered)
    bed.proxy.upstream = bed.cloud.port


@scenario()
def http_proxy(bed: Bed) -> None:
    """`http_proxy` names a proxy that is not there; the cloud is on this machine."""
    bed.start(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9", grpc_proxy="http://127.0.0.1:9")
    bed.put(30)
    bed.wait(bed.is_answered)
    n_degraded = sum(bool(record.get("degraded")) for record in bed.records())
    bed.note = f"{n_degraded} degraded" if n_degraded else ""


def _refuse() -> Any:
    from proxies import Refuse

    return Refuse()


def link_faults() -> list[Any]:
    from proxies import BlackHole, CutAfter, Refuse, Reset, Slow

    return [BlackHole(), Reset(), Refuse(), Slow(3.0), CutAfter(2000)]


@scenario()
def link(bed: Bed) -> None:
    """A black hole, resets, nobody listening, far too slow, connections cut short."""
    bed.start()
    for fault in link_faults():
        bed.put(10)
        bed.wait(bed.is_answered)
        bed.proxy.fault = fault
        bed.put(20, pause_s=0.05)
        bed.wait(bed.is_answered)
        bed.proxy.fault = None


@scenario()
def server_killed(bed: Bed) -> None:
    """SIGKILL to the cloud, and a new one."""
    bed.start()
    for _ in range(max(1, round(3 * bed.size))):
        bed.put(20)
        bed.wait(bed.is_answered)
        new_cloud(bed)
    bed.put(20)


def new_cloud(bed: Bed) -> None:
    from programs import Cloud

    bed.cloud.process.kill()
    bed.cloud.process.wait()
    bed.put(10)
    bed.cloud = bed.opened.enter_context(Cloud(bed.folder))
    bed.proxy.upstream = bed.cloud.port


@scenario()
def kills(bed: Bed) -> None:
    """SIGKILL to the agent at random moments, as a power cut."""
    dice, unit = random.Random(7), bed.start()
    bed.is_slow_allowed = True
    for _ in range(max(2, round(20 * bed.size))):
        unit.is_ready.wait(60)
        bed.put(10, pause_s=0.0)
        time.sleep(dice.uniform(0.0, 0.5))
        unit.kill()


def arrived_once(bed: Bed, is_down: bool) -> None:
    from brokers import Mosquitto, Subscriber

    dice = random.Random(8)
    bed.at_least_once = bed.is_slow_allowed = True
    kept = ("allow_anonymous true", "persistence true", f"persistence_location {bed.folder}/broker/")
    with Mosquitto(bed.folder / "broker", *kept) as broker, Subscriber(broker.port) as seen:
        topic = "topic: all, status_topic: status, event_topic: events"
        bed.sinks = f"sinks: [{{path: out.jsonl}}, {{kind: mqtt, host: 127.0.0.1, port: {broker.port}, {topic}}}]"
        unit = bed.start()
        for _ in range(max(2, round(20 * bed.size))):
            unit.is_ready.wait(60)
            if is_down:  # stopped, not killed: it keeps what it has acknowledged
                broker._process.terminate()
                broker._process.wait()
                broker.kill()
            bed.put(5, pause_s=0.0)
            time.sleep(dice.uniform(0.0, 0.5))
            unit.kill()
            if is_down:
                broker.start()

        def missing() -> set[str]:
            there = {json.loads(payload).get("id") for payload in seen.on("all")}
            return {name for name in bed.given if name not in there}

        bed.wait(lambda: not missing())
        bed.note = f"{len(missing())} not at the subscriber" if missing() else ""


@scenario()
def mqtt_kills(bed: Bed) -> None:
    """SIGKILL to the agent, the broker up: every id reaches a subscriber."""
    arrived_once(bed, is_down=False)


@scenario()
def mqtt_down(bed: Bed) -> None:
    """The same while the broker is down, and back."""
    arrived_once(bed, is_down=True)


def piped(bed: Bed, text: bytes, reads: bool = True) -> None:
    """Run the agent on standard input, without a unit."""
    bed.source, bed.sinks = "{kind: stdin}", 'sink: {path: "-"}' if not reads else SINK
    bed.start().stop()
    shutil.rmtree(bed.folder / "state", ignore_errors=True)
    (bed.folder / "out.jsonl").unlink(missing_ok=True)
    bed.unit = None
    command = [*AGENT, "--config", str(bed.folder / "edge.yaml")]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=(bed.folder / "log").open("ab"),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    if not reads:
        process.stdout.close()
    with suppress(BrokenPipeError):
        process.stdin.write(text)
        process.stdin.close()
    bed.code = process.wait(BOUND_S)


@scenario()
def long_line(bed: Bed) -> None:
    """A line of 50 MB among others."""
    import base64

    lines = []
    for number in range(20):
        lines.append(json.dumps({"id": bed.name(), "image": base64.b64encode(bed.digit()).decode()}).encode())
        if number == 10:
            lines.append(b'{"id": "huge", "image": "' + b"A" * round(50e6 * min(1.0, bed.size)) + b'"}')
    started = time.monotonic()
    piped(bed, b"\n".join(lines) + b"\n")
    bed.note = f"{time.monotonic() - started:.1f} s"


@scenario()
def lost_reader(bed: Bed) -> None:
    """Nobody reads standard output any more: exit 1."""
    import base64

    lines = [{"id": f"x{number}", "image": base64.b64encode(bed.digit()).decode()} for number in range(50)]
    piped(bed, "".join(json.dumps(line) + "\n" for line in lines).encode(), reads=False)
    bed.note = "" if bed.code == 1 else f"exit {bed.code}, expected 1"
    bed.code = 0 if bed.code == 1 else bed.code


@dataclass
class Result:
    """What one scenario came to."""

    scenario: str
    given: int
    lost: int
    twice: int
    late: int
    errors: int
    degraded: int
    corrected: int
    ended: list[int | str]
    expected_ends: list[int | str]
    exit_code: int | None
    seconds: float
    note: str

    @property
    def is_fine(self) -> bool:
        ends = set(self.ended) <= set(self.expected_ends)
        said = self.note.split(" ")[1:2] in (["not"], ["degraded"]) or "expected" in self.note
        return not (self.lost or self.twice or self.late) and ends and self.exit_code == 0 and not said


def measured(name: str, bed: Bed, seconds: float, ended: list[int | str]) -> Result:
    found = [record for record in bed.records() if "event" not in record]
    first = Counter(record["id"] for record in found if "corrects" not in record)
    late = [r for r in found if "corrects" not in r and r.get("latency_s", 0) > DEADLINE_S + SLACK_S]
    return Result(
        name,
        len(bed.given),
        lost=len([one for one in bed.given if one not in first]),
        twice=0 if bed.at_least_once else sum(first[one] > 1 for one in bed.given),
        late=0 if bed.is_slow_allowed else len(late),
        errors=sum("error" in record for record in found if record["id"] in set(bed.given)),
        degraded=sum(bool(record.get("degraded")) for record in found),
        corrected=sum("corrects" in record for record in found),
        ended=ended,
        expected_ends=list(SCENARIOS[name][1]) if name in SCENARIOS else [],
        exit_code=bed.code,
        seconds=round(seconds, 1),
        note=bed.note,
    )


def run(name: str, size: float, keep: bool = False) -> Result:
    folder = Path(tempfile.mkdtemp(prefix=f"coe-faults-{name}-"))
    started = time.monotonic()
    bed = Bed(folder, size)
    try:
        with bed.opened:
            SCENARIOS[name][0](bed)
            bed.settle()
    except Exception as error:  # noqa: BLE001 - one scenario that cannot be run says nothing of the others
        bed.note = f"not run: {type(error).__name__}: {error}"
        if bed.unit is not None and bed.code is None:
            bed.code = bed.unit.stop()
    result = measured(name, bed, time.monotonic() - started, bed.unit.ended if bed.unit is not None else [])
    if result.is_fine and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"{name}: {folder}", file=sys.stderr)
    return result


def soak(minutes: float) -> dict[str, Any]:
    """All of it at random, for so long: the counts, and memory and descriptors over time."""
    dice = random.Random(12)
    folder = Path(tempfile.mkdtemp(prefix="coe-soak-"))
    bed = Bed(folder, 1.0)
    bed.is_slow_allowed = True
    memory: list[float] = []
    descriptors: list[int] = []
    faults: Counter[str] = Counter()
    n_kills = n_crashes = 0
    started = time.monotonic()
    with bed.opened:
        unit = bed.start()
        unit.is_ready.wait(60)
        while time.monotonic() - started < 60 * minutes:
            kind = dice.choice(("member", "file", "link", "kill", "server", "crash", "none", "none"))
            faults[kind] += 1
            bed.put(dice.randrange(5, 40))
            if kind == "member":
                bed.put(3, dice.choice(MEMBERS))
            elif kind == "file":
                (folder / "in" / bed.name("garbage")).write_bytes(os.urandom(300))
            elif kind == "link":
                bed.proxy.fault = dice.choice(link_faults())
                bed.put(20, pause_s=dice.uniform(0.01, 0.2))
                bed.proxy.fault = None
            elif kind == "kill" and unit.is_ready.is_set():
                unit.kill()
                n_kills += 1
            elif kind == "server" and dice.random() < 0.3:
                new_cloud(bed)
            elif kind == "crash" and dice.random() < 0.1:
                bed.put(0, "crash")
                n_crashes += 1
            unit.is_ready.wait(60)
            time.sleep(dice.uniform(0.5, 3))
            with suppress(OSError, StopIteration):
                status = Path(f"/proc/{unit.pid}/status").read_text()
                resident = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
                memory.append(int(resident) / 1024)
                descriptors.append(len(os.listdir(f"/proc/{unit.pid}/fd")))
        bed.settle()
    result = asdict(measured("soak", bed, time.monotonic() - started, unit.ended))
    quarter = max(len(memory) // 4, 1)
    by_itself = Counter(str(code) for code in unit.ended)
    return result | {
        "faults": dict(faults),
        "kills": n_kills,
        "crashes": n_crashes,
        "ended": dict(by_itself),
        "starts": unit.n_starts,
        "memory_mb": [statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])],
        "most_memory_mb": max(memory),
        "descriptors": [
            statistics.median(descriptors[quarter : 2 * quarter]),
            statistics.median(descriptors[-quarter:]),
        ],
        "most_descriptors": max(descriptors),
        "tracebacks": unit.log.count("Traceback"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(SCENARIOS), default=tuple(SCENARIOS), metavar="NAME")
    parser.add_argument("--size", type=float, default=1.0, help="of each scenario; below 1 it is shorter")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--keep", action="store_true", help="leave the folders of those that went well, too")
    options = parser.parse_args()
    if options.soak is not None:
        print(json.dumps(soak(options.soak), indent=1))
        return 0
    results = []
    print(f"{'scenario':16} given  lost twice  late errors degraded corrected exit ended", file=sys.stderr)
    for name in options.only:
        one = run(name, options.size, options.keep)
        results.append(one)
        print(
            f"{name:16} {one.given:5} {one.lost:5} {one.twice:5} {one.late:5} {one.errors:6} {one.degraded:8} "
            f"{one.corrected:9} {one.exit_code!s:4} {one.ended or '-'}  {one.note}{'' if one.is_fine else '  <-'}",
            file=sys.stderr,
            flush=True,
        )
    print(json.dumps({"size": options.size, "scenarios": [asdict(one) for one in results]}, indent=1))
    return 0 if all(one.is_fine for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
