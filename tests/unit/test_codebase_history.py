"""Commits as tasks, read from real repositories: which, what of them, and that nothing else happens."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.codebase.history import MOST_FILES, History, cleaned, read_changes, shallow, untouched_since
from pipeline.codebase.outline import outline_of
from pipeline.codebase.reading import read_code
from pipeline.codebase.types import Edit
from pipeline.errors import DataError
from pipeline.recipe import Codebase
from tests.repositories import START, commit, empty_repository, everything, run_git, write_files


def keep(text: str) -> tuple[str, Mapping[str, int]]:
    return text, {}


def history(root: Path, commits: int = 100, **settings: object) -> History:
    return read_changes(root, Codebase.model_validate({"path": "x", "commits": commits, **settings}), keep)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return empty_repository(tmp_path / "repository")


# ---- what a change is ----


def test_a_file_is_made_changed_and_removed(repository: Path) -> None:
    names = [
        commit(repository, {"a.py": text}, f"{n}", START + n) for n, text in enumerate(["x = 1\n", "x = 2\n", None])
    ]
    changes = history(repository).changes
    assert [(c.commit, c.message, c.time) for c in changes] == [(names[n], str(n), START + n) for n in (2, 1, 0)]
    expected = [Edit("a.py", "x = 2\n", None), Edit("a.py", "x = 1\n", "x = 2\n"), Edit("a.py", None, "x = 1\n")]
    assert [edit for change in changes for edit in change.edits] == expected


def test_texts_are_what_git_shows(repository: Path) -> None:
    """Forty commits over files that share names and texts, against `git show` of every side."""
    for n in range(40):
        commit(
            repository, {f"{n % 3}/m{n % 5}.py": f"x = {n // 2}\n" * (n + 1), "same.py": "y = 1\n"}, f"n{n}", START + n
        )
    changes = history(repository).changes
    assert [c.commit for c in changes] == run_git(repository, "rev-list", "HEAD").split()
    root = changes[-1].commit
    for change in changes:
        for edit in change.edits:
            assert edit.after == at(repository, change.commit, edit.path)
            assert edit.before == (None if change.commit == root else at(repository, f"{change.commit}^", edit.path))


def at(root: Path, revision: str, path: str) -> str | None:
    there = run_git(root, "ls-tree", "-r", "--name-only", revision).split()
    return run_git(root, "show", f"{revision}:{path}") if path in there else None


def test_as_many_as_asked_for_and_no_more(repository: Path) -> None:
    """What cannot serve does not count."""
    names = []
    for n in range(30):
        names.append(commit(repository, {"a.py": f"x = {n}\n"}, f"{n}", START + 3 * n))
        commit(repository, {"picture.bin": bytes([0, n])}, "A picture", START + 3 * n + 1)
        commit(repository, {}, "Nothing", START + 3 * n + 2)
    assert [c.commit for c in history(repository, 7).changes] == names[:-8:-1]
    assert [c.commit for c in history(repository, 1000).changes] == names[::-1]


def test_a_file_that_moved_went_and_came(repository: Path) -> None:
    commit(repository, {"a.py": "x = 1\n" * 20})
    commit(repository, {"a.py": None, "b.py": "x = 1\n" * 20}, "Moved", START + 1)
    edits = {edit.path: edit for edit in history(repository).changes[0].edits}
    assert edits == {"a.py": Edit("a.py", "x = 1\n" * 20, None), "b.py": Edit("b.py", None, "x = 1\n" * 20)}


def test_merges_are_left_out_and_their_sides_are_not(repository: Path) -> None:
    commit(repository, {"a.py": "x = 1\n"}, "first")
    run_git(repository, "checkout", "-q", "-b", "side")
    commit(repository, {"b.py": "y = 1\n"}, "side", START + 5)
    run_git(repository, "checkout", "-q", "main")
    commit(repository, {"a.py": "x = 2\n"}, "main", START + 9)
    run_git(repository, "merge", "-q", "--no-ff", "-m", "merged", "side", time=START + 10)
    run_git(repository, "config", "log.diffMerges", "first-parent")
    assert [c.message for c in history(repository).changes] == ["main", "side", "first"]


def test_none_comes_before_its_descendants_whatever_the_clocks_say(repository: Path) -> None:
    """A branch whose clock was slow: by time alone, what both branches began with comes before its end."""
    commit(repository, {"a.py": "x = 1\n"}, "first", START + 300)
    commit(repository, {"a.py": "x = 2\n"}, "fork", START + 400)
    run_git(repository, "checkout", "-q", "-b", "slow")
    commit(repository, {"b.py": "y = 1\n"}, "slow", START + 100)
    run_git(repository, "checkout", "-q", "main")
    commit(repository, {"a.py": "x = 3\n"}, "main", START + 500)
    run_git(repository, "merge", "-q", "--no-ff", "-m", "merged", "slow", time=START + 600)
    assert [c.message for c in history(repository).changes] == ["main", "slow", "fork", "first"]


def test_only_files_that_the_recipe_reads(repository: Path) -> None:
    files = {
        "a.py": "x = 1\n", "b.go": "package b\n", "README.md": "hello\n", "vendor/c.py": "x = 1\n",
        "kept/out.py": "x = 1\n",
        "huge.py": "x = 1\n" * 500, "broken.py": b"x = '\xff'\n", "zeros.py": b"x = 1\0\n",
        "made.py": "# Generated by a tool. DO NOT EDIT\nx = 1\n",
    }  # fmt: skip
    commit(repository, files)
    changes = history(repository, languages=["python"], exclude=["kept/**"], largest_kilobytes=1).changes
    assert [edit.path for edit in changes[0].edits] == ["a.py"]
    assert {edit.path for edit in history(repository).changes[0].edits} == {"a.py", "b.go", "kept/out.py", "huge.py"}


def test_licences_count_as_they_do_for_files(repository: Path) -> None:
    commit(
        repository,
        {"a.py": "# SPDX-License-Identifier: MIT\nx = 1\n", "b.py": "# SPDX-License-Identifier: GPL-3.0-only\n"},
    )
    assert {edit.path for edit in history(repository, licences=["MIT"]).changes[0].edits} == {"a.py"}
    mit = "Permission is hereby granted, free of charge, to any person obtaining a copy, without restriction"
    commit(repository, {"LICENSE": mit, "c/d.py": "y = 1\n"}, time=START + 1)
    assert {edit.path for edit in history(repository, licences=["MIT"]).changes[0].edits} == {"c/d.py"}


def test_links_and_submodules_are_no_edits(repository: Path, tmp_path: Path) -> None:
    inner = empty_repository(tmp_path / "inner")
    commit(inner, {"secret.py": "x = 1\n"})
    commit(repository, {"a.py": "x = 1\n", "turned.py": "x = 1\n"})
    run_git(repository, "submodule", "--quiet", "add", str(inner), "inner")
    (repository / "link.py").symlink_to("/etc/hostname")
    (repository / "turned.py").unlink()
    (repository / "turned.py").symlink_to("a.py")
    commit(repository, {"a.py": "x = 2\n"}, "second", START + 1)
    assert [edit.path for edit in history(repository).changes[0].edits] == ["a.py"]


def test_a_new_mode_or_line_end_is_no_edit(repository: Path) -> None:
    commit(repository, {"a.py": "x = 1\n", "b.py": "y = 1\n"})
    (repository / "a.py").chmod(0o755)
    commit(repository, {"b.py": "y = 1\r\n"}, "second", START + 1)
    assert len(history(repository).changes) == 1


def test_encodings_are_read_and_a_sweep_is_no_task(repository: Path) -> None:
    latin = "# coding: latin-1\nname = 'Zoë'\n"
    commit(repository, {"a.py": latin.encode("latin-1"), "b.py": b"\xef\xbb\xbfx = 'Zo\xc3\xab'\r\n"})
    commit(repository, {f"m{n}.py": "x = 1\n" for n in range(MOST_FILES + 1)}, "A sweep", START + 1)
    commit(repository, {f"m{n}.py": "x = 2\n" for n in range(MOST_FILES)}, "No sweep yet", START + 2)
    changes = history(repository).changes
    assert [c.message for c in changes] == ["No sweep yet", "A change"]
    assert [edit.after for edit in changes[1].edits] == [latin, "x = 'Zoë'\n"]


def test_a_folder_of_a_checkout(repository: Path) -> None:
    commit(repository, {"one/a.py": "x = 1\n", "two/b.py": "y = 1\n"}, "both")
    commit(repository, {"two/b.py": "y = 2\n"}, "two", START + 1)
    run_git(repository, "checkout", "-q", "-b", "side", "HEAD~1")
    commit(repository, {"one/a.py": "x = 3\n"}, "one", START + 2)
    run_git(repository, "checkout", "-q", "main")
    run_git(repository, "merge", "-q", "--no-ff", "-m", "merged", "side", time=START + 3)
    assert [(c.message, [e.path for e in c.edits]) for c in history(repository / "one").changes] == [
        ("one", ["a.py"]),
        ("both", ["a.py"]),
    ]


def test_strange_names(repository: Path) -> None:
    """git's own ways of quoting, lines that look like its output, and paths that look like patterns."""
    names = ["a b.py", "é.py", '"q".py', ":100644 x.py", "*.py", "-.py", "tab\t.py"]
    commit(repository, dict.fromkeys(names, "x = 1\n"), ":100644 100644 a b M\n\nc")
    change = history(repository).changes[0]
    assert change.message.startswith(":100644 100644 a b M")
    assert {edit.path for edit in change.edits} >= set(names[:-1])
    assert len(change.edits) == len(names)


