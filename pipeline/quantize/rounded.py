"""A model whose weights are rounded to 4 bits, beside the weights that learn.

A straight-through gradient is the gradient at the rounded weight, given to the weight behind it. So the model holds the
rounded weights, as it would be served: training, rollouts, evaluations and teachers compute with nothing else, and
nothing is rounded twice. Behind each stands its master in fp32, which the optimizer changes, and rounds again after
each update. An expert's weights are parameters like any other here, whatever module holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.quantize.grids import Codes, Grid, encoded, grid_of
from pipeline.recipe_quantize import Int4, Quantize


@dataclass(frozen=True)
class Place:
    """A weight to round. transposed: its inputs are the last dimension but one (gpt-oss's experts)."""

    name: str
    parameter: Tensor
    transposed: bool


@dataclass(frozen=True, eq=False)
class Rounded:
    """A parameter that holds a master's rounded values. master: fp32, of the same shape."""

    place: Place
    master: Tensor
    grid: Grid

    def codes(self) -> Codes:
        """Of the master, inputs last."""
        return encoded(_inputs_last(self.master, self.place), self.grid)

    @torch.no_grad()
    def refresh(self) -> None:
        """Rounds the master into the parameter."""
        self.place.parameter.copy_(_inputs_last(self.codes().values(), self.place))


def round_weights(model: nn.Module, config: Quantize) -> tuple[Rounded, ...]:
    """Rounds the weights of a plain model that `config` means, in place.

    Raises:
        ModelError: nothing to round; inputs that no groups fit into; an `exclude` that excludes nothing.
    """
    places = chosen(model, config)
    _require_served(places, config)
    size = config.group_size if isinstance(config, Int4) else 0
    grid = grid_of(config.kind, size, (place.parameter.detach() for place in places))
    for place in places:
        inputs = _inputs_last(place.parameter, place).shape[-1]
        if inputs % grid.size:
            larger = " or a smaller group_size" if isinstance(config, Int4) and grid.size > 32 else ""
            raise ModelError(
                f"student.quantize: {place.name} has {inputs} inputs, which groups of {grid.size} do not divide; name "
                f"it in student.quantize.exclude{larger}"
            )
    rounded = tuple(Rounded(place, place.parameter.detach().to(torch.float32, copy=True), grid) for place in places)
    for each in rounded:
        each.refresh()
    return rounded


def by_parameter(rounded: tuple[Rounded, ...]) -> Mapping[int, Rounded]:
    """By the parameter's id."""
    return {id(each.place.parameter): each for each in rounded}


# ---- which weights ----


def chosen(model: nn.Module, config: Quantize) -> tuple[Place, ...]:
    """Plain linear layers and experts; never what is shared with an embedding or the head. Raises ModelError."""
    found = [place for place in _places(model) if config.targets == "all" or place.parameter.ndim == 3]
    if not found:
        raise ModelError(f"student.quantize.targets: this model has no weights of the kind {config.targets}")
    for part in config.exclude:
        if not any(part in place.name for place in found):
            raise ModelError(f"student.quantize.exclude: no weight's name contains {part!r}, such as {found[0].name}")
    kept = tuple(place for place in found if not any(part in place.name for part in config.exclude))
    if not kept:
        raise ModelError("student.quantize.exclude: it leaves nothing to quantize; leave student.quantize out instead")
    return kept


def _require_served(places: tuple[Place, ...], config: Quantize) -> None:
    """Raises ModelError for weights that no engine reads in this kind: what they are trained for."""
    experts = [place for place in places if place.parameter.ndim == 3]
    if any(place.transposed for place in experts) and (config.kind != "mxfp4" or len(experts) < len(places)):
        raise ModelError(
            f"student.quantize: {experts[0].name} is served as mxfp4 alone, and nothing beside it; write "
            "{kind: mxfp4, targets: experts}"
        )
    if experts and config.kind == "nvfp4":
        raise ModelError(
            f"student.quantize.kind: transformers does not read experts in nvfp4 ({experts[0].name}); use mxfp4 or "
            "int4, or name experts in student.quantize.exclude"
        )


def _places(model: nn.Module) -> list[Place]:
    ends = {id(table.weight) for table in _tables(model)}
    places = []
    for name, module in model.named_modules():
        if ".indexer" in name:  # it only picks, and is never trained
            continue
        if (
            isinstance(module, nn.Linear)
            and type(module).forward is nn.Linear.forward
            and id(module.weight) not in ends
        ):
            places.append(Place(f"{name}.weight", module.weight, transposed=False))
        elif hasattr(module, "is_transposed"):  # transformers marks modules that hold experts so
            places += [
                Place(f"{name}.{key}", parameter, bool(module.is_transposed))
                for key, parameter in module.named_parameters(recurse=False)
                if parameter.ndim == 3
            ]
    return places


def _tables(model: nn.Module) -> list[nn.Module]:
    tables = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    return [table for table in tables if table is not None]


def _inputs_last(weight: Tensor, place: Place) -> Tensor:
    return weight.transpose(-1, -2) if place.transposed else weight
