"""Links between files and symbols: Python's imports against importlib over networkx, the rest on small codebases."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.codebase.links import BUILT_IN, Links, Ref, links_of, outline
from pipeline.codebase.types import Code
from tests.codes import code_of, networkx_code, networkx_links, paths_of


def ref(code: Code, path: str, symbol: str) -> Ref:
    number = next(n for n, file in enumerate(code.files) if file.path == path)
    return Ref(number, next(n for n, each in enumerate(outline(code.files[number]).symbols) if each.path == symbol))


def said(links: Links, refs: Sequence[Ref]) -> list[str]:
    return [f"{links.files[each.file].path}:{links.symbol(each).path}" for each in refs]


def imports_of(code: Code, path: str) -> list[str]:
    links = links_of(code)
    number = next(n for n, file in enumerate(code.files) if file.path == path)
    return [code.files[n].path for n in links.imports[number]]


# ---- imports ----


def find(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of a parent that is no package
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def test_imports_are_those_of_importlib() -> None:
    code, links = networkx_code(), networkx_links()
    root = code.root
    checked = 0
    for number, file in enumerate(code.files):
        parts = ("networkx", *file.path.removesuffix(".py").split("/"))
        package = ".".join(parts[:-1])
        expected: dict[str, None] = {}
        for each in outline(file).imports:
            module = importlib.util.resolve_name("." * each.level + each.module, package) if each.level else each.module
            if module.partition(".")[0] != "networkx":
                continue
            found = find(f"{module}.{each.name}") if each.name and each.name != "*" else None
            found = found or find(module)
            if found is not None and found != root / file.path:
                expected[found.relative_to(root).as_posix()] = None
        assert [code.files[n].path for n in links.imports[number]] == list(expected), file.path
        checked += len(expected)
    assert checked > 500


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("src/pkg/app.py", ["src/pkg/core/base.py", "src/pkg/__init__.py", "src/pkg/tools.py", "src/pkg/core/more.py"]),
        ("src/pkg/core/base.py", ["src/pkg/tools.py", "src/pkg/core/more.py"]),
        ("scripts/run.py", ["scripts/helper.py", "src/pkg/app.py"]),
    ],
)
def test_python_imports_of_packages_and_scripts(path: str, expected: list[str]) -> None:
    code = code_of(
        {
            "src/pkg/__init__.py": "",
            "src/pkg/tools.py": "def tool(): pass\n",
            "src/pkg/core/__init__.py": "",
            "src/pkg/core/base.py": "from ..tools import tool\nfrom .more import x\nfrom .... import nothing\n",
            "src/pkg/core/more.py": "x = 1\n",
            "src/pkg/app.py": "import os\nimport pkg.core.base\nimport pkg\nfrom . import tools\n"
            "from .core import more\n",
            "scripts/run.py": "import helper_of_nobody\nfrom scripts import helper\nfrom pkg.app import main\n",
            "scripts/helper.py": "",
        }
    )
    assert imports_of(code, path) == expected


def test_of_two_copies_the_nearer_one_is_imported() -> None:
    texts = {
        "one/lib/__init__.py": "",
        "one/lib/a.py": "",
        "one/use.py": "import lib.a\n",
        "two/lib/__init__.py": "",
        "two/lib/a.py": "",
        "two/deep/use.py": "import lib.a\n",
    }
    assert imports_of(code_of(texts), "one/use.py") == ["one/lib/a.py"]
    assert imports_of(code_of(texts), "two/deep/use.py") == ["two/lib/a.py"]


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("web/app.ts", 'import { a } from "./graph"; import b from "../lib"; import c from "react";\n', 2),
        ("web/app.js", 'import a from "./graph.js";\nconst b = require("../lib");\n', 2),
        ("go/cmd/main.go", 'package main\n\nimport "example.com/mod/go/graph"\n', 2),
        ("rs/src/main.rs", "use crate::graph::Node;\nuse std::fmt;\n", 1),
        ("java/src/com/acme/Main.java", "import com.acme.graph.Node;\nimport java.util.List;\nclass Main {}\n", 1),
        ("c/main.c", '#include "graph.h"\n#include <stdio.h>\n#include "inc/deep.h"\n', 2),
    ],
)
def test_imports_of_other_languages(path: str, text: str, expected: int) -> None:
    others = {
        "web/graph.ts": "export const a = 1;\n",
        "web/graph.js": "export const a = 1;\n",
        "lib/index.ts": "export default 1;\n",
        "lib/index.js": "export default 1;\n",
        "go/graph/node.go": "package graph\n",
        "go/graph/edge.go": "package graph\n",
        "go/other/node.go": "package other\n",
        "rs/src/graph.rs": "pub struct Node;\n",
        "rs/src/fmt_of_ours.rs": "",
        "java/src/com/acme/graph/Node.java": "package com.acme.graph;\nclass Node {}\n",
        "java/src/com/other/graph/Edge.java": "class Edge {}\n",
        "c/graph.h": "int f(void);\n",
        "c/inc/deep.h": "int g(void);\n",
        "d/graph.h": "int f(void);\n",
    }
    found = imports_of(code_of(others | {path: text}), path)
    assert len(found) == expected
    folder = path.partition("/")[0]
    assert all(each.startswith((f"{folder}/", "lib/")) for each in found)
    assert all(not each.startswith(("go/other", "java/src/com/other")) for each in found)


# ---- calls ----

SMALL = {
    "pkg/__init__.py": "from .shapes import area\n",
    "pkg/shapes.py": "def area(x):\n    return scale(x)\ndef scale(x):\n    return x\nclass Box:\n"
    "    def widen(self):\n        return self.grow()\n    def grow(self):\n        return area(self)\n",
    "pkg/copy.py": "def area(x):\n    return 2\ndef use():\n    return area(1)\n",
    "pkg/user.py": "from pkg import area\ndef use():\n    return area(1)\nclass K:\n    size = area(2)\n"
    "    def m(self):\n        return scale(1)\n",
    "other/loose.py": "def f(d):\n    d.append(1)\n    return grow(d), area(d)\n",
    "other/own.py": "def append(x):\n    return x\n",
    "test_shapes.py": "from pkg.shapes import area\ndef test_area():\n    assert area(1)\n",
}


def test_who_calls_whom() -> None:
    code = code_of(SMALL)
    links = links_of(code)

    def callers(path: str, symbol: str) -> list[str]:
        return said(links, links.callers.get(ref(code, path, symbol), ()))

    # Imported through a package, by a class's own line, by a test; not by what has its own, not by what could mean two.
    assert callers("pkg/shapes.py", "area") == [
        "pkg/shapes.py:Box.grow",
        "pkg/user.py:use",
        "pkg/user.py:K",
        "test_shapes.py:test_area",
    ]
    assert callers("pkg/copy.py", "area") == ["pkg/copy.py:use"]
    assert callers("pkg/shapes.py", "scale") == ["pkg/shapes.py:area", "pkg/user.py:K.m"]
    assert callers("pkg/shapes.py", "Box.grow") == ["other/loose.py:f", "pkg/shapes.py:Box.widen"]
    assert callers("other/own.py", "append") == []  # a list has one too


def test_what_a_symbol_uses() -> None:
    code = code_of(SMALL)
    links = links_of(code)
    assert said(links, list(links.uses(ref(code, "pkg/user.py", "use")))) == ["pkg/shapes.py:area"]
    assert said(links, list(links.uses(ref(code, "pkg/shapes.py", "Box.widen")))) == ["pkg/shapes.py:Box.grow"]


def test_links_of_networkx_hold_together() -> None:
    code, links = networkx_code(), networkx_links()
    pairs = 0
    for target, callers in links.callers.items():
        assert list(callers) == sorted(set(callers))
        for caller in callers:
            name = links.symbol(target).name
            assert name in links.symbol(caller).calls
            assert target in list(links.uses(caller))
            assert name not in BUILT_IN or caller.file == target.file or name in links.imported[caller.file]
            pairs += 1
    assert pairs > 5_000
    assert sum(len(refs) for refs in links.defined.values()) == sum(len(outline(f).symbols) for f in code.files)
    pairwise = said(links, links.callers[ref(code, "utils/misc.py", "pairwise")])
    assert "algorithms/approximation/steinertree.py:_kou_steiner_tree" in pairwise


def test_a_codebase_without_code_has_no_links() -> None:
    links = links_of(code_of({"README.md": "# x\n", "broken.py": "def f(:\n"}))
    assert links.imports == ((), ())
    assert not links.callers
    assert paths_of(code_of({})) == frozenset()