# ---- messages ----


def test_a_message_without_its_trailers() -> None:
    people = "\n".join(f"{key}: Some Body <some.body@example.org>" for key in ("Signed-off-by", "Co-Authored-By", "Cc"))
    raw = "Paths: find the shortest\r\n\r\n\r\n\r\nAs x@example.org said, by hand:\x07 no.  \n\n"
    assert cleaned(f"{raw}{people}\nChange-Id: I12\n".encode()) == "Paths: find the shortest\n\nAs said, by hand: no."


def test_odd_messages(repository: Path) -> None:
    commit(repository, {"a.py": "x = 1\n"}, "")
    commit(repository, {"a.py": "x = 2\n"}, "Signed-off-by: A <a@b.example>", START + 1)
    commit(repository, {"a.py": "x = 3\n"}, "Größe", START + 2)
    (repository / "a.py").write_text("x = 4\n")
    run_git(repository, "add", "-A")
    path = repository / "message"
    path.write_bytes("Größe".encode("latin-1"))
    run_git(repository, "-c", "i18n.commitEncoding=latin-1", "commit", "-q", "-F", "message", time=START + 3)
    assert [c.message for c in history(repository).changes] == ["Größe", "Größe"]


def test_secrets_are_replaced_and_counted_once(repository: Path) -> None:
    """The text of one commit is the former text of the next: it is read once, and counted once."""

    def redact(text: str) -> tuple[str, Mapping[str, int]]:
        count = text.count("hunter2")
        return text.replace("hunter2", "REDACTED"), {"Password": count} if count else {}

    commit(repository, {"a.py": "p = 'hunter2'\n"}, "The password is hunter2")
    commit(repository, {"a.py": "p = 'hunter2'\nx = 1\n"}, "more", START + 1)
    commit(repository, {"a.py": "p = 'REDACTED'\nx = 1\n"}, "Only the secret changed", START + 2)
    found = read_changes(repository, Codebase(path="x", commits=9), redact)
    assert "hunter2" not in repr(found)
    assert found.secrets == {"Password": 3}
    assert [c.message for c in found.changes] == ["more", "The password is REDACTED"]


