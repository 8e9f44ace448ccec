"""Which prompts a step gets: exact shares, every prompt once an epoch, none twice in a step, a state that resumes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping

import pytest

from pipeline.errors import DataError
from pipeline.mixing import LEAST_SHARE, MOST_SHARE, MixState, draw, observe, shares_of
from pipeline.types import Prompt
from teachers.types import RawText

Sources = Mapping[str, tuple[Prompt, ...]]


def source(name: str, length: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"{name}{i}", name, name, RawText(f"{name} {i}")) for i in range(length))


def steps(
    sources: Sources,
    weights: Mapping[str, float],
    count: int,
    number: int,
    *,
    state: MixState | None = None,
    seed: int = 0,
    kl: Mapping[str, float] | None = None,
) -> tuple[list[tuple[str, ...]], MixState]:
    """The prompt ids of `number` steps, under remaining_kl where `kl` is observed after each."""
    state = state or MixState()
    drawn = []
    for _ in range(number):
        mixing = "fixed" if kl is None else "remaining_kl"
        prompts, state = draw(state, sources, weights, mixing=mixing, count=count, seed=seed)
        state = state if kl is None else observe(state, kl)
        drawn.append(tuple(prompt.prompt_id for prompt in prompts))
    return drawn, state


@pytest.mark.parametrize("trial", range(20))
def test_shares_are_exact_at_every_step(trial: int) -> None:
    pick = random.Random(trial)
    weights = {f"s{i}-": pick.choice([1.0, pick.uniform(0.05, 9)]) for i in range(pick.randint(1, 8))}
    sources = {name: source(name, pick.randint(20, 60)) for name in weights}
    count = pick.randint(1, 20)
    state = MixState()
    total: Counter[str] = Counter()
    for step in range(1, 30):
        prompts, state = draw(state, sources, weights, mixing="fixed", count=count, seed=1)
        total.update(prompt.source for prompt in prompts)
        assert len({prompt.prompt_id for prompt in prompts}) == count
        for name, weight in weights.items():
            assert abs(total[name] - step * count * weight / sum(weights.values())) < 1 + 1e-9


@pytest.mark.parametrize("trial", range(20))
def test_every_prompt_once_an_epoch_and_never_twice_in_a_step(trial: int) -> None:
    pick = random.Random(trial)
    length = pick.randint(1, 40)
    sources = {"a": source("a", length)}
    state = MixState()
    drawn: Counter[str] = Counter()
    counts = [pick.randint(1, length) for _ in range(60)]
    for count in counts:
        ids, state = steps(sources, {"a": 1.0}, count, 1, state=state)
        assert len(set(ids[0])) == count
        drawn.update(ids[0])
        epochs = drawn.total() / length
        # A prompt deferred over the end of an epoch may be late by one, none is ever early by more than one.
        assert all(epochs - 2 < drawn[prompt.prompt_id] < epochs + 1 for prompt in sources["a"])
        if drawn.total() % length == 0:
            assert set(drawn.values()) == {drawn.total() // length}


def test_each_epoch_has_an_order_of_its_own() -> None:
    sources = {"a": source("a", 30), "b": source("b", 30)}
    drawn, _ = steps({"a": sources["a"]}, {"a": 1.0}, 30, 3)
    assert len(set(drawn)) == 3
    assert sorted(drawn[0]) == sorted(drawn[1]) == sorted(drawn[2])
    other_seed, _ = steps({"a": sources["a"]}, {"a": 1.0}, 30, 1, seed=1)
    assert other_seed[0] != drawn[0]
    both, _ = steps(sources, {"a": 1.0, "b": 1.0}, 60, 1)
    numbers = {name: [id_[1:] for id_ in both[0] if id_[0] == name] for name in sources}
    assert numbers["a"] != numbers["b"]


@pytest.mark.parametrize("kl", [None, {"a": 0.3, "b": 2.0, "c": 0.01}])
def test_resumed_from_json_after_any_step_is_the_same(kl: Mapping[str, float] | None) -> None:
    sources = {"a": source("a", 17), "b": source("b", 40), "c": source("c", 9)}
    weights = {"a": 1.0, "b": 2.0, "c": 0.7}
    whole, _ = steps(sources, weights, 13, 60, kl=kl)
    state = MixState()
    deferred = 0
    for done in range(1, 50):
        _, state = steps(sources, weights, 13, 1, state=state, kl=kl)
        deferred += any(place.deferred for place in state.places.values())
        resumed = MixState.from_json(json.loads(json.dumps(state.to_json())))
        assert resumed == state
        assert steps(sources, weights, 13, 4, state=resumed, kl=kl)[0] == whole[done : done + 4]
    assert deferred, "no state was caught with a step over the end of an epoch behind it"


def test_sources_may_be_added() -> None:
    sources = {"a": source("a", 50), "b": source("b", 50)}
    before, state = steps({"a": sources["a"]}, {"a": 1.0}, 10, 3)
    after, _ = steps(sources, {"a": 1.0, "b": 1.0}, 10, 4, state=state)
    counts = [Counter(id_[0] for id_ in ids) for ids in after]
    assert all(count == {"a": 5, "b": 5} for count in counts)
    seen = [id_ for ids in (*before, *after) for id_ in ids if id_[0] == "a"]
    assert len(seen) == len(set(seen)) == 50


def test_sources_are_interleaved() -> None:
    drawn, _ = steps({"a": source("a", 50), "b": source("b", 50)}, {"a": 1.0, "b": 1.0}, 10, 1)
    assert Counter(id_[0] for id_ in drawn[0][:4]) == {"a": 2, "b": 2}


def test_a_step_larger_than_all_sources_is_refused() -> None:
    with pytest.raises(DataError, match=r"a step takes 9 .* have 8 .*prompts_per_step"):
        steps({"a": source("a", 3), "b": source("b", 5)}, {"a": 1.0, "b": 1.0}, 9, 1)


def test_a_small_source_gives_what_it_has_and_the_others_the_rest() -> None:
    sources = {"a": source("a", 4), "b": source("b", 100)}
    drawn, state = steps(sources, {"a": 9.0, "b": 1.0}, 20, 10)
    assert all(Counter(id_[0] for id_ in ids) == {"a": 4, "b": 16} for ids in drawn)
    assert all(abs(place.credit) < 1 for place in state.places.values())


# ---- by the KL that is left ----


def free(names: Mapping[str, object]) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


def test_shares_are_proportional_to_weight_times_kl() -> None:
    fair = {"a": 0.5, "b": 0.25, "c": 0.25}
    kl = {"a": 0.2, "b": 0.4, "c": 0.3}
    wanted = {name: fair[name] * kl[name] for name in fair}
    expected = {name: value / sum(wanted.values()) for name, value in wanted.items()}
    assert shares_of(fair, kl, free(fair)) == pytest.approx(expected)


@pytest.mark.parametrize("trial", range(20))
def test_shares_keep_within_their_bounds(trial: int) -> None:
    pick = random.Random(trial)
    weights = {str(i): pick.uniform(0.1, 10) for i in range(pick.randint(1, 10))}
    fair = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    kl = {name: pick.choice([None, 0.0, 1e-9, 1e3, pick.uniform(0, 1), pick.uniform(0, 1)]) for name in fair}
    shares = shares_of(fair, kl, free(fair))
    assert sum(shares.values()) == pytest.approx(1)
    for name, share in shares.items():
        assert LEAST_SHARE * fair[name] - 1e-9 <= share <= MOST_SHARE * fair[name] + 1e-9


def test_unknown_kl_counts_as_an_average_one_and_none_left_is_fair() -> None:
    fair = {"a": 0.25, "b": 0.25, "c": 0.5}
    known = shares_of(fair, {"a": 0.1, "b": 0.3, "c": 0.2}, free(fair))
    assert shares_of(fair, {"a": 0.1, "b": 0.3, "c": None}, free(fair)) == pytest.approx(known)
    assert shares_of(fair, dict.fromkeys(fair, None), free(fair)) == pytest.approx(fair)
    assert shares_of(fair, dict.fromkeys(fair, 0.0), free(fair)) == pytest.approx(fair)


def test_prompts_go_where_kl_is_left() -> None:
    sources = {"a": source("a", 500), "b": source("b", 500)}
    drawn, state = steps(sources, free(sources), 20, 30, kl={"a": 0.9, "b": 0.3})
    counts = Counter(id_[0] for ids in drawn[1:] for id_ in ids)
    assert counts["a"] / counts.total() == pytest.approx(0.75, abs=0.01)
    drawn, _ = steps(sources, free(sources), 20, 60, state=state, kl={"a": 0.01, "b": 0.3})
    late = Counter(id_[0] for ids in drawn[30:] for id_ in ids)
    assert late["b"] > 0.75 * late.total()


def test_observe_is_a_running_mean_that_refuses_nan() -> None:
    state = observe(MixState(), {"a": 1.0})
    assert state.places["a"].kl == 1.0
    state = observe(state, {"a": 2.0})
    assert state.places["a"].kl == pytest.approx(1.1)
    with pytest.raises(ValueError, match="source a is nan"):
        observe(state, {"a": float("nan")})
