"""How good a model is on held-out prompts, and how several models compare: per domain, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, get_args

from pipeline.checkers import check_all, similarity
from pipeline.measures import reference_losses
from pipeline.recipe import Measure
from pipeline.rollout.local import LocalGenerator
from pipeline.rollout.protocol import SamplingSettings
from pipeline.statistics import mean_interval, paired_difference, pass_rates, ratio_of_means
from pipeline.types import Prompt, Rollout
from teachers.causal_lm import CausalLM, render

MEASURES: tuple[Measure, ...] = get_args(Measure)
BASE, SPECIALIST, STUDENT = "base", "specialist", "student"


@dataclass(frozen=True)
class Score:
    """One model in one domain.

    mean, low, high: of the scores in [0, 1] with its 95% interval; None where no prompt could be judged. scores: by
    prompt id, of those that could, the mean of a prompt's answers. length: mean completion tokens. truncated: the share
    that ran out of room. measures: loss or similarity -> by prompt id. passes: pass@k with its interval, where
    there are several answers that pass or do not.
    """

    mean: float | None
    low: float | None
    high: float | None
    scores: Mapping[str, float]
    prompts: int
    length: float
    truncated: float
    measures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    passes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Score:
        return Score(**value)


@dataclass(frozen=True)
class Sample:
    """One completion of an evaluation. prompt: as the model was shown it. completion: the answer as it was judged."""

    domain: str
    prompt_id: str
    prompt: str
    completion: str
    reference: str | None
    score: float | None
    finish_reason: str


@dataclass(frozen=True)
class Evaluation:
    domains: Mapping[str, Score]
    samples: tuple[Sample, ...]


ModelScores = Mapping[str, Mapping[str, Score]]  # model -> domain -> Score


def evaluate_model(
    lm: CausalLM,
    held_out: Mapping[str, Sequence[Prompt]],
    *,
    settings: SamplingSettings,
    prompts_per_domain: int,
    measures: Sequence[Measure] = (),
    samples: int = 1,
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Answers to the first `prompts_per_domain` prompts of each domain, judged by the prompts' checkers.

    samples: 1, and answers are greedy: of the settings max_new_tokens, rows and the stops count. With more, so many
    are sampled for each prompt as the settings say, always the same ones. Domains are decoded apart, so a domain's
    answers do not depend on which others are evaluated. advance: called with how many completions have finished.
    Raises DataError: a prompt that does not fit the context, a checker's fault.
    """
    chosen = replace(settings, samples_per_prompt=samples)
    if samples == 1:
        chosen = replace(chosen, temperature=0.0, top_p=1.0, top_k=0)
    generator = LocalGenerator(lm)
    counted = None if advance is None else lambda rollouts: advance(len(rollouts))
    domains: dict[str, Score] = {}
    everything: list[Sample] = []
    for domain, prompts in held_out.items():
        rendered = [(prompt, render(prompt.conversation, lm.tokenizer)) for prompt in prompts[:prompts_per_domain]]
        rollouts = generator.generate(rendered, chosen, seed=0, step=0, policy_version=0, on_finished=counted)
        judged = _judge(rollouts, lm, chosen.stop)
        domains[domain] = replace(summarise(rollouts, judged), measures=_measured(measures, lm, judged, rollouts))
        everything += judged
    return Evaluation(domains, tuple(everything))


def answer_text(rollout: Rollout, lm: CausalLM, stop: Sequence[str] = ()) -> str:
    """The completion's answer without thinking, end tokens and whatever begins with a stop string."""
    ids = [token for segment in rollout.segments if segment.kind == "answer" for token in segment.token_ids]
    text: str = lm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text[: min((place for string in stop if (place := text.find(string)) >= 0), default=len(text))]


