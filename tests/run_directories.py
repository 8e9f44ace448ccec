"""Run directories of any size, as a run leaves them, without a run: for tests of what reads them.

`python -m tests.run_directories FOLDER STEPS` makes one to look at.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from teachers.journal import FILE, Journal
from teachers.types import Answer, Judgment, TeacherFailure, Usage

HOSTILE = "</script><script>document.title='owned'</script><!-- <img src=x onerror=alert(1)> & \"quoted\" \u2028"
TEACHERS = {"arithmetic": "math", "algebra": "math", "python": "code", "editor": "chat"}
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "tutelage": "0.1.0"}
SENTENCES = (
    "The train leaves at nine, so it needs two hours and a half.",
    "We add both sides and divide by four, which leaves x = 12.",
    "    return sorted(items, key=lambda item: item.price)[:limit]\n",
    "First count the apples in each basket, then take away three.",
    "    for name, value in settings.items():\n        print(name, value)\n",
    "A short answer is best here: the result is 3.5 kilometres.",
)


@dataclass(frozen=True)
class Size:
    """steps: done, of as many. rollouts: kept with tokens, evenly over the steps. tokens: of each answer."""

    steps: int = 40
    rollouts: int = 12
    tokens: int = 40
    choices: int = 64
    prompts: int = 60


def make_run(folder: Path, size: Size | None = None, *, private: bool = False, seed: int = 0, **recipe: Any) -> Path:
    """A finished run of three domains and four teachers, two of which score the same answers and one grades.

    recipe: keys of the recorded recipe that are other than usual.
    """
    size, rng = size or Size(), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "run.json", {"status": "finished", "versions": VERSIONS, "python": "3.11.7", "system": "Linux"})
    write(folder / "recipe.yaml", {**_recipe(size, private), **recipe})  # JSON is YAML
    write(folder / "data.json", {"fingerprint": f"{seed:032x}"})
    write(folder / "tutelage.json", _mark(private))
    write_lines(folder / "metrics.jsonl", [_metrics(rng, step, size.steps) for step in steps(size)])
    write_lines(folder / "timings.jsonl", [_timings(rng, step) for step in steps(size)])
    write_lines(folder / "samples.jsonl", _samples(rng, size))
    write_lines(folder / "events.jsonl", _events(size))
    write_lines(folder / "provenance.jsonl", [_provenance(step) for step in steps(size)])
    evaluate(folder, "base", {"math": 0.2, "code": 0.3, "chat": 0.6}, size.prompts, rng)
    evaluate(folder, "teacher-arithmetic", {"math": 0.9}, size.prompts, rng)
    evaluate(folder, "teacher-python", {"code": 0.85}, size.prompts, rng)
    evaluate(folder, f"student-{size.steps // 2:06d}", {"math": 0.6, "code": 0.3, "chat": 0.5}, size.prompts, rng)
    evaluate(folder, f"student-{size.steps:06d}", {"math": 0.88, "code": 0.3, "chat": 0.3}, size.prompts, rng)
    _journal(folder, size, rng)
    return folder


def steps(size: Size) -> range:
    return range(1, size.steps + 1)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def write_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")


def evaluate(folder: Path, name: str, right: Mapping[str, float], prompts: int, rng: random.Random) -> None:
    """evaluations/NAME: exactly the share `right` of each domain's prompts, the first ones."""
    found, lines = {}, []
    for domain, share in right.items():
        scores = {f"{domain}-{n}": float(n < round(share * prompts)) for n in range(prompts)}
        mean = sum(scores.values()) / prompts
        found[domain] = {
            "mean": mean, "low": max(0.0, mean - 0.1), "high": min(1.0, mean + 0.1), "scores": scores,
            "prompts": prompts, "length": 20.0, "truncated": 0.0, "measures": {}, "passes": {},
        }  # fmt: skip
        for key, score in scores.items():
            text = "the right answer" if score else rng.choice(SENTENCES)
            lines.append({
                "domain": domain, "prompt_id": key, "prompt": f"Question {key}?", "completion": text,
                "reference": "the right answer", "score": score, "finish_reason": "end",
            })  # fmt: skip
    write(folder / "evaluations" / f"{name}.json", found)
    write_lines(folder / "evaluations" / f"{name}.samples.jsonl", lines)


