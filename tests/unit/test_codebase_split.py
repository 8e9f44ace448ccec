"""Splits do not leak: held against comparisons of every pair, written without the module under test."""

from __future__ import annotations

import ast
import copy
import importlib.util
import io
import itertools
import os
import random
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import pytest

from pipeline.codebase.classify import is_test
from pipeline.codebase.duplicates import NEAR, groups, nearest, profile, shingles, similarity, sketch
from pipeline.codebase.history import read_changes
from pipeline.codebase.mirrors import mirrored
from pipeline.codebase.normal_form import normal_forms
from pipeline.codebase.split import split
from pipeline.codebase.types import Change, Code, Edit, Sketch, SourceFile, Split
from pipeline.errors import DataError
from pipeline.recipe import Codebase
from tests.programs import LICENCE, edited, first_function, function, program, renamed
from tests.repositories import START, commit, empty_repository, run_git

Kind = Literal["file", "module", "time"]


def code(texts: dict[str, str], **about: object) -> Code:
    files = [SourceFile(path, "python", text, "", is_test=is_test(path, "python")) for path, text in texts.items()]
    return replace(Code(Path("repository"), None, tuple(files), ()), **about)  # type: ignore[arg-type]


def by(kind: Kind = "file", held_out: float = 0.3) -> Codebase:
    return Codebase(path="x", split=kind, held_out=held_out)


def unrelated(count: int) -> dict[str, str]:
    return {f"pkg{n % 20}/m{n}.py": program(n) for n in range(count)}


@cache
def networkx() -> Code:
    spec = importlib.util.find_spec("networkx")
    assert spec is not None
    root = Path(str(spec.origin)).parent
    texts = {str(path.relative_to(root)): path.read_text("utf-8") for path in sorted(root.rglob("*.py"))}
    return code({path: text for path, text in texts.items() if text.strip()})


# ---- the naive comparison ----


@cache
def naive_shingles(text: str) -> frozenset[tuple[str, ...]]:
    lines = text.split("\n")
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(text).readline))):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    words = re.findall(r"[A-Za-z0-9_\x80-\U0010ffff]+|[^\sA-Za-z0-9_]", "\n".join(lines))
    return frozenset(zip(*(words[n:] for n in range(5)), strict=False)) if len(words) >= 34 else frozenset()


class Normalise(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name in ("annotation", "returns", "type_comment"):
            if hasattr(node, name):
                setattr(node, name, None)
        if hasattr(node, "decorator_list"):
            node.decorator_list = []
        return super().generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(type(node.value).__name__)


def naive_form(node: ast.AST) -> str:
    """The dump of a function whose names are numbered, in the order of `ast.walk`."""
    numbers: dict[str, str] = {}
    for one in ast.walk(node):
        for name, value in list(ast.iter_fields(one)):
            kept = (type(one).__name__, name) in {("Attribute", "attr"), ("keyword", "arg"), ("alias", "name")}
            if isinstance(one, ast.Constant) or kept or name == "module":
                continue
            if isinstance(value, str):
                setattr(one, name, numbers.setdefault(value, f"n{len(numbers)}"))
            elif isinstance(value, list) and value and all(isinstance(v, str) for v in value):
                setattr(one, name, [numbers.setdefault(v, f"n{len(numbers)}") for v in value])
    return ast.dump(node)


@cache
def naive_forms(text: str) -> frozenset[str]:
    """Of every function, and of the file, with three statements and thirty nodes."""
    tree = ast.parse(text)
    found = set()
    for place in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Module)]:
        node = Normalise().visit(copy.deepcopy(place))
        inside = [one for one in ast.walk(node) if not isinstance(one, ast.expr_context)]
        if len(inside) >= 30 and sum(isinstance(one, ast.stmt) for one in inside) >= 3:
            found.add(naive_form(node))
    return frozenset(found)


def leaks(texts: dict[str, str], train: Iterable[str], held_out: Iterable[str]) -> list[tuple[str, str]]:
    """Every pair across the sides that is too near."""
    about = {path: (naive_shingles(texts[path]), naive_forms(texts[path])) for path in {*train, *held_out}}
    found = []
    for one, other in itertools.product(sorted(train), sorted(held_out)):
        (left, left_forms), (right, right_forms) = about[one], about[other]
        comparable = left and right and NEAR <= len(left) / len(right) <= 1 / NEAR
        near = comparable and len(left & right) / len(left | right) >= NEAR
        if near or left_forms & right_forms:
            found.append((one, other))
    return found


