"""What a user or a machine can do to a run: one clear line, a status, nothing half-written, everything earned kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.checkpoint import list_checkpoints
from tests.runs import changed, command, distill_settings, environment, tutelage, write_recipe


def fails(recipe: Path, *overrides: str, status: int = 1) -> str:
    """The one line that the command says before it ends with `status`."""
    result = tutelage("run", str(recipe), *overrides)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    return line


def test_a_truncated_teacher_is_named(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path))
    file = tmp_path / "sorting" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    line = fails(recipe)
    assert "teachers.sorting" in line
    assert "truncated" in line


def test_an_empty_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    source = {"kind": "dataset", "path": str(tmp_path / "empty.jsonl"), "domain": "sorting"}
    settings = distill_settings(tmp_path)
    settings["data"]["sources"]["sorting"] = source
    assert "empty.jsonl" in fails(write_recipe(tmp_path / "recipe.yaml", settings))


def test_an_output_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path))
    (tmp_path / "file").touch()
    assert "output=" in fails(recipe, f"output={tmp_path / 'file' / 'run'}")
    assert "output=" in fails(recipe, f"output={tmp_path / 'file'}")


def test_interrupting_keeps_what_was_earned(tmp_path: Path) -> None:
    changes = {"training.steps": 500, "training.checkpoint_every": 1}
    recipe = write_recipe(tmp_path / "recipe.yaml", changed(distill_settings(tmp_path), changes))
    process = subprocess.Popen(
        command("run", str(recipe)), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(list_checkpoints(tmp_path / "run" / "checkpoints")) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    (line,) = errors.strip().splitlines()
    assert "--resume" in line
    kept = [int(path.name.removeprefix("step-")) for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert len(kept) in (2, 3)  # the oldest of three goes once the newest is whole, and Ctrl-C may come between
    assert kept == list(range(kept[0], kept[0] + len(kept)))


PRESS = """
import os, signal, sys
def press():
    sys.setprofile(None)
    os.kill(os.getpid(), signal.SIGINT)
"""
IMPORTED = """
class Watch:
    def find_spec(name, *_):
        if name == {name!r}:
            press()
sys.meta_path.insert(0, Watch)
"""
CALLED = """
sys.setprofile(lambda frame, *_: press() if frame.f_code.co_name == {name!r} else None)
"""


@pytest.mark.parametrize(
    ("moment", "name"), [(IMPORTED, "importlib.metadata"), (IMPORTED, "typer"), (CALLED, "get_command")]
)
def test_interrupting_at_once_is_one_line(moment: str, name: str) -> None:
    """A real Ctrl-C in a real process, at the moment when a module is looked for or a function called."""
    code = PRESS + moment.format(name=name) + "from pipeline.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", code, "recipes"], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_half_written_checkpoint(tmp_path: Path, small_disk: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path))
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 400_000))
    run = small_disk / "run"
    line = fails(recipe, f"output={run}")
    assert "disk is full" in line
    assert "--resume" in line
    assert not list((run / "checkpoints").glob("step-*.partial"))
    (small_disk / "ballast").unlink()
    assert tutelage("run", str(recipe), f"output={run}", "--resume").returncode == 0
