"""Python programs that have nothing in common but the language, and what a copyist does to them."""

from __future__ import annotations

import ast
import random

LICENCE = "".join(
    f"# Clause {n}: this software is provided as is, without a warranty of any kind.\n" for n in range(60)
)


def program(seed: int, functions: int = 3) -> str:
    """Some functions of a dozen statements each. Another seed gives other attributes, calls and structure."""
    rng = random.Random(seed)
    return "\n\n".join(function(rng, f"work_{seed}_{n}") for n in range(functions)) + "\n"


def function(rng: random.Random, name: str) -> str:
    names = [f"{letter}{rng.randrange(100)}" for letter in "abcde"]
    lines = [f"def {name}({', '.join(names)}):", f'    """Does {name}."""']
    for _ in range(12):
        target, left, right = rng.choice(names), rng.choice(names), rng.choice(names)
        attribute = "".join(rng.choices("bcdfghklmnprstvw", k=6))
        lines.append(
            rng.choice(
                [
                    f"    {target} = {left}.{attribute}({right}, {rng.randrange(99)})",
                    f"    if {left} > {right}.{attribute}:\n        {target} = [{left} for {left} in {right}]",
                    f"    for {target} in {left}.{attribute}():\n        {right}.append({target} + {rng.randrange(9)})",
                    f"    while {left}.{attribute} < {right}:\n        {left} += '{attribute}'",
                ]
            )
        )
    return "\n".join([*lines, f"    return {names[0]}"])


def renamed(text: str) -> str:
    """Every name of its own and every constant another one; without docstrings; annotated and laid out anew."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = f"other_{node.id}"
        elif isinstance(node, ast.arg):
            node.arg, node.annotation = f"other_{node.arg}", ast.Name("int")
        elif isinstance(node, ast.FunctionDef):
            node.name, node.body, node.decorator_list = f"other_{node.name}", node.body[1:], [ast.Name("cached")]
        elif isinstance(node, ast.Constant):
            node.value = node.value + 1 if isinstance(node.value, int) else f"other {node.value}"
    return ast.unparse(tree) + "\n"


def edited(text: str) -> str:
    """One line in thirty is another."""
    lines = text.split("\n")
    return "\n".join("    pass" if n % 30 == 29 and line.startswith("    ") else line for n, line in enumerate(lines))


def first_function(text: str) -> str:
    return ast.get_source_segment(text, ast.parse(text).body[0]) or ""