def texts_of(of: Code) -> dict[str, str]:
    return {file.path: file.text for file in of.files}


def sound(of: Code, made: Split) -> None:
    sides = [made.train, made.held_out, frozenset(made.dropped)]
    assert sorted(itertools.chain(*sides)) == sorted(file.path for file in of.files)
    assert made.train
    assert made.held_out
    assert not made.train_changes & made.held_out_changes


# ---- real code ----


@cache
def sample() -> Code:
    """The folders of networkx in which most of what is near to something else lies: an eighth of it."""
    inside = ("algorithms/connectivity", "algorithms/approximation", "algorithms/traversal")
    return replace(networkx(), files=tuple(file for file in networkx().files if file.path.startswith(inside)))


def test_the_naive_comparison_sees_leaks_in_real_code() -> None:
    paths = sorted(texts_of(sample()))
    assert len(leaks(texts_of(sample()), paths[::2], paths[1::2])) > 3


@pytest.mark.parametrize("kind", ["file", "module"])
@pytest.mark.parametrize("held_out", [0.1, 0.5])
def test_real_code_does_not_leak(kind: Kind, held_out: float) -> None:
    made = split(sample(), by(kind, held_out))
    sound(sample(), made)
    assert leaks(texts_of(sample()), made.train, made.held_out) == []


def test_shares_of_real_code_are_about_what_was_asked_for() -> None:
    total = len(networkx().files)
    for held_out in (0.1, 0.3):
        made = split(networkx(), by("file", held_out))
        sound(networkx(), made)
        assert made.dropped == {}
        assert held_out / 2 <= len(made.held_out) / total <= held_out * 2


def test_boilerplate_does_not_glue_real_code_together() -> None:
    labels = groups([profile(file.text, "python") for file in networkx().files])
    largest = max(labels.count(label) for label in set(labels))
    assert len(labels) > 500
    assert largest <= 8


def test_shingles_are_those_of_the_naive_comparison() -> None:
    files = [file for file in networkx().files if file.text.isascii()][::20]
    assert len(files) > 20
    naive = [naive_shingles(file.text) for file in files]
    ours = [shingles(file.text, "python") for file in files]
    assert [len(one) for one in ours] == [len(one) for one in naive]
    for one, other in itertools.combinations(range(len(files)), 2):
        expected = len(naive[one] & naive[other]) / (len(naive[one] | naive[other]) or 1)
        assert similarity(ours[one], ours[other]) == pytest.approx(expected)


def test_forms_are_equal_where_the_naive_ones_are() -> None:
    """Over the sample: the pairs of files that share a form."""

    def pairs(forms: list[frozenset[str]] | list[frozenset[bytes]]) -> set[tuple[int, int]]:
        numbered = itertools.combinations(enumerate(forms), 2)
        return {(one, other) for (one, left), (other, right) in numbered if left & right}  # type: ignore[operator]

    naive = [naive_forms(file.text) for file in sample().files]
    ours = [normal_forms(file.text) for file in sample().files]
    assert pairs(naive) == pairs(ours) != set()
    assert [len(one) for one in ours] == [len(one) for one in naive]


def test_the_nearest_is_the_first_that_is_near() -> None:
    """Every second file of the sample, against the others and itself further on."""
    texts = [file.text for file in sample().files]
    ones, others = texts[::2], [*texts[1::2], *texts[::2]]
    expected = {}
    for number, one in enumerate(ones):
        for other, text in enumerate(others):
            left, right = naive_shingles(one), naive_shingles(text)
            alike = left and right and len(left & right) / len(left | right) >= NEAR
            if alike or naive_forms(one) & naive_forms(text):
                expected[number] = other
                break
    assert any(other < len(texts[1::2]) for other in expected.values())
    assert any(other >= len(texts[1::2]) for other in expected.values())
    found = nearest([profile(text, "python") for text in ones], [profile(text, "python") for text in others])
    assert found == expected


