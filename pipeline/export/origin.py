"""What a student was before training, as others may call it; and under which licence it stands, where that is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import RunError
from pipeline.recipe import NewModel
from pipeline.recipe_checks import prepared_name, section_of
from pipeline.recorded import RecordedRun, read_run

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SECONDS = 5.0


@dataclass(frozen=True)
class Licence:
    """As the hub's metadata have it: an id, and for `other` a name and a link."""

    id: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Origin:
    """hub: the model's name on a hub; None: made on the spot, or known to this machine alone. new: made on the spot.

    folder: where it lies, if it is a folder.
    """

    hub: str | None = None
    revision: str | None = None
    folder: Path | None = None
    new: bool = False


def hub_name(model: str) -> str | None:
    """A model's name if it is one on a hub. Paths stay on this machine: they tell of it, and nobody else has them."""
    if Path(model).exists() or not _HUB.fullmatch(model):
        return None
    return model


def origin_of(run: RecordedRun) -> Origin:
    """Followed through the runs that prepared it, down to what nobody here has trained."""
    student = run.recipe.student
    if isinstance(student.model, NewModel):
        return Origin(new=True)
    name = prepared_name(student.model)
    if name is None:
        hub = hub_name(student.model)
        return Origin(hub, student.revision) if hub else Origin(folder=Path(student.model))
    try:
        return origin_of(read_run(run.prepared[name])) if name in run.prepared else Origin()
    except RunError:
        return Origin()


def licence_of(origin: Origin, *, ask: bool) -> Licence | None:
    """From the card beside the model or in the hub's cache; with `ask` from the hub itself, if that answers."""
    if origin.folder is not None:
        return _said_in(origin.folder / "README.md")
    if origin.hub is None:
        return None
    cached = try_to_load_from_cache(origin.hub, "README.md", revision=origin.revision)
    found = _said_in(Path(cached)) if isinstance(cached, str) else None
    if found is not None or not ask or constants.HF_HUB_OFFLINE:
        return found
    try:
        data = HfApi().model_info(origin.hub, revision=origin.revision, timeout=_SECONDS).card_data
    except (HfHubHTTPError, OSError, ValueError, RuntimeError):
        return None
    return _licence({} if data is None else vars(data))


def _said_in(card: Path) -> Licence | None:
    """By its metadata, which may be anybody's: what cannot be read says nothing."""
    try:
        text = card.read_text(encoding="utf-8")
        _, _, rest = text.partition("---\n")
        return _licence(section_of(YAML(typ="safe").load(rest.partition("\n---")[0])))
    except (OSError, ValueError, YAMLError):
        return None


def _licence(data: Mapping[str, Any]) -> Licence | None:
    found, name, link = (data.get(key) for key in ("license", "license_name", "license_link"))
    if not isinstance(found, str):
        return None
    return Licence(found, name if isinstance(name, str) else None, link if isinstance(link, str) else None)
