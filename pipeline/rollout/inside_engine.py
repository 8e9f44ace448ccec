"""vLLM's engine inside this process: made for a student, given its weights in memory, asleep while they are trained.

Read and run with vLLM 0.32, whose engine, scheduler and worker run in the caller's thread where
VLLM_ENABLE_V1_MULTIPROCESSING is 0. LoRA: each version is an adapter under a name of its own (`add_lora`), which vLLM
takes from a folder; that is gone when it is loaded. All weights: `reload_weights`, from the student's own tensors.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from pipeline.errors import RunError
from pipeline.rollout.vllm_weights import Following, named_weights, publish, withdraw
from pipeline.student import Student

WHO = "vLLM in this process"
T = TypeVar("T")
_SAID = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CONFIGURE_LOGGING": "0", "VLLM_NO_USAGE_STATS": "1"}
# What vLLM raises for what it cannot do, from a key that it does not know to memory that is not there.
_FAILS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError)
_REFUSES = (*_FAILS, TypeError, ValueError)


@dataclass(frozen=True)
class Said:
    """New tokens of one request. finish: why the engine says that it ends here, None: it goes on."""

    name: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str | None


@dataclass(eq=False)
class InsideEngine:
    """options: vLLM's EngineArgs. sleeps: between rollouts. alone: this process is the run's only one. place: a folder
    for adapters on their way. log: where vLLM says what it does.

    has: the name of the weights in it, None where it has none. Made when it is first needed. To be used inside
    `process_kept`.
    """

    options: Mapping[str, Any]
    following: Following
    sleeps: bool
    alone: bool
    place: Path
    log: Path
    has: str | None = None
    _engine: Any = field(default=None, repr=False)
    _asleep: bool = False
    _adapter: Any = None
    _loaded: int = 0

    def follow(self, student: Student, name: str, version: int) -> None:
        """Awake, and with the student's weights as they are now under `name`, unless it has those.

        Raises RunError where vLLM cannot be had, or does not take them.
        """
        if self._engine is None:
            self._engine = self._doing("start", lambda: _made(self.options, self.log))
        if self._asleep:
            torch.cuda.empty_cache()  # what training has let go of, its allocator keeps
            self._doing("wake up", lambda: self._engine.wake_up(["weights"]))
        if self.has != name:
            load = self._load_adapter if self.following == "adapter" else self._load_model
            self._doing("take the student's weights", lambda: load(student, name, version))
            self.has = name
        if self._asleep:
            self._doing("wake up", lambda: self._engine.wake_up(["kv_cache"]))
            self._asleep = False

    def rest(self) -> None:
        """Gives memory back until the next rollouts. An adapter's base is kept in RAM, all weights are given anew."""
        if self.sleeps and not self._asleep:
            level = 1 if self.following == "adapter" else 2
            self._doing("sleep", lambda: self._engine.sleep(level))
            self._asleep = True
            if level == 2:
                self.has = None

    def ask(self, name: str, token_ids: Sequence[int], params: Mapping[str, Any]) -> None:
        """To go on after `token_ids`. params: of vLLM's SamplingParams."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        found = SamplingParams(**params, detokenize=False, output_kind=RequestOutputKind.DELTA)
        # What other weights have computed stands in the prefix cache under another salt.
        prompt = {"prompt_token_ids": list(token_ids), "cache_salt": self.has}
        self._doing("write", lambda: self._engine.add_request(name, prompt, found, lora_request=self._adapter))

    def step(self) -> list[Said]:
        """One forward of all that is asked, and what came of it."""
        outputs = self._doing("write", self._engine.step)
        return [_said(output.request_id, output.outputs[0]) for output in outputs]

    def forget(self, names: Sequence[str]) -> None:
        """Writes no more of these."""
        self._engine.abort_request(list(names))

    def close(self) -> None:
        """Gives everything back. Another engine may be made in this process afterwards."""
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        self.has = self._adapter = None
        with _process_group_kept(not self.alone):
            engine.engine_core.shutdown()
        del engine
        gc.collect()
        _log_nowhere()

    # ---- weights ----

    def _load_adapter(self, student: Student, name: str, version: int) -> None:
        from vllm.lora.request import LoRARequest

        if self._adapter is not None:
            self._engine.remove_lora(self._adapter.lora_int_id)
        published = publish(student, self.place, name, version)
        try:
            self._loaded += 1
            self._adapter = LoRARequest(name, self._loaded, str(published.folder))
            if not self._engine.add_lora(self._adapter):
                raise RuntimeError("its adapter was not loaded")
        finally:
            withdraw(published)

    def _load_model(self, student: Student, name: str, version: int) -> None:
        weights = {"weights_iterator": iter(named_weights(student).items())}
        self._engine.collective_rpc("reload_weights", kwargs=weights)

    def _doing(self, what: str, act: Callable[[], T]) -> T:
        try:
            return act()
        except _REFUSES as error:
            words = (" ".join(str(error).split()) or type(error).__name__)[:300]
            raise RunError(
                f"rollout.server: vLLM does not {what} in this process: {words}; see {self.log}, rollout.server.memory "
                "and rollout.server.options, or let a server write: rollout.server=start"
            ) from error


def _made(options: Mapping[str, Any], log: Path) -> Any:
    """A new engine. options: of vLLM's EngineArgs."""
    _log_to(log)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        engine = LLMEngine.from_engine_args(EngineArgs(**options))
    gc.unfreeze()  # it has kept all that was there from ever being collected
    return engine


def _said(name: str, output: Any) -> Said:
    ids = tuple(output.token_ids)
    logprobs = tuple(entry[token].logprob for entry, token in zip(output.logprobs or (), ids, strict=True))
    return Said(name, ids, logprobs, output.finish_reason)


def _log_nowhere() -> logging.Logger:
    logger = logging.getLogger("vllm")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    return logger


def _log_to(path: Path) -> None:
    """vLLM's words go to a file: they would run through what the run shows."""
    logger = _log_nowhere()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(file)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def process_kept() -> Iterator[None]:
    """What vLLM sets for the whole process is as it was afterwards, but for its own variables.

    It seeds every random generator and draws from them, takes torch.set_num_threads away on a CPU, and has children
    preload libraries.
    """
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    precision = torch.get_float32_matmul_precision()
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    before = dict(os.environ)
    os.environ.update(_SAID)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name not in before and not name.startswith("VLLM_")]:
            del os.environ[name]
        os.environ.update(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _process_group_kept(kept: bool) -> Iterator[None]:
    """With several processes: an engine that is shut down ends the default process group, and that is the run's own."""
    end = dist.destroy_process_group

    def only_its_own(group: Any = None) -> None:
        if group is not None:
            end(group)

    if kept:
        dist.destroy_process_group = only_its_own
    try:
        yield
    finally:
        dist.destroy_process_group = end
