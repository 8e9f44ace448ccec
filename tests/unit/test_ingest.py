"""`tutelage ingest`: its tables and examples, the source's keys on the command line, one line for what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.errors import RecipeError
from pipeline.ingest import settings_of, tasks_of
from tests.repositories import commit, empty_repository, everything, make_repository, run_git, write_files

WORDS = ["river", "stone", "lantern", "orchard", "meadow", "harbour", "thicket", "compass"]


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    work = tmp_path / "elsewhere"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    yield
    os.environ.clear()
    os.environ.update(before)


def modules() -> dict[str, str | bytes]:
    """Eight that are not near to each other."""
    return {
        f"{word}/{word}.py": f'def {word}({", ".join(WORDS[: n + 1])}):\n    """The {word}s."""\n'
        + "".join(f"    {each}_{word} = {each} * {n + 2} - len(str({word}))\n" for each in WORDS[: n + 1])
        + f"    return {' + '.join(f'{each}_{word}' for each in WORDS[: n + 1])}\n"
        for n, word in enumerate(WORDS)
    }


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ingest", *map(str, arguments)])


def row(output: str, start: str) -> list[str]:
    """The cells of the one row that begins so."""
    (found,) = [line for line in output.splitlines() if line.strip().startswith(start)]
    return [cell for cell in found.strip().split("  ") if cell.strip()]


# ---- what is shown ----


def test_tables_count_what_is_there(tmp_path: Path) -> None:
    files = modules() | {"README.md": "# Words\n", "logo.png": b"\x89PNG\0\0", "broken.py": "def (:\n"}
    folder = make_repository(tmp_path / "code", files)
    result = run(folder, "--examples", 0)
    assert result.exit_code == 0, result.output
    assert row(result.output, "python")[1].strip() == "8"
    assert row(result.output, "unparsable")[1:]
    assert "broken.py" in result.output
    train, held_out = (int(row(result.output, side)[1]) for side in ("training", "held out"))
    assert train > held_out > 0
    assert "────" not in result.output


def test_examples_are_of_the_training_side_and_of_the_tasks_named(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "code", modules())
    result = run(folder, "--task", "body", "--examples", 2)
    assert result.exit_code == 0, result.output
    assert result.output.count("──── body ────") == 2
    assert result.output.count("⟦") == 2
    assert "──── line ────" not in result.output


def test_a_secret_is_counted_and_not_shown(tmp_path: Path) -> None:
    secret = "AKIA" + "Q3EGRIZ7" * 2
    folder = make_repository(tmp_path / "code", modules() | {"key.py": f"key = '{secret}'\n"})
    result = run(folder, "--examples", 3)
    assert result.exit_code == 0, result.output
    assert secret not in result.output
    assert row(result.output, "AWS Access Key")[1].strip() == "1"


def test_commits_are_counted_on_their_side(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "code", modules())
    for n, word in enumerate(WORDS[:4]):
        commit(folder, {f"{word}/more.py": f"def more_{word}():\n    return '{word}' * {n}\n"}, f"More of {word}")
    result = run(folder, "commits=50", "--examples", 0)
    assert result.exit_code == 0, result.output
    sides = [row(result.output, side) for side in ("training", "held out")]
    assert sum(int(side[2]) for side in sides) > 0


def test_the_checkout_stays_as_it_is(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "code", modules())
    commit(folder, {"new.py": "def new():\n    return 1\n"}, "New")
    before = everything(folder)
    assert run(folder, "commits=5").exit_code == 0
    assert run(folder, "commits=5").exit_code == 0
    assert everything(folder) == before


# ---- what is wrong ----


def test_one_line_for_what_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "bare_folder").mkdir()
    empty_repository(tmp_path / "no_commit")
    write_files(tmp_path, {"file.py": "x = 1\n", "binary/a.py": b"\0\1", "broken/a.py": "def (:\n"})
    for name in ("missing", "bare_folder", "no_commit", "file.py", "binary", "broken"):
        result = run(tmp_path / name)
        assert result.exit_code == 1, (name, result.output)
        (line,) = result.output.splitlines()
        assert line.startswith("source.path: ")
        assert name in line


def test_history_that_is_not_there(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "code", modules())
    commit(folder, {"new.py": "def new():\n    return 1\n"}, "New")
    run_git(tmp_path, "clone", "-q", "--depth=1", folder.as_uri(), "shallow")
    write_files(tmp_path / "plain", modules())
    for name in ("shallow", "plain"):
        result = run(tmp_path / name, "commits=5")
        assert result.exit_code == 1, (name, result.output)
        (line,) = result.output.splitlines()
        assert line.startswith("source.commits: ")
        assert name in line
        assert run(tmp_path / name, "--examples", 0).exit_code == 0


def test_what_is_odd_is_a_counted_row(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    write_files(folder, modules() | {"bytes.py": b"x = '\x81\x8d'\n"})
    os.truncate(os.open(folder / "huge.py", os.O_CREAT | os.O_RDWR), 100_000_000)
    (folder / "out.py").symlink_to("/etc/passwd")
    result = run(folder, "--examples", 0)
    assert result.exit_code == 0, result.output
    assert "huge.py" in row(result.output, "too_large")[-1]
    assert "out.py" in result.output
    assert "root:" not in result.output


# ---- keys on the command line ----


def test_keys_are_those_of_a_recipes_source() -> None:
    found = settings_of("here", ["commits=7", "exclude=[docs/**, '*.md']", "held_out=0.25"])
    assert (found.path, found.commits, tuple(found.exclude), found.held_out) == ("here", 7, ("docs/**", "*.md"), 0.25)


def test_every_wrong_key_has_a_line_of_its_own() -> None:
    with pytest.raises(RecipeError) as caught:
        settings_of("here", ["nonsense=1", "commits", "held_out=2"])
    lines = str(caught.value).splitlines()
    assert all(line.startswith("command line: ") for line in lines)
    for key in ("nonsense", "commits", "held_out"):
        assert sum(line.startswith(f"command line: {key}:") for line in lines) == 1, lines


def test_tasks_are_in_one_order_and_unknown_ones_are_named() -> None:
    assert tasks_of(["body", "line"]) == ("line", "body")
    assert "commit" in tasks_of([])
    with pytest.raises(RecipeError, match="--task nope: the tasks are "):
        tasks_of(["nope", "body"])
