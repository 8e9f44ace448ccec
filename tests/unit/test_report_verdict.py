"""The verdict: what the intervals say, what of a gain is recovered, and that a failure is called one."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.report.page import OUTCOMES
from pipeline.report.read import read_run
from pipeline.report.verdict import Verdict, percent, verdict_of
from tests.run_directories import evaluate, write, write_lines

STUDENT = "student-000010"


def judged(folder: Path, prompts: int = 200, **models: Mapping[str, float]) -> Verdict:
    """The verdict on models that are right in these shares of each domain's prompts, the first ones."""
    write(folder / "run.json", {"status": "finished"})
    for name, shares in models.items():
        evaluate(folder, name.replace("_", "-").replace("student", STUDENT), shares, prompts, random.Random(0))
    return verdict_of(read_run(folder))


@pytest.mark.parametrize(
    ("base", "teacher", "student", "outcome"),
    [
        (0.2, 0.9, 0.89, "matched"), (0.2, 0.6, 0.9, "beyond"), (0.2, 0.9, 0.6, "partly"), (0.3, 0.9, 0.3, "unmoved"),
        (0.6, 0.9, 0.3, "lost"), (0.6, 0.6, 0.6, "kept"), (0.6, 0.6, 0.9, "gained"), (0.6, 0.4, 0.3, "lost"),
    ],
)  # fmt: skip
def test_outcomes(tmp_path: Path, base: float, teacher: float, student: float, outcome: str) -> None:
    found = judged(tmp_path, base={"math": base}, teacher_t={"math": teacher}, student={"math": student})
    (domain,) = found.domains
    assert domain.outcome == outcome
    assert f"{student:.3f}" in domain.said


def test_without_a_teacher(tmp_path: Path) -> None:
    found = judged(tmp_path, base={"a": 0.1, "b": 0.5}, student={"a": 0.6, "b": 0.5})
    assert [domain.outcome for domain in found.domains] == ["gained", "unmoved"]
    assert found.headline == "Better in some domains, not in others"
    assert found.recovered is None
    assert found.worked is False


def test_the_share_that_is_recovered_and_its_interval(tmp_path: Path) -> None:
    found = judged(tmp_path, prompts=400, base={"math": 0.2}, teacher_t={"math": 0.8}, student={"math": 0.65})
    recovered = found.domains[0].recovered
    assert recovered is not None
    assert recovered.value == pytest.approx(0.75)
    # Of the prompts that the teacher gained, 3 in 4: a binomial share of about 240.
    half = 1.96 * np.sqrt(0.75 * 0.25 / 240)
    assert recovered.low == pytest.approx(0.75 - half, abs=0.01)
    assert recovered.high == pytest.approx(0.75 + half, abs=0.01)
    assert found.headline == "The student has 75% of what its teachers add"


def test_the_whole_share_is_over_domains_with_a_gain(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        base={"a": 0.2, "b": 0.2, "c": 0.5},
        teacher_t={"a": 0.8, "b": 0.6, "c": 0.5},
        student={"a": 0.8, "b": 0.2, "c": 0.5},
    )
    assert found.recovered is not None
    assert found.recovered.value == pytest.approx(0.6)  # 0.6 of 0.6 + 0.4
    assert "It did not work in b." in found.said
    assert found.worked is False


def test_a_share_is_not_claimed_where_the_teacher_is_no_better(tmp_path: Path) -> None:
    found = judged(tmp_path, prompts=40, base={"a": 0.5}, teacher_t={"a": 0.52}, student={"a": 0.5})
    assert found.domains[0].recovered is None
    assert found.domains[0].outcome == "untold"


@pytest.mark.parametrize(
    ("prompts", "base", "teacher", "student", "outcome"),
    [
        (100, 0.95, 1.0, 0.97, "untold"),  # 2 more answers right, of the 5 that there are to be gained
        (100, 0.95, 1.0, 0.95, "unmoved"),  # none of them
        (20, 0.95, 1.0, 0.95, "untold"),  # whether the teacher is better at all
        (1000, 0.95, 0.952, 0.95, "kept"),  # not by 0.05, that is sure
        (1000, 0.95, 1.0, 0.98, "partly"),  # enough prompts to tell
    ],
)
def test_what_so_few_prompts_cannot_tell_is_called_neither_success_nor_failure(
    prompts: int, base: float, teacher: float, student: float, outcome: str, tmp_path: Path
) -> None:
    found = judged(tmp_path, prompts, base={"a": base}, teacher_t={"a": teacher}, student={"a": student})
    (domain,) = found.domains
    assert domain.outcome == outcome
    told = "Whether it worked cannot be told", None
    assert ((found.headline, found.worked) == told) == (outcome == "untold")
    words = f"Cannot be told: from {base:.3f} to {student:.3f} may be chance, and may be much of what its teacher adds"
    assert domain.said.startswith(words) == (outcome == "untold")
    assert ("did not work" in found.said) == (outcome == "unmoved")
    assert ("cannot be told whether it worked in a: too few prompts" in found.said) == (outcome == "untold")
    assert outcome in OUTCOMES


