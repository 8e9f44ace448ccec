"""HumanEval through the teacher that trains with it: every canonical solution passes, nothing else does."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from itertools import combinations
from math import comb
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.files import read_lines
from pipeline.humaneval import Passed, evaluate, prompts_of
from pipeline.prompts import load_prompts
from pipeline.recipe import Data
from pipeline.statistics import pass_at_k
from teachers.config import Sandbox
from teachers.types import Chat, RawText
from tests.runs import changed, distill_settings, run_here, write_recipe

ROOT = Path(__file__).parents[2]
FILE = ROOT.parent / "shared" / "data" / "HumanEval.jsonl.gz"
PROBLEMS = [
    {
        "task_id": "Mine/0",
        "prompt": "from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    '''Twice each.'''\n",
        "entry_point": "double",
        "canonical_solution": "    return [2 * x for x in xs]\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n",
    },
    {
        "task_id": "Mine/1",
        "prompt": "def helper(x):\n    return -x\n\n\ndef negate(x):\n    '''Uses helper.'''\n",
        "entry_point": "negate",
        "canonical_solution": "    return helper(x)\n",
        "test": "def check(candidate):\n    for x in range(9):\n        assert candidate(x) == helper(x)\n",
    },
]

walled = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
here = pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE.name} is not here")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(problem) + "\n" for problem in PROBLEMS)
    return path


@here
@walled
def test_all_canonical_solutions_pass_and_all_broken_ones_fail() -> None:
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        canonical = [json.loads(line)["canonical_solution"] for line in lines]
    prompts = prompts_of(FILE, as_chat=False)
    assert len(prompts) == len(canonical) == 164
    both = {prompt.prompt_id: [solution, "    pass\n"] for prompt, solution in zip(prompts, canonical, strict=True)}
    passed = evaluate(prompts, both, Sandbox())
    assert passed.not_judged == {}
    assert list(passed.counts.values()) == [(2, 1)] * 164
    assert [name for name in passed.feedback if not name.endswith("/1")] == []  # all canonical ones, no broken one
    assert len(passed.feedback) == 164
    assert passed.to_json(ks=(1, 2)) == {
        "pass@1": {"value": 0.5, "low": 0.5, "high": 0.5},
        "pass@2": {"value": 1.0, "low": pytest.approx(0.977, abs=1e-3), "high": 1.0},
        "problems": 164,
        "samples": 328,
        "not_judged": 0,
    }


@walled
@pytest.mark.parametrize("as_chat", [False, True])
def test_as_a_text_to_continue_and_as_a_conversation(file: Path, as_chat: bool) -> None:
    prompts = prompts_of(file, as_chat=as_chat)
    assert all(isinstance(prompt.conversation, Chat if as_chat else RawText) for prompt in prompts)
    assert len({prompt.prompt_id for prompt in prompts}) == 2
    whole = [f"{problem['prompt']}{problem['canonical_solution']}" for problem in PROBLEMS]
    completions = {
        prompt.prompt_id: [
            f"Here it is.\n\n```python\n{text}```\nDone.",
            problem["canonical_solution"],
            "I do not know.",
        ]
        for prompt, text, problem in zip(prompts, whole, PROBLEMS, strict=True)
    }
    passed = evaluate(prompts, completions, Sandbox())
    assert list(passed.counts.values()) == [(3, 2), (3, 2)]
    assert passed.to_json(ks=(1, 3))["pass@1"]["value"] == pytest.approx(2 / 3)


@walled
def test_a_plain_source_of_a_recipe_gives_prompts_that_are_judged_the_same(file: Path) -> None:
    """`columns` names the tests as the answer; the head and the function's name are read from the prompt."""
    source = {"kind": "dataset", "path": str(file), "columns": {"prompt": "prompt", "answer": "test"}, "as_chat": False}
    data = Data.model_validate({"sources": {"code": {**source, "checker": "none"}}, "held_out": 1})
    sets = load_prompts(data, folder=file.parent, seed=0)
    prompts = [*sets.held_out["code"], *sets.train["code"][:]]
    solutions = {problem["prompt"]: problem["canonical_solution"] for problem in PROBLEMS}
    completions = {}
    for prompt in prompts:
        assert isinstance(prompt.conversation, RawText)
        completions[prompt.prompt_id] = [solutions[prompt.conversation.text], "    return 7\n"]
    assert list(evaluate(prompts, completions, Sandbox()).counts.values()) == [(2, 1), (2, 1)]


