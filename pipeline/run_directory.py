"""One run, one directory: who may write into it, and whether it starts, goes on, or is refused.

recipe.yaml        the recipe, every default spelled out
run.json           status, versions, machine
tutelage.json      whether it learns from private data, and its teachers' terms; beside each model too
data.json          the fingerprint of its prompts
metrics.jsonl      a line per step, the same whenever it is run
events.jsonl       what guards found and did, checkpoints, teachers that failed; never cut back
timings.jsonl      seconds and memory per step
samples.jsonl      a rollout per step, the domains taking turns; of about 500 what was expected at each token
provenance.jsonl   who gave what for each trained sample
journal.sqlite     every question to remote teachers, and their answers
ledger.json        what those came to
journal/           the rollouts of steps that no checkpoint holds yet
checkpoints/       step-000025, …
engine.log         what a vLLM that writes rollouts said; engine/: the weights that a server has, while the run goes on
prepared/          the runs this one needed first; compare/ those it is compared with
initial/           a new student before training
evaluations/       each model's scores and answers; evaluation.json: all of them, side by side
model/ adapter/ quantized/    the result, as transformers and peft read it, each with a card
export/            what was exported later
report.html        all of it as one page

Texts of prompts, answers and references stand in samples.jsonl, in evaluations/*.samples.jsonl, in journal/ (as token
ids) and, where a teacher's words quote them, in journal.sqlite; words of the code in a tokenizer that was learned from
it; in report.html unless the run is private. Nowhere else. The directory of a run on private data is closed to other
users.
"""

from __future__ import annotations

import fcntl
import json
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from pipeline import checkpoint as checkpoints
from pipeline import manifest
from pipeline.errors import RunError
from pipeline.files import cut_back, read_json, write_json
from pipeline.recipe import RecipeBase
from pipeline.recipe_file import changed_keys, dump_resolved

Status = Literal["starting", "running", "finished"]  # starting: nothing was done with the recorded recipe yet
LINE_FILES = ("metrics.jsonl", "timings.jsonl", "samples.jsonl", "provenance.jsonl")
# What an unfinished run may change, so that one that ran out of memory can go on: how the work is cut, not what is
# learned. The sums are then taken in another order, so the last bits may differ from those of an unchanged run.
ADJUSTABLE = (
    *("training.tokens_per_forward", "rollout.rows", "objective.chunk_megabytes"),
    *("training.checkpoint_every", "training.keep_checkpoints", "threads", "tracking", "sharding."),
)
# How hard remote teachers are asked, where they are and what they may cost: what they say stays the same. And guards: a
# run that one of them stopped may go on without it.
_HOW_ASKED = re.compile(
    r"^(rollout\.server\b|pool\.(quorum|below_quorum|budget|journal|model_change|student_price)\b|guards\b|privacy\.|teachers\.[^.]+\.(limits|budget|price|provider|url|key)\b)"
)
EXTENDABLE = ("training.steps", "teachers.", "data.sources.", "routing", "prepare.", "evaluation.")


def status(folder: Path) -> Status | None:
    """starting, running, finished, or None where there is no run."""
    path = folder / "run.json"
    return json.loads(path.read_text())["status"] if path.exists() else None


def open_run(folder: Path, recipe: RecipeBase, *, resume: bool, extend: bool) -> None:
    """Makes the directory, or makes sure that an existing one may go on with this recipe.

    Raises RunError: the directory is there and neither resume nor extend was asked for; it is something else than a
    run; the recipe has changed (by the name of each key); it cannot be written. A recipe that did not get as far as
    its first evaluation may still be corrected: a run of which nothing but the recipe is there in every key. How the
    work is cut into pieces (ADJUSTABLE) may change at every resumption.
    """
    found = status(folder)
    if found is None:
        if extend:
            raise RunError(f"{folder}: there is no run here to extend; leave --extend out, or correct output=…")
        _start(folder, recipe)
        return
    if not (resume or extend):
        raise RunError(
            f"{folder}: there is a {found} run here; go on with --resume, add to it with --extend, "
            "or set another output=…"
        )
    recorded = _recorded(folder)
    changed = changed_keys(recorded, recipe.model_dump(mode="json"))
    begun = checkpoints.newest_step(folder / "checkpoints") > 0
    correcting = found == "starting"
    if extend and not (found == "finished" or (correcting and begun)):
        raise RunError(f"{folder}: this run has not finished; finish it with --resume before you --extend it")
    allowed = (EXTENDABLE if begun else ("",)) if extend or correcting else ADJUSTABLE
    refused = [
        key
        for key in changed
        if not (key.startswith(allowed) or _HOW_ASKED.match(key)) or (begun and _is_made(key, recorded))
    ]
    if refused:
        raise RunError(
            f"{folder}: the recipe has changed since this run started: {', '.join(refused)}; "
            "put the old values back, or start another run with output=…"
        )
    if changed and all(key.startswith(ADJUSTABLE) or _HOW_ASKED.match(key) for key in changed):
        dump_resolved(recipe, folder / "recipe.yaml")
    elif changed:
        _refuse_fewer_steps(folder, recipe.training.steps)
        write_status(folder, "starting")
        # They are of other domains and teachers, at other numbers of tokens; a student that was trained stays.
        for name in ("evaluations", "compare") if begun else ("evaluations", "compare", "initial"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "data.json").unlink(missing_ok=True)
        dump_resolved(recipe, folder / "recipe.yaml")