def _recipe(size: Size, private: bool) -> dict[str, Any]:
    return {
        "method": "distill",
        "seed": 0,
        "student": {"model": "small/model", "tune": {"kind": "lora", "rank": 16}},
        "teachers": {
            "arithmetic": {"kind": "transformers", "model": "large/arithmetic"},
            "algebra": {"kind": "adapter", "adapter": "./algebra"},
            "python": {"kind": "served", "model": "large/python", "url": "http://10.0.0.5:8000/v1"},
            "editor": {"kind": "chat", "model": "deepseek-v4-pro"},
        },
        "routing": {
            "kind": "table", "table": {"math": {"arithmetic": 1, "algebra": 1}, "code": "python", "chat": "editor"}
        },
        "data": {
            "sources": {
                name: {"kind": "dataset", "path": f"{name}.jsonl", "private": private} for name in TEACHERS.values()
            }
        },
        "training": {"steps": size.steps, "prompts_per_step": 16, "learning_rate": 1e-4, "schedule": "cosine"},
        "objective": {"divergence": {"kind": "reverse_kl"}},
        "privacy": {"mode": "open"},
    }  # fmt: skip


def _mark(private: bool) -> dict[str, Any]:
    terms = {"training": "allowed", "region": "CN", "date": "2026-04-01", "source": "https://example.org/terms"}
    kinds = {"arithmetic": "transformers", "algebra": "adapter", "python": "served"}
    teachers = {name: {"kind": kind} for name, kind in kinds.items()} | {"editor": {"kind": "chat", **terms}}
    return {"private": private, "private_sources": ["math"] if private else [], "teachers": teachers}


def _metrics(rng: random.Random, step: int, of: int) -> dict[str, Any]:
    done = step / of
    fall = 0.03 + 0.5 * math.exp(-4 * done)

    def near(value: float) -> float:
        return value * math.exp(rng.gauss(0, 0.15))

    return {
        "step": step, "loss": near(fall), "nll": near(0.1 * fall),
        "kl": {
            "teacher": {"arithmetic": near(fall), "algebra": near(1.4 * fall), "python": near(0.7 * fall)},
            "domain": {"math": near(1.2 * fall), "code": near(0.7 * fall)},
        },
        "entropy": near(1.2 - 0.7 * done), "overlap": min(1.0, 0.7 + 0.2 * done + rng.gauss(0, 0.01)),
        "mass_in_support": min(1.0, 0.9 + 0.08 * done), "rows": 16, "prompt_tokens": 900, "tokens": 640 + step % 7,
        "length": {"mean": near(40.0), "max": 64 + step % 3}, "truncated": max(0.0, 0.1 - 0.1 * done),
        "score": {"math": min(1.0, near(0.3 + 0.5 * done)), "code": near(0.3), "chat": near(0.5 - 0.2 * done)},
        "grade": {"editor": near(0.6)}, "repetition": near(2.0),
        "gradient_share": {"math": 0.6, "code": 0.3, "chat": 0.1},
        "failures": {"editor": {"timeout": 2}} if step % 9 == 5 else {}, "unanswered": 2 if step % 9 == 5 else 0,
        "grad_norm": 60.0 if step == of * 3 // 5 else near(0.8),
        "learning_rate": 1e-4 * (1 + math.cos(math.pi * done)) / 2,
        "quality_of_something_new": near(5.0),
    }  # fmt: skip


def _timings(rng: random.Random, step: int) -> dict[str, Any]:
    seconds = {"rollout": 0.5 + rng.random() / 9, "teachers": 0.2, "waiting": 0.05, "early": 0.0, "update": 0.4}
    return {"step": step, "processes": 1, "seconds": seconds, "peak_bytes": 2_000_000_000 + step}


def _provenance(step: int) -> dict[str, Any]:
    def given(name: str, kind: str) -> dict[str, Any]:
        return {name: {"gave": [kind], "share": 1.0, "model": f"large/{name}"}}

    samples = [
        {"request_id": f"{step}-{n}/0", "private": False, "teachers": given(name, kind)}
        for n, (name, kind) in enumerate((("arithmetic", "distribution"), ("python", "top_k"), ("editor", "judgment")))
    ]
    return {"step": step, "samples": samples}


