"""One model per kind of teacher, joined on `kind`. Imports no torch: a recipe is validated before anything heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Dtype = Literal["float32", "bfloat16", "float16"]
SpanKind = Literal["think", "answer"]

MAX_TEACHERS = 10


class Section(BaseModel):
    """A part of a recipe: frozen, and no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class TeacherBase(Section):
    """What every kind of teacher has."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="scales this teacher's whole loss")
    spans: tuple[SpanKind, ...] = Field(("think", "answer"), min_length=1, description="the segments it scores")
    system: str | None = Field(None, description="a system prompt that this teacher sees and the student does not")


class TransformersTeacher(TeacherBase):
    """A transformers causal LM with the student's vocabulary, in this process."""

    kind: Literal["transformers"]
    model: str = Field(min_length=1, description="hub name, local folder, or prepared:NAME")
    revision: str | None = None
    dtype: Dtype = "bfloat16"


class AdapterTeacher(TeacherBase):
    """A LoRA adapter over a base that all adapter teachers with the same base (and a LoRA student) share."""

    kind: Literal["adapter"]
    base: str = Field(min_length=1, description="hub name, local folder, or prepared:NAME")
    adapter: str = Field(min_length=1, description="hub name, local folder, or prepared:NAME")
    revision: str | None = None
    dtype: Dtype = "bfloat16"


TeacherConfig = Annotated[TransformersTeacher | AdapterTeacher, Field(discriminator="kind")]
