"""What no single section of a recipe can see: names that must match across sections, choices that exclude each other.

Works on plain data, complete or not, so that these mistakes are found together with all others. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipeline.recipe_problems import did_you_mean
from pipeline.recipe_rollouts import OURS
from pipeline.tasks import DOMAINS
from pipeline.yaml_lines import Key
from teachers.config import GIFTS, Limits, Sandbox
from teachers.sandbox import WALL

Finding = tuple[Key, str]

_PREPARED = "prepared:"
RUN_BY_TESTS = ("feature", "body")  # tasks that put back what tests may miss
_GRADERS = ("chat", "program", "plugin")


def prepared_name(model: str) -> str | None:
    """The NAME of `prepared:NAME`, the result of a recipe under `prepare`; None for any other model."""
    return model.removeprefix(_PREPARED) if model.startswith(_PREPARED) else None


def disagreements(data: Mapping[str, Any], prepared: Collection[str] = ()) -> list[Finding]:
    """(path, what is wrong; what to write instead) for everything that two sections do not agree on.

    prepared: names of results that an enclosing recipe has prepared before this one.
    """
    known = [*section_of(data, "prepare"), *prepared]
    checks = (
        _tasks,
        _codebases,
        _suites,
        _teacher_names,
        _pool,
        _domains,
        _writers,
        _temperatures,
        _inside,
        _alone,
        _choices,
        _shards,
    )
    return [*_prepared(data, known), *(finding for check in checks for finding in check(data))]


def section_of(data: Any, *keys: str) -> Mapping[str, Any]:
    """The mapping under these keys; an empty one where there is none, for `recipe_problems` says what is wrong."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def _one_of(kind: str, names: Mapping[str, Any]) -> str:
    return f"{kind}: {', '.join(map(str, names))}" if names else f"{kind}: none"


# ---- sources ----


def _tasks(data: Mapping[str, Any]) -> Iterator[Finding]:
    for name, source in section_of(data, "data", "sources").items():
        task = section_of(source).get("task")
        if section_of(source).get("kind") == "tasks" and isinstance(task, str) and task not in DOMAINS:
            text = f"no task is called {task!r}{did_you_mean(task, DOMAINS)}; {_one_of('the tasks', DOMAINS)}"
            yield ("data", "sources", name, "task"), text


