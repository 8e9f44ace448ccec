"""vLLM inside the training process: its tests run in a process that has both, on the CPU.

Needs the environment that `.ci/vllm` makes, named by TUTELAGE_VLLM_PYTHON. Skipped without it, but never in CI.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import RunError
from tests.following import checked
from tests.runs import changed, distill_settings, run_here, write_recipe
from tests.servers.vllm import beside_vllm

ROOT = Path(__file__).parents[2]
INSIDE = ROOT / "tests" / "inside_vllm.py"


@pytest.mark.timeout(900)
def test_in_a_process_that_has_vllm() -> None:
    """`python -m pytest tests/inside_vllm.py`, where vLLM is installed beside this, does the same."""
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "--durations=0", str(INSIDE)]
    done = subprocess.run(command, cwd=ROOT, env=beside_vllm(), capture_output=True, text=True, timeout=880)
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


def test_where_vllm_is_missing_nothing_is_begun(tmp_path: Path) -> None:
    """Neither the run that writes by it, nor one that it needs first, nor a directory of theirs."""
    settings = distill_settings(tmp_path)
    inside = {"rollout": {"kind": "vllm", "server": "inside", "max_new_tokens": 6}}
    first = write_recipe(tmp_path / "first.yaml", changed(settings, {**inside, "output": str(tmp_path / "first")}))
    needs = {"prepare": {"first": {"recipe": str(first)}}, "student.model": "prepared:first"}
    outer = write_recipe(tmp_path / "outer.yaml", changed(settings, needs))
    told = r"rollout.server: vllm is not installed here; pip install vllm beside tutelage, or .*$"
    for path in (first, outer):
        with pytest.raises(RunError, match=told):
            run_here(path)
        with pytest.raises(RunError, match=told):
            checked(path)
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "run").exists()
    assert "vllm, inside" in checked(first, offline=True)
