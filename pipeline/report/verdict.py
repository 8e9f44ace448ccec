"""Did it work? Base, teacher and student on the same held-out prompts, with intervals, and in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.report.read import Line, Run, is_number, newest, section
from pipeline.statistics import mean_interval, paired_difference, percentiles, resampled_means

Outcome = Literal["beyond", "matched", "partly", "unmoved", "untold", "lost", "kept", "gained", "open"]
GOOD: tuple[Outcome, ...] = ("beyond", "matched", "kept", "gained")
LEAST_GAIN = 0.05  # of a teacher over the base: where it is surely less, there was nothing to learn
HALF = 0.5  # of a gain: who surely has less of it did not learn, also where it is too little to be told from nothing
BASE, TEACHER, STUDENT, OTHER = "base", "teacher", "student", "other"
UNTOLD = "Whether it worked cannot be told"
NAMES = {
    "base_with_context": "base, shown context",
    "parameter_average": "teachers' weights averaged",
    "sft_on_code": "fine-tuned on the code",
    "sft_on_teacher_samples": "fine-tuned on the teachers' samples",
}


@dataclass(frozen=True)
class Estimate:
    """A mean or a share with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Model:
    """One model in one domain. role: base, teacher, student or other. measures: loss, similarity, … -> mean."""

    role: str
    name: str
    score: Estimate
    scores: Mapping[str, float]
    length: float | None
    truncated: float | None
    measures: Mapping[str, float]
    passes: Mapping[str, Line]


@dataclass(frozen=True)
class Domain:
    """recovered: the share of the teacher's gain over the base that the student has; None where there is no gain.

    change: student less base, on the same prompts. said: one sentence.
    """

    name: str
    models: tuple[Model, ...]
    prompts: int
    outcome: Outcome
    recovered: Estimate | None
    change: Estimate | None
    said: str

    def of(self, role: str) -> Model | None:
        return next((model for model in self.models if model.role == role), None)


@dataclass(frozen=True)
class Verdict:
    """headline: what came of it; said: what follows it. cautions: what to look at before the model is used."""

    headline: str
    said: str
    worked: bool | None
    recovered: Estimate | None
    domains: tuple[Domain, ...]
    cautions: tuple[str, ...]


def verdict_of(run: Run) -> Verdict:
    """The verdict on what has been judged so far."""
    judged = models_of(run)
    names = dict.fromkeys(domain for scores in judged.values() for domain in scores)
    domains = tuple(_domain(name, [scores[name] for scores in judged.values() if name in scores]) for name in names)
    recovered = _over_all(domains)
    headline, said, worked = _headline(run, domains, recovered)
    return Verdict(headline, said, worked, recovered, domains, tuple(_cautions(run, domains)))


def models_of(run: Run) -> dict[str, dict[str, Model]]:
    """Model -> domain -> what is known, the base first, the student last but for what it is compared with."""
    student = newest(run)
    wanted: list[tuple[str, str, str, Mapping[str, Line]]] = []
    for key, scores in run.models.items():
        if key == "base":
            wanted.append((BASE, BASE, key, scores))
        elif key.startswith("teacher-"):
            wanted.append((TEACHER, key.removeprefix("teacher-"), key, scores))
        elif key == student:
            wanted.append((STUDENT, STUDENT, key, scores))
        elif not key.startswith("student-"):
            wanted.append((OTHER, NAMES.get(key, key), key, scores))
    for key, inner in run.inner.items():
        kind, _, name = key.partition("/")
        if kind == "compare" and (last := newest(inner)):
            wanted.append((OTHER, NAMES.get(name, name), key, inner.models[last]))
    order = (BASE, TEACHER, STUDENT, OTHER)
    found = {}
    for role, label, key, scores in sorted(wanted, key=lambda one: order.index(one[0])):
        known = {domain: _model(role, label, score) for domain, score in scores.items()}
        found[key] = {domain: model for domain, model in known.items() if model is not None}
    return found


def _model(role: str, name: str, score: Line) -> Model | None:
    by_prompt = {key: float(value) for key, value in section(score, "scores").items() if is_number(value)}
    mean = score.get("mean")
    if not is_number(mean):
        return None
    low, high = score.get("low"), score.get("high")
    if not (is_number(low) and is_number(high)):
        low, high = mean_interval(list(by_prompt.values())) if by_prompt else (mean, mean)
    measures = {
        what: sum(values.values()) / len(values)
        for what, values in section(score, "measures").items()
        if isinstance(values, Mapping) and values
    }
    length, truncated = score.get("length"), score.get("truncated")
    return Model(
        role, name, Estimate(float(mean), float(low), float(high)), by_prompt,
        float(length) if is_number(length) else None,
        float(truncated) if is_number(truncated) else None,
        measures, section(score, "passes"),
    )  # fmt: skip


# ---- one domain ----


