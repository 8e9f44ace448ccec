"""`tutelage ingest` on real folders and repositories: its tables against what is there, its lines for each mistake."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.errors import RecipeError
from pipeline.ingest_settings import settings_of, tasks_of
from pipeline.recipe import Codebase
from tests.programs import program, renamed
from tests.repositories import START, commit, empty_repository, make_repository, run_git, write_files

TASKS = ("document", "line", "body", "fim", "docstring", "explain", "commit", "feature")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def ingest(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["ingest", *map(str, arguments)], catch_exceptions=False)


def table(said: str, title: str) -> dict[str, list[str]]:
    """The rows below a title: their first cell -> the others."""
    lines = said.split(f"\n{title}\n", 1)[1].split("\n")
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[1:]]
    count = next(number for number, line in enumerate(lines) if not line.startswith("  "))
    return {row[0]: row[1:] for row in rows[: count - 1]}


def programs(count: int) -> dict[str, str | bytes]:
    return {f"p{n % 5}/m{n}.py": program(n) for n in range(count)}


def state_of(folder: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    """Of every file, folder and link, git's own included: all that a write would change."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        about = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
        found[str(path)] = (about.st_mode, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, data)
    return found


# ---- the tables ----


def test_the_tables_are_what_is_there(tmp_path: Path) -> None:
    root = tmp_path / "r"
    files: Mapping[str, str | bytes] = {
        **programs(20),
        "test_p.py": program(50),
        "a.go": "package a\n\nfunc F() {}\n",
        "LICENSE": "SPDX-License-Identifier: MIT\n",
        "latin.py": "x = 'é'\n".encode("latin-1"),
        "lib.min.js": "x",
        "key.py": "KEY = '" + "AKIA" + "QWERTYUIOPASDFGH'\n",
    }
    make_repository(root, files)
    os.symlink("/etc/passwd", root / "out.py")
    run_git(root, "add", "-A")
    said = ingest(root, "--examples", "0")
    assert said.exit_code == 0
    assert said.stdout.startswith(f"{root}, commit {run_git(root, 'rev-parse', 'HEAD')[:12]}\n")
    lines = sum(str(files[path]).count("\n") for path in files if path.endswith(".py") and path != "latin.py")
    kept = sum(len(str(text)) for path, text in files.items() if path.endswith(".py") and path != "latin.py")
    used = table(said.stdout, "what is used")
    assert used["go"] == ["1", "0", "3", "1", "MIT"]
    assert used["python"][:3] == ["22", "1", str(lines)]
    assert abs(int(used["python"][3]) - kept / 1000) < 1
    assert table(said.stdout, "what is left out") == {
        "minified": ["1", "lib.min.js (by its name)"],
        "outside": ["1", "out.py (a link to /etc/passwd)"],
        "undecodable": ["1", "latin.py"],
        "unknown language": ["1", "LICENSE"],
    }
    assert table(said.stdout, "secrets, replaced") == {"AWS Access Key": ["1"]}
    split = table(said.stdout, "split")
    assert list(split) == ["training", "held out"]
    assert sum(int(files) for files, _ in split.values()) == 23
    assert {commits for _, commits in split.values()} == {"–"}
    assert tuple(table(said.stdout, "tasks")) == TASKS
    assert "commits=200" in said.stdout
    assert "────" not in said.stdout
    shown = ingest(root, "--examples", "9").stdout
    assert "────" in shown
    assert "QWERTY" not in shown


def test_what_is_near_to_the_held_out_is_on_neither_side(tmp_path: Path) -> None:
    """By module each copy stands apart from what it was copied from."""
    texts = programs(10)
    copies = {f"copies{n}/m.py": renamed(str(texts[f"p{n % 5}/m{n}.py"])) for n in range(10)}
    write_files(tmp_path / "r", {**texts, **copies})
    split = table(ingest(tmp_path / "r", "split=module", "held_out=0.4", "--examples", "0").stdout, "split")
    assert [side.split(":")[0] for side in split] == ["training", "held out", "neither"]
    assert sum(int(row[0]) for row in split.values()) == 20


