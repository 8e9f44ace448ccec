"""Between two tokenizers: which entries are the same, which tokens of a completion, and what becomes of a top-k."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from teachers.alignment import closing_token
from teachers.bridge import Bridge, Crossed, build_bridge, cross, restricted, to_student
from teachers.errors import TeacherError
from teachers.scoring import Ends
from teachers.spans import encode
from teachers.types import Chat, Message, RawText, ScoreRequest, Segment, SegmentKind, TeacherFailure, TopK
from tests.models import tiny_tokenizer
from tests.vocabularies import TEMPLATE, byte_level, sentencepiece, sources

TOKENIZERS = {
    "bytes": byte_level,
    "qwen": lambda: byte_level(1500, "<|im_end|>", splits_digits=True),
    "unigram": sentencepiece,
    "llama": lambda: sentencepiece(900, unigram=False),
    "characters": tiny_tokenizer,
}
PAIRS = list(product(TOKENIZERS, TOKENIZERS))


def bridge_of(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, least: float = 0.0) -> Bridge:
    ends = Ends(closing_token(student, name="s"), closing_token(teacher, name="t"))
    return build_bridge(student, teacher, ends, name="t", least_coverage=least)


def named(student: str, teacher: str) -> Bridge:
    return bridge_of(TOKENIZERS[student](), TOKENIZERS[teacher]())


def tokens(bridge: Bridge, text: str) -> tuple[int, ...]:
    (ids,) = encode(bridge.student.pieces, [text.encode()])
    assert ids is not None
    return tuple(ids)


def request(*segments: tuple[SegmentKind, tuple[int, ...]], chat: bool = True) -> ScoreRequest:
    built = tuple(Segment("assistant", kind, ids, trainable=True) for kind, ids in segments)
    conversation = Chat((Message("user", "hi"),)) if chat else RawText("hi")
    return ScoreRequest("r", "g", 0, 0, "d", conversation, built, "end")


def crossed(bridge: Bridge, asked: ScoreRequest) -> Crossed:
    (found,) = cross(bridge, [asked])
    assert isinstance(found, Crossed)
    return found


def pairs(found: Crossed) -> list[tuple[int, int]]:
    return list(zip(found.student_at.tolist(), found.teacher_at.tolist(), strict=True))


# ---- entries ----


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_counterparts_are_the_entries_of_the_same_bytes(student: str, teacher: str) -> None:
    bridge = named(student, teacher)
    ours, theirs = bridge.student.pieces, bridge.teacher.pieces
    found = {their: mine for their, mine in enumerate(bridge.ids.tolist()) if mine >= 0}
    assert len(set(found.values())) == len(found)
    assert found.pop(bridge.teacher.end) == bridge.student.end
    for their, mine in found.items():
        assert ours.entries[mine] == theirs.entries[their]
        assert ours.special.get(mine) == theirs.special.get(their)
    common = (set(ours.entries) & set(theirs.entries)) - {b""}
    assert {theirs.entries[their] for their in found} - {b""} == common
    assert set(bridge.rarest.tolist()) <= set(found.values())
    assert bridge.rarest.tolist() == sorted(bridge.rarest.tolist(), reverse=True)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_is_its_own_counterpart(name: str) -> None:
    bridge = named(name, name)
    used = [
        index for index in range(len(bridge.ids)) if bridge.student.pieces.entries[index] or index in bridge.special
    ]
    assert bridge.ids[used].tolist() == used
    assert bridge.coverage == 1.0


def test_few_tokens_in_common_are_refused() -> None:
    with pytest.raises(
        TeacherError, match=r"^teachers\.t: 39% of the student's .*least_coverage is 50%; lower it, or use"
    ):
        bridge_of(tiny_tokenizer(), TOKENIZERS["qwen"](), least=0.5)
    assert "39%" in bridge_of(tiny_tokenizer(), TOKENIZERS["qwen"](), least=0.3).note


def test_tokens_without_a_row_in_the_student_have_no_counterpart() -> None:
    tokenizer = byte_level()
    ends = Ends(closing_token(tokenizer, name="s"), closing_token(tokenizer, name="s"))
    bridge = build_bridge(tokenizer, tokenizer, ends, name="t", least_coverage=0, vocab_size=590)
    assert bridge.ids.max() == 589
    assert bridge.rarest[0] == 589


# ---- completions ----


def naive(bridge: Bridge, asked: ScoreRequest) -> tuple[list[int], set[tuple[int, int]]]:
    """Segment by segment, token by token: the teacher's ids, and the tokens with the same entry over the same bytes."""
    ours, theirs = bridge.student.pieces, bridge.teacher.pieces
    ids: list[int] = []
    found: set[tuple[int, int]] = set()
    before = 0
    for segment in asked.segments:
        if segment.kind == "end":
            found.add((before, len(ids)))
            ids.append(bridge.teacher.end)
            before += 1
            continue
        (cut,) = encode(theirs, [b"".join(ours.entries[token] for token in segment.token_ids)])
        assert cut is not None
        spans: dict[tuple[int, int], int] = {}
        end = 0
        for place, token in enumerate(cut):
            spans[end, end := end + len(theirs.entries[token])] = len(ids) + place
        end = 0
        for place, token in enumerate(segment.token_ids):
            at = spans.get((end, end := end + len(ours.entries[token])))
            if at is not None and bridge.ids[cut[at - len(ids)]] == token:
                found.add((before + place, at))
        before += len(segment.token_ids)
        ids += cut
    return ids, found


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_pairs_are_those_that_a_plain_loop_finds(student: str, teacher: str) -> None:
    bridge = named(student, teacher)
    rng = random.Random(f"{student} {teacher}")
    text = "".join(sources())
    end = ("end", (bridge.student.end,))
    asked = []
    for _ in range(20):
        start = rng.randrange(len(text) - 500)
        written = [tokens(bridge, text[start + 100 * n : start + 100 * (n + 1)] + "🙂é") for n in range(2)]
        noise = tuple(rng.choices(bridge.rarest.tolist(), k=30))  # tokens that no text is cut into
        asked += [
            request(("think", written[0]), ("answer", some), end, chat=False)
            for some in (written[1], written[1] + noise)
        ]
    for one, found in zip(asked, cross(bridge, asked), strict=True):
        assert isinstance(found, Crossed)
        ids, expected = naive(bridge, one)
        assert list(found.token_ids) == ids
        assert set(pairs(found)) == expected
        assert found.length == len(one.token_ids)
        if student == teacher and one in asked[::2]:
            assert pairs(found) == [(n, n) for n in range(found.length)]


