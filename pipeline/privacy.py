"""What may leave this machine, and whose outputs may be trained on: found before anything is loaded or sent.

A run is private where a source is, and where it begins from a model that was trained on private data: what such a
model writes may hold what it has read. Its questions go nowhere but to this machine and what the recipe allows. For
private prompts the same is held again when a request is sent (`teachers/client.py`); here it is said early, and all
at once. A push to a hub asks `push_problem`; of trackers it is said in `tracking.py`. Whatever else would send
something away one day has to ask `origins` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path

from pipeline.errors import RunError
from pipeline.files import read_json, write_json
from pipeline.recipe import RecipeBase
from pipeline.recipe_checks import model_keys, prepared_name
from pipeline.recipe_file import LoadedRecipe
from teachers.catalog import lookup
from teachers.config import (
    ChatTeacher,
    Command,
    PluginTeacher,
    ProgramTeacher,
    ProvidedBase,
    Provider,
    PythonTests,
    ServedTeacher,
    TeacherConfig,
)
from teachers.guard import Guard, host_of, is_loopback
from teachers.walls import missing_protection

MARK = "tutelage.json"  # beside an exported model's weights
TERMS = ("teacher", "asked at", "region", "training on its outputs", "read")  # the columns of `terms`

Where = Callable[..., str]  # a key, part by part -> how a message names it


@dataclass(frozen=True)
class Findings:
    """One line each. problems stop a run, warnings are shown."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def _dotted(*key: str) -> str:
    return ".".join(key)


def examine_all(loaded: LoadedRecipe) -> Findings:
    """A recipe and all that it prepares first, each mistake with its file and line."""
    problems: list[str] = []
    warnings: list[str] = []
    for part, prepared in parts_of(loaded, {}):
        found = examine(part.recipe, prepared, part.where)
        problems += found.problems
        warnings += found.warnings
    return Findings(tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(warnings)))


def parts_of(loaded: LoadedRecipe, known: Mapping[str, bool]) -> Iterator[tuple[LoadedRecipe, Mapping[str, bool]]]:
    """Every recipe in the order in which it runs, with which of the results before it are private."""
    made = dict(known)
    for name, inner in loaded.prepared.items():
        yield from parts_of(inner, made)
        made[name] = is_private(inner, made)
    yield loaded, made


def is_private(loaded: LoadedRecipe, known: Mapping[str, bool]) -> bool:
    """Whether what a recipe makes is private. known: the results that there are before it runs, by name."""
    made = dict(known)
    for name, inner in loaded.prepared.items():
        made[name] = is_private(inner, made)
    return bool(origins(loaded.recipe, made))


def examine(recipe: RecipeBase, prepared: Mapping[str, bool] | None = None, where: Where = _dotted) -> Findings:
    """Private text that would leave the machine, and teachers whose terms forbid or do not say.

    prepared: which results of earlier recipes are private, by name. where: how a message names a key.
    """
    problems = list(_leaks(recipe, origins(recipe, prepared or {}), where))
    warnings: list[str] = []
    for name, config in recipe.teachers.items():
        if not isinstance(config, ProvidedBase):
            continue
        provider = provider_of(config)
        read = f" ({said})" if (said := _read(provider)) else ""
        if provider.training == "forbidden":
            problems.append(
                f"{where('teachers', name)}: its terms forbid training on its outputs{read}; use another teacher, or "
                f"set teachers.{name}.provider.training=allowed if you have an agreement that says otherwise"
            )
        elif provider.training != "allowed" and not _is_ours(config):
            warnings.append(
                f"{where('teachers', name)}: it is not known whether its terms allow training on its outputs{read}; "
                f"read them and set teachers.{name}.provider.training"
            )
    return Findings(tuple(problems), tuple(warnings))


# ---- who is asked, and where ----


def guard_of(recipe: RecipeBase) -> Guard:
    return Guard(recipe.privacy.allowed)


