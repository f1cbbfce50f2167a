"""A real MQTT broker, Debian's mosquitto, as a process on loopback (`.ci/broker` installs it)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from fakes import BOUND_S, until
from programs import closed_port

MOSQUITTO = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Mosquitto:
    """In a `with` block it runs; it may be killed, and started again on the same port.

    `lines`: more of its config. The test is skipped where it is not installed.
    """

    def __init__(self, folder: Path, *lines: str) -> None:
        if MOSQUITTO is None:
            pytest.skip("needs the MQTT broker mosquitto: apt-get install mosquitto (.ci/broker does)")
        folder.mkdir(exist_ok=True)
        self.port = closed_port()
        self._config = folder / "mosquitto.conf"
        settings = [f"listener {self.port} 127.0.0.1", *(lines or ("allow_anonymous true",))]
        if os.geteuid() == 0:
            settings.append("user root")  # it would become another user, who cannot read the test's folder
        self._config.write_text("".join(f"{line}\n" for line in settings))
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stdout=log, stderr=log)
        until(self._listens)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(BOUND_S)
            self._process = None

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Subscriber:
    """Another client of the broker, that sees everything published while the block runs."""

    def __init__(self, port: int, topic: str = "#") -> None:
        import paho.mqtt.client as paho

        self.messages: list[tuple[str, bytes]] = []
        self.retained: set[str] = set()
        self.is_there = threading.Event()
        self._port, self._topic = port, topic
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="test", clean_session=False)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, 1)
        self._client.on_subscribe = lambda *_: self.is_there.set()
        self._client.on_message = lambda client, data, message: self._take(message)
        self._client.reconnect_delay_set(0.05, 0.05)

    def _take(self, message: object) -> None:
        self.messages.append((message.topic, message.payload))  # type: ignore[attr-defined]
        if message.retain:  # type: ignore[attr-defined]
            self.retained.add(message.topic)  # type: ignore[attr-defined]

    def on(self, topic: str) -> list[bytes]:
        return [payload for where, payload in self.messages if where == topic]

    def __enter__(self) -> Subscriber:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        assert self.is_there.wait(BOUND_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