def test_no_token_reaches_over_a_segment() -> None:
    bridge = named("characters", "bytes")
    whole = crossed(bridge, request(("answer", tokens(bridge, "the")), chat=False))
    assert len(whole.token_ids) < 3
    apart = crossed(bridge, request(("think", tokens(bridge, "t")), ("answer", tokens(bridge, "he")), chat=False))
    assert bridge.teacher.pieces.entries[apart.token_ids[0]] == b"t"
    assert (0, 0) in pairs(apart)


def test_ends_are_the_same_by_their_role() -> None:
    bridge = named("bytes", "llama")
    found = crossed(bridge, request(("answer", tokens(bridge, "x")), ("end", (bridge.student.end,))))
    assert found.token_ids[-1] == bridge.teacher.end
    assert pairs(found)[-1] == (1, len(found.token_ids) - 1)
    other = crossed(
        bridge, request(("answer", tokens(bridge, "x")), ("end", (4,)))
    )  # ends answers, does not close them
    assert other.token_ids == found.token_ids
    assert pairs(other) == pairs(found)[:-1]


def test_special_tokens_go_by_name_or_as_text() -> None:
    user, end = "<|user|>", "<|end|>"
    bridge = named("bytes", "qwen")
    ids = {name: index for index, name in bridge.student.pieces.special.items()}
    theirs = {name: index for index, name in bridge.teacher.pieces.special.items()}
    found = crossed(bridge, request(("answer", (*tokens(bridge, "a"), ids[user], *tokens(bridge, "b")))))
    assert found.token_ids[1] == theirs[user]
    assert (1, 1) in pairs(found)
    to_llama = named("bytes", "llama")
    found = crossed(to_llama, request(("answer", (*tokens(bridge, "a"), ids[user], *tokens(bridge, "b"))), chat=False))
    assert to_llama.teacher.pieces.text(found.token_ids) == b"a<|user|>b"
    assert 1 not in found.student_at
    typed = crossed(bridge, request(("answer", tokens(bridge, f"{user}{end}<|im_end|>"))))
    assert not set(typed.token_ids) & set(theirs.values())


