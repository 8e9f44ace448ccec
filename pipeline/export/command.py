"""`tutelage export RUN`: a student's weights from any step that is kept, with its card; and to a hub, if asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.display import Display
from pipeline.errors import RunError
from pipeline.export.card import HERE, write_card
from pipeline.export.folders import EXPORTS, require_place, write_folder
from pipeline.export.form import SHARD, Dtype, Form, Kind, missing_kind, shard_size
from pipeline.export.origin import origin_of
from pipeline.export.push import open_target, upload
from pipeline.opened_run import device_here, moment_of, open_student
from pipeline.recorded import RecordedRun


@dataclass(frozen=True)
class Wanted:
    """What the command line says. to: default, inside the run. step: default, the last. push: OWNER/NAME on a hub."""

    kind: Kind = "model"
    dtype: Dtype | None = None
    shard: str = SHARD
    step: int | None = None
    to: Path | None = None
    push: str | None = None
    private: bool = True


def export_run(run: RecordedRun, wanted: Wanted, display: Display) -> Path:
    """Writes the folder, pushes it if asked, and returns it. Raises TutelageError for what a user can mend.

    All that can be known to be wrong is found before the model is loaded.
    """
    form = Form(wanted.kind, wanted.dtype, shard_size(wanted.shard))
    if wanted.kind == "adapter" and run.recipe.student.tune.kind != "lora":
        raise RunError(f"{run.folder}: trained with tune: full, it has no adapter; export it with --kind model")
    student = run.recipe.student
    if wanted.kind == "quantized" and (student.quantize is None or student.tune.kind != "full"):
        raise RunError(f"{run.folder}: {missing_kind('quantized')}")
    moment = moment_of(run, wanted.step)
    if wanted.kind != "model" and moment.checkpoint is None:
        raise RunError(
            f"{run.folder}: no checkpoint is left to take the {wanted.kind} form from; the run's end wrote it to "
            f"{run.folder / wanted.kind}"
        )
    folder = wanted.to or run.folder / EXPORTS / wanted.kind
    require_place(folder, run.folder)
    if wanted.push is not None and wanted.kind == "adapter" and origin_of(run).hub is None:
        raise RunError(
            f"--push {wanted.push}: the adapter's base is not on a hub, so that nobody there could use it; push "
            "--kind model"
        )
    target = None if wanted.push is None else open_target(run, wanted.push, private=wanted.private)
    display.phase(f"loading the student as it was after step {moment.step}")
    opened = open_student(run, moment, device_here())
    display.phase(f"writing {folder}")
    write_folder(opened, folder, form, run.recipe, run.folder, run.prepared)
    ask = not run.private  # a private run asks nobody anything
    write_card(run, moment.step, folder, wanted.kind, name=wanted.push or HERE, ask=ask)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    display.note(f"the {wanted.kind} of step {moment.step} is in {folder}, {size / 1e6:,.1f} MB, its card in README.md")
    if target is not None:
        display.phase(f"pushing to {target.url}")
        address = upload(target, folder, wanted.kind, f"{run.name}, step {moment.step}")
        display.note(f"it is at {address}")
    return folder
