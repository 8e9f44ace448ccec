"""Newton and Schulz against singular values in float64: the iteration is an odd polynomial of them, no more."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.muon import HYBRID, Muon, orthogonalise
from tests.runs import environment, in_processes

SHAPES = [(24, 24), (16, 40), (40, 16), (5, 3, 12, 20), (4, 20, 12), (2, 64)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polynomial(values: Tensor) -> Tensor:
    """The iteration on numbers, spelled out: eight steps of one, two of another."""
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2:
        values = a * values + b * values**3 + c * values**5
    return values


def by_svd(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(what the iteration should give, the exact U Vᵀ) of one matrix, from its singular values."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u * polynomial(s / s.norm())) @ v, u @ v


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_polynomial_of_the_singular_values(shape: tuple[int, ...]) -> None:
    matrices = draw(*shape)
    found = orthogonalise(matrices)
    assert found.shape == matrices.shape
    flat = zip(matrices.reshape(-1, *shape[-2:]), found.reshape(-1, *shape[-2:]), strict=True)
    for matrix, ours in flat:
        expected, polar = by_svd(matrix)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
        # Within V4's band: after the two last steps all of them are as good as one.
        assert torch.linalg.svdvals(ours).sub(1).abs().max() < 0.003
        torch.testing.assert_close(ours, polar, rtol=0, atol=0.003)


def test_small_singular_values_come_to_one_as_well() -> None:
    """Ten thousand times smaller than the norm: five steps, as of torch's own Muon, would leave them near 0.05."""
    u, _, v = torch.linalg.svd(draw(32, 48), full_matrices=False)
    matrix = (u * torch.logspace(-4, 0, 32, dtype=torch.float64)) @ v * 7.0
    found = torch.linalg.svdvals(orthogonalise(matrix))
    assert found.sub(1).abs().max() < 0.003
    assert torch.linalg.svdvals(orthogonalise(matrix, HYBRID[:5])).min() < 0.2


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 0.003), (torch.bfloat16, 0.03)])
def test_in_the_dtypes_that_train(dtype: torch.dtype, near: float) -> None:
    matrices = draw(3, 48, 96)
    found = orthogonalise(matrices.to(dtype))
    assert found.dtype == dtype
    assert torch.linalg.svdvals(found.double()).sub(1).abs().max() < near


def test_many_matrices_are_one_by_one() -> None:
    matrices = draw(2, 3, 12, 20).float()
    one_by_one = torch.stack([torch.stack([orthogonalise(m) for m in row]) for row in matrices])
    torch.testing.assert_close(orthogonalise(matrices), one_by_one, rtol=0, atol=1e-5)


def test_size_does_not_matter_and_nothing_stays_nothing() -> None:
    matrix = draw(8, 12).float()
    for factor in (1e-18, 1e-6, 1e12):
        torch.testing.assert_close(orthogonalise(matrix * factor), orthogonalise(matrix), rtol=0, atol=1e-4)
    stack = torch.stack([matrix, torch.zeros(8, 12)])
    found = orthogonalise(stack)
    torch.testing.assert_close(found[0], orthogonalise(matrix), rtol=0, atol=1e-5)
    assert not found[1].any()


def test_updates_against_the_algorithm_written_out() -> None:
    """Nesterov, decay, and a size of 0.18 whatever the shape, as in V4's Algorithm 1; a stack, and both rectangles."""
    rate, decay, mu = 0.02, 0.1, 0.95
    for shape in ((10, 30), (30, 10), (3, 10, 14)):
        weight = torch.nn.Parameter(draw(*shape))
        group = {"params": [weight], "weight_decay": decay, "hidden": True}
        optimizer = Muon([group], rate, momentum=mu, rms=0.18, betas=(0.9, 0.95), eps=1e-8, fused=False)
        expected, momentum = weight.detach().clone(), torch.zeros(shape, dtype=torch.float64)
        for step in range(3):
            gradient = draw(*shape, seed=10 + step)
            weight.grad = gradient.clone()
            optimizer.step()
            momentum = mu * momentum + gradient
            ahead = (gradient + mu * momentum).reshape(-1, *shape[-2:])
            turned = torch.stack([by_svd(each)[0] for each in ahead]).reshape(shape)
            update = turned * max(shape[-2:]) ** 0.5 * 0.18
            assert update.square().mean().sqrt().item() == pytest.approx(0.18, rel=0.01)
            expected = expected * (1 - rate * decay) - rate * update
            torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-9)


def test_the_others_move_as_torchs_adamw_moves_them() -> None:
    ours, theirs = (torch.nn.Parameter(draw(7, 5).float()) for _ in range(2))
    group = {"params": [ours], "weight_decay": 0.1, "hidden": False}
    optimizer = Muon([group], 1e-2, momentum=0.95, rms=0.18, betas=(0.9, 0.95), eps=1e-8, fused=True)
    reference = torch.optim.AdamW([theirs], 1e-2, (0.9, 0.95), 1e-8, 0.1, fused=True)
    for step in range(5):
        ours.grad = draw(7, 5, seed=step).float()
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
        assert torch.equal(ours, theirs)


SHARDED = """
import json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from pipeline.muon import Muon

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.tall = nn.Linear(12, 5, dtype=torch.float64), nn.Linear(5, 9, dtype=torch.float64)
        self.experts = nn.Parameter(torch.randn(3, 9, 4, dtype=torch.float64))
    def forward(self, x):
        return torch.einsum("bi,eio->beo", torch.tanh(self.tall(torch.tanh(self.wide(x)))), self.experts)

def trained(model):
    hidden = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": hidden, "weight_decay": 0.1, "hidden": True},
              {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0, "hidden": False}]
    optimizer = Muon(groups, 0.02, momentum=0.95, rms=0.18, betas=(0.9, 0.95), eps=1e-8, fused=True)
    x = torch.randn(16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(4):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer

dist.init_process_group("gloo")
torch.manual_seed(0)
whole = Model()
sharded = Model()
sharded.load_state_dict(whole.state_dict())
trained(whole)
fully_shard(sharded)
_, optimizer = trained(sharded)
parameters = dict(sharded.named_parameters())
apart = {n: (p.full_tensor() - dict(whole.named_parameters())[n]).abs().max().item() for n, p in parameters.items()}
found = {"processes": dist.get_world_size(), "apart": apart,
         "sharded": all(isinstance(p, DTensor) for p in parameters.values()),
         "own": [list(optimizer.state[parameters[n]]["momentum"].to_local().shape) for n in ("wide.weight", "experts")]}
if dist.get_rank() == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(found, file)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may end the interpreter with an error while it is taken down, and nothing is left to do
"""


def test_sharded_over_two_processes_it_is_the_whole(tmp_path: Path) -> None:
    """FSDP2 over gloo: matrices cut between their rows, unevenly, and experts from each other."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    command = [*in_processes(2), str(tmp_path / "sharded.py"), str(tmp_path / "found.json")]
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, env=environment() | paths, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["processes"] == 2
    assert found["sharded"]
    assert found["own"] == [[3, 12], [2, 9, 4]]
    assert max(found["apart"].values()) < 1e-9
