"""A state as a checkpoint and back, and the way back to the last good one where a run goes wrong.

A roll-back is made by one rename: that of the checkpoint's own progress, which from then on tells of it. Whatever is
killed before does the same steps again and comes to the same alarm; what is killed after goes on as the roll-back says,
for a start clears away what lies beyond a checkpoint anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import checkpoint as checkpoints
from pipeline import manifest
from pipeline.errors import NotFinite, RunError
from pipeline.events import Event, happened
from pipeline.guards import Finding
from pipeline.lookout import Alarm, Raised, rolled_back
from pipeline.loop import Loop, State
from pipeline.run_directory import cut_to
from pipeline.student_state import load_trainable_state, optimizer_state, trainable_state

if TYPE_CHECKING:
    from pipeline.checkpoint import Checkpoint


def save_state(loop: Loop, state: State) -> None:
    """A checkpoint of `state`, then the journal up to it is no longer needed.

    Raises NotFinite where a weight is not: what one would go back to must be good.
    """
    main = loop.world.is_main
    weights = trainable_state(loop.student, keep=main)
    if odd := loop.world.gather([name for name, value in weights.items() if not value.isfinite().all()])[0]:
        raise NotFinite(
            f"step {state.step}: {odd[0]} is not finite any more; the checkpoint before it is kept. Start another run "
            "with a lower training.learning_rate, or in float32"
        )
    optimizer = optimizer_state(loop.optimizer, keep=main)
    if main:
        value = checkpoints.Checkpoint(state.step, weights, optimizer, state.progress(), loop.averages.state())
        checkpoints.save(loop.folder / "checkpoints", value, keep=loop.training.keep_checkpoints)
        manifest.prune(loop.journal(state.attempt), state.step)
        said = f"the state after step {state.step} is kept"
        happened(loop.folder, Event(state.step, "checkpoint", "checkpoint", said, attempt=state.attempt))
    loop.world.wait()


def keep_start(loop: Loop, state: State) -> None:
    """The untrained student as a checkpoint, where a guard may want to go back to it."""
    if state.step == 0 and state.attempt == 0 and loop.guards.roll_back:
        save_state(loop, state)


def restore_state(loop: Loop, value: Checkpoint) -> State:
    """Puts a checkpoint's weights and optimizer into the loop and returns the state it was made from."""
    load_trainable_state(loop.student, value.weights)
    loop.optimizer.load_state_dict(dict(value.optimizer))
    loop.averages.load(value.averages)
    return State.of(value.step, value.progress)


def announce(loop: Loop, state: State, step: int, raised: Sequence[Raised]) -> None:
    """What guards have found in the step after `state`, in the run's events and before its owner's eyes."""
    if not loop.world.is_main:
        return
    for each in raised:
        found = each.finding
        event = Event(
            step, "guard", found.name, found.said, found.subject, found.value, found.threshold, each.action,
            state.attempt,
        )  # fmt: skip
        if happened(loop.folder, event):
            loop.display.warn(f"step {step}: {found.said} (guards.{found.name}: {each.action})")


def alarm_of(loop: Loop, state: State, trouble: NotFinite) -> Alarm:
    """What is to be done where a number is not finite. Raises `trouble` where there is nothing to go on with."""
    guard = loop.guards.not_finite
    if guard is None:
        raise trouble
    raised = Raised(Finding("not_finite", None, 1.0, guard.threshold, str(trouble).partition(";")[0]), guard.action)
    step = state.step + 1
    announce(loop, state, step, [raised])
    if guard.action != "roll_back":
        raise trouble
    return Alarm(step, raised)


def roll_back(loop: Loop, state: State, alarm: Alarm) -> State:
    """Goes back to the last good checkpoint with a lower rate and, after it, fresh rollouts.

    state: the one before the step that was wrong. A checkpoint that a roll-back led to before, with no other since, was
    not good enough: then it is the one before it, where that is kept. Raises RunError where the recipe's roll-backs are
    used up, or there is no checkpoint.
    """
    step, said = alarm.step, alarm.raised.finding.said
    if state.watch.rollbacks >= loop.guards.rollbacks:
        raise RunError(
            f"step {step}: {said}, and {state.watch.rollbacks} roll-backs did not help; start another run with a lower "
            "training.learning_rate or other teachers"
        )
    path, newer = _goal(loop.folder / "checkpoints", state.watch.rolled_to)
    if path is None:
        raise RunError(f"step {step}: {said}, and there is no checkpoint to go back to; start another run")
    kept = restore_state(loop, checkpoints.load(path, mapped=loop.student.in_shards))
    reached = State.of(
        kept.step, kept.progress() | {"watch": rolled_back(loop.guards, state.watch, kept.watch, kept.step).to_json()}
    )
    loop.world.wait()  # everybody has read it
    if loop.world.is_main:
        # A newer one goes first: until the rename, what is left comes to the same alarm again.
        for worse in newer:
            checkpoints.discard(worse)
        checkpoints.write_progress(path, reached.progress())
        cut_to(loop.folder, reached.step)
        text = (
            f"back to step {reached.step} from step {step}, with {reached.watch.rate:.3g} times the learning rate and "
            "fresh rollouts"
        )
        event = Event(
            step, "rollback", alarm.raised.finding.name, text, alarm.raised.finding.subject, float(reached.step),
            None, "roll_back", state.attempt,
        )  # fmt: skip
        if happened(loop.folder, event):
            loop.display.warn(text)
    loop.world.wait()
    return reached


def _goal(folder: Path, rolled_to: int) -> tuple[Path | None, list[Path]]:
    """The checkpoint to go back to, and those after it."""
    found = checkpoints.list_checkpoints(folder)
    tried = len(found) > 1 and checkpoints.newest_step(folder) == rolled_to
    place = len(found) - (2 if tried else 1)
    return (found[place], found[place + 1 :]) if found else (None, [])
