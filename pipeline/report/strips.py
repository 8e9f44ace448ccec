"""A domain's scores as marks on a line, drawn in SVG: it prints, it scales, and needs no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.verdict import Estimate, Model

ROLES = ("teacher", "student", "base", "other")
LANE = 15  # pixels between the marks of two models
EDGE = 2.0  # percent that stay free at either end
NICE = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
SHAPES = {
    "teacher": "M0,-6.5 6.5,0 0,6.5 -6.5,0Z",
    "student": "M-6,0A6,6 0 1 0 6,0A6,6 0 1 0 -6,0Z",
    "base": "M-5,-5H5V5H-5Z",
    "other": "M0,-5.5 5.5,4.5 -5.5,4.5Z",
}


@dataclass(frozen=True)
class Scale:
    """From 0 to `top`, with ticks."""

    top: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> str:
        share = min(max(value / self.top, 0.0), 1.0)
        return f"{EDGE + (100 - 2 * EDGE) * share:.2f}%"


def scale_of(scores: Iterable[Estimate]) -> Scale:
    """The smallest round scale that holds all intervals: 0 is always on it."""
    highest = max((score.high for score in scores), default=1.0)
    top = next((nice for nice in NICE if highest <= nice), max(1.0, highest))
    return Scale(top, tuple(top * n / 4 for n in range(5)))


def strip(models: Sequence[Model], scale: Scale) -> Markup:
    """A lane per model: its interval as a line, its mean as a mark of its role's shape."""
    ordered = sorted(models, key=lambda model: ROLES.index(model.role))
    height = LANE * (len(ordered) + 1)
    said = "; ".join(f"{model.name} {estimate(model.score)}" for model in ordered)
    parts = [
        Markup('<svg class="strip" width="100%" height="{}" role="img" aria-label="{}">').format(height, said),
        *(
            Markup('<line class="tick" x1="{0}" x2="{0}" y1="0" y2="100%"/>').format(scale.place(tick))
            for tick in scale.ticks
        ),
    ]
    base, student = (next((m for m in ordered if m.role == role), None) for role in ("base", "student"))
    for lane, model in enumerate(ordered, start=1):
        y = LANE * lane
        if model is student and base is not None:
            parts.append(
                Markup('<line class="way" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                    scale.place(base.score.value), scale.place(model.score.value), y=y
                )
            )
        parts.append(
            Markup(
                '<g class="{role}"><title>{name} {told}</title>'
                '<line class="interval" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
                '<svg x="{at}" y="{y}" overflow="visible"><path d="{shape}"/></svg></g>'
            ).format(
                role=model.role,
                name=model.name,
                told=estimate(model.score),
                shape=SHAPES[model.role],
                y=y,
                low=scale.place(model.score.low),
                high=scale.place(model.score.high),
                at=scale.place(model.score.value),
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def estimate(value: Estimate) -> str:
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