def _codebases(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Sources of kind codebase have one to read; and something is trained on."""
    sources = section_of(data, "data", "sources")
    own = [
        name
        for name, source in sources.items()
        if section_of(source).get("kind") == "codebase" and section_of(source).get("of") is None
    ]
    if own and data.get("source") is None:
        yield (
            ("data", "sources", own[0]),
            "it reads the recipe's codebase; add source: {path: …}, or give it its own `of`",
        )
    if not own and "sft_on_code" in (data.get("compare") or ()):
        yield ("compare",), "sft_on_code needs a source of kind codebase on the recipe's `source`; leave it out"
    if sources and all(section_of(source).get("weight") == 0 for source in sources.values()):
        yield ("data", "sources"), "every source has weight 0, so none is trained on; give one a weight"


def _suites(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Whoever judges by a repository's tests has prompts that say which, and time enough to run them."""
    suites: dict[str, Mapping[str, Any]] = {}
    for name, source in section_of(data, "data", "sources").items():
        code = section_of(source, "of") or section_of(data, "source")
        if section_of(source).get("kind") == "codebase" and section_of(source).get("task") in RUN_BY_TESTS:
            suites |= {name: section_of(code, "tests")} if code.get("tests") is not None else {}
        if section_of(source).get("checker") == "repository_tests" and name not in suites:
            text = "no tests are run for this source; it needs task: feature or body, and source.tests"
            yield ("data", "sources", name, "checker"), text
    given = [section_of(suite, "sandbox").get("seconds", Sandbox().seconds) for suite in suites.values()]
    longest = WALL * max((seconds for seconds in given if isinstance(seconds, int | float)), default=0)
    for name, teacher in section_of(data, "teachers").items():
        check = section_of(teacher).get("check")
        if "repository_tests" not in (check, section_of(check).get("kind")):
            continue
        if not suites:
            text = "no source has tests to be judged by; add one with task: feature, and source.tests: {}"
            yield ("teachers", name, "check"), text
        timeout = section_of(teacher, "limits").get("timeout", Limits().timeout)
        if isinstance(timeout, int | float) and timeout < longest:
            text = f"tests may take {longest:g} s on the clock; raise it, or lower source.tests.sandbox.seconds"
            yield ("teachers", name, "limits", "timeout"), text


def source_domains(data: Mapping[str, Any]) -> dict[str, Key] | None:
    """Every domain with the key that names it; None where a column of a data set holds them or a task is unknown."""
    domains: dict[str, Key] = {}
    for name, value in section_of(data, "data", "sources").items():
        source = section_of(value)
        if section_of(source, "columns").get("domain") is not None:
            return None
        named = ("domain",) if source.get("kind") == "codebase" else ("task", "domain")
        key = next((key for key in named if isinstance(source.get(key), str)), None)
        if key == "task" and source[key] not in DOMAINS:
            return None
        path: Key = ("data", "sources", name, key) if key else ("data", "sources", name)
        domains.setdefault(source[key] if key else name, path)
    return domains


# ---- prepared models ----


def model_keys(data: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Every key that names a model or an adapter, with its value."""
    student = section_of(data, "student").get("model")
    if isinstance(student, str):
        yield ("student", "model"), student
    for name, teacher in section_of(data, "teachers").items():
        on_a_server = section_of(teacher).get("kind") in ("served", "chat")  # what is called `model` there is a name
        for key in ("tokenizer",) if on_a_server else ("model", "base", "adapter"):
            model = section_of(teacher).get(key)
            if isinstance(model, str):
                yield ("teachers", name, key), model


def _prepared(data: Mapping[str, Any], known: Collection[str]) -> Iterator[Finding]:
    for path, model in model_keys(data):
        name = prepared_name(model)
        if name is not None and name not in known:
            hint = did_you_mean(name, known)
            yield (
                path,
                f"nothing called {name!r} is prepared{hint}; add prepare.{name}, or name another model",
            )


# ---- who is asked ----


def _routing(data: Mapping[str, Any]) -> Mapping[str, Any]:
    routing = data.get("routing", {})
    return {"kind": routing} if isinstance(routing, str) else {"kind": "domain", **section_of(routing)}


def _routed(routing: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Every place where the routing names a teacher."""
    for domain, choice in section_of(routing, "table").items():
        if isinstance(choice, str):
            yield ("routing", "table", domain), choice
        for name in section_of(choice):
            yield ("routing", "table", domain, name), name
    if isinstance(routing.get("default"), str):
        yield ("routing", "default"), routing["default"]
    for name in section_of(routing, "shares"):
        yield ("routing", "shares", name), name
    order = routing.get("order")
    for place, name in enumerate(order if isinstance(order, list | tuple) else ()):
        if isinstance(name, str):
            yield ("routing", "order", place), name


def _teacher_names(data: Mapping[str, Any]) -> Iterator[Finding]:
    pool = section_of(data, "teachers")
    for path, name in _routed(_routing(data)):
        if name not in pool:
            text = f"no teacher is called {name!r}{did_you_mean(name, pool)}; {_one_of('the teachers', pool)}"
            yield path, text


def _pool(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Teachers that name each other: fallbacks, and whose feedback one is shown."""
    pool = section_of(data, "teachers")
    fallbacks = {name: section_of(teacher).get("fallback") for name, teacher in pool.items()}
    for name, other in fallbacks.items():
        if isinstance(other, str):
            if other not in pool:
                text = f"no teacher is called {other!r}{did_you_mean(other, pool)}; {_one_of('the teachers', pool)}"
                yield ("teachers", name, "fallback"), text
            elif _comes_back(name, fallbacks):
                yield ("teachers", name, "fallback"), "its fallbacks lead back to it; end them with another teacher"
    for name, value in pool.items():
        teacher = section_of(value)
        sees = teacher.get("sees")
        if isinstance(sees, str) and sees.startswith("feedback:"):
            other = sees.removeprefix("feedback:")
            kind = section_of(pool.get(other)).get("kind")
            if kind not in _GRADERS:
                text = f"there is no teacher {other!r} that gives feedback; name one of kind chat, program or plugin"
                yield ("teachers", name, "sees"), text
            elif not _gives(section_of(pool[other]), "feedback"):
                text = f"teachers.{other} gives no feedback; add feedback to teachers.{other}.gives, or name another"
                yield ("teachers", name, "sees"), text
        tune = section_of(data, "student").get("tune", "full")
        kind = tune if isinstance(tune, str) else section_of(tune).get("kind", "full")
        if teacher.get("kind") == "self" and teacher.get("weights") == "base" and kind != "lora":
            text = "a fully tuned student has no base to go back to; write initial or average, or student.tune=lora"
            yield ("teachers", name, "weights"), text


def _gives(teacher: Mapping[str, Any], gift: str) -> bool:
    """Whether a teacher may give a score or feedback: a chat teacher says only what its recipe wants."""
    gives = teacher.get("gives", GIFTS)
    if teacher.get("kind") != "chat" or not isinstance(gives, str | list | tuple):
        return teacher.get("kind") in _GRADERS
    return gift in gives


def _comes_back(name: str, fallbacks: Mapping[str, Any]) -> bool:
    seen: set[str] = set()
    at: Any = fallbacks[name]
    while isinstance(at, str) and at not in seen:
        if at == name:
            return True
        seen.add(at)
        at = fallbacks.get(at)
    return False


def _writers(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Teachers that are to write answers, or be averaged, have a model in this process."""
    compare = data.get("compare")
    wanted = [
        *((("answers",),) if data.get("answers") == "teachers" else ()),
        *(
            ("compare", place)
            for place, name in enumerate(compare if isinstance(compare, list | tuple) else ())
            if name in ("parameter_average", "sft_on_teacher_samples")
        ),
    ]
    for name, teacher in section_of(data, "teachers").items() if wanted else ():
        kind = section_of(teacher).get("kind")
        if kind not in ("transformers", "adapter", None):
            text = (
                f"it needs teachers with a model in this process, and teachers.{name} is of kind {kind}; leave it out"
            )
            yield wanted[0], text


def _domains(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Routing by domain: every domain has a teacher, and the table names no domain that does not occur."""
    routing, pool, domains = _routing(data), section_of(data, "teachers"), source_domains(data)
    asked = data.get("method") == "distill" or data.get("answers") == "teachers"
    if routing["kind"] != "domain" or domains is None or not asked or not pool:
        return
    table = section_of(routing, "table")
    for domain in table:
        if domain not in domains:
            hint = did_you_mean(domain, domains)
            yield ("routing", "table", domain), f"no source has this domain{hint}; {_one_of('the domains', domains)}"
    for domain, path in domains.items():
        if domain not in table and domain not in pool and routing.get("default") is None:
            text = f"the domain {domain!r} has no teacher; add routing.table.{domain}, or set routing.default"
            yield path, text


# ---- choices that exclude each other ----


def _choices(data: Mapping[str, Any]) -> Iterator[Finding]:
    if data.get("answers") == "teachers" and not data.get("teachers"):
        yield ("answers",), "there is no teacher to write answers; add one under teachers, or write answers: reference"
    if by := _uses_ratios(data):
        for key, whole in (("top_p", 1), ("top_k", 0)):
            if section_of(data, "rollout").get(key, whole) != whole:
                text = f"{by}'s ratio is undefined where the sampler cuts; set rollout.{key} to {whole}"
                yield ("rollout", key), text


def _shards(data: Mapping[str, Any]) -> Iterator[Finding]:
    """What needs whole weights where they are in shards."""
    sharding = section_of(data, "sharding")
    for name, teacher in section_of(data, "teachers").items() if sharding.get("student") is True else ():
        if section_of(teacher).get("kind") == "self" and section_of(teacher).get("weights") == "average":
            text = "a student in shards has no moving average; write initial, or sharding.student=false"
            yield ("teachers", name, "weights"), text
    context = sharding.get("context", 1)
    if context != 1 and sharding.get("teachers") == "groups":
        text = "processes that share rows cannot have teachers in groups as well; write whole or shards"
        yield ("sharding", "teachers"), text
    if context != 1 and section_of(data, "rollout").get("kind") == "vllm":
        text = "each of the processes that share rows would have the server write the same; write 1"
        yield ("sharding", "context"), text
    compare = data.get("compare")
    names = list(compare) if isinstance(compare, list | tuple) else []
    if sharding.get("teachers", "whole") != "whole" and "parameter_average" in names:
        text = "no process has all teachers whole to average them; leave it out, or write sharding.teachers=whole"
        yield ("compare", names.index("parameter_average")), text


def _temperatures(data: Mapping[str, Any]) -> Iterator[Finding]:
    """A server's log-probabilities are those at temperature 1, so the student's have to be too."""
    served = [name for name, t in section_of(data, "teachers").items() if section_of(t).get("kind") == "served"]
    if served and section_of(data, "rollout").get("temperature", 1) != 1:
        yield ("rollout", "temperature"), f"teachers.{served[0]} is served, and servers score at temperature 1; write 1"


def _inside(data: Mapping[str, Any]) -> Iterator[Finding]:
    """What a run says itself to vLLM's engine."""
    for name in section_of(data, "rollout", "server", "options"):
        if name in OURS:
            instead = f"; use {OURS[name]}" if OURS[name] else "; remove it"
            yield ("rollout", "server", "options", name), f"the run says that to vLLM itself{instead}"


def _alone(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Grades that are compared within a prompt need a second sample of it."""
    grades = section_of(data, "objective", "grades")
    graded = any(_gives(section_of(teacher), "score") for teacher in section_of(data, "teachers").values())
    if not graded or grades.get("weight", 1) == 0 or grades.get("baseline", "group") != "group":
        return
    if section_of(data, "rollout").get("samples_per_prompt", 1) == 1:
        text = (
            "grades are compared with those of the prompt's other samples, and there are none; write 4, or "
            "objective.grades: {baseline: running}, or weight: 0 to use rewrites and feedback alone"
        )
        yield ("rollout", "samples_per_prompt"), text


def _uses_ratios(data: Mapping[str, Any]) -> str | None:
    """What needs the probability that a token was sampled with: policy_gradient, a grade, or nothing."""
    objective = section_of(data, "objective")
    divergence = objective.get("divergence")
    if "policy_gradient" in (divergence, section_of(divergence).get("kind")):
        return "policy_gradient"
    teachers = [section_of(teacher) for teacher in section_of(data, "teachers").values()]
    if any(teacher.get("kind") == "served" and teacher.get("top_k") == 0 for teacher in teachers):
        return "a served teacher with top_k: 0"
    graded = any(_gives(teacher, "score") for teacher in teachers)
    return "a grade" if graded and section_of(objective, "grades").get("weight", 1) != 0 else None