def test_a_reading_takes_its_history_in(repository: Path) -> None:
    """With the real detectors: what was taken out of a file long ago is in its history still."""
    key = "AKIA" + "Z7QW2RT5YP8LM3KD"
    commit(repository, {"a.py": f"key = '{key}'\n"}, "first")
    commit(repository, {"a.py": "key = read()\n"}, f"No more {key}", START + 1)
    config = Codebase(path=str(repository), commits=5)
    code = read_code(config, folder=repository, outline=outline_of, changes=read_changes)
    assert [change.message for change in code.changes][1:] == ["first"]
    assert key not in repr(code)
    assert sum(code.secrets.values()) == 2


# ---- nothing else happens ----


def test_the_checkout_is_not_written_to_and_its_programs_do_not_run(repository: Path, tmp_path: Path) -> None:
    commit(repository, {"a.py": "x = 1\n", ".gitattributes": "*.py diff=spy filter=spy\n"})
    commit(repository, {"a.py": "x = 2\n"}, "second", START + 1)
    spy = tmp_path / "spy"
    ran = tmp_path / "ran"
    spy.write_text(f"#!/bin/sh\necho $0 $@ >> {ran}\ncat\n")
    spy.chmod(0o755)
    keys = [
        "core.fsmonitor",
        "core.pager",
        "diff.external",
        "diff.spy.textconv",
        "diff.spy.command",
        "filter.spy.smudge",
    ]
    for key in [*keys, "filter.spy.clean", "core.sshCommand", "pager.log", "gpg.program"]:
        run_git(repository, "config", key, str(spy))
    run_git(repository, "config", "log.showSignature", "true")
    for hook in ("post-index-change", "reference-transaction", "post-checkout"):
        shutil.copy(spy, repository / ".git" / "hooks" / hook)
    (repository / "a.py").touch()  # the index is out of date now, and would be refreshed
    head = run_git(repository, "rev-parse", "HEAD").strip()
    ran.unlink(missing_ok=True)
    before = everything(repository)
    assert len(history(repository).changes) == 2
    assert untouched_since(repository, head, head, ["a.py"]) == frozenset()
    assert everything(repository) == before
    assert not ran.exists()


