"""The `tutelage` command. What is heavy is imported inside the commands, after the recipe has been found good."""

from __future__ import annotations

import logging
import os
import sys

INTERRUPTED = 130  # what shells report for Ctrl-C
BAD_CALL = 2

try:
    import shlex
    from collections.abc import Sequence
    from importlib.metadata import version
    from pathlib import Path
    from typing import TYPE_CHECKING, Annotated, Literal

    import typer

    from pipeline import completion
    from pipeline.cli_errors import machine_problem, one_line_errors, rank
except KeyboardInterrupt:  # these take a tenth of a second, in which one sees that the command was the wrong one
    sys.stderr.write("interrupted\n")
    sys.exit(INTERRUPTED)

if TYPE_CHECKING:
    from pipeline.display import Display
    from pipeline.recipe_file import LoadedRecipe

__all__ = ["app", "machine_problem", "main", "set_environment"]

# Two threads that wait for each other by spinning take each other's core where anything else runs: measured on two
# cores with one other busy process, 0.31 s a step instead of 0.49, and the same where nothing else runs.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _keys(ctx: typer.Context, incomplete: str) -> list[str]:
    recipe = ctx.params.get("recipe")
    return completion.overrides(str(recipe) if recipe else None, incomplete)


RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A YAML file, such as recipes/quickstart.yaml.", autocompletion=completion.recipes
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, such as runs/quickstart.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides by dotted key: training.steps=10 output=runs/try",
        autocompletion=_keys,
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Distill up to ten teachers into one student, on the student's own answers."""
    if show_version:
        typer.echo(f"tutelage {version('tutelage')}")
        raise typer.Exit


@app.command("run")
def run_command(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that did not finish.")] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Go on with a finished run: more steps, another teacher or domain.")
    ] = False,
    journal: Annotated[
        Path | None, typer.Option("--journal", help="Share remote teachers' answers with other runs through this file.")
    ] = None,
) -> None:
    """Run a recipe, and first what it prepares; results go to its output directory."""
    again = shlex.join(["tutelage", "run", str(recipe), *(overrides or ()), "--resume"])
    with one_line_errors(f"; go on with: {again}"):
        if resume and extend:
            raise typer.BadParameter(
                "--resume goes on with an unfinished run, --extend adds to a finished one: give one"
            )
        shared = () if journal is None else (f"pool.journal={shlex.quote(str(journal.absolute()))}",)
        loaded = _load(recipe, (*(overrides or ()), *shared))
        _seal(loaded)
        with _display() as display:
            from pipeline.ranks import leave
            from pipeline.run import run

            folder = run(loaded, resume=resume, extend=extend, display=display)
            display.note(f"the run is in {folder}")
            leave()


@app.command("check")
def check_command(
    recipe: RecipePath,
    overrides: Overrides = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Leave out what would have to be fetched: hub models and data sets.")
    ] = False,
    step: Annotated[bool, typer.Option("--step", help="Run one real step; report its time and memory.")] = False,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, help="Memory and time of one of so many, from the models' configs alone."),
    ] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="With --processes: a100, h100 or h200.")] = "h100",
) -> None:
    """Validate a recipe and resolve all it names, without training."""
    with one_line_errors(""):
        loaded = _load(recipe, overrides or (), offline=offline)
        _seal(loaded)
        with _display() as display:
            if processes is not None:
                from pipeline.on_paper import show

                show(loaded, processes, gpu, display)
                return
            from pipeline.ranks import leave
            from pipeline.run import check

            check(loaded, offline=offline, step=step, display=display)
            display.note(f"{recipe}: no problem found")
            leave()


@app.command("ingest")
def ingest_command(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A repository, a folder, or package:NAME.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys of a recipe's source: commits=200 exclude=[docs/**]"),
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="Show this task only; may be repeated.")] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Examples of each task.")] = 1,
) -> None:
    """Show what would be used of a codebase, with examples, before any training."""
    with one_line_errors(""), _display() as display:
        from pipeline.ingest import ingest
        from pipeline.ingest_settings import settings_of, tasks_of

        ingest(settings_of(path, settings or ()), tasks_of(task or ()), examples, display)


@app.command("recipes")
def recipes_command() -> None:
    """List the recipes that come with this checkout, with what each needs."""
    with one_line_errors(""):
        from pipeline.recipe_list import listed, recipes

        for line in listed(recipes([Path("recipes"), Path(__file__).parents[1] / "recipes"])):
            typer.echo(line)


@app.command("init")
def init_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The recipe to write.")] = Path("recipe.yaml"),
    student: Annotated[str | None, typer.Option("--student", metavar="MODEL", help="A hub name or a folder.")] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="KIND=MODEL", help="model=…, server=…, chat=… or self; may be repeated."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="KIND=WHERE", help="dataset=NAME, dataset=FILE or code=FOLDER.")
    ] = None,
    machine: Annotated[str | None, typer.Option("--machine", metavar="WHICH", help="cpu, gpu or gpus.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: defaults for what no option says.")] = False,
) -> None:
    """Ask a few questions and write a recipe, with a comment at every key."""
    with one_line_errors(""):
        from pipeline.init_command import defaults, init

        asks = sys.stdin.isatty() and not yes
        ask = (lambda question, usual: str(typer.prompt(question, default=usual))) if asks else defaults
        init(file, ask, student=student, teachers=teacher or (), data=data, machine=machine)
        typer.echo(f"{file} is written; next: tutelage check {shlex.quote(str(file))}")