@pytest.mark.parametrize(("student", "teacher"), [("bytes", "llama"), ("llama", "bytes"), ("llama", "unigram")])
def test_a_space_in_front_of_an_answer_is_the_template_s(student: str, teacher: str) -> None:
    bridge = named(student, teacher)
    assert (bridge.student.lead, bridge.teacher.lead) == (student == "llama", teacher != "bytes")
    ours = tokens(bridge, " " * bridge.student.lead + "import")
    theirs = encode(bridge.teacher.pieces, [b" " * bridge.teacher.lead + b"import"])[0]
    if len(ours) > 1:  # of these vocabularies none has the word: a shorter one
        ours = tokens(bridge, " " * bridge.student.lead + "def")
        theirs = encode(bridge.teacher.pieces, [b" " * bridge.teacher.lead + b"def"])[0]
    assert len(ours) == len(theirs or ()) == 1
    found = crossed(bridge, request(("answer", ours)))
    assert list(found.token_ids) == theirs
    assert pairs(found) == [(0, 0)]
    assert found.opening
    assert bridge.opening[theirs[0]] == ours[0]
    raw = crossed(bridge, request(("answer", ours), chat=False))  # what is no answer has no template
    assert bridge.teacher.pieces.text(raw.token_ids) == bridge.student.pieces.text(ours)


def test_the_template_decides_over_the_tokenizer() -> None:
    """Zephyr's template writes a line break before an answer, and no space, though its tokenizer would."""
    assert named("bytes", "unigram").teacher.lead
    assert not bridge_of(
        byte_level(), sentencepiece(template=TEMPLATE.replace("{{ m.content }}", "\n{{ m.content }}"))
    ).teacher.lead
    bare = sentencepiece(800, unigram=False)
    bare.chat_template = None
    assert bridge_of(byte_level(), bare).teacher.lead


