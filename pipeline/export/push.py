"""A folder to a hub, through huggingface_hub: who may, where to, and what went wrong, in one line.

The hub keeps what has reached it, so a push that broke off goes on when the same command is run again. Nothing is
deleted there but the weights of an earlier push that this one replaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from pipeline.errors import RunError
from pipeline.export.form import Kind
from pipeline.privacy import push_problem
from pipeline.recorded import RecordedRun

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_STALE = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
_AGAIN = "run the same command again: what has arrived there is not sent twice"


@dataclass(frozen=True)
class Target:
    """A repository that exists and may be written to."""

    name: str
    api: HfApi

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{self.name}"


def open_target(run: RecordedRun, name: str, *, private: bool) -> Target:
    """Makes the repository, or finds it. To be called before anything is written: most of what is wrong shows here.

    Raises RunError: a private run and a hub that is not allowed, or a repository that everybody reads; no token, or
    one that may not; a name that is none; a hub that does not answer.
    """
    if not NAME.fullmatch(name) or ".." in name or "--" in name:
        raise RunError(f"--push {name}: write OWNER/NAME, your account on the hub and the model's name")
    endpoint = constants.ENDPOINT
    problem = push_problem(run.recipe, endpoint, public=not private) if run.private else None
    if problem:
        raise RunError(f"--push {name}: {problem}")
    if run.recipe.privacy.mode == "sealed":
        raise RunError(
            f"--push {name}: the run is sealed (privacy.mode), and there is no network to push over; export it without "
            "--push, and send the folder yourself"
        )
    if constants.HF_HUB_OFFLINE:
        raise RunError(f"--push {name}: HF_HUB_OFFLINE is set; unset it to push")
    token = get_token()
    if not token:
        raise RunError(f"--push {name}: no token; log in with `hf auth login`, or set HF_TOKEN to one that may write")
    api = HfApi(endpoint=endpoint, token=token)
    with _told(name, endpoint):
        api.create_repo(name, private=private, exist_ok=True)
        public = not api.repo_info(name).private
    if run.private and (problem := push_problem(run.recipe, endpoint, public=public)):
        raise RunError(f"--push {name}: this repository is public already: {problem}")
    return Target(name, api)


def upload(target: Target, folder: Path, kind: Kind, message: str) -> str:
    """Sends the folder and returns the repository's address. Raises RunError, and what arrived stays there."""
    with _told(target.name, str(target.api.endpoint)):
        target.api.upload_folder(
            repo_id=target.name,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=["*.partial"],
            delete_patterns=_STALE if kind != "adapter" else None,
        )
    return target.url


@contextmanager
def _told(name: str, endpoint: str) -> Iterator[None]:
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, RuntimeError, ValueError, OSError) as error:
        raise RunError(f"--push {name}: {explained(error, endpoint)}") from error


def explained(error: BaseException, endpoint: str) -> str:
    """What a failed request to a hub means, and what to do. Whatever raised it, the cause tells."""
    link: BaseException | None = error
    while link is not None:
        response = getattr(link, "response", None)
        if response is not None:
            return _of_status(response.status_code, endpoint, str(getattr(link, "server_message", None) or ""))
        if isinstance(link, httpx2.TransportError):
            return f"the connection to {endpoint} failed ({type(link).__name__}); {_AGAIN}"
        link = link.__cause__ or link.__context__
    return f"{' '.join(str(error).split())[:200]}; {_AGAIN}"


def _of_status(status: int, endpoint: str, said: str) -> str:
    words = f": {' '.join(said.split())[:200]}" if said else ""
    if status == 401:
        return f"{endpoint} does not take the token (401{words}); log in again with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"the token may not write there (403{words}); make one with write access, or name another OWNER"
    if status == 404:
        return f"{endpoint} does not know it, or not for you (404{words}); check OWNER and the token's access"
    if status in (402, 413, 507):
        return f"{endpoint} has no room for it ({status}{words}); see your storage there"
    if status == 429:
        return f"{endpoint} has had too many requests (429{words}); wait a while, then {_AGAIN}"
    if status >= 500:
        return f"{endpoint} failed ({status}{words}); {_AGAIN}"
    return f"{endpoint} refused it ({status}{words})"