@app.command("watch")
def watch_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run's directory, such as runs/quickstart.", autocompletion=completion.runs
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and leave.")] = False,
) -> None:
    """Follow a run from another terminal, until it has ended."""
    with one_line_errors(""):
        from rich.console import Console

        from pipeline.watch import watch

        watch(run, Console(), once=once)


@app.command("journal")
def journal_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or a journal's file.")],
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write every attempt and answer as a line of JSON.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Take out the answers that no checkpoint can need any more.")
    ] = False,
) -> None:
    """List what a run asked its remote teachers, what came of it and what it cost."""
    with one_line_errors(""), _display() as display:
        from pipeline.journal_command import show_journal

        show_journal(run, export=export, prune=prune, display=display)


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, finished or not.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where the page goes; default: report.html in RUN.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it on this machine, as the run goes on.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="For --serve; 0: a free one.")] = 0,
    with_texts: Annotated[
        bool, typer.Option("--with-texts", help="Put a private run's prompts and answers into the page.")
    ] = False,
) -> None:
    """Make one HTML page of a run: the verdict, curves, tokens, teachers, provenance."""
    with one_line_errors(""), _display() as display:
        from pipeline.report.command import make_report

        make_report(run, output, with_texts=with_texts, live=serve, port=port, display=display)


@app.command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Directories of two runs or more.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="Where the page goes.")] = Path(
        "compare.html"
    ),
) -> None:
    """Make one HTML page of several runs, side by side."""
    with one_line_errors(""), _display() as display:
        from pipeline.report.command import make_comparison

        make_comparison(runs, output, display)


@app.command("export")
def export_command(
    run: RunPath,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Default: export/KIND in the run's directory.")
    ] = None,
    kind: Annotated[
        Literal["model", "adapter", "quantized"],
        typer.Option("--kind", help="The whole model, a LoRA student's adapter, or a quantized student in 4 bits."),
    ] = "model",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Default: the student's; of an adapter float32."),
    ] = None,
    shard: Annotated[str, typer.Option("--shard", metavar="SIZE", help="The largest file of a model.")] = "5GB",
    step: Annotated[int | None, typer.Option("--step", min=1, help="As it was then. Default: the last kept.")] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="And send it to the hub, with its card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Who may read a repository made there.")] = True,
) -> None:
    """Write a run's student as others load it, with a model card; and push it."""
    with one_line_errors(""), _display() as display:
        from pipeline.afterwards import export

        export(
            run, _set_up, display, kind=kind, dtype=dtype, shard=shard, step=step, to=to, push=push, private=private
        )  # fmt: skip


@app.command("chat")
def chat_command(
    run: RunPath,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="NAME", help="base, or a teacher of the run; may be repeated."),
    ] = None,
    once: Annotated[str | None, typer.Option("--once", metavar="PROMPT", help="Answer this and leave.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Of an answer. Default: the recipe's.")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", min=1, help="As it was then. Default: the last kept.")] = None,
) -> None:
    """Try a run's student in the terminal, against its base and its teachers."""
    with one_line_errors(""):
        from pipeline.afterwards import chat

        names = tuple(against or ())
        chat(
            run, _set_up, against=names, once=once, temperature=temperature, max_new_tokens=max_new_tokens, step=step
        )  # fmt: skip


def main() -> None:
    """The console script's entry point."""
    try:
        app(prog_name="tutelage")
    except KeyboardInterrupt:  # before a command has begun
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)


# ---- before the heavy imports ----


def _load(recipe: Path, overrides: Sequence[str], *, offline: bool = False) -> LoadedRecipe:
    """The validated recipe, with the process set up for what is imported next."""
    from pipeline.recipe_file import load_recipe

    loaded = load_recipe(recipe, overrides)
    set_environment(loaded.recipe.threads, offline=offline)
    return loaded


def _seal(loaded: LoadedRecipe) -> None:
    from pipeline.sealed import seal_if_asked

    seal_if_asked(loaded)


def set_environment(threads: int, *, offline: bool) -> None:
    """Threads, memory, and quiet libraries. Must come before torch is imported, which reads these once.

    threads: 0 is one per core that this process may use, shared with the other ranks of this machine. What the user
    has set in the environment stays, except that a recipe's own number of threads counts more.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if threads:
            os.environ[name] = str(threads)
        else:
            os.environ.setdefault(name, os.environ.get("OMP_NUM_THREADS", str(share)))
    quiet = {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers follows it too
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    if offline:
        quiet |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    for name in ("torchao", "torch.utils._pytree"):  # the first says which of its kernels are for other machines
        logging.getLogger(name).setLevel(logging.ERROR)


def _set_up(threads: int) -> None:
    set_environment(threads, offline=False)


def _display() -> Display:
    from rich.console import Console

    from pipeline.display import Display

    return Display(Console(quiet=rank() != 0))


if __name__ == "__main__":
    main()