@walled
def test_a_recipe_trains_on_tests_and_reports_how_often_one_of_several_answers_passes(tmp_path: Path) -> None:
    problems = [{**problem, "prompt": f"{problem['prompt']}{'#' * n}"} for n in range(2) for problem in PROBLEMS]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    columns = {"prompt": "prompt", "answer": "test"}
    source = {"kind": "dataset", "path": "problems.jsonl", "columns": columns, "as_chat": False}
    settings = changed(
        distill_settings(tmp_path),
        {
            "teachers": {"tests": {"kind": "program", "check": "python_tests"}},
            "routing": "all",
            "data": {"held_out": 2, "sources": {"code": {**source, "checker": "python_tests"}}},
            "rollout.samples_per_prompt": 2,
            "objective": {"anchor": 0.1},  # a student of random weights passes nothing: all advantages are 0
            "training.steps": 1,
            "training.prompts_per_step": 2,
            "evaluation": {"prompts_per_domain": 2, "samples": 3},
        },
    )
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", settings))
    (line,) = read_lines(folder / "metrics.jsonl")
    assert line["grade"] == {"tests": 0.0}
    assert line["failures"] == {}
    found = json.loads((folder / "evaluation.json").read_text())["pass_at_k"]["code"]
    assert found.keys() == {"base", "student"}
    assert found["student"].keys() == {"pass@1", "pass@3"}
    assert found["student"]["pass@3"]["value"] == 0.0
    samples = list(read_lines(folder / "evaluations" / "base.samples.jsonl"))
    assert [sample["score"] for sample in samples] == [0.0] * 6


@walled
def test_what_could_not_be_judged_is_counted_apart(file: Path) -> None:
    prompts = prompts_of(file, as_chat=False)
    reference = json.dumps({"test": "no python", "prompt": "", "entry_point": "double"})
    broken = [replace(prompts[0], reference=reference), prompts[1]]
    solution = PROBLEMS[1]["canonical_solution"]
    passed = evaluate(broken, {broken[0].prompt_id: ["x"], broken[1].prompt_id: [solution, solution]}, Sandbox())
    assert passed.counts == {broken[0].prompt_id: (0, 0), broken[1].prompt_id: (2, 2)}
    assert list(passed.not_judged) == [f"{broken[0].prompt_id}/0"]
    told = passed.to_json(ks=(1, 2, 3))
    assert (told["problems"], told["samples"], told["not_judged"]) == (1, 2, 1)
    assert {"pass@1", "pass@2"} <= set(told)
    assert "pass@3" not in told
    assert Passed({}, {}, {}).to_json() == {"problems": 0, "samples": 0, "not_judged": 0}


def test_files_that_are_not_humaneval(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        prompts_of(tmp_path / "none.jsonl", as_chat=False)
    path = tmp_path / "some.jsonl"
    path.write_text('\n{"prompt": "x"}\n')
    with pytest.raises(DataError, match=r"some.jsonl, line 2: has no task_id, no test, no entry_point"):
        prompts_of(path, as_chat=False)
    path.write_text("{")
    with pytest.raises(DataError, match=r"line 1: not JSON"):
        prompts_of(path, as_chat=False)


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 2, 1), (5, 2, 3), (7, 0, 4), (7, 7, 1), (4, 3, 2), (6, 1, 6)])
def test_pass_at_k_is_the_chance_that_one_of_k_drawn_samples_passes(samples: int, passed: int, k: int) -> None:
    """Against all ways of drawing k of them."""
    ways = [any(n < passed for n in drawn) for drawn in combinations(range(samples), k)]
    assert len(ways) == comb(samples, k)
    value, low, high = pass_at_k([(samples, passed)] * 3, k)
    assert value == pytest.approx(sum(ways) / len(ways))
    assert low - 1e-9 <= value <= high + 1e-9


def test_pass_at_k_over_problems() -> None:
    value, low, high = pass_at_k([(10, 10), (10, 0), (10, 5), (20, 1)], 1)
    assert value == pytest.approx((1 + 0 + 0.5 + 0.05) / 4)
    assert 0 <= low < value < high <= 1
    assert pass_at_k([(1, 1)] * 82 + [(1, 0)] * 82, 1)[1:] == pytest.approx((0.424, 0.576), abs=1e-3)  # Wilson's
    for k in (0, 11):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k([(10, 1), (20, 3)], k)