def test_replaced_commits_and_the_environment_do_not_count(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository, {"a.py": "x = 1\n"}, "first")
    name = commit(repository, {"a.py": "x = 2\n"}, "second", START + 1)
    run_git(repository, "checkout", "-q", "-b", "other", "HEAD~1")
    other = commit(repository, {"a.py": "x = 9\n"}, "other", START + 2)
    run_git(repository, "checkout", "-q", "main")
    run_git(repository, "replace", name, other)
    elsewhere = empty_repository(tmp_path / "elsewhere")
    commit(elsewhere, {"b.py": "y = 1\n"}, "elsewhere")
    monkeypatch.setenv("GIT_DIR", str(elsewhere / ".git"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "broken")
    assert [c.message for c in history(repository).changes] == ["second", "first"]


# ---- where there is none ----


def test_a_shallow_clone_gives_what_it_has(repository: Path, tmp_path: Path) -> None:
    for n in range(6):
        commit(repository, {"a.py": f"x = {n}\n"}, f"{n}", START + n)
    deep, flat = tmp_path / "deep", tmp_path / "flat"
    run_git(tmp_path, "clone", "-q", "--depth=3", f"file://{repository}", str(deep))
    run_git(tmp_path, "clone", "-q", "--depth=1", f"file://{repository}", str(flat))
    assert (shallow(repository), shallow(deep)) == (False, True)
    found = history(deep)
    assert [c.message for c in found.changes] == ["5", "4"]  # the third looks as if it had made every file
    assert all(edit.before for change in found.changes for edit in change.edits)
    assert (found.ends_early, history(deep, 2).ends_early, history(repository).ends_early) == (True, False, False)
    with pytest.raises(DataError, match=r"source\.commits.*git fetch --unshallow"):
        history(flat)
    run_git(deep, "fetch", "-q", "--unshallow")
    assert (shallow(deep), len(history(deep).changes)) == (False, 6)


def test_where_there_is_no_history(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    write_files(plain, {"a.py": "x = 1\n"})
    with pytest.raises(DataError, match=r"source\.commits.*no git checkout"):
        history(plain)
    assert not shallow(plain)
    fresh = empty_repository(tmp_path / "fresh")
    with pytest.raises(DataError, match=r"source\.commits.*no commit yet"):
        history(fresh)
    commit(fresh, {"README.md": "hello\n"})
    with pytest.raises(DataError, match=r"source\.commits.*edits a file that is read"):
        history(fresh)


# ---- before and since ----


def test_what_was_written_since_a_commit(repository: Path) -> None:
    """Merges, branches that were older, what is not committed and what git does not know."""
    commit(repository, {name: f"{name} = 1\n" for name in "abcdefg"}, "first")
    run_git(repository, "checkout", "-q", "-b", "side")
    commit(repository, {"b": "b = 2\n"}, "older side", START + 1)
    run_git(repository, "checkout", "-q", "main")
    oldest = commit(repository, {"c": "c = 2\n"}, "the first that is new", START + 2)
    write_files(repository, {"d": "d = 2\n"})
    run_git(repository, "merge", "-q", "--no-commit", "--no-ff", "side")
    head = commit(repository, {}, "merged, and d was changed on the way", START + 3)
    write_files(repository, {"e": "e = 2\n", "f": "f = 1\r\n", "new": "n = 1\n"})
    found = untouched_since(repository, head, oldest, [*"abcdefg", "new", "missing"])
    assert found == frozenset("abfg")  # f is as git keeps it; b was written on a branch before
