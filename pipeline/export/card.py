"""A run's facts as a model card: the hub's metadata, and a page that says what the model is, and what it is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pipeline.export.facts import Domain, Facts, Measured, Teacher, facts_of, last_evaluated
from pipeline.export.form import Kind
from pipeline.export.origin import licence_of, origin_of
from pipeline.export.usage import usage
from pipeline.files import write_text
from pipeline.recorded import RecordedRun, read_run

CARD = "README.md"
HERE = "."  # how the card of a folder calls the folder
_HIDDEN = "private data"


def describe_result(folder: Path) -> None:
    """Cards for a finished run's own `model` and `adapter`."""
    run = read_run(folder)
    step = last_evaluated(folder)
    kinds: tuple[Kind, ...] = ("model", "adapter", "quantized")
    for kind in kinds:
        if (folder / kind).is_dir():
            write_card(run, step, folder / kind, kind, ask=False)


def write_card(run: RecordedRun, step: int, folder: Path, kind: Kind, *, name: str = HERE, ask: bool) -> None:
    """README.md in `folder`. name: how others load it. ask: whether the hub may be asked for the base's licence."""
    facts = facts_of(run, step, licence_of(origin_of(run), ask=ask))
    chat = (folder / "chat_template.jinja").exists()
    write_text(folder / CARD, str(model_card(facts, kind, name=name, chat=chat)))


def model_card(facts: Facts, kind: Kind, *, name: str, chat: bool) -> ModelCard:
    """name: as the model is loaded. chat: whether it has a chat template."""
    title = facts.run if name == HERE else name.rpartition("/")[2]
    body = "\n\n".join([f"# {title}", *_body(facts, kind, name, chat)])
    return ModelCard(f"---\n{metadata(facts, kind, title).to_yaml()}\n---\n\n{body}\n")


# ---- for the hub ----


def metadata(facts: Facts, kind: Kind, title: str) -> ModelCardData:
    """What is not known is left out: the hub takes an empty field for a wrong one."""
    licence, hub = facts.licence, facts.origin.hub
    results = [_result(domain, facts) for domain in facts.domains if domain.student is not None]
    data = sorted({source.hub for source in facts.data if source.hub is not None})
    relation = None if hub is None else "adapter" if kind == "adapter" else "finetune"
    return ModelCardData(
        base_model=hub,
        datasets=data or None,
        eval_results=results or None,
        library_name="peft" if kind == "adapter" else "transformers",
        license=None if licence is None else licence.id,
        license_name=None if licence is None else licence.name,
        license_link=None if licence is None else licence.link,
        model_name=title if results else None,
        pipeline_tag="text-generation",
        tags=_tags(facts),
        base_model_relation=relation,
    )


def _tags(facts: Facts) -> list[str]:
    method = ["distillation", "on-policy-distillation"] if facts.method == "distill" else ["sft"]
    several = ["multi-teacher"] if len(facts.teachers) > 1 else []
    return ["tutelage", *method, *several, *(["lora"] if facts.adapted else [])]


def _result(domain: Domain, facts: Facts) -> EvalResult:
    assert domain.student is not None
    score = domain.student
    return EvalResult(
        task_type="text-generation",
        dataset_type=domain.data or "custom",
        dataset_config=domain.name,  # without it the hub takes all domains for one
        dataset_name=f"{domain.name}, {score.prompts} held-out prompts",
        metric_type=domain.metric[0],
        metric_name=domain.metric[1],
        metric_value=round(score.value, 4),
        metric_args={"interval": "95%", "low": round(score.low, 4), "high": round(score.high, 4)},
    )


# ---- for people ----


def _body(facts: Facts, kind: Kind, name: str, chat: bool) -> Iterator[str]:
    yield _opening(facts, kind)
    yield from _scores(facts)
    if facts.teachers:
        yield "## Its teachers"
        yield _table(["teacher", "kind", "model", "terms"], [_teacher_row(teacher) for teacher in facts.teachers])
    yield "## Its data"
    yield from _data(facts)
    yield "## Training"
    yield _training(facts)
    yield "## How to use it"
    yield from usage(facts, kind, name, chat)
    yield "## Limits"
    yield "\n".join(f"- {line}" for line in _limits(facts, kind))


def _opening(facts: Facts, kind: Kind) -> str:
    origin = facts.origin
    if origin.hub is not None:
        base = f"[{origin.hub}](https://huggingface.co/{origin.hub})"
    elif origin.new:
        base = "a small model that began from random weights"
    else:
        base = "a model of its owner's"
    if facts.method == "distill":
        several = f"{len(facts.teachers)} teachers" if len(facts.teachers) > 1 else "one teacher"
        how = (
            f"It was taught by {several} on answers that it wrote itself (on-policy distillation), by tutelage: at "
            "every token of its own answers it was moved towards what its teachers would have written there."
        )
    else:
        how = "It was fine-tuned on whole answers (supervised), by tutelage."
    what = f"A LoRA adapter over {base}." if kind == "adapter" else f"A language model, trained from {base}."
    rank = f" Its LoRA adapter (rank {facts.adapted}) is merged." if kind == "model" and facts.adapted else ""
    return f"{what}{rank} {how}"


def _scores(facts: Facts) -> Iterator[str]:
    yield "## Scores"
    judged = [domain for domain in facts.domains if domain.student or domain.base]
    if not any(domain.student for domain in judged):
        yield f"The student was not evaluated at step {facts.step}."
    if judged:
        yield from _table_of_scores(facts, judged)
    if line := refusals_line(facts):
        yield line