def _measured(
    measures: Sequence[Measure], lm: CausalLM, judged: Sequence[Sample], rollouts: Sequence[Rollout]
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    if "loss" in measures:
        prompts = {rollout.prompt.prompt_id: rollout.prompt for rollout in rollouts}
        found["loss"] = reference_losses(lm, list(prompts.values()))
    if "similarity" in measures:
        near: dict[str, list[float]] = {}
        for sample in judged:
            if sample.reference is not None:
                near.setdefault(sample.prompt_id, []).append(similarity(sample.completion, sample.reference))
        found["similarity"] = {prompt_id: sum(values) / len(values) for prompt_id, values in near.items()}
    return found


def _judge(rollouts: Sequence[Rollout], lm: CausalLM, stop: Sequence[str]) -> list[Sample]:
    asked = [(rollout.prompt, answer_text(rollout, lm, stop)) for rollout in rollouts]
    return [
        Sample(
            prompt.domain,
            prompt.prompt_id,
            lm.tokenizer.decode(rollout.prompt_ids),
            text,
            prompt.reference,
            score,
            rollout.finish_reason,
        )
        for rollout, (prompt, text), score in zip(rollouts, asked, check_all(asked), strict=True)
    ]


def summarise(rollouts: Sequence[Rollout], judged: Sequence[Sample]) -> Score:
    """One domain's rollouts, one or more, and their judgments to a Score."""
    found: dict[str, list[float]] = {}
    for sample in judged:
        if sample.score is not None:
            found.setdefault(sample.prompt_id, []).append(sample.score)
    scores = {prompt_id: sum(of_one) / len(of_one) for prompt_id, of_one in found.items()}
    values = list(scores.values())
    low, high = mean_interval(values) if values else (None, None)
    several = len(judged) > len({sample.prompt_id for sample in judged})
    passed = several and all(score in (0.0, 1.0) for of_one in found.values() for score in of_one)
    return Score(
        mean=sum(values) / len(values) if values else None,
        low=low,
        high=high,
        scores=scores,
        prompts=len({rollout.prompt.prompt_id for rollout in rollouts}),
        length=sum(len(rollout.completion_ids) for rollout in rollouts) / len(rollouts),
        truncated=sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        passes=pass_rates([(len(of_one), round(sum(of_one))) for of_one in found.values()]) if passed else {},
    )


# ---- several models ----


def table(models: ModelScores) -> tuple[list[str], list[list[str | None]]]:
    """(columns, rows): a row per domain with each model's mean and interval, None where it has none, and their mean.

    The last row is over the domains that every model was judged in, so that its numbers compare.
    """
    columns = ["domain", *models]
    rows: list[list[str | None]] = [
        [domain, *(_cell(scores.get(domain)) for scores in models.values())] for domain in _domains(models)
    ]
    common = _common(models, *models)
    if common:
        rows.append(["mean", *(f"{_mean(scores, common):.3f}" for scores in models.values())])
    return columns, rows


def measure_table(models: ModelScores, measure: Measure) -> tuple[list[str], list[list[str | None]]]:
    """(columns, rows) as `table`, of one measure's means: a row per domain in which some model has it."""
    rows: list[list[str | None]] = []
    for domain in _domains(models):
        means = [measured_mean(scores.get(domain), measure) for scores in models.values()]
        if any(mean is not None for mean in means):
            rows.append([domain, *(None if mean is None else f"{mean:.3f}" for mean in means)])
    return ["domain", *models], rows


def measured_mean(score: Score | None, measure: str) -> float | None:
    values = {} if score is None else score.measures.get(measure, {})
    return sum(values.values()) / len(values) if values else None


def passes_table(models: ModelScores) -> tuple[list[str], list[list[str | None]]]:
    """(columns, rows) of pass@k: a row per domain and k, with each model's value and interval; no rows without any."""
    rows: list[list[str | None]] = []
    for domain in _domains(models):
        found = [scores[domain].passes if domain in scores else {} for scores in models.values()]
        for k in dict.fromkeys(k for passes in found for k in passes):
            cells = [_interval(**passes[k]) if k in passes else None for passes in found]
            rows.append([domain, k, *cells])
    return ["domain", "of", *models], rows


def evaluation_json(
    models: ModelScores, kl: Mapping[str, Mapping[str, float]] | None = None, student: str = STUDENT
) -> dict[str, Any]:
    """What `evaluation.json` holds. kl: domain -> teacher -> KL in nats per token on held-out prompts.

    domains, intervals, prompts, lengths, truncated: domain -> model -> value. measures: name -> domain -> model -> mean
    over the references. pass_at_k: domain -> model -> "pass@k" -> value, low, high, where several answers were sampled
    to each prompt. means: model -> mean over the domains that every model was judged in. recovered: domain -> the share
    of the specialist's gain over the base that the student has, None where the specialist gained nothing.
    share_of_specialists: the student's mean over the specialists' mean, with its interval. differences: domain -> model
    -> student − model, paired by prompt.
    """
    domains = _domains(models)

    def by_domain(value: Callable[[Score], Any]) -> dict[str, dict[str, Any]]:
        return {
            domain: {model: value(scores[domain]) for model, scores in models.items() if domain in scores}
            for domain in domains
        }

    common = _common(models, *models)
    return {
        "domains": by_domain(lambda score: score.mean),
        "intervals": by_domain(lambda score: None if score.mean is None else [score.low, score.high]),
        "prompts": by_domain(lambda score: score.prompts),
        "lengths": by_domain(lambda score: score.length),
        "truncated": by_domain(lambda score: score.truncated),
        "measures": {
            measure: by_domain(partial(measured_mean, measure=measure))
            for measure in MEASURES
            if any(score.measures.get(measure) for scores in models.values() for score in scores.values())
        },
        "pass_at_k": {
            domain: of_models
            for domain in domains
            if (
                of_models := {
                    model: s[domain].passes for model, s in models.items() if domain in s and s[domain].passes
                }
            )
        },
        "kl": {domain: dict(values) for domain, values in (kl or {}).items()},
        "means": {model: _mean(scores, common) for model, scores in models.items()} if common else {},
        "recovered": {
            domain: _recovered(models, domain, student) for domain in _common(models, BASE, SPECIALIST, student)
        },
        "share_of_specialists": _share(models, student),
        "differences": {domain: _differences(models, domain, student) for domain in domains},
    }


def _share(models: ModelScores, student: str) -> dict[str, float] | None:
    above: dict[str, list[float]] = {}
    below: dict[str, list[float]] = {}
    for domain in _common(models, student, SPECIALIST):
        above[domain], below[domain] = _paired(models[student][domain], models[SPECIALIST][domain])
    found = ratio_of_means(above, below)
    return None if found is None else dict(zip(("value", "low", "high"), found, strict=True))


def _recovered(models: ModelScores, domain: str, student: str) -> float | None:
    base, specialist, own = (models[name][domain].mean or 0.0 for name in (BASE, SPECIALIST, student))
    return (own - base) / (specialist - base) if specialist > base else None


def _differences(models: ModelScores, domain: str, student: str) -> dict[str, dict[str, float]]:
    found = {}
    for model in models:
        if model != student and domain in _common(models, student, model):
            first, second = _paired(models[student][domain], models[model][domain])
            value, low, high = paired_difference(first, second)
            found[model] = {"value": value, "low": low, "high": high}
    return found


def _paired(first: Score, second: Score) -> tuple[list[float], list[float]]:
    """The scores of the prompts that both have."""
    ids = [prompt_id for prompt_id in first.scores if prompt_id in second.scores]
    return [first.scores[prompt_id] for prompt_id in ids], [second.scores[prompt_id] for prompt_id in ids]


def _domains(models: ModelScores) -> list[str]:
    return list(dict.fromkeys(domain for scores in models.values() for domain in scores))


def _common(models: ModelScores, *names: str) -> list[str]:
    """The domains in which every named model was judged, on at least one prompt that all of them answered."""

    def shared(domain: str) -> bool:
        found = [models[name][domain].scores.keys() for name in names if domain in models.get(name, {})]
        return len(found) == len(names) > 0 and bool(set.intersection(*map(set, found)))

    return [domain for domain in _domains(models) if shared(domain)]


def _mean(scores: Mapping[str, Score], domains: Sequence[str]) -> float:
    return sum(scores[domain].mean or 0.0 for domain in domains) / len(domains)


def _cell(score: Score | None) -> str | None:
    if score is None or score.mean is None or score.low is None or score.high is None:
        return None
    return _interval(score.mean, score.low, score.high)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"
