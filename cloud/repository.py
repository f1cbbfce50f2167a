"""The model repository: reloads models when their files change, loads and unloads them on request.

The files that make up a server's models (config, manifests, model files) are checked at an interval. A change that
can be read is loaded and warmed up while the old generation answers; then new calls go to the new one, and the old
one is closed after its last call. Any other change is refused with a line in the log, and the old one stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from coe.cascade.errors import CascadeError, ConfigError, NotAllowed
from coe.config.manifest import NAME
from coe.protocol.core import InferenceCore, ServedModel
from coe.protocol.credentials import Stamp, stamp
from coe.protocol.servicer import IndexEntry
from coe.protocol.status import UnknownModel

from .config import ServerConfig, read_config
from .engines.embedded import EmbeddedEngine

log = logging.getLogger(__name__)


class ModelRepository:
    """Changes the models of `core`.

    Args:
        config: of `engine`, which serves now.
        make: loads a config's models; called on a thread.
        control: True if callers may load and unload models.
    """

    def __init__(
        self,
        core: InferenceCore,
        config: ServerConfig,
        engine: EmbeddedEngine,
        make: Callable[[ServerConfig], EmbeddedEngine],
        *,
        control: bool = False,
    ) -> None:
        self.core = core
        self.config = config
        self.engine = engine
        self.make = make
        self.control = control
        self.last_error = ""  # why the last change was refused; "": it was not
        self.generation = 1
        self._signature = _signature(config)
        self._unloaded: dict[str, ServedModel] = {}
        self._change = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    def index(self) -> list[IndexEntry]:
        """Every model, loaded or not."""
        unloaded = self._unloaded.values()
        return [
            *(IndexEntry(one.name, one.version, "READY", "") for one in self.core.models.values()),
            *(IndexEntry(one.name, one.version, "UNAVAILABLE", "unloaded on request") for one in unloaded),
        ]

    async def load(self, name: str) -> None:
        """Load a model again: with it, all those of the same config, which share their tiers.

        Raises:
            NotAllowed: callers may not.
            UnknownModel: the config has no such model.
            CascadeError: it cannot be loaded; the old generation stays.
        """
        self._check(name)
        await self.reload(force=True)
        if served := self._unloaded.pop(name, None):
            self.core.models[name] = self.engine.models.get(name, served)

    async def unload(self, name: str) -> None:
        """Serve a model no longer, until it is loaded again. Calls under way finish.

        Raises:
            NotAllowed, UnknownModel: as `load`.
        """
        self._check(name)
        if name in self.core.models:
            self._unloaded[name] = self.core.models.pop(name)
            log.warning("model %s: unloaded on request", name)

    async def watch(self, every_s: float) -> None:
        """Reload what changes, checking the files at an interval, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.reload()
            except CascadeError as error:
                log.error("the new models are refused, the old ones keep serving: %s", error)
            except Exception:
                log.exception("the new models cannot be loaded, the old ones keep serving")

    async def reload(self, *, force: bool = False) -> bool:
        """Load what changed since the last check; True if anything did.

        Raises:
            CascadeError: the change is refused; the old generation stays. The same change is not tried twice.
        """
        async with self._change:
            signature = await asyncio.to_thread(_signature, self.config)
            if signature == self._signature and not force:
                return False
            old, self._signature = self._signature, signature
            try:
                config = await asyncio.to_thread(self._read)
                # a model file may have changed, whatever its manifest says
                is_same = all(old.get(path) == signature.get(path) for path in _model_files(config))
                if is_same and config.cascade == self.config.cascade and not force:
                    return False
                engine = await asyncio.to_thread(self.make, config)
            except CascadeError as error:
                self.last_error = str(error)
                raise
            before, self.engine, self.config = self.engine, engine, config
            self._signature = _signature(config)
            self._unloaded = {name: engine.models[name] for name in self._unloaded if name in engine.models}
            self.core.models = {name: served for name, served in engine.models.items() if name not in self._unloaded}
            self.last_error = ""
            self.generation += 1
            log.warning("models reloaded: generation %d, %s", self.generation, ", ".join(self.core.models))
            leaving = asyncio.create_task(before.retire())
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            return True

    async def close(self) -> None:
        """After the last call has ended."""
        for leaving in tuple(self._leaving):
            await leaving
        await asyncio.to_thread(self.engine.close)

    def _read(self) -> ServerConfig:
        """The config with the models its file has now; everything else stays as at the start."""
        assert self.config.source is not None
        fresh = read_config(self.config.source)
        if fresh.model != self.config.model:
            raise ConfigError([f"model: expected {self.config.model} as before, got {fresh.model} (restart for that)"])
        return replace(self.config, cascade=fresh.cascade)

    def _check(self, name: str) -> None:
        if not self.control:
            raise NotAllowed("loading and unloading models is not allowed here (set `server.model_control: true`)")
        if name not in self.core.models and name not in self._unloaded:
            known = ", ".join((*self.core.models, *self._unloaded))
            raise UnknownModel(f"model: expected one of {known}, got {name[:64]!r}")


def _signature(config: ServerConfig) -> dict[Path, Stamp]:
    """A stamp of each file that the models come from."""
    models = _model_files(config)
    files = (config.source, *models, *(path.parent / NAME for path in models))
    return {path: stamp(path) for path in files if path is not None}


def _model_files(config: ServerConfig) -> list[Path]:
    return [spec.path for tier in config.cascade.local_tiers for spec in tier.members]