def test_a_sketch_that_is_known_is_used_and_changes_nothing() -> None:
    texts = [file.text for file in sample().files]
    fresh = [profile(text, "python") for text in texts]
    assert groups([profile(text, "python", sketch(text, "python")) for text in texts]) == groups(fresh)
    with_sketches = replace(
        sample(), files=tuple(replace(file, sketch=sketch(file.text, "python")) for file in sample().files)
    )
    assert split(with_sketches, by()) == split(sample(), by())
    nothing = tuple(replace(file, sketch=Sketch(b"", frozenset())) for file in sample().files)
    assert split(replace(sample(), files=nothing), by()) != split(sample(), by())


# ---- planted copies ----


def other_file_with_a_copied_function(text: str) -> str:
    return program(10_001) + "\n\n" + first_function(text) + "\n"


COPIES: dict[str, Callable[[str], str]] = {
    "moved": str,
    "under a licence": lambda text: LICENCE + text,
    "commented": lambda text: text.replace("\n    ", "  # a remark that was not there before\n    "),
    "edited": edited,
    "laid out anew": lambda text: ast.unparse(ast.parse(text)),
    "renamed": renamed,
    "one function": other_file_with_a_copied_function,
    "one function, renamed": lambda text: other_file_with_a_copied_function(renamed(text)),
    "one function, as it was before black": lambda text: other_file_with_a_copied_function(text.replace(", ", ",")),
}


@pytest.mark.parametrize("kind", ["file", "module"])
@pytest.mark.parametrize("kind_of_copy", COPIES)
def test_a_copy_is_never_on_the_other_side(kind_of_copy: str, kind: Kind) -> None:
    """One copy each in six repositories: without a comparison about half of them would lie across the sides."""
    across = 0
    for seed in range(6):
        texts = {f"p{n}/m.py": program(100 * seed + n) for n in range(8)}
        texts[f"copies{seed}/copy.py"] = COPIES[kind_of_copy](texts["p3/m.py"])
        made = split(code(texts), by(kind, 0.5))
        sound(code(texts), made)
        pair = {"p3/m.py", f"copies{seed}/copy.py"}
        assert pair <= made.train or pair <= made.held_out or pair & made.dropped.keys()
        across += bool(pair & made.dropped.keys())
        if kind_of_copy == "renamed":
            assert leaks(texts, made.train, made.held_out) == []
    assert (across > 0) == (kind == "module")


@pytest.mark.parametrize("kind_of_copy", COPIES)
def test_every_kind_of_copy_is_found_and_nothing_else(kind_of_copy: str) -> None:
    texts = [program(n) for n in range(12)]
    profiles = [profile(text, "python") for text in [*texts, COPIES[kind_of_copy](texts[7])]]
    assert groups(profiles) == (*range(12), 7)
    assert nearest(profiles[12:], profiles[:12]) == {0: 7}
    assert nearest(profiles[12:], profiles[:7]) == {}


@pytest.mark.parametrize("language", ["javascript", "go", "rust", "java", "c", "cpp", "typescript", None])
def test_copies_in_other_languages(language: str | None) -> None:
    """Under a licence, in comments as the language has them, and with a line that changed."""
    texts = ["".join(f"call_{n}_{k}(x{k * n}, {{ y: {k} }});\n" for k in range(60)) for n in range(9)]
    header = "" if language is None else "/* A licence.\n" + LICENCE + "*/\n// and more\n"
    copy = header + texts[4].replace("call_4_7(", "changed(")
    made = [profile(text, language) for text in [*texts, copy]]  # type: ignore[arg-type]
    assert groups(made) == (*range(9), 4)


def test_formalities_glue_nothing() -> None:
    """Licences, short files of imports and getters are the same in unrelated files."""
    getter = "    def name(self):\n        return self._name\n\n"
    texts = {path: f"{LICENCE}import os\nimport sys\n\n\n{text}" for path, text in unrelated(15).items()}
    texts = {path: f"{text}\n\nclass A:\n{getter}" for path, text in texts.items()}
    texts |= {f"pkg{n}/__init__.py": f"{LICENCE}from pkg import a, b\n" for n in range(20)}
    profiles = [profile(text, "python") for text in texts.values()]
    assert groups(profiles) == tuple(range(35))


