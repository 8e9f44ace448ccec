"""Commits as tasks, from real repositories: what is asked, what is shown, and a patch from the one to the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.codebase.history import read_changes
from pipeline.codebase.links import links_of
from pipeline.codebase.patches import patch_of, patched
from pipeline.codebase.tasks import example, places
from pipeline.codebase.types import Code, Edit, Example
from pipeline.recipe import Codebase
from teachers.types import Chat, RawText
from tests.codes import code_of, count, room
from tests.repositories import commit, make_repository, run_git

SHAPES = "def area_of(shape):\n    return shape.width\n\n\ndef name_of(shape):\n    return shape.name\n"
SQUARES = SHAPES.replace("shape.width\n", "shape.width * shape.height\n")


def read(root: Path) -> Code:
    changes = read_changes(root, Codebase(path=str(root), commits=50)).changes
    return code_of({"kept.py": "x = 1\n"}, changes=changes)


def asked(code: Code, as_chat: bool = False, **rest: int) -> dict[str, Example | None]:
    """By the first line of the message."""
    links = links_of(code)
    within = room(**{"prompt": 900, "reference": 400, **rest}, as_chat=as_chat)
    found = places("commit", code, {change.commit for change in code.changes}, 50, within)
    return {
        code.changes[place.file].message.split("\n")[0]: example("commit", code, links, place, within)
        for place in found
    }


def text_of(each: Example | None) -> str:
    assert each is not None
    talk = each.conversation
    return talk.text if isinstance(talk, RawText) else talk.messages[-1].content


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_repository(tmp_path / "repository", {"pkg/shapes.py": SHAPES, "pkg/old.py": "y = 1\n"})
    commit(root, {"pkg/shapes.py": SQUARES}, "An area has two sides\n\nCo-Authored-By: B <b@example.org>\n")
    commit(root, {"pkg/new.py": "z = 2\n", "pkg/old.py": None}, "New for old")
    run_git(root, "mv", "pkg/new.py", "pkg/newer.py")
    commit(root, {}, "A better name")
    return root


def test_a_patch_makes_of_what_was_before_what_the_commit_made(root: Path) -> None:
    code = read(root)
    found = asked(code)
    assert {"An area has two sides", "New for old", "A better name"} <= found.keys()
    for change in code.changes:
        each = found[change.message.split("\n")[0]]
        assert each is not None
        before = {edit.path: edit.before for edit in change.edits if edit.before is not None}
        assert patched(before, each.reference) == {edit.path: edit.after for edit in change.edits}


@pytest.mark.parametrize("as_chat", [False, True])
def test_the_message_and_the_files_as_they_were_are_shown_and_nothing_that_comes(root: Path, as_chat: bool) -> None:
    each = asked(read(root), as_chat)["An area has two sides"]
    assert each is not None
    assert isinstance(each.conversation, Chat) == as_chat
    text = text_of(each)
    assert SHAPES.rstrip() in text
    assert "An area has two sides" in text
    assert "shape.height" not in text
    assert "shape.height" in each.reference


@pytest.mark.parametrize("trailer", ["Co-Authored-By", "Co-authored-by", "Signed-off-by", "Reviewed-By", "CC", "Cc"])
def test_who_signed_is_not_shown(tmp_path: Path, trailer: str) -> None:
    root = make_repository(tmp_path / "repository", {"a.py": SHAPES})
    message = f"An area has two sides\n\nDrop stand-by: it hung\n\n{trailer}: B <b@example.org>\n"
    commit(root, {"a.py": SQUARES}, message)
    text = text_of(asked(read(root))["An area has two sides"])
    assert "example.org" not in text
    assert "Drop stand-by: it hung" in text


def test_a_merge_is_not_asked(root: Path) -> None:
    run_git(root, "checkout", "-q", "-b", "side", "HEAD~1")
    commit(root, {"pkg/aside.py": "w = 3\n"}, "Something aside")
    run_git(root, "checkout", "-q", "main")
    run_git(root, "merge", "-q", "--no-ff", "-m", "Merge branch 'side'", "side")
    found = asked(read(root))
    assert "Something aside" in found
    assert not [message for message in found if message.startswith("Merge")]


def test_of_a_long_file_what_fits_around_the_change_is_shown(tmp_path: Path) -> None:
    lines = [f"value_{number} = {number}" for number in range(400)]
    root = make_repository(tmp_path / "repository", {"a.py": "\n".join(lines) + "\n"})
    lines[200] = "value_200 = 'two hundred'"
    commit(root, {"a.py": "\n".join(lines) + "\n"}, "Two hundred is a word")
    code, sizes = read(root), set()
    for prompt in (150, 300, 700, 4_000):
        each = asked(code, prompt=prompt)["Two hundred is a word"]
        text = text_of(each)
        assert count(text) <= prompt
        assert "value_200 = 200" in text
        assert "two hundred'" not in text
        assert ("# …" in text) == ("value_399" not in text)
        sizes.add(text.count("value_"))
    assert len(sizes) == 4
    assert max(sizes) == 400
    assert asked(code, prompt=30)["Two hundred is a word"] is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("select a\n-- of old\nfrom b\n", "select a\nfrom b\n"),
        ("select a\nfrom b\n", "select a\n-- of new\nfrom b\n"),
        ("a\nb\n", "a\n++ i;\nb\n"),
        ("@@\nx\n@@\n", "@@\ny\n@@\n"),
        ("x", "x\n"),
        ("", "x\n"),
        ("x\n" * 30 + "y\n" + "x\n" * 30, "x\n" * 60),
        ("--- a.py\n@@\n", "b\n"),
    ],
)
def test_a_patch_is_read_back_or_there_is_none(before: str, after: str) -> None:
    edits = [Edit("a.sql", before, after), Edit("b.py", "one\n", "two\n")]
    patch = patch_of(edits)
    told = "-- of old" not in before and "++ i" not in after
    assert (patch is not None) == told
    if patch is not None:
        assert patched({"a.sql": before, "b.py": "one\n"}, patch) == {"a.sql": after, "b.py": "two\n"}
