"""What a recipe may say about the optimizer. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.recipe_values import AsTuple, Decay, named
from teachers.config import Section, example

Betas = Annotated[tuple[Decay, Decay], AsTuple]


class AdamW(Section):
    """Two moments of each weight."""

    model_config = example("{kind: adamw, betas: [0.9, 0.95]}")

    kind: Literal["adamw"] = "adamw"
    betas: Betas = Field((0.9, 0.95), description="of the moments", examples=["[0.9, 0.99]"])


class Muon(Section):
    """Hidden matrices, stacks of experts and LoRA's among them, move by their orthogonalised momentum, as DeepSeek-V4
    trains; embeddings, the head, norms and biases by AdamW. Learning rates are those that suit AdamW."""

    model_config = example("{kind: muon, momentum: 0.95}")

    kind: Literal["muon"]
    momentum: Decay = Field(0.95, description="Nesterov's, of the matrices")
    rms: float = Field(
        0.18, gt=0, le=1, description="root mean square of a matrix's update at rate 1; AdamW's is alike"
    )
    betas: Betas = Field(
        (0.9, 0.95), description="of AdamW's moments, for what is no hidden matrix", examples=["[0.9, 0.99]"]
    )


class AdamW8bit(Section):
    """AdamW with moments of 8 bits: a quarter of their memory. Needs torchao."""

    model_config = example("{kind: adamw_8bit}")

    kind: Literal["adamw_8bit"]
    betas: Betas = Field((0.9, 0.95), description="of the moments", examples=["[0.9, 0.99]"])


OptimizerChoice = Annotated[AdamW | Muon | AdamW8bit, Field(discriminator="kind"), BeforeValidator(named)]