def test_a_history(tmp_path: Path) -> None:
    root = empty_repository(tmp_path / "r")
    commit(root, programs(12), "first", START)
    for n in range(8):
        commit(root, {f"p{n % 5}/m{n}.py": program(n) + f"\n\nLIMIT = {n}\n"}, f"Work {n} is another one", START + n)
    said = ingest(root, "commits=50", "split=time", "held_out=0.25", "--task", "commit")
    split = table(said.stdout, "split")
    assert split["held out"][1] == "2"
    assert list(table(said.stdout, "tasks")) == ["commit"]
    assert table(said.stdout, "tasks")["commit"][-2:] == [split["training"][1], "2"]
    assert "commits=200" not in said.stdout
    title, _, shown = said.stdout.partition("\n──── commit: ")[2].partition(" ────\n")
    assert f"# {run_git(root, 'log', '-1', '--format=%s', title).strip()}\n" in shown
    run_git(tmp_path, "clone", "-q", "--depth", "5", f"file://{root}", "shallow")
    assert "git fetch --unshallow" in ingest(tmp_path / "shallow", "commits=50").stdout
    assert "git fetch --unshallow" not in ingest(tmp_path / "shallow", "commits=3").stdout


def test_nothing_is_written_to_the_checkout(tmp_path: Path) -> None:
    """A file that is only half committed and an index that git would like to refresh included."""
    root = empty_repository(tmp_path / "r")
    commit(root, programs(12), "first", START)
    commit(root, {"p0/m0.py": program(70)}, "second", START + 1)
    write_files(root, {"p1/m1.py": program(71), "new.py": "x = 1\n"})
    os.utime(root / "p2/m2.py", ns=(1, 1))
    before = state_of(root)
    for kind in ("file", "module", "time"):
        assert ingest(root, "commits=5", f"split={kind}").exit_code == 0
    assert state_of(root) == before


# ---- the examples ----


def test_examples_come_from_the_training_side(tmp_path: Path) -> None:
    write_files(tmp_path / "r", programs(30))
    said = ingest(tmp_path / "r", "--examples", "2").stdout
    shown = re.findall(r"^──── (\w+): (\S+) ────\n(.*?)(?=^────|^\w+: no example|\Z)", said, re.MULTILINE | re.DOTALL)
    assert {task for task, _, _ in shown} >= {"document", "line", "fim"}
    rows = table(said, "tasks")
    for task in {task for task, _, _ in shown}:
        assert sum(each == task for each, _, _ in shown) <= 2
        assert rows[task][-2] != "0"
    for task, path, text in shown:
        answer = text.partition("⟦")[2].partition("⟧")[0]
        assert answer
        if task in ("line", "body", "fim", "docstring"):
            assert answer in (tmp_path / "r" / path).read_text()
        if task == "fim":
            text = re.sub(r"^\(\d+ lines of other files.*\n", "", text)
            whole = text.strip("\n").replace("⟦", "").replace("⟧", "").strip("…\n")
            assert whole in (tmp_path / "r" / path).read_text()
    train = {path for _, path, _ in shown}
    again = ingest(tmp_path / "r", "held_out=0.8", "--examples", "2").stdout
    assert train != set(re.findall(r"^──── \w+: (\S+) ────", again, re.MULTILINE))
    assert "body: no example fits" in said
    assert "line: no example fits" not in said


def test_a_text_cannot_command_the_terminal(tmp_path: Path) -> None:
    bell = {f"m{n}.py": f'def f{n}(a):\n    """\x1b[31m\u202e{n}"""\n    return "\x1b]0;{n}"\n' for n in range(9)}
    write_files(tmp_path / "r", bell)
    said = ingest(tmp_path / "r", "--task", "document").stdout
    assert r"\x1b[31m\u202e" in said
    assert "\x1b" not in said
    assert "\u202e" not in said


# ---- settings ----


