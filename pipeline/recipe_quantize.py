"""The recipe's `student.quantize`: what a student will be served in, and so trains in. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.recipe_values import AsTuple, named
from teachers.config import Section, example

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], AsTuple]


class QuantizeBase(Section):
    targets: Literal["all", "experts"] = Field(
        "all", description="linear layers and experts, or experts alone; embeddings and the head never"
    )
    exclude: Names = Field((), description="names, or parts of names, of weights that stay as they are")


class Int4(QuantizeBase):
    """Whole numbers from -8 to 7, and a scale for every group of inputs."""

    model_config = example("{kind: int4, group_size: 32}")

    kind: Literal["int4"]
    group_size: Literal[32, 64, 128] = Field(32, description="inputs that share a scale")


class Mxfp4(QuantizeBase):
    """Floats of 4 bits, and a power of two for every 32 inputs."""

    model_config = example("{kind: mxfp4, targets: experts}")

    kind: Literal["mxfp4"]


class Nvfp4(QuantizeBase):
    """Floats of 4 bits, and a scale of 8 bits for every 16 inputs."""

    model_config = example("{kind: nvfp4, exclude: [o_proj]}")

    kind: Literal["nvfp4"]


Quantize = Annotated[Int4 | Mxfp4 | Nvfp4, Field(discriminator="kind"), BeforeValidator(named)]
