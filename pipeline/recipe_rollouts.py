"""The part of a recipe about how the student writes its answers: in this process, or on a vLLM server that follows it.

Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.recipe_values import AsTuple, Positive, named
from teachers.config import KeyVariable, Seconds, Section, Url, example


class Sampling(Section):
    """How answers are drawn, whoever draws them."""

    max_new_tokens: Positive = Field(512, description="of an answer; a longer one is cut, and counted as truncated")
    temperature: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="of sampling, and of all logits in the losses"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="1: the whole distribution")
    top_k: int = Field(0, ge=0, description="0: the whole vocabulary")
    samples_per_prompt: Positive = Field(1, description="answers to each; grades are compared between them")
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], AsTuple] = Field(
        (), description="texts that end an answer"
    )
    stop_token_ids: Annotated[tuple[int, ...], AsTuple] = Field((), description="beside the model's own end tokens")
    rows: Positive = Field(64, description="sequences decoded together; lower it when memory runs out")


class LocalRollouts(Sampling):
    """In this process, by the student itself."""

    model_config = example("{max_new_tokens: 1024, samples_per_prompt: 4, rows: 32}")

    kind: Literal["local"] = "local"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where prompts are sent."""
        return ()


# ---- a server that follows the student ----


class ServerAt(Section):
    """A vLLM server that somebody else starts, and starts again."""

    model_config = example("{kind: at, url: http://127.0.0.1:8000/v1}")

    kind: Literal["at"]
    url: Annotated[Url, Field(description="where it listens, the path /v1 included or not")]
    model: str | None = Field(None, min_length=1, description="the student's name there; default: the only one")
    key: KeyVariable | None = None
    weights: str | None = Field(
        None,
        min_length=1,
        description="a folder that the server reads too, for the student's weights; default: in the run",
    )


class ServerStarted(Section):
    """A vLLM server on this machine that the run starts, starts again when it dies, and stops."""

    model_config = example("{kind: start, python: /opt/vllm/bin/python, environment: {CUDA_VISIBLE_DEVICES: '1'}}")

    kind: Literal["start"]
    python: str | None = Field(None, description="that has vLLM; default: the one that runs this")
    flags: Annotated[tuple[str, ...], AsTuple] = Field((), description="more of vLLM's own")
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables for it, such as CUDA_VISIBLE_DEVICES"
    )
    ready: Seconds = Field(900.0, description="seconds that it may take to start")


def _server(value: Any) -> Any:
    """`server: start`, or a URL alone."""
    return {"kind": "at", "url": value} if isinstance(value, str) and value != "start" else named(value)


Server = Annotated[ServerAt | ServerStarted, Field(discriminator="kind"), BeforeValidator(_server)]


class VllmRollouts(Sampling):
    """On a vLLM server, which is given the student's weights before each step."""

    model_config = example("{kind: vllm, server: start, max_new_tokens: 1024}")

    kind: Literal["vllm"]
    server: Server = Field(
        description="start, a URL, or either with more keys", examples=["http://127.0.0.1:8000/v1", "start"]
    )
    silence: Seconds = Field(300.0, description="without a token, after which a request is sent again from where it is")
    patience: Seconds = Field(1800.0, description="without a token, after which the run stops; --resume goes on")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where prompts are sent, beyond what the run itself starts."""
        return (self.server.url,) if isinstance(self.server, ServerAt) else ()


def _rollouts(value: Any) -> Any:
    """Without a kind they are written in this process; `rollout: local` is short for its defaults."""
    return {"kind": "local", **value} if isinstance(value, dict) else named(value)


Rollouts = Annotated[LocalRollouts | VllmRollouts, Field(discriminator="kind"), BeforeValidator(_rollouts)]
