"""Text-only teachers teach: grades alone and corrections alone, with a real student that samples, is judged, learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pipeline import recipe
from pipeline.evaluate import answer_text
from pipeline.judgments import Baselines, JudgedSettings, judge
from pipeline.metrics import Sums, collect, describe, describe_judged
from pipeline.recipe_losses import Grades, Rewrites
from pipeline.rollout.protocol import SamplingSettings
from pipeline.student import Student, load_student
from pipeline.targets import Row, build_batch, normaliser
from pipeline.types import Prompt
from pipeline.writers import student_writer
from teachers.types import Judgment, RawText
from tests.models import save_tiny

CPU = torch.device("cpu")
STEPS, PROMPTS, SAMPLES, TOKENS = 40, 8, 4, 6
VOWELS = "aeiou"

Teacher = Callable[[str], Judgment]


def student_of(folder: Path) -> Student:
    path = save_tiny(folder / "student")
    return load_student(
        recipe.Student(model=path, tune="full", dtype="float32"),
        model_path=path,
        seed=0,
        chunk_bytes=10**6,
        device=CPU,
    )


def learn(student: Student, teacher: Teacher, baseline: str, steps: int = STEPS) -> list[dict[str, dict[str, float]]]:
    """What each step's metrics say; its score is the share of vowels, whatever the teacher says."""
    sampling = SamplingSettings(max_new_tokens=TOKENS, samples_per_prompt=SAMPLES)
    write = student_writer(student.lm, sampling, seed=0)
    prompts = [Prompt(f"p{n}", "source", "a", RawText(f"say {n}: ")) for n in range(PROMPTS)]
    settings = JudgedSettings(Grades(baseline=baseline), Rewrites(), TOKENS + 2)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    baselines, lines = Baselines(), []
    for step in range(steps):
        rollouts = write(prompts, step)
        texts = {rollout.rollout_id: answer_text(rollout, student.lm) for rollout in rollouts}
        judgments = {name: [("judge", 1.0, teacher(text))] for name, text in texts.items()}
        judged = judge(rollouts, judgments, settings, baselines, student.lm)
        baselines = judged.baselines
        rows = [*(Row(rollout, judged.scores[rollout.rollout_id]) for rollout in rollouts), *judged.rows]
        rows = [row for row in rows if row.taught]
        batch = build_batch(rows, normaliser(rows, "trajectory"), temperature=1.0, device=CPU)
        output = student(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        sums = Sums()
        collect(sums, batch, output)
        score = sum(map(vowels, texts.values())) / len(texts)
        lines.append({**describe(sums), **describe_judged([judged.counts]), "score": {"a": score}})
    return lines


def vowels(text: str) -> float:
    return sum(letter in VOWELS for letter in text) / TOKENS


def test_grades_alone_raise_the_grade(tmp_path: Path) -> None:
    for baseline in ("group", "running"):
        lines = learn(student_of(tmp_path / baseline), lambda text: Judgment(score=min(vowels(text), 1.0)), baseline)
        assert lines[0]["score"]["a"] < 0.1
        assert lines[-1]["score"]["a"] > 0.5
        assert lines[-1]["grade"]["judge"] == lines[-1]["score"]["a"]
        assert all(line["ratio"]["judge"] > 0.99 for line in lines)  # on policy
        assert not any(line["nll"] or line["kl"]["teacher"] for line in lines)


def test_corrections_alone_are_taken_over(tmp_path: Path) -> None:
    """The first letter that is no vowel, and all after it, become one: the student has to learn what stands there."""

    def correct(text: str) -> Judgment:
        good = next((n for n, letter in enumerate(text) if letter not in VOWELS), len(text))
        return Judgment(rewrite=text[:good] + "a" * (TOKENS - good) if good < TOKENS else text)

    lines = learn(student_of(tmp_path), correct, "group")
    assert lines[0]["score"]["a"] < 0.1
    assert lines[-1]["score"]["a"] > 0.5
    first, last = (line["nll_per_token"]["rewrite/judge"] for line in (lines[0], lines[10]))
    assert last < 0.5 * first
    assert lines[0]["rewrites"]["judge"]["used"] == PROMPTS * SAMPLES
    assert "grade" not in lines[0]
