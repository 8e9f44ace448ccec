"""Who may import whom: rules from a tree of modules to what breaks them, each of which is shown to fail."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "teachers")

FOUNDATION = ("types", "errors", "config")  # of teachers: each may import those before it
LOSSES = {
    *("pipeline.objectives", "pipeline.fused", "pipeline.head_groups", "pipeline.logit_block"),
    "pipeline.expectations",
}
RUNNING = {"pipeline.run", "pipeline.job", "pipeline.assess"}  # the halves of a run around the loop
# cli: a module a command; recipe: a module a section
WIDE = {*RUNNING, "pipeline.loop", "pipeline.trainer", "teachers.pool", "pipeline.cli", "pipeline.recipe"}
MOST_IMPORTS = 8  # modules of this project, types and errors aside, that any other module may import
ENTRY = {"pipeline.run": {"pipeline.cli"}, "pipeline.trainer": RUNNING}
OPTIONAL = {
    *("vllm", "sglang", "openai", "wandb", "trackio", "tensorboard", "torchao", "compressed_tensors", "lm_eval", "trl"),
    *("tree_sitter", "pytest"),
}
COMES_WITH = {"pydantic_core": "pydantic"}  # which pins its version exactly


# ---- reading a tree ----


@dataclass(frozen=True)
class Import:
    """where: at the module's level, inside a function, or for type checkers only."""

    importer: str
    imported: str
    line: int
    where: Literal["module", "function", "typing"]

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@dataclass(frozen=True)
class Tree:
    modules: Collection[str]
    imports: tuple[Import, ...]
    kinds: Collection[str]  # the modules that the pool's registry names


def read_tree(root: Path) -> Tree:
    files = {_module(path, root): path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}
    parsed = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    imports: list[Import] = []
    for name, syntax in parsed.items():
        package = name if files[name].name == "__init__.py" else name.rpartition(".")[0]
        for node, where in _statements(syntax, "module"):
            imports += [Import(name, target, node.lineno, where) for target in _targets(node, package, parsed)]
    return Tree(parsed.keys(), tuple(imports), _kinds(parsed.get("teachers.pool"), imports))


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


Where = Literal["module", "function", "typing"]


def _statements(node: ast.AST, where: Where) -> Iterator[tuple[ast.Import | ast.ImportFrom, Where]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, where
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _statements(child, "function")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _statements(ast.Module([statement], []), "typing")
            for statement in child.orelse:
                yield from _statements(ast.Module([statement], []), where)
        else:
            yield from _statements(child, where)


def _targets(node: ast.Import | ast.ImportFrom, package: str, modules: Collection[str]) -> Iterator[str]:
    """What a statement imports; `from package import module` is an import of the module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    source = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        source = ".".join([*above, *([source] if source else [])])
    for target in dict.fromkeys(f"{source}.{alias.name}" for alias in node.names):
        yield target if target in modules else source


def _kinds(pool: ast.Module | None, imports: Iterable[Import]) -> set[str]:
    """The modules whose functions stand in the pool's KINDS."""
    imported = {i.imported.rpartition(".")[2]: i.imported for i in imports if i.importer == "teachers.pool"}
    for node in pool.body if pool else ():
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == "KINDS" for target in targets):
            names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            return {imported[name] for name in names if name in imported}
    return set()


def _top(module: str) -> str:
    return module.partition(".")[0]


# ---- the rules ----


def teachers_stand_alone(tree: Tree) -> list[str]:
    return [str(i) for i in tree.imports if _top(i.importer) == "teachers" and _top(i.imported) == "pipeline"]


def teachers_are_layered(tree: Tree) -> list[str]:
    """types -> errors -> config -> what kinds share -> each kind -> pool -> exchange. A kind knows no other kind."""
    shared, kind, pool, exchange = 3, 4, 5, 6

    def layer(module: str) -> int:
        name = module.removeprefix("teachers.")
        if name in FOUNDATION:
            return FOUNDATION.index(name)
        return {"pool": pool, "exchange": exchange}.get(name, kind if module in tree.kinds else shared)

    inside = [i for i in tree.imports if i.importer.startswith("teachers.") and i.imported.startswith("teachers.")]
    return [
        str(i)
        for i in inside
        if layer(i.imported) > layer(i.importer) or layer(i.imported) == layer(i.importer) != shared
    ]