def test_bytes_that_a_teacher_cannot_write_are_a_failure() -> None:
    letters = {token: index for index, token in enumerate(["</s>", *"abcdefghijklmnopqrstuvwxyz "])}
    backend = Tokenizer(BPE(letters, []))
    backend.decoder = decoders.Fuse()
    bridge = bridge_of(byte_level(), PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    known, unknown = cross(bridge, [request(("answer", tokens(bridge, text))) for text in ("a b", "A")])
    assert isinstance(known, Crossed)
    assert unknown == TeacherFailure("t", "not_exact", retryable=False, detail="it has no tokens for some of the bytes")


def test_an_empty_completion_has_no_pairs() -> None:
    for student, teacher in PAIRS:
        found = crossed(named(student, teacher), request(("answer", ())))
        assert (found.length, found.token_ids, pairs(found)) == (0, (), [])


# ---- a teacher's top-k ----


def random_top(bridge: Bridge, found: Crossed, k: int, seed: int = 0) -> TopK:
    """What a teacher with random logits would say."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = (
        torch.randn(len(found.token_ids), len(bridge.ids), generator=generator, dtype=torch.float64) * 3
    ).log_softmax(-1)
    values, ids = logprobs.topk(k)
    rest = logprobs.scatter(1, ids, -torch.inf).logsumexp(-1)
    realised = logprobs.gather(1, torch.tensor(found.token_ids)[:, None]).squeeze(1)
    return TopK(realised, ids, values, rest, torch.ones(len(realised), dtype=torch.bool))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@pytest.mark.parametrize(("given", "k"), [(20, 16), (8, 16), (1, 1), (300, 12)])
def test_a_top_k_in_the_student_s_entries(student: str, teacher: str, given: int, k: int) -> None:
    bridge = named(student, teacher)
    found = crossed(
        bridge, request(("answer", tokens(bridge, "def f(x):\n  return 🙂 x")), ("end", (bridge.student.end,)))
    )
    top = random_top(bridge, found, given)
    said = to_student(bridge, found, top, k)
    width = min(given, k)
    assert said.ids.shape == said.logprobs.shape == (found.length, width)
    assert said.valid.nonzero().squeeze(-1).tolist() == found.student_at.tolist()
    for mine, their in pairs(found):
        counterparts = bridge.opening if found.opening and mine == 0 else bridge.ids
        kept = [
            (int(counterparts[i]), lp)
            for i, lp in zip(top.ids[their].tolist(), top.logprobs[their].tolist(), strict=True)
        ]
        kept = [(index, lp) for index, lp in kept if index >= 0][:width]
        row = dict(zip(said.ids[mine].tolist(), said.logprobs[mine].tolist(), strict=True))
        assert len(row) == width  # distinct
        assert all(row[index] == lp for index, lp in kept)
        filled = row.keys() - dict(kept).keys()
        assert filled <= set(bridge.rarest.tolist())
        assert said.token_logprobs[mine] == top.token_logprobs[their]
        rest = 1 - sum(math.exp(lp) for _, lp in kept)
        mass = said.logprobs[mine].exp().sum() + said.log_tail[mine].exp()
        torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-12, rtol=0)
        for index in filled:  # as much as each entry in the tail has on average
            assert row[index] == pytest.approx(math.log(rest / (len(bridge.ids) - len(kept))), abs=1e-9)


def test_the_sampled_token_alone() -> None:
    bridge = named("bytes", "qwen")
    found = crossed(bridge, request(("answer", tokens(bridge, "def f(x)"))))
    top = random_top(bridge, found, 0)
    said = to_student(bridge, found, top, 16)
    assert said.ids.shape == (found.length, 0)
    assert torch.equal(said.token_logprobs[found.student_at], top.token_logprobs[found.teacher_at])
    torch.testing.assert_close(said.log_tail[found.student_at], torch.zeros_like(said.log_tail[found.student_at]))


def test_a_certain_teacher_leaves_nothing_for_the_fillers() -> None:
    bridge = named("bytes", "qwen")
    found = crossed(bridge, request(("answer", tokens(bridge, "f(x)"))))
    m = len(found.token_ids)
    ids = torch.tensor([[index, *[i for i in range(1490, 1500) if i != index][:2]] for index in found.token_ids])
    certain = torch.tensor([0.0, -torch.inf, -torch.inf]).repeat(m, 1)
    top = TopK(torch.zeros(m), ids, certain, torch.full((m,), -torch.inf), torch.ones(m, dtype=torch.bool))
    said = to_student(bridge, found, top, 3)
    assert said.ids[0].unique().numel() == 3
    assert torch.equal(said.logprobs[0], torch.tensor([0.0, -torch.inf, -torch.inf]))
    assert said.log_tail[0] == -torch.inf


def test_a_server_s_padded_rows_are_in_the_tail() -> None:
    bridge = named("bytes", "bytes")
    found = crossed(bridge, request(("answer", tokens(bridge, "f"))))
    top = TopK(
        torch.zeros(1),
        torch.tensor([[607, 70]]),
        torch.tensor([[0.5, 0.25]]).log(),
        torch.tensor([0.25]).log(),
        torch.ones(1, dtype=torch.bool),
    )
    said = to_student(bridge, found, top, 2)
    torch.testing.assert_close(said.logprobs[0].exp(), torch.tensor([0.75 / 599, 0.25]))
    torch.testing.assert_close(said.log_tail[0].exp(), torch.tensor(0.75 * 598 / 599))


def test_only_what_is_wanted_is_valid() -> None:
    bridge = named("llama", "bytes")
    found = crossed(bridge, request(("answer", tokens(bridge, " def f(x):"))))
    assert found.opening
    wanted = torch.arange(found.length) > 0

    def restricted_to(wanted: torch.Tensor) -> Crossed:
        result = restricted(bridge, found, wanted)
        assert isinstance(result, Crossed)
        return result

    less = restricted_to(wanted)
    assert not less.opening
    assert pairs(less) == pairs(found)[1:]
    assert pairs(restricted_to(~wanted)) == pairs(found)[:1]
    assert restricted_to(~wanted).opening
    top = random_top(bridge, less, 4)
    unsure = TopK(top.token_logprobs, top.ids, top.logprobs, top.log_tail, torch.zeros_like(top.valid))
    assert to_student(bridge, less, top, 4).valid.sum() == len(pairs(less))
    assert not to_student(bridge, less, unsure, 4).valid.any()


# ---- ends without a model ----


def test_the_special_token_behind_an_answer_closes_it() -> None:
    tokenizer = tiny_tokenizer()
    assert closing_token(tokenizer, name="t") == tokenizer.eos_token_id
    tokenizer.chat_template = TEMPLATE.replace("eos_token", "'<|user|>'")
    assert closing_token(tokenizer, name="t") == tokenizer.convert_tokens_to_ids("<|user|>")
    tokenizer.chat_template = None
    assert closing_token(tokenizer, name="t") == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(TeacherError, match=r"^teachers\.t: no token ends an answer; set eos_token in"):
        closing_token(tokenizer, name="teachers.t")