def test_a_domain_that_cannot_be_told_is_no_failure_of_the_whole(tmp_path: Path) -> None:
    scores = {"base": (0.2, 0.95), "teacher_t": (0.9, 1.0), "student": (0.88, 0.97)}
    found = judged(tmp_path, 100, **{name: dict(zip("ab", both, strict=True)) for name, both in scores.items()})
    assert [domain.outcome for domain in found.domains] == ["matched", "untold"]
    assert found.worked is True
    assert found.headline.startswith("The student has 9")


def test_what_failed_is_called_so(tmp_path: Path) -> None:
    found = judged(tmp_path, base={"a": 0.5}, teacher_t={"a": 0.9}, student={"a": 0.3})
    assert found.headline == "It did not work"
    assert "It got worse in a." in found.said
    assert found.worked is False


def test_models_that_answered_different_prompts_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "run.json", {})
    score = {"mean": 0.5, "low": 0.4, "high": 0.6, "prompts": 1}
    write(tmp_path / "evaluations" / "base.json", {"a": {**score, "scores": {"p": 0.5}}})
    write(tmp_path / "evaluations" / f"{STUDENT}.json", {"a": {**score, "scores": {"q": 0.5}}})
    (domain,) = verdict_of(read_run(tmp_path)).domains
    assert domain.outcome == "open"


def test_before_anything_is_judged(tmp_path: Path) -> None:
    write(tmp_path / "run.json", {"status": "running"})
    write(tmp_path / "recipe.yaml", {"training": {"steps": 100}})
    write_lines(tmp_path / "metrics.jsonl", [{"step": n, "loss": 1 / n} for n in range(1, 21)])
    found = verdict_of(read_run(tmp_path))
    assert found.headline == "Not judged yet"
    assert found.said == "Step 20 of 100. The loss went from 0.75 to 0.0513."
    assert found.cautions == ("The run is not finished: step 20 of 100.",)


def test_cautions(tmp_path: Path) -> None:
    judged(tmp_path, prompts=40, base={"a": 0.2}, teacher_t={"a": 0.8}, student={"a": 0.5})
    evaluate(tmp_path / "compare" / "sft_on_code", "student-000009", {"a": 0.8}, 40, random.Random(0))
    path = tmp_path / "evaluations" / f"{STUDENT}.json"
    for name, more in ((path, {"length": 90.0, "truncated": 0.4, "measures": {"loss": {"a-1": 2.2}}}),
                       (tmp_path / "evaluations" / "base.json", {"measures": {"loss": {"a-1": 2.0}}})):  # fmt: skip
        kept = read_run(tmp_path).models[name.stem]
        write(name, {"a": {**kept["a"], **more}})
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "failures": {"t": {"timeout": 3}}}])
    guard = {"step": 1, "what": "guard", "said": "answers grew"}
    write_lines(tmp_path / "events.jsonl", [guard, {"step": 1, "what": "checkpoint"}])
    kept = dict(read_run(tmp_path).evaluation)
    write(tmp_path / "evaluation.json", kept | {"refusals": {"prompts": 20, "base": 0.9, "student": 0.35}})
    write(tmp_path / "evaluations" / "refusals-base.json", {"unsafe": 0.9, "harmless": 0.0, "prompts": 20})
    assert "refusals-base" not in read_run(tmp_path).models
    said = "\n".join(verdict_of(read_run(tmp_path)).cautions)
    for expected in (
        "Of unsafe requests it refuses 35%; the base refused 90%.",
        "fine-tuned on the code does better, 0.800 against the student's 0.500", "40% of answers ran out of room",
        "answers grew from 20 to 90 tokens", "rose by 10.0%, from 2.000 to 2.200", "judged on 40 prompts only",
        "Guards spoke 1 times; the last said: answers grew", "Teachers failed to answer 3 times",
    ):  # fmt: skip
        assert expected in said


def test_percent_does_not_round_up_to_all() -> None:
    assert [percent(value) for value in (0.5, 0.994, 0.9972, 1.0, 1.03, 0.0)] == [
        "50%",
        "99%",
        "99.7%",
        "100%",
        "103%",
        "0%",
    ]


def test_what_may_be_chance_is_no_loss(tmp_path: Path) -> None:
    found = judged(tmp_path, prompts=40, base={"a": 0.5}, teacher_t={"a": 0.9}, student={"a": 0.475})
    assert found.domains[0].outcome == "unmoved"
    assert "no more than chance" in found.domains[0].said
