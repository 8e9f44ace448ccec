"""pyproject and constraints.txt agree: what an install needs is pinned, within the ranges, without a GPU's packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in found}


def test_every_dependency_is_pinned_within_its_range() -> None:
    extras = PROJECT["optional-dependencies"]
    chosen = ("code", "quantize", "tensorboard", "dev")
    lines = [*PROJECT["dependencies"], *(line for extra in chosen for line in extras[extra])]
    wanted = [Requirement(line) for line in lines if not line.startswith("tutelage[")]
    known = pins()
    assert [str(one) for one in wanted if not one.specifier.contains(known[canonicalize_name(one.name)])] == []


def test_pins_fit_a_machine_without_a_gpu() -> None:
    known = pins()
    assert str(known["torch"]) == "2.13.0"
    assert [name for name in known if re.search("cuda|nvidia|triton|cupy", name)] == []
    assert [name for name, version in known.items() if version.local or version.is_prerelease] == []


def test_the_command_and_the_packages() -> None:
    assert PROJECT["scripts"] == {"tutelage": "pipeline.cli:main"}
    assert PROJECT["name"] == "tutelage"
    assert PROJECT["requires-python"] == ">=3.11"