def test_similarities_around_the_threshold() -> None:
    """Found exactly where the exact similarity says so, in sixty pairs near it."""
    rng = random.Random(0)
    seen = set()
    for seed in range(60):
        words = [f"w{rng.randrange(10**6)}" for _ in range(400)]
        changed = list(words)
        for place in rng.sample(range(400), rng.randrange(4, 14)):
            changed[place] = "changed"
        texts = [" ".join(words), " ".join(changed)]
        left, right = (naive_shingles(text) for text in texts)
        near = len(left & right) / len(left | right) >= NEAR
        seen.add(near)
        made = [profile(text, None) for text in texts]
        assert groups(made) == ((0, 0) if near else (0, 1)), seed
    assert seen == {True, False}


def test_files_of_one_mould() -> None:
    """Two thirds of each are in all of them. When no exact comparison is left, what may be near is kept together."""
    rng = random.Random(0)
    mould = [f"w{n}" for n in range(600)]
    texts = [" ".join([*mould, *(f"x{rng.randrange(10**6)}" for _ in range(90))]) for _ in range(30)]
    copy = texts[3].replace("w7 ", "v7 ")
    profiles = [profile(text, None) for text in [*texts, copy]]
    assert groups(profiles) == (*range(30), 3)
    assert groups(profiles, most=0) == (0,) * 31
    some = groups(profiles, most=70_000)
    assert len(set(some)) < 30
    assert some[3] == some[30]
    assert nearest(profiles[30:], profiles[:30]) == {0: 3}
    assert nearest(profiles[30:], profiles[:30], most=0) == {0: 0}
    assert nearest([profile(program(1), None)], profiles, most=0) == {}


@pytest.mark.parametrize(
    "text", ["", " \n", "def f(:\n", "x = " + "+".join("y" * 3000), "x = " + "(" * 300, "\0", "é\ud800"]
)
def test_odd_texts_have_profiles(text: str) -> None:
    assert profile(text, "python") == profile(text, "python")
    assert groups([profile(text, "python"), profile(program(1), "python")]) == (0, 1)


# ---- nothing moves ----


@pytest.mark.parametrize("kind", ["file", "module"])
def test_another_file_moves_none(kind: Kind) -> None:
    texts = unrelated(40)
    before = split(code(texts), by(kind))
    for n in range(60, 66):
        after = split(code({**texts, f"{'pkg3' if n % 2 else f'new{n}'}/a{n}.py": program(n)}), by(kind))
        assert before.train <= after.train
        assert before.held_out <= after.held_out


@pytest.mark.parametrize("kind", ["file", "module"])
def test_the_order_of_files_and_their_texts_in_the_fingerprint(kind: Kind) -> None:
    texts = unrelated(40)
    made = split(code(texts), by(kind))
    for seed in range(2):
        shuffled = random.Random(seed).sample(sorted(texts), len(texts))
        assert split(code({path: texts[path] for path in shuffled}), by(kind)) == made
    assert split(code({**texts, "pkg0/m0.py": texts["pkg0/m0.py"] + "\n"}), by(kind)).fingerprint != made.fingerprint
    assert split(code(texts), by(kind, 0.6)).fingerprint != made.fingerprint


