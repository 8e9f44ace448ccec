"""`tutelage check` in two processes: teachers in shards or in groups are asked as in a run, and one process reports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.test_two_processes import torchrun
from tests.runs import DOMAINS, distill_settings, tutelage, write_recipe

WAYS = {
    "shards": ("sharding.student=true", "sharding.teachers=shards"),
    "groups": ("sharding.student=true", "sharding.teachers=groups"),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("check")
    recipe = write_recipe(folder / "recipe.yaml", distill_settings(folder))
    found = tutelage("check", str(recipe))
    assert found.returncode == 0, found.stderr
    return recipe, found.stdout


def likeness(output: str) -> list[tuple[str, str]]:
    """How far each teacher is from the student, as it is printed."""
    return re.findall(rf"({'|'.join(DOMAINS)})\s+likeness\s+([\d.]+) nats", output)


@pytest.mark.parametrize("way", WAYS)
def test_it_asks_every_teacher_and_tries_a_step(alone: tuple[Path, str], way: str) -> None:
    recipe, single = alone
    output = torchrun(recipe, "--step", *WAYS[way], what="check")
    assert len(likeness(single)) == len(DOMAINS)
    assert likeness(output) == likeness(single)
    assert len(re.findall(r"repeat\s+good", output)) == len(DOMAINS)  # once each: one process reports
    assert re.search(r"with everything loaded, [\d.]+ for gradients", output)
    assert "one step" in output
    assert output.count("no problem found") == 1
