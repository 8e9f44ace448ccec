"""A vLLM server that follows the student: found or started, given each version of the weights, brought back.

LoRA: each version is an adapter under a name of its own, so that no token, and no entry of the prefix cache, is taken
for another version's. All weights: the server reads them again (`collective_rpc` reload_weights, in vLLM's development
mode) and is told the version's name (`update_weight_version`), by which one knows it again after it was away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import RunError
from pipeline.export.usage import VLLM_RANKS
from pipeline.rollout.vllm_http import EngineError, Wire, error_of
from pipeline.rollout.vllm_process import ServerProcess
from pipeline.rollout.vllm_weights import Following, Published

QUICK = 30.0  # seconds, for what a server says of itself
LOADING = 1800.0  # seconds, for weights of any size from any disk
PAUSE = 0.5  # seconds between two looks at a server that is not there
_ATTEMPTS = 3  # to give it weights


@dataclass(eq=False)
class Engine:
    """One server, as one process of the run sees it.

    name: of the student's base or, where all weights follow, of the student; found when it is first there. process:
    where this run has started it. base: what it serves before it follows: None where it starts with what is published.
    ready: seconds that it may take to be there. say: for what people should know. restarts: how often it was started
    again, or found to have lost the weights.
    """

    root: str
    following: Following
    name: str | None
    ready: float
    say: Callable[[str], None]
    process: ServerProcess | None = None
    base: str | None = None
    restarts: int = 0
    published: Published | None = None
    _mending: asyncio.Lock | None = field(default=None, repr=False)

    @property
    def asked_as(self) -> str:
        """The model that requests name."""
        assert self.published is not None
        if self.following == "adapter":
            return self.published.name
        assert self.name is not None
        return self.name

    def close(self) -> None:
        if self.process is not None:
            self.process.stop()

    def enter(self) -> None:
        """To be called on each event loop before `mend`."""
        self._mending = asyncio.Lock()

    async def follow(self, wire: Wire, published: Published) -> Published | None:
        """Has the server use these weights from now on. Returns those that it had before, which nobody needs any more.

        Raises RunError where it cannot be had, or cannot follow.
        """
        before, self.published = self.published, published
        for attempt in range(1, _ATTEMPTS + 1):
            fresh = await self._up(wire)
            try:
                await self._load(wire, fresh)
                break
            except EngineError as error:  # it may have gone meanwhile
                if not error.passes or attempt == _ATTEMPTS:
                    raise self._cannot(error) from error
        if before is not None and self.following == "adapter":
            await self._unload(wire, before)
        return before

    async def join(self, wire: Wire, published: Published) -> None:
        """What a process does that has not published them itself."""
        self.published = published
        await self._up(wire)

    async def require_weights(self, wire: Wire) -> None:
        """Raises EngineError where a server was started again and serves what it was started with. An adapter's name
        says as much by itself: it is not known any more."""
        if self.following == "model" and not await self._has_weights(wire):
            raise error_of("not_found", "it has other weights than the student's", passes=False)

    async def mend(self, wire: Wire, seen: int, why: str, *, hangs: bool = False) -> None:
        """Brings the server back, with the weights, after a request failed; done once for all that failed together.

        seen: `restarts` when that request was made. why: what went wrong, for people. hangs: it is there and says
        nothing; one of ours is ended first.
        """
        assert self._mending is not None
        async with self._mending:
            if self.restarts != seen:
                return
            if hangs and self.process is not None:
                self.process.stop()
            fresh = await self._up(wire, f"the engine is gone ({why}); it is started again, and answers go on")
            try:
                if fresh or not await self._has_weights(wire):
                    await self._load(wire, fresh)
                    self.restarts += 1
            except EngineError as error:
                if not error.passes:
                    raise self._cannot(error) from error

    async def _up(self, wire: Wire, says: str = "") -> bool:
        """Waits for the server, and starts one of ours that is not there. Returns whether it was started just now.
        says: to people, when it is.

        Raises RunError where it does not come.
        """
        fresh = self._start_if_down(says)
        while not await self._there(wire):
            if fresh:
                assert self.process is not None
                raise RunError(
                    f"rollout.server: vLLM ended when it was started: {self.process.last_words()}; all of it is in "
                    f"{self.process.log}"
                )
            fresh = self._start_if_down(says)  # its front outlives its engine by a while
        if self.name is None:
            self.name = await self._only_model(wire)
        return fresh

    def _start_if_down(self, says: str) -> bool:
        """Whether it has been started just now."""
        if self.process is None or self.process.runs:
            return False
        if says:
            self.say(says)
        assert self.published is not None
        self.process.start(self.base or str(self.published.folder))
        self.root = self.process.root
        return True

    async def _there(self, wire: Wire) -> bool:
        """Waits until it answers; False where one of ours has ended. Raises RunError where it takes too long."""
        wire.root = self.root
        clock = asyncio.get_running_loop().time
        until = clock() + self.ready
        while True:
            try:
                await wire.command("/health", seconds=QUICK)
                return True
            except EngineError as error:
                if self.process is not None and not self.process.runs:
                    return False
                if not error.passes or clock() >= until:
                    log = f"; see {self.process.log}" if self.process else "; start it, then go on with --resume"
                    raise RunError(f"rollout.server: {self.root} does not answer ({error}){log}") from error
            await asyncio.sleep(PAUSE)

    async def _only_model(self, wire: Wire) -> str:
        try:
            entries = await _served(wire)
        except EngineError as error:
            raise self._cannot(error) from error
        names = [entry["id"] for entry in entries if not entry.get("parent")]  # without adapters
        if len(names) != 1:
            there = ", ".join(names) or "none"
            raise RunError(f"rollout.server.model: {self.root} serves {len(names)} models ({there}); name one of them")
        return str(names[0])

    # ---- weights ----

    async def _has_weights(self, wire: Wire) -> bool:
        assert self.published is not None
        if self.following == "adapter":
            return self.published.name in {entry["id"] for entry in await _served(wire)}
        info = (await wire.command("/weight_info", seconds=QUICK)).json()
        return bool(info.get("weight_version") == self.published.name)

    async def _load(self, wire: Wire, fresh: bool) -> None:
        """fresh: it was started with them, where it has no other base."""
        assert self.published is not None
        name, folder = self.published.name, str(self.published.folder)
        if self.following == "adapter":
            await wire.command("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, seconds=LOADING)
            return
        if not (fresh and self.base is None):
            weights = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            await wire.command("/collective_rpc", weights, seconds=LOADING)
        await wire.command("/update_weight_version", {"new_version": name}, seconds=QUICK)

    async def _unload(self, wire: Wire, published: Published) -> None:
        try:
            await wire.command("/v1/unload_lora_adapter", {"lora_name": published.name}, seconds=LOADING)
        except EngineError as error:
            if not error.unknown:  # it may have been started again since, without it
                raise self._cannot(error) from error

    def _cannot(self, error: EngineError) -> RunError:
        """It does not do what following a student takes: with what it has to be started."""
        if self.following == "adapter":
            needed = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and --max-lora-rank at the student's rank"
        else:
            needed = "VLLM_SERVER_DEV_MODE=1 (vLLM 0.32 or later)"
        return RunError(
            f"rollout.server: {self.root} cannot follow the student ({error}); start it with {needed}, where it can "
            "read the folder of the weights"
        )


async def _served(wire: Wire) -> list[dict[str, Any]]:
    data = (await wire.command("/v1/models", seconds=QUICK)).json().get("data")
    return [entry for entry in data if isinstance(entry, dict) and "id" in entry] if isinstance(data, list) else []


def flags_of(following: Following, *, name: str, dtype: str, context: int, rows: int, rank: int | None) -> list[str]:
    """vLLM's flags for a server that follows a student. rank: of its adapter."""
    flags = ["--served-model-name", name, "--dtype", dtype, "--max-model-len", str(context)]
    flags += ["--max-num-seqs", str(rows), "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    if following == "adapter":
        assert rank is not None
        # One is in use while the one before it is let go.
        flags += ["--enable-lora", "--max-lora-rank", str(room_of(rank)), "--max-loras", "2"]
    return flags


def room_of(rank: int) -> int:
    """The least of vLLM's own sizes that holds an adapter of this rank."""
    for size in VLLM_RANKS:
        if rank <= size:
            return size
    raise RunError(f"student.tune.rank: vLLM takes adapters of rank {VLLM_RANKS[-1]} at most, not {rank}; lower it")
