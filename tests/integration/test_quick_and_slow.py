"""What is done for speed leaves no trace in what is learned: whole runs the quick way and the slow way, on one seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.files import read_lines
from pipeline.rollout.cached import CachedEngine
from pipeline.rollout.lean import lean_engine
from tests.runs import changed, distill_settings, run_here, write_recipe

STEPS = 10


def curve(folder: Path, name: str, **changes: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """A run's metrics, and the completions it kept."""
    settings = changed(
        distill_settings(folder),
        {
            "output": str(folder / name),
            "training.steps": STEPS,
            "rollout.max_new_tokens": 12,
            "training.learning_rate": 5e-3,
            **changes,
        },
    )
    run = run_here(write_recipe(folder / f"{name}.yaml", settings))
    return list(read_lines(run / "metrics.jsonl")), [line["completion"] for line in read_lines(run / "samples.jsonl")]


@pytest.mark.parametrize("tune", ["full", {"kind": "lora", "rank": 4}], ids=["full", "lora"])
def test_the_curve_is_that_of_the_slow_way(tmp_path: Path, tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow: decoding through transformers, one row in a forward, one token in a chunk of the head."""
    made: list[bool] = []

    def counted(lm: Any, products: Any = None) -> Any:
        engine = lean_engine(lm, products)
        made.append(engine is not None)
        return engine

    monkeypatch.setattr("pipeline.rollout.lean.lean_engine", counted)
    quick, written = curve(tmp_path, "quick", **{"student.tune": tune})
    assert all(made), "the quick way was not taken"
    monkeypatch.setattr("pipeline.rollout.local.engine_for", lambda lm, products: CachedEngine(lm))
    slow, expected = curve(
        tmp_path, "slow", **{"student.tune": tune, "training.tokens_per_forward": 1, "objective.chunk_megabytes": 1}
    )
    assert written == expected, "other tokens were written"
    assert len(quick) == STEPS
    assert quick[0]["loss"] > 1.1 * quick[-1]["loss"], "nothing was learned, so nothing was compared"
    for one, other in zip(quick, slow, strict=True):
        assert one["tokens"] == other["tokens"]
        for name in ("loss", "grad_norm", "entropy", "logprob"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), (one["step"], name)


def test_products_in_bf16_learn_what_fp32_learns(tmp_path: Path) -> None:
    """Not the same tokens; the same fall of the loss, within what other tokens make of it."""
    exact, _ = curve(tmp_path, "exact", **{"training.steps": 20, "training.prompts_per_step": 8})
    rounded, _ = curve(
        tmp_path,
        "rounded",
        **{"training.steps": 20, "training.prompts_per_step": 8, "training.mixed_precision": "bf16"},
    )
    falls = [sum(line["loss"] for line in lines[-5:]) / lines[0]["loss"] / 5 for lines in (exact, rounded)]
    assert falls[0] < 0.95
    assert falls[1] == pytest.approx(falls[0], rel=0.1)
