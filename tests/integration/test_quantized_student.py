"""Students whose weights have 4 bits: trained by straight-through gradients, answering with these weights, packed, and
nearer to their teacher than what is quantized after its training."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pipeline import recipe
from pipeline.checkpoint import newest_step
from pipeline.errors import ModelError, RunError
from pipeline.export.form import Form
from pipeline.export.weights import kinds_of, write_weights
from pipeline.files import read_lines
from pipeline.new_model import model_from_config
from pipeline.optim import build_optimizer
from pipeline.quantize.grids import encoded
from pipeline.rollout.local import LocalGenerator
from pipeline.rollout.protocol import SamplingSettings
from pipeline.student import Student, load_student
from pipeline.student_state import load_trainable_state, trainable_state
from pipeline.types import Prompt
from teachers.types import RawText
from tests.integration.test_resume import SAME
from tests.killing import run_until_killed
from tests.models import CONTEXT, save_tiny, tiny_tokenizer
from tests.runs import changed, distill_settings, run_here, tutelage, write_recipe

CPU = torch.device("cpu")
EXPERTS = {"kind": "mxfp4", "targets": "experts"}
CASES = {
    "qwen3 int4": ("qwen3", {"kind": "int4"}),
    "qwen3 mxfp4": ("qwen3", {"kind": "mxfp4"}),
    "qwen3 nvfp4": ("qwen3", {"kind": "nvfp4", "exclude": ["down_proj"]}),
    "llama int4": ("llama", {"kind": "int4", "exclude": ["layers.0"]}),
    "qwen3_moe int4": ("qwen3_moe", {"kind": "int4"}),
    "qwen3_moe mxfp4": ("qwen3_moe", {"kind": "mxfp4"}),
    "gpt_oss mxfp4": ("gpt_oss", EXPERTS),
    "deepseek_v4 mxfp4": ("deepseek_v4", EXPERTS),
}
BARE = [case for case in CASES if case.split()[0] in ("qwen3_moe", "gpt_oss", "deepseek_v4")]


def save_model(folder: Path, architecture: str) -> str:
    """The shared tiny models, and two more with experts that are bare parameters. Returns the folder."""
    if architecture in ("qwen3", "llama", "deepseek_v4"):
        return save_tiny(folder, architecture)  # type: ignore[arg-type]
    tokenizer = tiny_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": CONTEXT, "num_experts_per_tok": 2,
        "tie_word_embeddings": False, "initializer_range": 0.1,
    }  # fmt: skip
    if architecture == "qwen3_moe":
        config = AutoConfig.for_model(
            "qwen3_moe", num_experts=4, moe_intermediate_size=64, intermediate_size=64, **shape
        )
    else:
        kinds = ["full_attention", "sliding_attention"]
        config = AutoConfig.for_model(
            "gpt_oss", num_local_experts=4, intermediate_size=64, sliding_window=64, layer_types=kinds, **shape
        )
    model_from_config(config, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_model(root / name, name) for name in dict.fromkeys(case[0] for case in CASES.values())}


def student_of(path: str, quantize: Any, **settings: Any) -> Student:
    config = recipe.Student(model=path, quantize=quantize, **settings)
    return load_student(config, model_path=path, seed=0, chunk_bytes=1 << 20, device=CPU)


def plain_of(path: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def tokens(seed: int = 0, rows: int = 2, width: int = 24) -> Tensor:
    return torch.randint(5, 358, (rows, width), generator=torch.Generator().manual_seed(seed))


class StraightThrough(torch.autograd.Function):
    """Rounds forward, and passes the gradient on as it is: what the student's optimizer is held against."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: Any, transposed: bool) -> Tensor:
        inputs_last = weight.transpose(-1, -2) if transposed else weight
        values = encoded(inputs_last, grid).values()
        return values.transpose(-1, -2) if transposed else values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def fake_quantized(student: Student, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by name, those that the student rounds rounded naively from what learns."""
    rounded = {each.place.name: each for each in student.rounded}
    return {
        name: StraightThrough.apply(value, rounded[name].grid, rounded[name].place.transposed)
        if name in rounded
        else value
        for name, value in learned.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_training_is_fake_quantization_with_straight_through_gradients(case: str, folders: dict[str, str]) -> None:
    """Two updates of AdamW, against a plain model whose weights are rounded inside its graph."""
    architecture, quantize = CASES[case]
    student, plain = student_of(folders[architecture], quantize), plain_of(folders[architecture])
    training = recipe.Training(learning_rate=1e-2, weight_decay=0.1)
    ours = build_optimizer(student, training)
    learned = dict(plain.named_parameters())
    theirs = build_optimizer(plain, training)
    for name, parameter in student.model.named_parameters():  # an indexer learns on neither side
        learned[name].requires_grad_(parameter.requires_grad)
    for step in range(2):
        ids = tokens(step)
        mine = student.model(input_ids=ids, labels=ids, use_cache=False).loss
        naive = functional_call(
            plain, fake_quantized(student, learned), (), {"input_ids": ids, "labels": ids, "use_cache": False}
        ).loss
        assert float(mine) == pytest.approx(float(naive), rel=1e-5)
        for loss, optimizer in ((mine, ours), (naive, theirs)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    masters = trainable_state(student)
    for name, parameter in learned.items():
        if parameter.requires_grad:
            torch.testing.assert_close(masters[f"model.{name}"], parameter.detach(), rtol=1e-3, atol=2e-4)
    assert any(
        not torch.equal(each.master, plain_of(folders[architecture]).get_parameter(each.place.name))
        for each in student.rounded
    )


@pytest.mark.parametrize("case", BARE)
def test_experts_that_are_bare_parameters_are_quantized(case: str, folders: dict[str, str]) -> None:
    architecture, quantize = CASES[case]
    student = student_of(folders[architecture], quantize)
    bare = [each for each in student.rounded if each.place.parameter.ndim == 3]
    layers = student.model.config.num_hidden_layers
    assert len(bare) == 2 * layers
    for each in bare:
        inputs_last = each.place.parameter.transpose(-1, -2) if each.place.transposed else each.place.parameter
        for matrix in inputs_last.detach():
            groups = matrix.unflatten(-1, (-1, each.grid.size))
            assert max(len(group.unique()) for group in groups.flatten(0, 1)) <= 16
        assert not torch.equal(each.master, each.place.parameter)
    # gpt-oss multiplies a vector from its left: its inputs are the other dimension, and groups lie along it.
    assert all(each.place.transposed == (architecture == "gpt_oss") for each in bare)


@pytest.mark.parametrize("case", ["qwen3 int4", "qwen3_moe mxfp4", "deepseek_v4 mxfp4"])
def test_rollouts_are_written_by_the_quantized_weights(case: str, folders: dict[str, str]) -> None:
    """Each token's log-probability is that of a plain model with naively rounded weights; lean and cached engine."""
    architecture, quantize = CASES[case]
    student, plain = student_of(folders[architecture], quantize), plain_of(folders[architecture])
    prompts = [
        (Prompt(f"p{n}", "source", "domain", RawText("text")), tuple(tokens(n, 1, 6)[0].tolist())) for n in range(3)
    ]
    settings = SamplingSettings.from_recipe(recipe.LocalRollouts(max_new_tokens=12))
    written = LocalGenerator(student.lm).generate(prompts, settings, seed=0, step=0, policy_version=0)
    weights = fake_quantized(student, dict(plain.named_parameters()))
    far = 0.0
    for rollout in written:
        answer = [token for part in rollout.segments for token in part.token_ids]
        ids = torch.tensor([[*rollout.prompt_ids, *answer]])
        with torch.no_grad():
            logits = functional_call(plain, weights, (), {"input_ids": ids, "use_cache": False}).logits
            unrounded = plain(input_ids=ids, use_cache=False).logits
        start = len(rollout.prompt_ids) - 1
        places = torch.arange(start, start + len(answer))

        def chosen(logits: Tensor, at: Tensor = places, token_ids: list[int] = answer) -> Tensor:
            every = logits[0, :, : student.lm.vocab_size].log_softmax(-1)
            return every[at, torch.tensor(token_ids)]

        torch.testing.assert_close(torch.tensor(rollout.model_logprobs), chosen(logits), rtol=0, atol=1e-4)
        far = max(far, float((chosen(logits) - chosen(unrounded)).abs().max()))
    assert far > 1e-2


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_exported_loads_in_transformers_with_the_same_logits(
    case: str, dtype: str, folders: dict[str, str], tmp_path: Path
) -> None:
    """As it is loaded by default; a float32 student's FP4 files are bfloat16, as its plain export in that then."""
    pytest.importorskip("compressed_tensors")
    architecture, quantize = CASES[case]
    student = student_of(folders[architecture], quantize, dtype=dtype)
    optimizer = build_optimizer(student, recipe.Training(learning_rate=1e-2))
    ids = tokens()
    student.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    assert kinds_of(student) == ("quantized", "model")
    write_weights(student, in_4_bits := folder_in(tmp_path, "quantized"), Form("quantized"))
    loaded = AutoModelForCausalLM.from_pretrained(in_4_bits, dtype="auto").eval()
    assert loaded.dtype == (torch.float32 if (quantize["kind"], dtype) == ("int4", "float32") else torch.bfloat16)
    same = student.model
    if loaded.dtype != same.dtype:
        write_weights(student, whole := folder_in(tmp_path, "model"), Form("model", "bfloat16"))
        same = AutoModelForCausalLM.from_pretrained(whole, dtype="auto").eval()
    with torch.no_grad():
        mine, theirs = (model(input_ids=ids, use_cache=False).logits.float() for model in (same, loaded))
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-4 if loaded.dtype == torch.float32 else 0.02)
    assert packed_bytes(in_4_bits) < 0.17 * sum(4 * each.master.numel() for each in student.rounded)


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_holds_the_numbers_that_were_trained(
    case: str, folders: dict[str, str], tmp_path: Path
) -> None:
    """Unpacked by transformers into a plain model: each rounded weight is the student's, bit by bit."""
    pytest.importorskip("compressed_tensors")
    from transformers import CompressedTensorsConfig, Mxfp4Config

    architecture, quantize = CASES[case]
    student = student_of(folders[architecture], quantize)
    write_weights(student, tmp_path, Form("quantized"))
    unpacked = Mxfp4Config(dequantize=True) if architecture == "gpt_oss" else CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, quantization_config=unpacked)
    for each in student.rounded:
        assert torch.equal(loaded.get_parameter(each.place.name).float(), each.place.parameter), each.place.name