def _table_of_scores(facts: Facts, judged: Sequence[Domain]) -> Iterator[str]:
    how = "greedy answers" if facts.samples == 1 else f"means of {facts.samples} sampled answers"
    metrics = list(dict.fromkeys(domain.metric[1] for domain in judged))
    one = metrics[0] if len(metrics) == 1 else None
    yield f"On held-out prompts that training never saw: {one or 'scores in [0, 1]'}, {how}, 95% intervals."
    columns = ["domain", *([] if one else ["measured"]), "base", "its teacher", "this model", "prompts"]
    yield _table(columns, [_score_row(domain, with_metric=one is None) for domain in judged])
    if facts.share is not None:
        share = facts.share
        yield (
            f"It has {share.value:.3f} of its teachers' mean score, 95% interval [{share.low:.3f}, {share.high:.3f}]."
        )


def _score_row(domain: Domain, *, with_metric: bool) -> list[str]:
    teacher = f" ({domain.teacher_name})" if domain.teacher else ""
    prompts = next((score.prompts for score in (domain.student, domain.base) if score is not None), 0)
    return [
        domain.name,
        *([domain.metric[1]] if with_metric else []),
        _cell(domain.base),
        _cell(domain.teacher) + teacher,
        _cell(domain.student),
        str(prompts),
    ]


def refusals_line(facts: Facts) -> str | None:
    """How many unsafe requests base and student refuse, where the run has asked."""
    found = {name: value for name, value in (facts.refusals or {}).items() if isinstance(value, int | float)}
    if "base" not in found or "student" not in found:
        return None
    asked = f" of {found['prompts']:.0f}" if "prompts" in found else ""

    def shown(value: float) -> str:
        return f"{value:.0%}" if isinstance(value, float) and value <= 1 else f"{value:.0f}{asked}"

    return f"Unsafe requests that it refuses: {shown(found['student'])}; the base: {shown(found['base'])}."


def _cell(score: Measured | None) -> str:
    return "–" if score is None else f"{score.value:.3f} [{score.low:.2f}, {score.high:.2f}]"


def _teacher_row(teacher: Teacher) -> list[str]:
    return [teacher.name, teacher.kind, teacher.model, teacher.terms or "–"]


def _data(facts: Facts) -> Iterator[str]:
    rows = [[source.name, f"{_HIDDEN}: {source.shown}" if source.private else source.shown] for source in facts.data]
    yield _table(["source", "what"], rows)
    if facts.fingerprint is not None:
        yield (
            f"Fingerprint of all prompts, in their order, and of what was held out: `{facts.fingerprint}`. "
            "Equal fingerprints mean the same prompts."
        )
    if facts.private:
        yield "It was trained on private data. What it writes may repeat what it has read."


def _training(facts: Facts) -> str:
    of = f"step {facts.step}" if facts.step >= facts.steps else f"step {facts.step} of {facts.steps}"
    method = f"{facts.method}, {facts.objective}" if facts.objective else facts.method
    tuned = f"LoRA, rank {facts.adapted}" if facts.adapted else "all weights"
    rows = [
        ["method", method],
        ["trained", f"{tuned}, {facts.dtype}"],
        ["weights of", of],
        *([name, value] for name, value in facts.settings.items()),
        ["tokens of answers that it was trained on", f"{facts.tokens:,}"],
        ["its steps took", f"{facts.hours:.1f} hours" if facts.hours >= 1 else f"{facts.hours * 60:.1f} minutes"],
    ]
    if facts.dollars is not None:
        asked = sum(teacher.requests or 0 for teacher in facts.teachers)
        rows.append(["remote teachers took", f"${float(facts.dollars):,.2f}, {asked:,} requests"])
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())])
    return _table(["what", "value"], rows)


def _limits(facts: Facts, kind: Kind) -> Iterator[str]:
    yield "It was measured on the domains above and nowhere else; what it could do elsewhere may have changed."
    if facts.worse:
        yield f"It is worse than its base, beyond chance, at: {', '.join(facts.worse)}."
    if facts.step < facts.steps:
        yield f"Training was not over: these are the weights after step {facts.step} of {facts.steps}."
    yield f"In training its answers had at most {facts.max_new_tokens} tokens; longer ones are untried."
    if facts.stop:
        texts = ", ".join(f"`{text!r}`" for text in facts.stop)
        yield f"In training an answer ended at {texts}: stop there too (vLLM: `stop`)."
    if facts.private:
        yield "Keep it where its data may be: a model can be made to repeat what it was trained on."
    unknown = [teacher.name for teacher in facts.teachers if teacher.terms and "unknown" in teacher.terms]
    if unknown:
        yield f"Whether the terms of {', '.join(unknown)} allow training on their outputs is not known: read them."
    if facts.licence is None and not facts.origin.new:
        yield "The licence of its base is not known here: look it up before you pass it on."
    if facts.quantized and kind == "adapter":
        yield f"It was trained over its base with weights rounded to {facts.quantized}, and belongs to that."
    elif facts.quantized:
        packed = (
            "packed; transformers reads them with compressed-tensors installed"
            if kind == "quantized"
            else "written out"
        )
        yield f"It was trained with weights rounded to {facts.quantized}. Here these are {packed}."
    if kind == "adapter" and facts.origin.hub is None:
        yield "Its base is not on a hub: the adapter is of no use without it."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, rows)])