def provider_of(config: ProvidedBase) -> Provider:
    """What the recipe says of who runs it, and where it says nothing, the catalog.

    When and where the terms were read belongs to what was read: a recipe that says what they are says that as well.
    """
    entry = lookup(config.model, config.url) if isinstance(config, ChatTeacher | ServedTeacher) else None
    said = config.provider
    if entry is None:
        return said
    known = entry.provider
    terms = said if said.training is not None else known
    return Provider(
        region=said.region or known.region,
        training=terms.training,
        date=said.date or terms.date,
        source=said.source or terms.source,
    )


def terms(recipe: RecipeBase) -> list[list[str | None]]:
    """A row of TERMS for every teacher that somebody runs; None for what is not known."""
    rows: list[list[str | None]] = []
    for name, config in recipe.teachers.items():
        if isinstance(config, ProvidedBase):
            provider = provider_of(config)
            hosts = ", ".join(dict.fromkeys(map(host_of, addresses(config)))) or None
            rows.append([name, hosts, provider.region, provider.training or "unknown", _read(provider) or None])
    return rows


def addresses(config: ProvidedBase) -> tuple[str, ...]:
    """Where this teacher's questions are sent; nothing where that is not known: a plugin."""
    if isinstance(config, ServedTeacher):
        return config.url
    if isinstance(config, ChatTeacher):
        entry = lookup(config.model, config.url)
        url = config.url or (entry.url if entry is not None else None)
        return (url,) if url else ()
    return ()


def writer_addresses(recipe: RecipeBase) -> tuple[str, ...]:
    """Where prompts are sent for the student to answer: nowhere unless a server of somebody's writes."""
    return recipe.rollout.addresses


def _is_ours(config: ProvidedBase) -> bool:
    urls = addresses(config)
    return bool(urls) and all(is_loopback(host_of(url)) for url in urls)


def _read(provider: Provider) -> str:
    return ", ".join(filter(None, (provider.source, provider.date)))


# ---- what is private, and who would see it ----


def private_sources(recipe: RecipeBase) -> list[str]:
    return [name for name, source in recipe.data.sources.items() if source.private]


def private_models(recipe: RecipeBase, prepared: Mapping[str, bool]) -> dict[str, str]:
    """Key -> model, of all that this recipe loads into this process and that were trained on private data.

    A model on a hub is taken to be what it was when it went there: public, or not seen here.
    """
    found: dict[str, str] = {}
    for key, model in model_keys(recipe.model_dump(mode="json")):
        name = prepared_name(model)
        if key[-1] == "tokenizer":  # it was not trained on them
            continue
        if prepared.get(name, False) if name is not None else is_marked(Path(model)):
            found[_dotted(*map(str, key))] = model
    return found


def origins(recipe: RecipeBase, prepared: Mapping[str, bool]) -> list[str]:
    """What makes a run private, one phrase each; nothing where it is not. prepared: as for `examine`."""
    models = private_models(recipe, prepared).items()
    return [
        *(f"data.sources.{name} is private" for name in private_sources(recipe)),
        *(f"{key} was trained on private data ({model})" for key, model in models),
    ]


def _leaks(recipe: RecipeBase, private: Sequence[str], where: Where) -> Iterator[str]:
    if not private:
        return
    guard, why = guard_of(recipe), ", ".join(private)
    for url in writer_addresses(recipe):
        if not guard.may_receive_private(url):
            host = host_of(url) or url
            yield (
                f"{where('rollout', 'server')}: {why} and {host} is not this machine; start the server here, or "
                f"allow it by privacy.allowed=[{host}]"
            )
    for name, config in recipe.teachers.items():
        here = where("teachers", name)
        if isinstance(config, PluginTeacher) and config.provider.region != "local":
            yield (
                f"{here}: {why}, and where a plugin sends its questions is not known; if it keeps them on "
                f"this machine, set teachers.{name}.provider.region=local"
            )
        if _runs_unprotected(config) and recipe.privacy.mode != "sealed" and (missing := missing_protection()):
            yield (
                f"{here}: {why}, and a program that runs unprotected has a network: {missing}; mend that, or set "
                "privacy.mode=sealed"
            )
        if isinstance(config, ProvidedBase):
            yield from (f"{here}: {why} and {leak}" for leak in far(name, config, guard))


