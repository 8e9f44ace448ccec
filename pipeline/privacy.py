"""What may leave this machine, and whose outputs may be trained on: found before anything is loaded or sent.

The same is held again when a request is sent (`teachers/client.py`); here it is said early, and all at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import write_json
from pipeline.recipe import RecipeBase
from teachers.catalog import lookup
from teachers.config import ChatTeacher, PluginTeacher, ProvidedBase, Provider, ServedTeacher
from teachers.guard import Guard, is_loopback

MARK = "tutelage.json"  # beside an exported model's weights


@dataclass(frozen=True)
class Findings:
    """One line each. problems stop a run, warnings are shown."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def guard_of(recipe: RecipeBase) -> Guard:
    return Guard(recipe.privacy.allowed)


def private_sources(recipe: RecipeBase) -> list[str]:
    return [name for name, source in recipe.data.sources.items() if source.private]


def examine(recipe: RecipeBase) -> Findings:
    """Private prompts that would leave the machine, and teachers whose terms forbid or do not say."""
    problems = list(_leaks(recipe))
    warnings: list[str] = []
    for name, config in recipe.teachers.items():
        if not isinstance(config, ProvidedBase) or _is_ours(config):
            continue
        provider = provider_of(config)
        read = f" ({', '.join(filter(None, (provider.source, provider.date)))})" if provider.source else ""
        if provider.training == "forbidden":
            problems.append(
                f"teachers.{name}: its terms forbid training on its outputs{read}; use another teacher, or set "
                f"teachers.{name}.provider.training=allowed if you have an agreement that says otherwise"
            )
        elif provider.training in (None, "unknown"):
            warnings.append(
                f"teachers.{name}: it is not known whether its terms allow training on its outputs{read}; read them and "
                f"set teachers.{name}.provider.training"
            )
    return Findings(tuple(problems), tuple(warnings))


def provider_of(config: ProvidedBase) -> Provider:
    """What the recipe says of who runs it, and where it says nothing, the catalog."""
    entry = lookup(config.model, config.url) if isinstance(config, ChatTeacher | ServedTeacher) else None
    known = entry.provider.model_dump() if entry is not None else {}
    said = {key: value for key, value in config.provider.model_dump().items() if value is not None}
    return Provider(**{**known, **said})


def addresses(config: ProvidedBase) -> tuple[str, ...]:
    """Where this teacher's questions are sent."""
    if isinstance(config, ServedTeacher):
        return config.url
    if isinstance(config, ChatTeacher):
        entry = lookup(config.model, config.url)
        url = config.url or (entry.url if entry is not None else None)
        return (url,) if url else ()
    return ()


def _is_ours(config: ProvidedBase) -> bool:
    urls = addresses(config)
    return bool(urls) and all(is_loopback(_host(url)) for url in urls)


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return (urlsplit(url).hostname or "").rstrip(".").lower()


def _leaks(recipe: RecipeBase) -> Iterator[str]:
    sources = private_sources(recipe)
    if not sources:
        return
    guard = guard_of(recipe)
    private = f"data.sources.{sources[0]} is private"
    for name, config in recipe.teachers.items():
        if isinstance(config, PluginTeacher) and config.provider.region != "local":
            yield (
                f"teachers.{name}: {private}, and where a plugin sends its questions is not known; if it keeps them on "
                f"this machine, set teachers.{name}.provider.region=local"
            )
        if isinstance(config, ProvidedBase):
            for url in addresses(config):
                if not guard.may_receive_private(url):
                    yield (
                        f"teachers.{name}: {private} and {_host(url)} is not this machine; use a teacher on this machine, "
                        f"or allow it by privacy.allowed=[{_host(url)}]"
                    )


def mark(recipe: RecipeBase, folder: Path) -> None:
    """Writes what a model was trained on beside its weights, so that whoever loads it can know."""
    write_json(
        folder / MARK,
        {
            "private": bool(private_sources(recipe)),
            "private_sources": private_sources(recipe),
            "teachers": {
                name: {"kind": config.kind, **(_terms(config) if isinstance(config, ProvidedBase) else {})}
                for name, config in recipe.teachers.items()
            },
        },
    )


def _terms(config: ProvidedBase) -> dict[str, object]:
    provider = provider_of(config)
    return {"training": provider.training or "unknown", "region": provider.region, "source": provider.source}