def test_a_dtype_that_4_bits_are_not_read_in_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    for kind, dtype in (("mxfp4", "float32"), ("int4", "float16")):
        with pytest.raises(ModelError, match="export it with --dtype bfloat16"):
            write_weights(student_of(folders["qwen3"], kind), tmp_path, Form("quantized", dtype))


def folder_in(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name


def packed_bytes(folder: Path) -> int:
    """What the quantized weights take in the files, scales included."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in list(file.keys()):
                if "weight_" in name or name.endswith(("_blocks", "_scales")):
                    total += file.get_tensor(name).nbytes if "shape" not in name else 0
    assert total > 0
    return total


def test_a_student_comes_back_from_its_state_bit_by_bit(folders: dict[str, str]) -> None:
    first = student_of(folders["qwen3"], "nvfp4", dtype="bfloat16")
    optimizer = build_optimizer(first, recipe.Training(learning_rate=1e-2))
    ids = tokens()
    for _ in range(2):
        first.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
    second = student_of(folders["qwen3"], "nvfp4", dtype="bfloat16")
    load_trainable_state(second, trainable_state(first))
    again = build_optimizer(second, recipe.Training(learning_rate=1e-2))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as from a disk: torch would share tensors
    for student, each in ((first, optimizer), (second, again)):
        each.zero_grad()
        student.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        each.step()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(a.master, b.master) for a, b in zip(first.rounded, second.rounded, strict=True))


def test_lora_learns_beside_a_base_that_is_rounded_once(folders: dict[str, str]) -> None:
    path = folders["llama"]
    student = student_of(path, "mxfp4", tune={"kind": "lora", "rank": 4, "alpha": 8})
    served = student_of(path, "mxfp4")
    weight = student.model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert torch.equal(weight, served.model.model.layers[0].mlp.up_proj.weight)
    before = weight.clone()
    optimizer = build_optimizer(student, recipe.Training(learning_rate=1e-2))
    ids = tokens()
    student.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    assert torch.equal(weight, before)
    assert all("lora_" in name for name in student.trained)
    # A teacher's adapter was trained on another base than this one.
    assert not student.shared_bases()
    assert "quantized" not in kinds_of(student)
    with pytest.raises(RunError, match="only a student that was trained with tune: full"):
        write_weights(student, Path("nowhere"), Form("quantized"))


@pytest.mark.parametrize(
    ("architecture", "quantize", "message"),
    [
        ("qwen3", EXPERTS, "no weights of the kind experts"),
        ("qwen3", {"kind": "int4", "group_size": 64}, "has 32 inputs, which groups of 64 do not divide"),
        ("qwen3", {"kind": "int4", "exclude": ["k_projection"]}, "no weight's name contains 'k_projection'"),
        ("qwen3", {"kind": "int4", "exclude": ["layers"]}, "leaves nothing"),
        ("qwen3_moe", "nvfp4", "does not read experts in nvfp4"),
        ("gpt_oss", "int4", "served as mxfp4 alone"),
        ("gpt_oss", "mxfp4", "targets: experts"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_line(
    architecture: str, quantize: Any, message: str, folders: dict[str, str]
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        student_of(folders[architecture], quantize)
    assert "\n" not in str(caught.value)


# ---- whole runs ----

ANSWERS = 8  # to each held-out prompt


def kl_to(teacher: PreTrainedModel, student: PreTrainedModel, texts: Sequence[tuple[Tensor, int]]) -> float:
    """Mean KL(student ‖ teacher) over answers, nats per token. texts: ids (n, T), and how many are a prompt."""
    found = []
    with torch.no_grad():
        for ids, start in texts:
            log_p, log_q = (
                model(input_ids=ids, use_cache=False).logits[:, start - 1 : -1].log_softmax(-1)
                for model in (student, teacher)
            )
            found.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
    return sum(found) / len(found)


def test_trained_quantized_is_nearer_than_quantized_afterwards(tmp_path: Path) -> None:
    """The same recipe twice, with `student.quantize` and without; what was trained without is quantized at its end by
    the same rounding. The teacher is the student with other weights nearby. It is measured on answers to prompts that
    training did not see."""
    settings = distill_settings(tmp_path)
    model = plain_of(settings["student"]["model"])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1 * parameter.std())
    model.save_pretrained(tmp_path / "specialist")
    tiny_tokenizer().save_pretrained(tmp_path / "specialist")
    teachers = {"specialist": {"kind": "transformers", "model": str(tmp_path / "specialist"), "dtype": "float32"}}
    settings = changed(
        {**settings, "teachers": teachers, "routing": "all"},
        {"training.steps": 60, "training.prompts_per_step": 8, "training.learning_rate": 1e-3,
         "training.checkpoint_every": 60, "training.tokens_per_forward": 1000, "rollout.max_new_tokens": 16,
         "evaluation.prompts_per_domain": 4},
    )  # fmt: skip
    plain = run_here(write_recipe(tmp_path / "plain.yaml", {**settings, "output": str(tmp_path / "plain")}))
    quantize = {"kind": "mxfp4"}
    aware_settings = changed({**settings, "output": str(tmp_path / "aware")}, {"student.quantize": quantize})
    aware = run_here(write_recipe(tmp_path / "aware.yaml", aware_settings))
    afterwards = student_of(str(plain / "model"), quantize).model
    teacher = plain_of(str(tmp_path / "specialist"))
    held_out = answers_of(teacher, [line["prompt"] for line in read_lines(plain / "evaluations/base.samples.jsonl")])
    nearer = kl_to(teacher, plain_of(str(aware / "model")), held_out)
    after = kl_to(teacher, afterwards, held_out)
    assert nearer < 0.9 * after, (nearer, after)


def answers_of(teacher: PreTrainedModel, prompts: Sequence[str]) -> list[tuple[Tensor, int]]:
    """Each prompt with eight answers of 16 tokens, drawn from the teacher."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    texts = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt)] * ANSWERS)
        start = ids.shape[1]
        with torch.no_grad():
            for _ in range(16):
                logits = teacher(input_ids=ids, use_cache=False).logits[:, -1]
                ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        texts.append((ids, start))
    return texts


def test_a_run_leaves_its_student_in_4_bits_and_resumes_exactly(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    settings = changed(
        distill_settings(tmp_path), {"student.quantize": "int4", "training.schedule": "constant", "output": None}
    )
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    whole = run_here(path, f"output={tmp_path / 'whole'}")
    parts = run_here(path, f"output={tmp_path / 'parts'}", "training.steps=2")
    run_here(path, f"output={tmp_path / 'parts'}", extend=True)
    for name in ("metrics.jsonl", "model/model.safetensors", "quantized/model.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    config = json.loads((whole / "quantized" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    packed, plain = (plain_of(str(whole / kind)) for kind in ("quantized", "model"))
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(packed(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=1e-4)
    exported = tutelage("export", str(parts), "--kind", "quantized", "--dtype", "bfloat16")
    assert exported.returncode == 0, exported.stderr
    half = plain_of(str(parts / "export" / "quantized"))
    assert (half.get_input_embeddings().weight - plain.get_input_embeddings().weight).abs().max() < 0.01


@pytest.mark.parametrize(
    ("architecture", "quantize", "optimizer"), [("qwen3", "int4", "adamw"), ("qwen3_moe", EXPERTS, "muon")]
)
def test_killed_and_resumed_it_is_the_run_that_was_not(
    architecture: Any, quantize: Any, optimizer: str, tmp_path: Path
) -> None:
    """Killed in step 5; the last checkpoint is that of step 4. What learns behind the rounded weights is in it."""
    settings = changed(
        distill_settings(tmp_path, architecture),
        {"student.quantize": quantize, "training.optimizer": optimizer, "training.steps": 6, "output": None},
    )
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    whole = run_here(path, f"output={tmp_path / 'whole'}")
    killed = tmp_path / "killed"
    run_until_killed(path, killed, step=5)
    assert newest_step(killed / "checkpoints") == 4
    resumed = run_here(path, f"output={killed}", resume=True)
    weights = "checkpoints/step-000006/weights.safetensors"
    for name in (*SAME, "quantized/model.safetensors", weights):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    rounded = student_of(settings["student"]["model"], quantize)
    with safe_open(whole / weights, "pt") as file:
        for each in rounded.rounded:
            learned = file.get_tensor(f"model.{each.place.name}")
            assert not torch.equal(learned, each.master)  # it has moved
            in_4_bits = encoded(learned.transpose(-1, -2) if each.place.transposed else learned, each.grid).values()
            assert not torch.equal(learned, in_4_bits)  # and is kept whole


def test_shards_are_refused_before_anything_is_loaded() -> None:
    config = recipe.Student.model_validate({"model": "m", "quantize": "int4"})
    with pytest.raises(ModelError, match=r"set sharding\.student: false"):
        load_student(config, model_path="/nowhere", seed=0, chunk_bytes=1, device=torch.device("cpu"), in_shards=True)