def _runs_unprotected(config: TeacherConfig) -> bool:
    """Whether the answer's own code may run without walls, where there are none."""
    if not isinstance(config, ProgramTeacher) or config.sandbox.required:
        return False
    return isinstance(config.check, PythonTests | Command)


def far(name: str, config: ProvidedBase, guard: Guard) -> Iterator[str]:
    """Why nothing private may be sent to this teacher, by its addresses, and what to do."""
    region = config.provider.region
    for url in addresses(config):
        host = host_of(url) or url
        if not guard.may_receive_private(url):
            yield (
                f"{host} is not this machine; use a teacher on this machine, or allow it by privacy.allowed=[{host}]"
            )
        elif region not in (None, "local") and not guard.names(url):
            yield (
                f"{host} passes its questions on, by provider.region: {region}; set teachers.{name}.provider.region="
                f"local if it does not, or allow it by privacy.allowed=[{host}]"
            )


def push_problem(recipe: RecipeBase, endpoint: str, *, public: bool) -> str | None:
    """Why a private run's model may not go to a hub at this address, and what to do; None where it may.

    What it has learned is as private as what it was taught with: it goes where its prompts may go, and there to its
    owner alone.
    """
    host = host_of(endpoint) or endpoint
    if not guard_of(recipe).may_receive_private(endpoint):
        return (
            f"the run is private and {host} is not this machine; if its model may go there, set "
            f"privacy.allowed=[{host}] in the run's recipe.yaml"
        )
    if public:
        return "the run is private, and everybody would read it; push it with --private to a repository of your own"
    return None


# ---- the mark ----


def mark(
    recipe: RecipeBase, folder: Path, prepared: Mapping[str, Path] | None = None, *, run: Path | None = None
) -> None:
    """Writes what a model was trained on beside its weights, so that whoever loads it can know.

    folder: the model's. prepared: the runs whose results it was made with, by name. run: its own, where the folder is
    elsewhere. What was private once stays so.
    """
    known = {name: is_marked(run) for name, run in (prepared or {}).items()}
    sources, models = private_sources(recipe), private_models(recipe, known)
    write_json(
        folder / MARK,
        {
            "private": bool(sources or models) or is_marked(folder) or (run is not None and is_marked(run)),
            "private_sources": sources,
            "private_models": models,
            "teachers": {
                name: {"kind": config.kind, **(_told(provider_of(config)) if isinstance(config, ProvidedBase) else {})}
                for name, config in recipe.teachers.items()
            },
        },
    )


def mark_run(recipe: RecipeBase, folder: Path, prepared: Mapping[str, Path]) -> None:
    """Marks a whole run before it learns anything, so that it stays marked however it ends.

    A private run's directory is closed to others when it begins, since its samples and journals hold prompts; whoever
    opens it again is not contradicted.
    """
    begins = not (folder / MARK).exists()
    mark(recipe, folder, prepared)
    if begins and _says_private(folder / MARK):
        folder.chmod(0o700)


def is_marked(folder: Path) -> bool:
    """Whether the model in this folder was trained on private data, by its own mark or its run's.

    A mark that says nothing of it counts as one that says yes. Raises RunError for one that cannot be read.
    """
    return any(_says_private(place / MARK) for place in (folder, folder.parent))


def _says_private(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        said = read_json(path)
    except (OSError, UnicodeDecodeError, JSONDecodeError) as error:
        raise RunError(
            f"{path}: cannot be read, and so not whether its model was trained on private data; put it back as it was"
        ) from error
    return not isinstance(said, dict) or said.get("private") is not False


def _told(provider: Provider) -> dict[str, object]:
    return {
        "training": provider.training or "unknown",
        "region": provider.region,
        "date": provider.date,
        "source": provider.source,
    }