def _is_made(key: str, recorded: dict[str, Any]) -> bool:
    """Whether the key belongs to a prepared recipe that has run already: its result would not be what it says."""
    section, _, rest = key.partition(".")
    return section == "prepare" and rest.partition(".")[0] in recorded["prepare"]


def _refuse_fewer_steps(folder: Path, steps: int) -> None:
    done = checkpoints.newest_step(folder / "checkpoints")
    if steps < done:
        raise RunError(f"{folder}: training.steps is {steps} and this run has done {done}; extend it to more")


def _start(folder: Path, recipe: RecipeBase) -> None:
    strangers = [p.name for p in folder.iterdir() if p.name not in _OURS] if folder.is_dir() else []
    if strangers:
        raise RunError(f"{folder}: holds {strangers[0]}, which is not a run's; choose an empty directory with output=…")
    folder.mkdir(parents=True, exist_ok=True)
    dump_resolved(recipe, folder / "recipe.yaml")
    write_status(folder, "starting")


# What a kill can leave before run.json, and what is known before a run that another is compared with.
_OURS = {"recipe.yaml", "recipe.yaml.partial", "run.json.partial", ".lock", "evaluations"}


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    if not path.exists():
        raise RunError(f"{path} is missing, so this run cannot go on; put it back, or set another output=…")
    recorded: dict[str, Any] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return recorded


def write_status(folder: Path, value: Status) -> None:
    """run.json, whole: what made this run, and whether it is done."""
    packages = ("torch", "transformers", "peft", "accelerate", "datasets", "tutelage")
    machine = {"python": platform.python_version(), "system": platform.platform()}
    write_json(
        folder / "run.json", {"status": value, "versions": {name: version(name) for name in packages}, **machine}
    )  # fmt: skip


def same_data(folder: Path, fingerprint: str) -> None:
    """Keeps the prompts' fingerprint at the start. Raises RunError where it has become another one."""
    path = folder / "data.json"
    if not path.exists():
        write_json(path, {"fingerprint": fingerprint})
    elif read_json(path)["fingerprint"] != fingerprint:
        raise RunError(f"{folder}: the data changed since this run started; put them back, or set another output=…")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the directory for this process; the lock goes with the process, however it ends."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError) as error:  # a file is there; a place where nothing can be made
        raise RunError(f"{folder} cannot be made a directory ({error.strerror}); set another output=…") from error
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder}: another process is writing this run; wait for it, or set output=…") from error
        try:
            yield
        finally:
            if made and [path.name for path in folder.iterdir()] == [".lock"]:  # refused before it began
                shutil.rmtree(folder)


def clean_up(folder: Path) -> None:
    """Removes half-written files and cuts the line files back to the newest checkpoint."""
    for name in ("checkpoints", "journal", "evaluations", "."):
        for path in (folder / name).glob("*.partial"):
            checkpoints.remove(path)
    for path in (folder / "journal").glob("attempt-*/*.partial"):
        checkpoints.remove(path)
    cut_to(folder, checkpoints.newest_step(folder / "checkpoints"))


def cut_to(folder: Path, step: int) -> None:
    """Cuts the line files back to a step, and removes what the student after it was found to be."""
    for name in LINE_FILES:
        cut_back(folder / name, step)
    for path in (folder / "evaluations").glob("student-*"):
        found = re.match(r"student-(\d+)\b", path.name)
        if found and int(found[1]) > step:
            path.unlink()
    for journal in (folder / "journal", *(folder / "journal").glob("attempt-*")):
        manifest.prune(journal, step)