def _domain(name: str, models: Sequence[Model]) -> Domain:
    base, teacher, student = (next((m for m in models if m.role == role), None) for role in (BASE, TEACHER, STUDENT))
    prompts = max(len(model.scores) for model in models)
    if base is None or student is None:
        missing = "the student has not been judged here yet" if student is None else "the base was not judged here"
        return Domain(name, tuple(models), prompts, "open", None, None, f"{name}: {missing}.")
    change = difference(student, base)
    gain = difference(teacher, base) if teacher else None
    behind = difference(student, teacher) if teacher else None
    recovered = _recovered(base, teacher, student) if teacher and gain and gain.low > 0 else None
    outcome = _outcome(change, gain, behind, recovered)
    said = _sentence(name, outcome, base, teacher, student, prompts)
    return Domain(name, tuple(models), prompts, outcome, recovered, change, said)


def difference(first: Model, second: Model) -> Estimate | None:
    """The mean of first less second, on the prompts that both were judged on; None where there are none."""
    common = [key for key in first.scores if key in second.scores]
    if not common:
        return None
    return Estimate(*paired_difference([first.scores[k] for k in common], [second.scores[k] for k in common]))


def _outcome(
    change: Estimate | None, gain: Estimate | None, behind: Estimate | None, recovered: Estimate | None
) -> Outcome:
    """What the intervals of the paired differences say. A difference whose interval holds 0 is not known to be one; nor
    is it known to be none, where the interval is wide."""
    if change is None:
        return "open"
    if change.high < 0:
        return "lost"
    if gain is None or behind is None:
        return "gained" if change.low > 0 else "unmoved"
    if gain.low <= 0 and change.low > 0:
        return "gained"
    if gain.low <= 0:
        return "untold" if gain.value > 0 and gain.high > LEAST_GAIN else "kept"
    if change.low <= 0:
        return "untold" if recovered is not None and recovered.high >= HALF else "unmoved"
    if behind.low > 0:
        return "beyond"
    return "matched" if behind.high >= 0 else "partly"


def _recovered(base: Model, teacher: Model, student: Model) -> Estimate | None:
    drawn = _drawn((base, teacher, student), stream=0)
    return None if drawn is None else _share(*drawn)


def _drawn(models: Sequence[Model], *, stream: int) -> tuple[Any, Any] | None:
    """(means, resampled means) of models over the prompts that all were judged on, paired."""
    common = [key for key in models[0].scores if all(key in model.scores for model in models)]
    if not common:
        return None
    scores = np.array([[model.scores[key] for key in common] for model in models])
    return scores.mean(axis=1), resampled_means(scores, stream=stream)


def _share(means: Any, drawn: Any) -> Estimate | None:
    if means[1] <= means[0]:
        return None
    gain = drawn[:, 1] - drawn[:, 0]
    held = gain > 0
    shares = (drawn[held, 2] - drawn[held, 0]) / gain[held]
    return Estimate(float((means[2] - means[0]) / (means[1] - means[0])), *percentiles(shares))


def _sentence(name: str, outcome: Outcome, base: Model, teacher: Model | None, student: Model, prompts: int) -> str:
    went = f"from {base.score.value:.3f} to {student.score.value:.3f}"
    aim = f"; the teacher has {teacher.score.value:.3f}" if teacher else ""
    return {
        "beyond": f"The student went {went}, past its teacher{aim}.",
        "matched": f"The student went {went}, level with its teacher but for chance{aim}.",
        "partly": f"The student went {went} and is still behind{aim}.",
        "unmoved": f"It did not work here: {went} is no more than chance{aim}.",
        "untold": f"Cannot be told: {went} may be chance, and may be much of what its teacher adds{aim}. More held-out "
        f"prompts than {prompts:,} would tell.",
        "lost": f"It got worse here, {went}{aim}.",
        "kept": f"The teacher is no better than the base here, so there was nothing to learn; kept, {went}.",
        "gained": f"The student went {went}{aim}.",
        "open": f"{name} cannot be compared: the models were judged on different prompts.",
    }[outcome]


# ---- all of them ----


def _over_all(domains: Sequence[Domain]) -> Estimate | None:
    """The share of all teachers' gains, over the domains where there is one, each resampled on its own."""
    drawn = []
    for stream, domain in enumerate(domains):
        models = [domain.of(role) for role in (BASE, TEACHER, STUDENT)]
        if domain.recovered is not None and all(models):
            found = _drawn([model for model in models if model is not None], stream=stream)
            if found is not None:
                drawn.append(found)
    if not drawn:
        return None
    return _share(np.mean([means for means, _ in drawn], axis=0), np.mean([each for _, each in drawn], axis=0))


