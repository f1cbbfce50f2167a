"""Decisions to an MQTT broker, through paho-mqtt."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from coe import __version__
from coe.cascade.errors import ConfigError
from coe.models.loading import import_runtime

from .base import Record
from .config import MqttConfig, fill_topic, this_host
from .delivery import Facts, PermanentFailure, read_secret

TOGETHER = 20  # records sent at once, as many as paho has in flight
ANSWER_S = 5.0  # for the broker's acknowledgement
CONNECT_S = 3.0
FIRST_WAIT_S, MOST_WAIT_S = 1.0, 30.0  # between paho's own attempts to connect
MOST_TOPIC_BYTES = 65535
STATE_S = 10.0  # between two publications of the agent's state


class MqttTransport:
    """Publishes each record; it has arrived once the broker acknowledges it (with qos 0: once it is sent).

    Records that were not acknowledged when the connection was lost paho sends again by itself after it reconnects; so a
    record may arrive twice, and with qos 1 or 2 none is lost on the way.

    Args:
        first_wait_s: before the first new attempt to connect; each further one waits twice as long.
    Raises:
        ConfigError: the password or a certificate cannot be read.
        RuntimeMissing: paho-mqtt is not installed.
    """

    kind = "mqtt"
    most = TOGETHER
    gather_s = 0.0

    def __init__(self, config: MqttConfig, *, first_wait_s: float = FIRST_WAIT_S) -> None:
        self.config = config
        self.name = f"{config.host}:{config.port}"
        self._paho: Any = import_runtime("paho.mqtt.client", "MQTT", "pip install 'coe-cascade[mqtt]'")
        self._turn = threading.Condition()
        self._is_connected = False
        self._reason = "cannot be reached"
        self._n_failures = self._n_raised = 0  # of connecting, and how many of them `send` has raised
        self._batch: Sequence[Record] = ()  # being sent
        self._numbers: list[int] = []  # of its messages
        self._arrived: set[int] = set()
        self._facts: Callable[[], Facts] | None = None
        self._state_timer: threading.Timer | None = None
        self._client = self._connect(first_wait_s)

    def send(self, records: Sequence[Record]) -> None:
        end = time.monotonic() + ANSWER_S
        with self._turn:
            self._turn.wait_for(lambda: self._is_connected or self._n_failures > self._n_raised, CONNECT_S)
            if not self._is_connected:
                self._n_raised = self._n_failures
                raise OSError(f"{self.name} {self._reason}")
        if records is not self._batch:
            self._batch, self._numbers = records, []
        while len(self._numbers) < len(records):
            self._numbers.append(self._publish(records[len(self._numbers)]))
        with self._turn:
            if not self._turn.wait_for(lambda: self._arrived.issuperset(self._numbers), end - time.monotonic()):
                if self.config.qos == 0:
                    self._batch = ()  # paho itself sends again only what has to be acknowledged
                raise OSError(f"{self.name} does not acknowledge" if self._is_connected else f"{self.name} went away")
            self._arrived.clear()
            self._batch = ()
            if self._facts is not None and self._state_timer is None:
                self._state_timer = threading.Timer(STATE_S, self._publish_state)
                self._state_timer.daemon = True
                self._state_timer.start()

    def watch(self, facts: Callable[[], Facts]) -> None:
        """Publish these facts, retained, now and some time after records, if the config has `discovery`."""
        if self.config.discovery:
            self._facts = facts
            self._publish_state()

    def close(self) -> None:
        """Disconnect properly, so that the broker does not publish the last will."""
        client = self._client
        if self._state_timer is not None:
            self._state_timer.cancel()
        if self._is_connected:
            client.publish(self.config.status_topic, "offline", qos=1, retain=True)
        client.disconnect()
        client.loop_stop()

    def _publish(self, record: Record) -> int:
        """The message's number, once paho has accepted it."""
        config = self.config
        topic = topic_of(config, record)
        if len(topic.encode()) > MOST_TOPIC_BYTES:
            raise PermanentFailure(f"topic: expected at most {MOST_TOPIC_BYTES} bytes, got {len(topic.encode())}")
        sent = self._client.publish(topic, json.dumps(record), qos=config.qos, retain=config.retain)
        if sent.rc == self._paho.MQTT_ERR_QUEUE_SIZE or (config.qos == 0 and sent.rc != self._paho.MQTT_ERR_SUCCESS):
            raise OSError(f"{self.name}: {self._paho.error_string(sent.rc)}")
        return int(sent.mid)

    def _connect(self, first_wait_s: float) -> Any:
        config, paho = self.config, self._paho
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=config.client_id, protocol=paho.MQTTv311)
        client.connect_timeout = CONNECT_S
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_connect_fail, client.on_publish = self._unreachable, self._published
        client.reconnect_delay_set(first_wait_s, MOST_WAIT_S)
        if config.username is not None:
            password_file = config.password_file
            password = None if password_file is None else read_secret(password_file, "sink.password_file", "utf-8")
            client.username_pw_set(config.username, password)
        if config.tls is not None:
            try:
                client.tls_set(*(None if path is None else str(path) for path in config.tls))
            except OSError as error:  # ssl.SSLError is one
                raise ConfigError([f"sink.tls: a certificate or key cannot be used: {error}"]) from None
        client.will_set(config.status_topic, "offline", qos=1, retain=True)
        client.connect_async(config.host, config.port, config.keepalive_s)
        client.loop_start()
        return client

    def _connected(self, client: Any, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if not reason.is_failure:
            client.publish(self.config.status_topic, "online", qos=1, retain=True)
            for topic, entity in discovery_configs(self.config) if self.config.discovery else ():
                client.publish(topic, json.dumps(entity), qos=1, retain=True)
        self._changed(not reason.is_failure, f"refuses: {reason}")
        self._publish_state()

    def _disconnected(self, _client: Any, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if self._is_connected:
            self._changed(False, f"went away: {reason}")

    def _unreachable(self, _client: Any, _data: object) -> None:
        self._changed(False, "cannot be reached")

    def _published(self, _client: Any, _data: object, number: int, _reason: Any, _properties: object) -> None:
        with self._turn:
            self._arrived.add(number)
            self._turn.notify_all()

    def _publish_state(self) -> None:
        self._state_timer = None
        if self._facts is not None and self._is_connected:
            self._client.publish(state_topic(self.config), json.dumps(self._facts()), qos=1, retain=True)

    def _changed(self, is_connected: bool, reason: str) -> None:
        with self._turn:
            self._is_connected, self._reason = is_connected, reason
            self._n_failures += not is_connected
            self._turn.notify_all()


def state_topic(config: MqttConfig) -> str:
    return f"{config.status_topic}/state"


def discovery_configs(config: MqttConfig) -> Iterator[tuple[str, Facts]]:
    """Topics and configs of Home Assistant's entities: last label, share kept on the device, link."""
    node = re.sub(r"[^\w-]", "_", f"coe_{this_host()}", flags=re.ASCII)
    device = {"identifiers": [node], "name": f"coe {this_host()}", "model": "coe-edge", "sw_version": __version__}
    labels, state = re.sub(r"[^/]*\{(id|name)\}[^/]*", "+", config.topic), state_topic(config)
    for kind, key, name, topic, template, more in (
        ("sensor", "label", "Last label", labels, "value_json.name | default('none')", {}),
        ("sensor", "kept", "Kept", state, "(value_json.kept_share * 100) | round(1)", {"unit_of_measurement": "%"}),
        (
            "binary_sensor",
            "link",
            "Link",
            state,
            "iif(value_json.link_up, 'ON', 'OFF')",
            {"device_class": "connectivity"},
        ),
    ):
        entity = {"name": name, "unique_id": f"{node}_{key}", "device": device, "state_topic": topic, **more}
        entity |= {"value_template": f"{{{{ {template} }}}}", "availability_topic": config.status_topic}
        yield f"{config.discovery}/{kind}/{node}/{key}/config", entity


def topic_of(config: MqttConfig, record: Record) -> str:
    """A record's topic: an event's, or that of a decision, which a correction has, too."""
    return config.event_topic if "event" in record else fill_topic(config.topic, record)