def test_settings() -> None:
    assert settings_of("x", ()) == Codebase(path="x")
    keys = ("commits=200", "exclude=[docs/**, a.py]", "split=module", "held_out=0.2", "languages=[python, go]")
    expected = Codebase(
        path="x", commits=200, exclude=("docs/**", "a.py"), split="module", held_out=0.2, languages=("python", "go")
    )
    assert settings_of("x", keys) == expected


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("commits",), ["command line: commits: write KEY=VALUE"]),
        (("commit=3",), ["command line: commit: "]),
        (("commits=-1",), ["command line: commits: "]),
        (("held_out=2", "split=day"), ["command line: held_out: ", "command line: split: "]),
        (("exclude=[a",), ["command line: exclude: not valid YAML"]),
        (("languages=[cobol]",), ["command line: languages"]),
    ],
)
def test_bad_settings(overrides: tuple[str, ...], told: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        settings_of("x", overrides)
    lines = sorted(str(error.value).splitlines())
    assert len(lines) == len(told)
    assert all(line.startswith(begin) for line, begin in zip(lines, told, strict=True))


def test_tasks() -> None:
    assert tasks_of(()) == TASKS
    assert tasks_of(("fim", "line", "fim")) == ("line", "fim")
    with pytest.raises(RecipeError, match="--task x: the tasks are document, line"):
        tasks_of(("line", "x"))


# ---- one line for each mistake ----


def test_one_line_for_what_cannot_be_used(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "file.py": "x = 1\n",
            "one/a.py": program(1),
            "one/b.py": "def f(:\n",
            "none/a.py": "def f(:\n",
            "plain/a.py": "x\n",
        },
    )
    (tmp_path / "empty").mkdir()
    empty_repository(tmp_path / "bare")
    root = make_repository(tmp_path / "r", programs(12))
    commit(root, {"a.py": program(80)}, "second", START + 1)
    run_git(tmp_path, "clone", "-q", "--depth", "1", f"file://{root}", "shallow")
    for arguments, told in {
        ("nothing",): "there is nothing there",
        ("file.py",): "is not a folder",
        ("empty",): "is empty",
        ("bare",): "is empty",
        ("one",): "one file cannot be split into training and held out (left out: unparsable 1)",
        ("none",): "no file that can be used (left out: unparsable 1)",
        ("plain", "commits=5"): "no git checkout and has no history",
        ("plain", "split=time"): "cannot be split",
        ("shallow", "commits=5"): "git fetch --unshallow",
        ("package:there_is_none",): "there is no such package here",
        ("r", "include=[nothing/**]"): "excluded 13",
        ("r", "held_out=0"): "held_out",
        ("r", "--task", "x"): "the tasks are",
    }.items():
        said = ingest(*arguments)
        assert said.exit_code == (2 if "--task" in arguments or "held_out=0" in arguments else 1), arguments
        assert told in said.output, arguments
        assert len(said.output.splitlines()) == 1, said.output


def test_bad_files_are_rows(tmp_path: Path) -> None:
    """A hundred megabytes, what is not UTF-8, links out and in, a pipe, a submodule."""
    root = make_repository(tmp_path / "r", programs(12))
    part = make_repository(tmp_path / "part", {"a.py": program(90)})
    run_git(root, "submodule", "add", "-q", str(part), "part")
    with (root / "huge.py").open("wb") as file:
        file.truncate(100_000_000)
    write_files(root, {"latin.py": b"x = '\xe9'\n"})
    os.symlink("/etc", root / "etc")
    os.symlink("p0/m0.py", root / "link.py")
    run_git(root, "add", "-A")
    (root / "p1/m1.py").unlink()
    os.mkfifo(root / "p1/m1.py")
    left_out = table(ingest(root, "--examples", "0").stdout, "what is left out")
    assert left_out == {
        "link": ["1", "link.py (to p0/m0.py)"],
        "outside": ["1", "etc (a link to /etc)"],
        "submodule": ["1", "part"],
        "too large": ["1", "huge.py (97,656 kilobytes)"],
        "undecodable": ["1", "latin.py"],
        "unknown language": ["1", ".gitmodules"],
        "unreadable": ["1", "p1/m1.py (not a regular file)"],
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    write_files(tmp_path / "r", {**programs(6), "shut.py": "x = 1\n"})
    (tmp_path / "r/shut.py").chmod(0)
    said = ingest(tmp_path / "r", "--examples", "0")
    assert table(said.stdout, "what is left out") == {"unreadable": ["1", "shut.py (permission denied)"]}
