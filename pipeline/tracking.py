"""A run's metrics lines handed to trackers too, through accelerate's: trackio, wandb, tensorboard.

Numbers alone leave for a tracker: no prompt, no answer, no recipe. A tracker's package is imported where the recipe
names it, and nowhere else. A private run's numbers stay here unless the recipe allows where they would go. Imports
no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.privacy import guard_of, origins, parts_of
from teachers.guard import host_of

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from pipeline.recipe_file import LoadedRecipe

WANDB = "https://api.wandb.ai"
SPACES = "https://huggingface.co"


def where(tracker: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The address that a tracker sends to, as its own variables set it; None: it keeps what it gets on this machine."""
    if tracker == "wandb" and environment.get("WANDB_MODE", "online") not in ("offline", "disabled", "dryrun"):
        return environment.get("WANDB_BASE_URL") or WANDB
    if tracker == "trackio":
        if environment.get("TRACKIO_SPACE_ID"):
            return SPACES
        return environment.get("TRACKIO_SERVER_URL") or None
    return None


def at_home(tracker: str) -> str:
    """How to keep what a tracker gets on this machine."""
    if tracker == "wandb":
        return "set WANDB_MODE=offline"
    return "unset TRACKIO_SPACE_ID and TRACKIO_SERVER_URL"


def leaks(loaded: LoadedRecipe) -> list[str]:
    """A line for each tracker that would send a private run's numbers away, or any out of a sealed one; of a recipe
    and all that it prepares first."""
    found: dict[str, None] = {}
    for part, prepared in parts_of(loaded, {}):
        sealed = ["the run is sealed"] if loaded.recipe.privacy.mode == "sealed" else []
        why = ", ".join(origins(part.recipe, prepared) or sealed)
        for name in part.recipe.tracking if why else ():
            url = where(name)
            if url is not None and not guard_of(part.recipe).may_receive_private(url):
                host = host_of(url) or url
                found[
                    f"{part.where('tracking')}: {why}, and {name} sends to {host}; {at_home(name)}, leave it out, or "
                    f"allow it by privacy.allowed=[{host}]"
                ] = None
    return list(found)


def unusable(tracker: str) -> str | None:
    """What is wrong with a tracker whose package is missing, or which would stop to ask for a key."""
    if find_spec(tracker) is None:
        return f'{tracker} is not installed; pip install -e ".[{tracker}]", or leave {tracker} out of tracking'
    if tracker == "wandb" and where(tracker) == WANDB and not _knows_wandb():
        return "wandb has no key; set WANDB_API_KEY, or WANDB_MODE=offline to keep it here"
    return None


def _knows_wandb() -> bool:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (
        netrc.is_file() and "api.wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace")
    )


class Tracking:
    """The trackers of one run, open. `log` takes lines of metrics; `close` sends what is left."""

    def __init__(self, trackers: Sequence[GeneralTracker]) -> None:
        self._trackers = trackers

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl: each of its numbers under its path, such as kl/domain/math."""
        values = dict(numbers(line))
        for tracker in self._trackers:
            tracker.log(values, step=line["step"])

    def close(self) -> None:
        for tracker in self._trackers:
            with redirect_stdout(StringIO()):  # what the run says stays the run's
                tracker.finish()


def open_tracking(trackers: Sequence[str], folder: Path, step: int) -> Tracking:
    """Starts the trackers of the run in `folder`, which goes on after `step`; its main process alone should.

    tensorboard and wandb write inside of the run's directory, trackio where it always does.
    """
    return Tracking([_started(name, folder, step) for name in trackers])


def _started(name: str, folder: Path, step: int) -> GeneralTracker:
    from accelerate import tracking

    run = folder.resolve().name
    tracker: GeneralTracker
    if name == "tensorboard":
        # Steps after the checkpoint are made again by a resumed run; those of the first try are hidden.
        tracker = tracking.TensorBoardTracker(name, folder, purge_step=step + 1)
    elif name == "wandb":
        os.environ.setdefault("WANDB_SILENT", "true")
        tracker = tracking.WandBTracker("tutelage", name=run, dir=str(folder))
    else:
        tracker = tracking.TrackioTracker("tutelage", name=run, resume="allow", embed=False)
    with redirect_stdout(StringIO()):
        tracker.start()
    return tracker


def numbers(line: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a line, the step left out, under the names that lead to it."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{path}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and (path or name != "step"):
            yield f"{path}{name}", value
