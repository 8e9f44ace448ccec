"""The command line: help, exit statuses, one-line errors without tracebacks, and nothing heavy before it is needed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app, machine_problem, set_environment
from pipeline.errors import DataError, RecipeError
from pipeline.recipe_asking import Privacy
from teachers.errors import TeacherError

ROOT = Path(__file__).parents[2]
RECIPE = """\
# A small one
method: sft
threads: 3
student: {model: {}}
data: {sources: {sorting: {kind: tasks, task: sorting}}}
"""


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for `pipeline.run`: records its calls, and raises what the test puts under `error`."""
    seen: dict[str, Any] = {}
    module = ModuleType("pipeline.run")

    def run(loaded: Any, **options: Any) -> Path:
        seen.update(options, command="run", loaded=loaded)
        if "error" in seen:
            raise seen["error"]
        options["display"].note("working")
        return Path("runs/r")

    def check(loaded: Any, **options: Any) -> None:
        seen.update(options, command="check", loaded=loaded)

    module.run, module.check = run, check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.run", module)
    return seen


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments], capture_output=True, text=True, env=environment
    )


# ---- help ----


def test_help_names_the_commands() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for name in ("run", "check", "recipes", "--version", "up to ten teachers"):
        assert name in result.stdout


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("run", ["RECIPE", "KEY=VALUE", "--resume", "--extend"]),
        ("check", ["RECIPE", "KEY=VALUE", "--offline", "--step"]),
    ],
)
def test_help_of_a_command(name: str, options: list[str]) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert all(option in result.stdout for option in options)


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.cli;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pydantic', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["run"], ["run", "r.yaml", "--nothing"], ["nothing"]])
def test_a_wrong_call_ends_with_status_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


# ---- run and check ----


def test_run_hands_over_the_loaded_recipe(work: dict[str, Any]) -> None:
    result = invoke("run", "r.yaml", "training.steps=7", "--resume", "output=x/y")
    assert result.exit_code == 0, result.output
    assert (work["command"], work["resume"], work["extend"]) == ("run", True, False)
    assert work["loaded"].recipe.training.steps == 7
    assert work["loaded"].output == Path("x/y")
    assert result.stdout.splitlines() == ["working", "the run is in runs/r"]


def test_check_hands_over_its_options(work: dict[str, Any]) -> None:
    result = invoke("check", "r.yaml", "--offline", "--step", "seed=3")
    assert result.exit_code == 0, result.output
    assert (work["command"], work["offline"], work["step"]) == ("check", True, True)
    assert work["loaded"].recipe.seed == 3
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_resume_and_extend_exclude_each_other(work: dict[str, Any]) -> None:
    result = invoke("run", "r.yaml", "--resume", "--extend")
    assert result.exit_code == 2
    assert "give one" in result.stderr
    assert not work


@pytest.mark.parametrize("name", ["run", "check"])
def test_every_problem_of_a_recipe_is_a_line_on_stderr(name: str) -> None:
    Path("r.yaml").write_text(RECIPE.replace("sorting}", "sortin}") + "sead: 1\n", encoding="utf-8")
    done = command(name, "r.yaml", "training.steps=x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == ["r.yaml:5", "r.yaml:6", "command line"]


def test_a_recipe_that_is_not_there() -> None:
    done = command("run", "no.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("no.yaml: there is no such file")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (DataError("data.sources.a is empty; give more rows"), 1, "data.sources.a is empty; give more rows"),
        (RecipeError(["one: x", "two: y"]), 2, "one: x\ntwo: y"),
        (TeacherError("teachers.a: no such folder; correct it"), 1, "teachers.a: no such folder; correct it"),
    ],
)
def test_what_a_user_can_cause_ends_in_its_own_words(
    work: dict[str, Any], error: Exception, status: int, text: str
) -> None:
    work["error"] = error
    result = invoke("run", "r.yaml")
    assert (result.exit_code, result.stderr) == (status, text + "\n")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, ["interrupted; go on with: tutelage run r.yaml 'compare=[a b]' --resume"]),
        (
            MemoryError(),
            1,
            ["out of memory", "training.tokens_per_forward", "rollout.rows", "objective.chunk_megabytes"],
        ),
        (OSError(errno.ENOSPC, "No space left on device", "runs/r/x"), 1, ["runs/r/x: the disk is full", "--resume"]),
    ],
)
def test_what_the_machine_can_cause_ends_in_one_line(
    work: dict[str, Any], error: BaseException, status: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work["error"] = error
    loaded = SimpleNamespace(recipe=SimpleNamespace(privacy=Privacy()), prepared={})
    monkeypatch.setattr("pipeline.cli._load", lambda *_, **__: loaded)
    result = invoke("run", "r.yaml", "compare=[a b]")
    assert result.exit_code == status
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words), result.stderr


def test_a_bug_keeps_its_traceback(work: dict[str, Any]) -> None:
    work["error"] = AssertionError("a bug")
    assert isinstance(invoke("run", "r.yaml").exception, AssertionError)


def test_only_the_main_rank_speaks(work: dict[str, Any]) -> None:
    os.environ["RANK"] = "1"
    assert invoke("run", "r.yaml").output == ""
    work["error"] = DataError("known to every rank")
    result = invoke("run", "r.yaml")
    assert (result.exit_code, result.output) == (1, "")
    work["error"] = MemoryError()
    assert invoke("run", "r.yaml").stderr.startswith("rank 1: out of memory")


# ---- errors of the machine ----


class OutOfMemoryError(RuntimeError):
    """Named as torch's is, which is not imported here."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"), "out of memory"),
        (RuntimeError("Error while serializing: No space left on device (os error 28)"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: the file system cannot be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), None),
        (RuntimeError("shapes differ"), None),
    ],
)
def test_machine_problem(error: Exception, words: str | None) -> None:
    said = machine_problem(error)
    assert said is None if words is None else said is not None and words in said


def test_machine_problem_behind_another_error() -> None:
    error = RuntimeError("writing failed")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert "disk is full" in str(machine_problem(error))
    bug = AssertionError("a bug")
    bug.__context__ = error.__context__
    assert machine_problem(bug) is None


# ---- the environment ----


def test_threads_come_from_the_recipe_then_the_user_then_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    cores = len(os.sched_getaffinity(0))
    set_environment(0, offline=False)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == str(cores)
    os.environ["OMP_NUM_THREADS"] = "7"
    set_environment(0, offline=False)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    set_environment(3, offline=False)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"


def test_ranks_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    set_environment(0, offline=False)
    assert os.environ["OMP_NUM_THREADS"] == "1"


# ---- recipes ----


def test_recipes_lists_those_of_the_checkout_with_their_titles() -> None:
    result = invoke("recipes")
    assert result.exit_code == 0
    listed = [Path(line).name for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert "    two CPU cores, under 3 GB, no network; under 5 minutes" in result.stdout.splitlines()
    assert listed == sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text(RECIPE, encoding="utf-8")
    assert invoke("recipes").stdout == "recipes/mine.yaml\n    A small one\n"