def _headline(run: Run, domains: Sequence[Domain], recovered: Estimate | None) -> tuple[str, str, bool | None]:
    judged = [domain for domain in domains if domain.outcome != "open"]
    if not judged:
        said = f"Step {run.step:,} of {run.steps:,}. " + _falling(run)
        return "Not judged yet", said.strip(), None
    means = {role: _mean(judged, role) for role in (BASE, TEACHER, STUDENT)}
    base, student = means[BASE], means[STUDENT]
    bad = [domain.name for domain in judged if domain.outcome in ("lost", "unmoved")]
    partly = [domain.name for domain in judged if domain.outcome == "partly"]
    across = "the domain" if len(judged) == 1 else f"{len(judged)} domains"
    went = f"Over {across} the mean held-out score went from {base:.3f} to {student:.3f}"
    went += f"; the teachers' is {means[TEACHER]:.3f}." if means[TEACHER] is not None else "."
    if recovered is None:
        gained = [domain.name for domain in judged if domain.outcome == "gained"]
        headline = "The student got better" if gained and not bad else "The student did not get better"
        if gained and bad:
            headline = "Better in some domains, not in others"
        elif not gained and not bad:
            untold = any(domain.outcome == "untold" for domain in judged)
            headline = UNTOLD if untold else "The student kept what the base could do"
            return headline, f"{went}{_names_bad(judged)}", None if untold else False
        return headline, f"{went}{_names_bad(judged)}", bool(gained) and not bad
    share = percent(recovered.value)
    headline = f"The student has {share} of what its teachers add"
    if recovered.low <= 0 and recovered.high >= HALF and not bad:
        headline = UNTOLD
    elif recovered.value < 0.5:
        headline = (
            f"The student has only {share} of what its teachers add" if recovered.value > 0 else "It did not work"
        )
    band = f" The share is between {percent(recovered.low)} and {percent(recovered.high)}, with 95% confidence."
    behind = f" Still behind its teacher in {_and(partly)}." if partly else ""
    worked = None if headline == UNTOLD else not bad and recovered.low > 0.5
    return headline, f"{went}{band}{behind}{_names_bad(judged)}", worked


def _names_bad(domains: Sequence[Domain]) -> str:
    said = ""
    if names := [domain.name for domain in domains if domain.outcome == "unmoved"]:
        said += f" It did not work in {_and(names)}."
    if names := [domain.name for domain in domains if domain.outcome == "untold"]:
        said += f" It cannot be told whether it worked in {_and(names)}: too few prompts."
    if names := [domain.name for domain in domains if domain.outcome == "lost"]:
        said += f" It got worse in {_and(names)}."
    return said


def _mean(domains: Sequence[Domain], role: str) -> float | None:
    models = [domain.of(role) for domain in domains]
    values = [model.score.value for model in models if model is not None]
    return sum(values) / len(values) if len(values) == len(domains) else None


def _falling(run: Run) -> str:
    """How far the loss has come, for a run that nothing else is known of."""
    losses = [line["loss"] for line in run.metrics if is_number(line.get("loss"))]
    if len(losses) < 2:
        return ""
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    return f"The loss went from {first:.3g} to {last:.3g}."


def _cautions(run: Run, domains: Sequence[Domain]) -> list[str]:
    """What someone should know before using the model, each a sentence."""
    found = [f"Not all of the run is here: {said}" for said in run.unread]
    for domain in domains:
        base, student = domain.of(BASE), domain.of(STUDENT)
        if base is None or student is None:
            continue
        for other in domain.models:
            ahead = difference(other, student) if other.role == OTHER else None
            if ahead is not None and ahead.low > 0:
                found.append(
                    f"{domain.name}: {other.name} does better, {other.score.value:.3f} against the student's "
                    f"{student.score.value:.3f}."
                )
        if student.truncated is not None and student.truncated >= 0.1:
            before = "" if base.truncated is None else f" ({percent(base.truncated)} of the base's)"
            found.append(f"{domain.name}: {percent(student.truncated)} of answers ran out of room{before}.")
        if base.length and student.length and student.length > 1.5 * base.length:
            found.append(f"{domain.name}: answers grew from {base.length:.0f} to {student.length:.0f} tokens.")
        before_loss, after_loss = base.measures.get("loss"), student.measures.get("loss")
        if before_loss and after_loss and after_loss > 1.005 * before_loss:
            found.append(
                f"{domain.name}: the loss on the references rose by {after_loss / before_loss - 1:.1%}, "
                f"from {before_loss:.3f} to {after_loss:.3f}."
            )
        if 0 < domain.prompts < 50:
            found.append(f"{domain.name}: judged on {domain.prompts} prompts only, so its intervals are wide.")
    refused = section(run.evaluation, "refusals")
    first, last = refused.get("base"), refused.get("student")
    if is_number(first) and is_number(last) and last < first:
        found.append(f"Of unsafe requests it refuses {percent(last)}; the base refused {percent(first)}.")
    guards = [event for event in run.events if event.get("what") in ("guard", "rollback")]
    if guards:
        found.append(f"Guards spoke {len(guards):,} times; the last said: {guards[-1].get('said') or '…'}")
    failed = sum(
        int(count)
        for line in run.metrics
        for reasons in section(line, "failures").values()
        if isinstance(reasons, Mapping)
        for count in reasons.values()
    )
    if failed:
        found.append(f"Teachers failed to answer {failed:,} times; what they should have taught was left out.")
    if run.status not in ("finished", "unknown"):
        found.append(f"The run is not finished: step {run.step:,} of {run.steps:,}.")
    return found


def percent(value: float) -> str:
    return f"{value:.0%}" if abs(value) < 0.995 or value >= 0.9995 else f"{value:.1%}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