def test_two_processes_agree() -> None:
    called = "from tests.unit.test_codebase_split import *; print(split(code(unrelated(40)), by()).fingerprint)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = {
        subprocess.run(
            [sys.executable, "-c", called], env={**environment, "PYTHONHASHSEED": seed}, cwd=Path(__file__).parents[2],
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {split(code(unrelated(40)), by()).fingerprint + "\n"}


def test_shares() -> None:
    texts = unrelated(120)
    for held_out in (0.1, 0.5, 0.9):
        made = split(code(texts), by("file", held_out))
        assert held_out / 2 <= len(made.held_out) / 120 <= 2 * held_out
    for count in (2, 3, 7):
        few = code(unrelated(count))
        sound(few, split(few, by("file", 0.01)))
        sound(few, split(few, by("file", 0.99)))


def test_a_group_that_is_too_large_teaches() -> None:
    texts = {f"copies/m{n}.py": LICENCE * n + program(0) for n in range(24)} | unrelated(40)
    for held_out in (0.05, 0.3):
        made = split(code(texts), by("file", held_out))
        assert {path for path in texts if path.startswith("copies/")} <= made.train


# ---- tests and folders ----


@pytest.mark.parametrize(
    ("test", "tested"),
    [
        ("a/tests/test_paths.py", "a/paths.py"),
        ("tests/a/test_paths.py", "a/paths.py"),
        ("tests/unit/test_a_paths.py", "a/paths.py"),
        ("src/b/paths_test.go", "src/b/paths.py"),
        ("b/PathsTest.java", "b/paths.py"),
        ("a/__tests__/paths.js", "a/paths.py"),
        ("tests/test_c.py", "c/__init__.py"),
        ("a/tests/test_degree_centrality.py", "a/degree.py"),
        ("a/tests/test_everything.py", None),
    ],
)
def test_which_file_a_test_mirrors(test: str, tested: str | None) -> None:
    others = [
        "a/paths.py",
        "b/paths.py",
        "src/b/paths.py",
        "c/__init__.py",
        "a/degree.py",
        "a/other.py",
        "a/__init__.py",
    ]
    files = [SourceFile(path, "python", "", "", is_test=path == test) for path in [test, *others]]
    assert mirrored(files) == ({test: tested} if tested else {})


@pytest.mark.parametrize("kind", ["file", "module"])
def test_tests_are_where_what_they_test_is(kind: Kind) -> None:
    texts = {f"p{n}/m{n}.py": program(n) for n in range(24)}
    tests = {f"tests/p{n}/test_m{n}.py": program(1000 + n) for n in range(24)}
    made, bare = split(code(texts | tests), by(kind)), split(code(texts), by(kind))
    for n in range(24):
        assert (f"p{n}/m{n}.py" in made.train) == (f"tests/p{n}/test_m{n}.py" in made.train)
    assert bare.train <= made.train
    assert bare.held_out <= made.held_out


def test_a_module_is_whole() -> None:
    texts = {f"p{n % 9}/m{n}.py": program(n) for n in range(36)}
    made = split(code(texts), by("module"))
    sound(code(texts), made)
    assert not {Path(path).parent for path in made.train} & {Path(path).parent for path in made.held_out}


# ---- changes ----


def test_a_change_is_on_one_side_or_on_none() -> None:
    texts = unrelated(40)
    made = split(code(texts), by())
    train, held_out = sorted(made.train), sorted(made.held_out)
    edits = {
        "teaches": {train[0]: program(2000), train[1]: program(2001)},
        "measures": {held_out[0]: program(2002), held_out[1]: program(2003)},
        "both": {train[0]: program(2004), held_out[0]: program(2005)},
        "gone, unlike anything": {"gone/a.py": program(2006)},
        "gone, became a held-out file": {"gone/b.py": edited(texts[held_out[2]])},
        "took a function from one": {train[2]: other_file_with_a_copied_function(texts[held_out[3]])},
        "held what now teaches": {held_out[4]: renamed(texts[train[3]])},
        "an older text of a held-out change": {"gone/c.py": program(2002)},
    }
    changes = [Change(name, name, 0, tuple(Edit(p, t, t + "#\n") for p, t in of.items())) for name, of in edits.items()]
    made = split(code(texts, changes=tuple(changes)), by())
    assert made.train_changes == {"teaches", "gone, unlike anything"}
    assert made.held_out_changes == {"measures"}


# ---- time ----


def keep(text: str) -> tuple[str, dict[str, int]]:
    return text, {}


def growing(root: Path, seed: int) -> list[str]:
    """Thirty commits on crossing branches; each writes lines of its own (`mark_N`) into some files, moves some and
    copies some. Their names."""
    rng = random.Random(seed)
    empty_repository(root)
    names = [commit(root, {f"m{n}.py": f"# mark_0\n{program(50 * seed + n)}" for n in range(16)}, "0", START)]
    for n in range(1, 30):
        if n % 7 == 3:
            run_git(root, "checkout", "-q", "-b", f"side{n}")
        present = sorted(path.name for path in root.glob("*.py"))
        chosen = rng.sample(present, 1 + n % 2)
        written: dict[str, str | bytes | None] = {
            name: (root / name).read_text() + f"\n\n{function(rng, f'mark_{n}')}\n" for name in chosen
        }
        if n % 9 == 5:
            written |= {chosen[0]: None, f"moved{n}.py": written[chosen[0]]}
        names.append(commit(root, written, f"{n}", START + 100 * n))
        if n % 7 == 6:
            run_git(root, "checkout", "-q", "main")
            write_late = f"on main while side{n - 3} was open, mark_{n + 100}"
            commit(root, {f"late{n}.py": f"# {write_late}\n{program(7000 + n)}"}, write_late, START + 100 * n + 1)
            run_git(root, "merge", "-q", "--no-ff", "-m", "merged", f"side{n - 3}", time=START + 100 * n + 2)
    return names


def read(root: Path, commits: int = 100) -> Code:
    texts = {path.name: path.read_text() for path in sorted(root.glob("*.py"))}
    changes = read_changes(root, Codebase(path="x", commits=commits), keep).changes
    return code(texts, root=root, revision=run_git(root, "rev-parse", "HEAD").strip(), changes=changes)


@pytest.mark.parametrize("seed", range(3))
def test_what_held_out_commits_wrote_teaches_nothing(tmp_path: Path, seed: int) -> None:
    growing(tmp_path / "r", seed)
    grown = read(tmp_path / "r")
    made = split(grown, by("time", 0.2))
    sound(grown, made)
    assert made.held_out_changes == {change.commit for change in grown.changes[: round(0.2 * len(grown.changes))]}
    taught = [file.text for file in grown.files if file.path in made.train]
    teaching = [change for change in grown.changes if change.commit in made.train_changes]
    taught += [text for change in teaching for edit in change.edits for text in (edit.before, edit.after) if text]
    marks = {f"mark_{change.message.split('_')[-1]}" for change in grown.changes[: len(made.held_out_changes)]}
    assert len(marks) == len(made.held_out_changes)
    assert all(any(re.search(rf"{mark}\b", file.text) for file in grown.files) for mark in marks)
    assert not [mark for mark in marks for text in taught if re.search(rf"{mark}\b", text)]
    assert leaks(texts_of(grown), made.train, made.held_out) == []


def test_what_is_not_committed_yet_teaches_nothing(tmp_path: Path) -> None:
    growing(tmp_path / "r", 5)
    before = split(read(tmp_path / "r"), by("time", 0.1))
    path = min(before.train)
    (tmp_path / "r" / path).write_text((tmp_path / "r" / path).read_text() + "\n# written today\n")
    after = split(read(tmp_path / "r"), by("time", 0.1))
    assert path in after.held_out
    assert after.held_out == before.held_out | {path}


def test_what_was_taken_back_is_held_out_all_the_same(tmp_path: Path) -> None:
    root = empty_repository(tmp_path / "r")
    commit(root, {f"m{n}.py": program(n) for n in range(9)}, "first", START)
    commit(root, {"m1.py": program(500)}, "second", START + 1)
    commit(root, {"m1.py": program(1)}, "taken back", START + 2)
    made = split(read(root), by("time", 0.6))
    assert made.held_out == {"m1.py"}


# ---- where there are no two sides ----


@pytest.mark.parametrize(
    ("texts", "kind", "told"),
    [
        ({"a.py": program(1)}, "file", "source.include"),
        ({"a.py": program(1), "b.py": program(1)}, "file", "source.held_out"),
        ({"p/a.py": program(1), "p/b.py": program(2)}, "module", "source.split"),
        ({"p/a.py": program(1), "q/b.py": program(1)}, "module", "source.held_out"),
        ({"a.py": program(1), "b.py": program(2)}, "time", "no git checkout"),
    ],
)
def test_what_cannot_be_split(texts: dict[str, str], kind: Kind, told: str) -> None:
    with pytest.raises(DataError, match=told):
        split(code(texts), by(kind))


def test_a_history_that_is_too_short(tmp_path: Path) -> None:
    root = empty_repository(tmp_path / "r")
    commit(root, {"a.py": program(1), "b.py": program(2)})
    with pytest.raises(DataError, match=r"source\.commits"):
        split(read(root), by("time"))
    commit(root, {"a.py": program(3), "b.py": program(4)}, time=START + 1)
    with pytest.raises(DataError, match="no file is left for training"):
        split(read(root), by("time"))
