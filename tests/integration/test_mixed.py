"""Local, adapter, served, chat, program and self teachers in one pool, in one step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import TutelageError
from pipeline.new_model import model_config, model_from_config
from pipeline.recipe import NewModel
from teachers.journal import FILE
from tests.mixed import mixed_settings, scored_model
from tests.runs import Settings, changed, distill_settings, run_here, write_recipe
from tests.servers.chat_server import ChatServer
from tests.servers.scorer import scorer_of
from tests.servers.vllm import vllm_python, vllm_server
from tests.vocabularies import byte_level


@dataclass(frozen=True)
class World:
    chat: ChatServer
    served: ChatServer
    settings: Settings
    folder: Path

    def run(self, name: str = "run", *, resume: bool = False, **changes: object) -> Path:
        path = self.folder / f"{name}.yaml"
        write_recipe(path, changed(self.settings, {"output": str(self.folder / name), **changes}))
        return run_here(path, resume=resume)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ChatServer() as chat, ChatServer(scorer=scorer_of(scored_model(tmp_path))) as served:
        settings = mixed_settings(tmp_path, chat.url, served.url, served.manners.model)
        yield World(chat, served, settings, tmp_path)


def lines(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_every_kind_of_teacher_teaches_in_one_step(world: World) -> None:
    folder = world.run()
    metrics = lines(folder, "metrics.jsonl")
    assert len(metrics) == 3
    for line in metrics:
        assert line["failures"] == {}
        assert line["unanswered"] == 0
        assert set(line["kl"]["teacher"]) == {"local", "adapter", "served", "own"}  # type: ignore[index]
        assert set(line["grade"]) == {"critic", "checker"}  # type: ignore[arg-type]
    given = lines(folder, "provenance.jsonl")
    assert [line["step"] for line in given] == [1, 2, 3]
    first = given[0]["samples"][0]["teachers"]  # type: ignore[index]
    assert first["served"]["gave"] == ["top_5"]
    assert first["local"]["gave"] == ["distribution"]
    assert "score" in first["critic"]["gave"]
    assert first["critic"]["model"] == world.chat.manners.model
    assert sum(entry["share"] for entry in first.values()) == pytest.approx(1.0)
    assert (folder / FILE).is_file()
    assert not [content for content, times in world.chat.asked.items() if times > 1]


def test_a_finished_run_replayed_from_its_journal_asks_nobody_and_is_the_same(world: World) -> None:
    first = world.run("first")
    asked = len(world.chat.asked), len(world.served.asked)
    second = world.run("second", **{"pool.journal": str(first / FILE)})
    assert (len(world.chat.asked), len(world.served.asked)) == asked
    assert (second / "metrics.jsonl").read_bytes() == (first / "metrics.jsonl").read_bytes()
    assert (second / "model" / "model.safetensors").read_bytes() == (first / "model" / "model.safetensors").read_bytes()
    assert min(asked) > 0


def test_a_real_vllm_server_beside_all_others(tmp_path: Path) -> None:
    """The whole pool once more, scored by vLLM itself: its numbers are those of the stand-in, up to rounding."""
    python = vllm_python()
    model = scored_model(tmp_path)
    with (
        ChatServer() as chat,
        ChatServer(scorer=scorer_of(model)) as stand_in,
        vllm_server(python, model, tmp_path / "vllm.log") as url,
    ):
        runs = {}
        for name, at, called in (("vllm", url, "tiny"), ("stand-in", stand_in.url, stand_in.manners.model)):
            settings = mixed_settings(tmp_path, chat.url, at, called)
            path = write_recipe(tmp_path / f"{name}.yaml", changed(settings, {"output": str(tmp_path / name)}))
            runs[name] = lines(run_here(path), "metrics.jsonl")
    for real, played in zip(runs["vllm"], runs["stand-in"], strict=True):
        assert real["failures"] == {}
        assert real["kl"]["teacher"]["served"] == pytest.approx(played["kl"]["teacher"]["served"], rel=1e-3)  # type: ignore[index]


def test_a_private_prompt_is_refused_before_anything_is_sent(world: World) -> None:
    far = {"data.sources.sorting.private": True, "teachers.critic.url": "http://192.0.2.7:8000/v1"}
    with pytest.raises(TutelageError, match=r"teachers\.critic: .*sorting is private and 192\.0\.2\.7 is not"):
        world.run("private", **far)
    assert not world.chat.requests


def test_a_server_with_another_tokenizer_says_what_the_model_itself_would(tmp_path: Path) -> None:
    """Through a server's top-k and in this process: the same tokens are scored, with the same numbers; and the same
    answers have too few of them."""
    other = byte_level(300)
    shape = NewModel(hidden_size=32, layers=2, heads=2, context=512)
    model_from_config(model_config(shape, len(other)), other, seed=4).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    folder = str(tmp_path / "other")
    align = {"top_k": 8, "least_coverage": 0.01}
    with ChatServer(scorer=scorer_of(folder)) as server:
        teachers = {
            "near": {"kind": "transformers", "model": folder, "dtype": "float32", "align": align},
            "far": {
                "kind": "served",
                "url": server.url,
                "model": server.manners.model,
                "tokenizer": folder,
                "top_k": 20,
                "align": align,
            },
        }
        settings = changed(distill_settings(tmp_path), {"teachers": teachers, "routing": "all"})
        found = lines(run_here(write_recipe(tmp_path / "recipe.yaml", settings)), "metrics.jsonl")
        strict = {f"teachers.{name}.align.least_coverage": 0.6 for name in teachers}
        strict |= {"output": str(tmp_path / "strict"), "pool.quorum": 0.0}
        refused = lines(run_here(write_recipe(tmp_path / "strict.yaml", changed(settings, strict))), "metrics.jsonl")
    failures: list[dict[str, dict[str, int]]] = [line["failures"] for line in refused]  # type: ignore[misc]
    assert all(line.get("near") == line.get("far") for line in failures)
    counts = [line.get("far", {}).get("low_coverage", 0) for line in failures]
    assert 0 < sum(counts) < 3 * 4
    assert [line["unanswered"] for line in refused] == counts
    for line in found:
        coverage: dict[str, float] = line["coverage"]  # type: ignore[assignment]
        assert 0 < coverage["near"] == coverage["far"] < 1
        kl: dict[str, float] = line["kl"]["teacher"]  # type: ignore[index]
        assert kl["far"] == pytest.approx(kl["near"], rel=0.05)
