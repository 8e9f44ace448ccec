"""Pushing to a hub on loopback that behaves, and to one that does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from rich.console import Console

from pipeline.afterwards import export
from pipeline.display import Display
from pipeline.errors import RunError
from pipeline.export.origin import Licence, Origin, licence_of
from tests.exported import save_base, taught
from tests.runs import environment, tutelage
from tests.servers.hub import Fault, Hub, Repo, metadata_errors

NAME = "ada/small-student"
SHORT = {"training.steps": 2, "training.checkpoint_every": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("push")
    return taught(root / "open", save_base(root / "base"), SHORT)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("secret")
    return taught(root / "run", save_base(root / "base"), {**SHORT, "data.sources.by_heart.private": True})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        at(server.url, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub reads these once, when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def push(run: Path, name: str = NAME, **wanted: Any) -> None:
    export(run, lambda threads: None, Display(Console(quiet=True)), push=name, **wanted)


def refused(run: Path, name: str = NAME, **wanted: Any) -> str:
    with pytest.raises(RunError) as caught:
        push(run, name, **wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- a hub that behaves ----


def test_the_command_pushes_and_anybody_loads_it(run: Path, tmp_path: Path) -> None:
    """The real command, then plain transformers by the name alone, in a process that has nothing but the hub."""
    with Hub() as hub:
        environ = {**environment(), **hub.environment, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-m", "pipeline.cli", "export", str(run), "--push", NAME, "--shard", "200KB"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{hub.url}/{NAME}" in done.stdout
        folder = run / "export/model"
        assert hub.repos[NAME].files == {path.name: path.read_bytes() for path in folder.iterdir()}
        card = hub.repos[NAME].files["README.md"].decode()
        assert metadata_errors(card) == []
        code = card.partition("```python\n")[2].partition("```")[0]
        assert f'name = "{NAME}"' in code
        loaded = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, cwd=tmp_path)
        assert loaded.returncode == 0, loaded.stderr
        assert hub.repos[NAME].private, "unless one says otherwise"


def test_public_on_purpose_and_old_shards_go(run: Path, hub: Hub) -> None:
    push(run, private=False, shard="100KB")
    assert not hub.repos[NAME].private
    assert len([name for name in hub.repos[NAME].files if name.endswith(".safetensors")]) > 2
    hub.repos[NAME].files["notes.md"] = b"of its owner"
    push(run, private=False)
    weights = [name for name in hub.repos[NAME].files if "safetensors" in name]
    assert weights == ["model.safetensors"]
    assert hub.repos[NAME].files["notes.md"] == b"of its owner"
    assert set(hub.repos[NAME].commits) == {"run, step 2"}


def test_a_pushed_card_is_called_by_its_name(run: Path, hub: Hub) -> None:
    push(run)
    card = ModelCard(hub.repos[NAME].files["README.md"].decode())
    assert card.text.strip().startswith("# small-student")
    assert card.data.model_name == "small-student"


def test_the_licence_is_the_bases_own_word(hub: Hub, tmp_path: Path) -> None:
    hub.licences["qwen/base"] = "apache-2.0"
    assert licence_of(Origin("qwen/base"), ask=True) == Licence("apache-2.0")
    assert licence_of(Origin("qwen/base"), ask=False) is None
    assert licence_of(Origin("qwen/unknown"), ask=True) is None
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n# base\n")
    assert licence_of(Origin(folder=tmp_path), ask=False) == Licence("other", "ours", "LICENSE")
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    assert licence_of(Origin(folder=tmp_path), ask=False) is None


# ---- one that does not ----


def test_no_token_and_a_wrong_one(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not take the token (401" in refused(run)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "none"))
    assert "no token; log in with `hf auth login`, or set HF_TOKEN" in refused(run)
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("fault", "words"), [(Fault.ERROR_403, "write access"), (Fault.ERROR_500, "run the same command again")]
)
def test_a_hub_that_refuses_at_once_costs_no_export(
    fault: Fault, words: str, run: Path, hub: Hub, tmp_path: Path
) -> None:
    hub.faults["/api/repos/create"] = [fault]
    hub.faults[f"/api/models/{NAME}"] = [fault]
    assert words in refused(run, to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_push_that_broke_off_goes_on(run: Path, hub: Hub) -> None:
    """The connection is cut while a large file is sent (tried again at once), then before the commit (which ends the
    command): the same command again sends what is missing, and no large file twice."""
    hub.faults["/lfs/"] = [Fault.DROP]
    hub.faults["/commit/"] = [Fault.DROP]
    line = refused(run)
    assert "the connection to" in line
    assert "run the same command again" in line
    assert hub.repos[NAME].files == {}
    assert set(hub.received.values()) == {1}
    push(run)
    assert set(hub.received.values()) == {1}
    assert hub.repos[NAME].files["model.safetensors"] == (run / "export/model/model.safetensors").read_bytes()


def test_nobody_at_that_address(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    assert "the connection to http://127.0.0.1:9 failed" in refused(run)


@pytest.mark.parametrize("name", ["student", "ada/", "/student", "ada/stu dent", "ada/b/c", "ada/a--b", "../x"])
def test_names_that_are_none(name: str, run: Path, hub: Hub) -> None:
    assert "write OWNER/NAME" in refused(run, name)
    assert hub.asked == []


def test_an_adapter_without_a_base_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    adapted = taught(tmp_path / "lora", save_base(tmp_path / "base"), {**SHORT, "student.tune": "lora"})
    assert "push --kind model" in refused(adapted, kind="adapter")
    assert hub.asked == []


# ---- private runs ----


def test_a_private_run_goes_nowhere_that_is_not_allowed(
    secret: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at("https://hub.example", monkeypatch)
    line = refused(secret, to=tmp_path / "out")
    assert "the run is private and hub.example is not this machine" in line
    assert "privacy.allowed=[hub.example]" in line
    assert not (tmp_path / "out").exists()
    at(hub.url, monkeypatch)  # this machine
    push(secret)
    assert hub.repos[NAME].private


def test_a_private_run_is_not_for_everybody(secret: Path, hub: Hub) -> None:
    assert "everybody would read it" in refused(secret, private=False)
    assert hub.asked == []
    hub.repos[NAME] = Repo(private=False)
    assert "this repository is public already" in refused(secret)
    assert hub.repos[NAME].files == {}


def test_a_private_run_asks_nobody_for_a_licence(secret: Path, hub: Hub) -> None:
    push(secret)
    assert {path.split()[1].split("/")[1] for path in hub.asked} <= {"api", "lfs", "ada"}
    assert not [path for path in hub.asked if "models" in path and NAME not in path]


def test_a_sealed_run_reaches_no_hub(tmp_path: Path) -> None:
    """The kernel has no route there, whoever asks; what it exports is written as ever."""
    run = taught(tmp_path / "sealed", save_base(tmp_path / "base"), {**SHORT, "privacy": {"mode": "open"}})
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("mode: open", "mode: sealed"))
    done = tutelage("export", str(run))
    if "not possible here" in done.stderr:
        pytest.skip("this machine does not let tests make a network namespace")
    assert done.returncode == 0, done.stderr
    with Hub() as hub:
        environ = {**environment(), **hub.environment}
        command = [sys.executable, "-m", "pipeline.cli", "export", str(run), "--push", NAME]
        pushed = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert pushed.returncode == 1
        assert hub.asked == []
        (line,) = pushed.stderr.strip().splitlines()
        assert "the run is sealed" in line