def losses_import_torch_and_types(tree: Tree) -> list[str]:
    allowed = LOSSES | {"torch", "pipeline.types", "teachers.types"}
    return [
        str(i)
        for i in tree.imports
        if i.importer in LOSSES
        and i.imported not in allowed
        and _top(i.imported) not in {"torch", *sys.stdlib_module_names}
    ]


def entries_are_kept(tree: Tree) -> list[str]:
    """Only the command starts a run; only the run and its halves know the loop."""
    return [str(i) for i in tree.imports if i.imported in ENTRY and i.importer not in ENTRY[i.imported]]


def few_import_widely(tree: Tree) -> list[str]:
    found = []
    for module in sorted(tree.modules):
        wanted = {i.imported for i in tree.imports if i.importer == module and i.imported in tree.modules}
        wanted = {name for name in wanted if name.rpartition(".")[2] not in ("types", "errors")}
        if len(wanted) > MOST_IMPORTS and module not in WIDE:
            found.append(f"{module} imports {len(wanted)} modules")
    return found


def optional_packages_wait(tree: Tree) -> list[str]:
    return [str(i) for i in tree.imports if _top(i.imported) in OPTIONAL and i.where == "module"]


def nothing_goes_in_circles(tree: Tree) -> list[str]:
    graph: dict[str, set[str]] = {module: set() for module in tree.modules}
    for i in tree.imports:
        if i.where == "module" and i.imported in graph:
            graph[i.importer].add(i.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def dependencies_are_declared(tree: Tree) -> list[str]:
    """Every package imported at a module's level stands in pyproject, not only in what something else needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("-", "_") for line in project["dependencies"]}
    declared |= {"ruamel"} if "ruamel.yaml" in declared else set()
    known = {*declared, *sys.stdlib_module_names, *PACKAGES}
    found = [i for i in tree.imports if COMES_WITH.get(_top(i.imported), _top(i.imported)) not in known]
    return [str(i) for i in found if _top(i.imported) not in OPTIONAL]


RULES: tuple[Callable[[Tree], list[str]], ...] = (
    teachers_stand_alone,
    teachers_are_layered,
    losses_import_torch_and_types,
    entries_are_kept,
    few_import_widely,
    optional_packages_wait,
    nothing_goes_in_circles,
    dependencies_are_declared,
)


# ---- this project keeps them ----


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Callable[[Tree], list[str]]) -> None:
    assert rule(read_tree(ROOT)) == []


def test_the_tree_is_the_whole_project() -> None:
    from teachers.pool import KINDS

    tree = read_tree(ROOT)
    assert {"pipeline.rollout.local", "teachers.types", "pipeline.cli", *LOSSES, *WIDE} <= set(tree.modules)
    assert len(tree.kinds) == len(KINDS)
    assert any(i.importer == "pipeline.cli" and i.imported == "pipeline.run" for i in tree.imports)


def imports_without_torch(module: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.modules['torch'] = None; import {module}; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    "module",
    ["pipeline.recipe", "pipeline.recipe_file", "pipeline.cli", "pipeline.afterwards", "teachers.config"],
)
def test_imports_without_torch(module: str) -> None:
    result = imports_without_torch(module)
    assert result.returncode == 0, result.stderr
    assert not {"transformers", "accelerate", "datasets", "peft", "openai"} & set(result.stdout.split())


def test_torch_is_really_absent_there() -> None:
    assert "ModuleNotFoundError" in imports_without_torch("pipeline.objectives").stderr


# ---- each can fail ----

POOL = "from teachers import adapters, local\nKINDS = {'a': adapters.build, 'b': local.build}\n"
SOUND = {
    "pipeline/cli.py": "def main():\n    from pipeline.run import run\n",
    "pipeline/run.py": "from pipeline.trainer import train\n",
    "pipeline/trainer.py": "from pipeline.fused import loss\nimport torch\n",
    "pipeline/fused.py": "import math\nimport torch.nn\nfrom pipeline.types import Batch\n",
    "pipeline/types.py": "from teachers.types import Head\n",
    "teachers/types.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor\n",
    "teachers/errors.py": "",
    "teachers/config.py": "from teachers.types import Kind\n",
    "teachers/heads.py": "from teachers.errors import TeacherError\n",
    "teachers/adapters.py": "from teachers import heads, config\n",
    "teachers/local.py": "from teachers.heads import find\n",
    "teachers/pool.py": POOL,
}

BROKEN: list[tuple[Callable[[Tree], list[str]], str, str]] = [
    (teachers_stand_alone, "teachers/heads.py", "def f():\n    from pipeline.types import Batch\n"),
    (teachers_stand_alone, "teachers/heads.py", "import pipeline\n"),
    (teachers_are_layered, "teachers/local.py", "from teachers.adapters import build\n"),
    (teachers_are_layered, "teachers/local.py", "from . import adapters\n"),
    (teachers_are_layered, "teachers/adapters.py", "if TYPE_CHECKING:\n    from teachers.pool import Pool\n"),
    (teachers_are_layered, "teachers/heads.py", "from .local import build\n"),
    (teachers_are_layered, "teachers/config.py", "from teachers.heads import find\n"),
    (teachers_are_layered, "teachers/types.py", "from teachers.config import Section\n"),
    (losses_import_torch_and_types, "pipeline/fused.py", "from pipeline.trainer import Loop\n"),
    (losses_import_torch_and_types, "pipeline/fused.py", "import transformers\n"),
    (losses_import_torch_and_types, "pipeline/fused.py", "from teachers.heads import find\n"),
    (entries_are_kept, "pipeline/types.py", "import pipeline.run\n"),
    (entries_are_kept, "pipeline/cli.py", "def main():\n    from pipeline.trainer import train\n"),
    (entries_are_kept, "pipeline/cli2.py", "from pipeline import run\n"),
    (optional_packages_wait, "teachers/local.py", "try:\n    import openai.types\nexcept ImportError:\n    pass\n"),
    (optional_packages_wait, "pipeline/run.py", "class A:\n    from wandb import init\n"),
    (nothing_goes_in_circles, "teachers/types.py", "from teachers import config\n"),
    (nothing_goes_in_circles, "teachers/heads.py", "if True:\n    from teachers.local import build\n"),
    (dependencies_are_declared, "pipeline/run.py", "def f():\n    import pandas\n"),
]


def write_tree(root: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return read_tree(root)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_tree_passes(rule: Callable[[Tree], list[str]], tmp_path: Path) -> None:
    assert rule(write_tree(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("rule", "file", "text"), BROKEN)
def test_a_broken_tree_is_found(rule: Callable[[Tree], list[str]], file: str, text: str, tmp_path: Path) -> None:
    found = rule(write_tree(tmp_path, SOUND | {file: text}))
    assert len(found) == 1
    assert file.removesuffix(".py").replace("/", ".") in found[0]


def test_too_wide_a_module_is_found(tmp_path: Path) -> None:
    names = [f"pipeline.part{n}" for n in range(MOST_IMPORTS + 1)]
    parts = {f"{name.replace('.', '/')}.py": "" for name in names}
    wide = "".join(f"import {name}\n" for name in names)
    assert few_import_widely(write_tree(tmp_path, SOUND | parts | {"pipeline/broad.py": wide})) == [
        f"pipeline.broad imports {len(names)} modules"
    ]
    narrow = wide.replace(f"import {names[0]}\n", "def f():\n    import pipeline.types\n")
    assert few_import_widely(write_tree(tmp_path, {"pipeline/broad.py": narrow})) == []


def test_what_waits_in_a_function_is_no_circle(tmp_path: Path) -> None:
    late = "def f():\n    from teachers.local import build\n    import openai\n"
    tree = write_tree(tmp_path, SOUND | {"teachers/heads.py": late})
    assert nothing_goes_in_circles(tree) == optional_packages_wait(tree) == []
