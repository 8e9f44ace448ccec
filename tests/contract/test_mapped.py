"""Teachers' weights are in memory in their turns alone, and the same in each of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from teachers.causal_lm import CausalLM, load_causal_lm, model_key
from teachers.config import AdapterTeacher, TeacherConfig, TransformersTeacher
from teachers.mapped import Pages, in_turn, pages_of
from teachers.pool import Pool, build_pool
from teachers.scoring import HiddenStateTeacher
from teachers.types import Answer, FullVocab, RawText, ScoreRequest, Segment
from tests.models import save_adapter, save_tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are mapped everywhere, and forgotten on Linux")

REQUEST = ScoreRequest(
    request_id="r/0", group_id="r", sample_index=0, step=1, domain="d", conversation=RawText("a question"),
    segments=(Segment("assistant", "answer", (60, 61, 62, 70), True),), finish_reason="length",
)  # fmt: skip


def resident(pages: Sequence[Pages]) -> int:
    """Kilobytes of these mappings that are in memory now."""
    wanted = {f"{each.start:x}-{each.end:x}" for each in pages}
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            here = line.split()[0] in wanted
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def pool_of(student: CausalLM, configs: dict[str, TeacherConfig], *, lent: str | None = None) -> Pool:
    shared = {} if lent is None else {model_key(lent, None, "float32"): student}
    return build_pool(configs, student, shared=shared, device=torch.device("cpu"), resolve=lambda path, _: path)


def model_of(pool: Pool, name: str) -> nn.Module:
    teacher = pool.teachers[name]
    assert isinstance(teacher, HiddenStateTeacher)
    return teacher.lm.model


def scores(pool: Pool, name: str) -> Tensor:
    ((_, answer),) = pool.score(name, [REQUEST])
    assert isinstance(answer, Answer)
    assert isinstance(answer.signal, FullVocab)
    head = answer.signal.head
    logits = head.logits(head.load(), answer.signal.hidden)
    head.release()
    return logits


def plain(path: str) -> TransformersTeacher:
    return TransformersTeacher(kind="transformers", model=path, dtype="float32")


@pytest.fixture
def student(tmp_path: Path) -> CausalLM:
    return load_causal_lm(save_tiny(tmp_path / "student"), name="student", dtype="float32")


def test_weights_are_in_memory_in_their_turn_alone(tmp_path: Path, student: CausalLM) -> None:
    paths = {name: save_tiny(tmp_path / name, "llama", seed=seed) for seed, name in enumerate("abc")}
    pool = pool_of(student, {name: plain(path) for name, path in paths.items()})
    pages = {name: pages_of(model_of(pool, name)) for name in paths}
    assert len({each for found in pages.values() for each in found}) == 3
    assert [resident(found) for found in pages.values()] == [0, 0, 0]
    first = {name: scores(pool, name) for name in paths}
    assert [resident(found) for found in pages.values()] == [0, 0, 0]
    for name, path in paths.items():
        with pool.writing(name) as lm:
            lm.model(input_ids=torch.tensor([[1, 2, 3]]))
            assert resident(pages[name]) > 100
        assert resident(pages[name]) == 0
        assert torch.equal(scores(pool, name), first[name])
        alone = load_causal_lm(path, name=name, dtype="float32")
        assert all(
            torch.equal(p, q) for p, q in zip(alone.model.parameters(), model_of(pool, name).parameters(), strict=True)
        )


def test_adapters_leave_their_base_on_disk_too(tmp_path: Path, student: CausalLM) -> None:
    base = save_tiny(tmp_path / "base", "llama", seed=4)
    configs: dict[str, TeacherConfig] = {}
    for number in (1, 2):
        adapter = save_adapter(tmp_path / f"a{number}", base, number)
        configs[f"a{number}"] = AdapterTeacher(kind="adapter", base=base, adapter=adapter, dtype="float32")
    pool = pool_of(student, configs)
    pages = pages_of(model_of(pool, "a1"))
    first = {name: scores(pool, name) for name in configs}
    assert resident(pages) == 0
    assert all(torch.equal(scores(pool, name), first[name]) for name in configs)
    assert not torch.equal(first["a1"], first["a2"])


def test_what_the_student_uses_stays(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "student", "llama")
    student = load_causal_lm(path, name="student", dtype="float32")
    pool = pool_of(student, {"t": plain(path)}, lent=path)
    pages = pages_of(student.model)
    scores(pool, "t")
    assert resident(pages) > 100


def test_weights_that_learn_are_never_forgotten(student: CausalLM) -> None:
    assert pages_of(student.model)
    next(iter(student.model.parameters())).requires_grad_(True)
    assert pages_of(student.model) == ()


def test_another_dtype_than_the_files_lies_in_memory(tmp_path: Path) -> None:
    lm = load_causal_lm(save_tiny(tmp_path / "m"), name="m", dtype="bfloat16")
    assert pages_of(lm.model) == ()
    assert pages_of(nn.Linear(2, 2).requires_grad_(False)) == ()


def test_they_are_forgotten_after_an_exception(student: CausalLM) -> None:
    pages = pages_of(student.model)
    assert in_turn(nullcontext, ()) is nullcontext

    def fails_in_its_turn() -> None:
        with in_turn(nullcontext, pages)():
            student.model(input_ids=torch.tensor([[1, 2]]))
            assert resident(pages) > 0
            raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        fails_in_its_turn()
    assert resident(pages) == 0