def _events(size: Size) -> list[dict[str, Any]]:
    checkpoints = [
        {"step": step, "what": "checkpoint", "name": None, "subject": None, "value": None, "threshold": None,
         "action": None, "said": f"checkpoint after step {step}"}
        for step in range(10, size.steps + 1, max(10, size.steps // 10))
    ]  # fmt: skip
    guard = {
        "step": size.steps * 3 // 5, "what": "guard", "name": "gradient", "subject": "math", "value": 60.0,
        "threshold": 10.0, "action": "lower_rate",
        "said": "math's gradient was 60 times its usual size; the rate was halved",
    }  # fmt: skip
    return sorted([*checkpoints, guard], key=lambda event: event["step"])


def _samples(rng: random.Random, size: Size) -> list[dict[str, Any]]:
    every = -(-size.steps // size.rollouts)
    domains = ("math", "code", "chat")
    lines = []
    for step in steps(size):
        kept = (step - 1) % every == 0
        domain = domains[(step // every if kept else step) % 3]
        lines.append(_rollout(rng, step, domain, size) if kept else _plain(rng, step, domain))
    return lines


def _plain(rng: random.Random, step: int, domain: str) -> dict[str, Any]:
    text = rng.choice(SENTENCES)
    return {
        "step": step, "domain": domain, "prompt": f"Question {step}", "completion": text, "reference": None,
        "finish_reason": "end", "writer": "student", "sampling_logprobs": [-0.1] * 9,
    }  # fmt: skip


def _rollout(rng: random.Random, step: int, domain: str, size: Size) -> dict[str, Any]:
    tokens = _tokens(rng, size.tokens)
    own = [name for name, of in TEACHERS.items() if of == domain and name != "editor"]
    divergences = {name: [round(rng.expovariate(4) ** 2, 4) for _ in tokens] for name in own}
    worst = sorted(range(len(tokens)), key=lambda place: -max((d[place] for d in divergences.values()), default=0))
    shown = set(worst[: size.choices])
    logprobs = [-rng.expovariate(2) for _ in tokens]
    line = _plain(rng, step, domain) | {
        "prompt": f"Question {step}: {HOSTILE if step == 1 else rng.choice(SENTENCES)}",
        "completion": "".join(tokens), "reference": rng.choice(SENTENCES), "rollout_id": f"r{step}/0",
        "prompt_id": f"{domain}-{step}", "score": float(rng.random() < 0.5), "tokens": tokens,
        "segments": [["answer", 0, len(tokens)]], "logprobs": logprobs,
        "top": [_top(rng, text, math.exp(logprobs[n])) if n in shown else None for n, text in enumerate(tokens)],
        "teachers": {
            name: {
                "divergence": values, "logprobs": [-rng.expovariate(1) for _ in tokens],
                "top": [
                    _top(rng, text, math.exp(-3 * values[n])) if n in shown else None for n, text in enumerate(tokens)
                ],
            }
            for name, values in divergences.items()
        },
        "judgments": {},
    }  # fmt: skip
    if domain == "chat":
        text = "".join(tokens).replace(" the ", " every ", 1).replace("needs", "takes")
        line["judgments"] = {
            "editor": {"score": 0.5, "feedback": f"Say it shorter. {HOSTILE}", "rewrite": text, "rewrite_text": text},
            "arithmetic": {"score": 0.9, "feedback": None, "rewrite": None, "rewrite_text": None},
        }
    return line


def _tokens(rng: random.Random, count: int) -> list[str]:
    tokens: list[str] = []
    while len(tokens) < count:
        words = rng.choice(SENTENCES).split(" ")
        tokens += [word if n == 0 and tokens == [] else f" {word}" for n, word in enumerate(words)]
    return [*tokens[: count - 2], HOSTILE, "<|end|>"]


def _top(rng: random.Random, text: str, probability: float) -> list[list[Any]]:
    others = rng.sample([" we", " then", " 12", " three", "\n", " so", " each", "ing", " it", " count"], 4)
    weights = sorted((rng.random() for _ in others), reverse=True)
    rest = [(other, (1 - probability) * weight / sum(weights)) for other, weight in zip(others, weights, strict=True)]
    return [[one, p] for one, p in sorted([(text, probability), *rest], key=lambda pair: -pair[1])]


def _journal(folder: Path, size: Size, rng: random.Random) -> None:
    journal = Journal(folder / FILE)
    for step in range(1, min(size.steps, 40) + 1):
        for attempt in range(2 if step % 9 == 5 else 1):
            number = journal.intend(
                f"key-{step}", teacher="editor", request_id=f"r{step}/0", step=step, dollars=Decimal("0.02"), tokens=900
            )
            failed = step % 9 == 5 and attempt == 0
            result = (
                TeacherFailure("editor", "timeout", True)
                if failed
                else Answer(Judgment(0.5, "good", None), Usage(700, 0, 200, 0), "deepseek-v4-pro", 0.4 + rng.random())
            )
            journal.settle(number, result, Decimal("0" if failed else "0.0123"))
    journal.close()


if __name__ == "__main__":
    count = int(sys.argv[2])
    make_run(Path(sys.argv[1]), Size(count, min(500, count), 120))
