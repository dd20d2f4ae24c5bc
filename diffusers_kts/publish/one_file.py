"""Modules of this package as one file, which diffusers loads from a repository where the package is not installed.

diffusers copies a custom file, and files next to it that it imports relatively, into a flat cache; one file without
relative imports works from every place that it looks in (a component's subfolder, ``custom_pipeline``, a modular block).
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def one_file(module: str, title: str, tail: str = "") -> str:
    """The source of ``module`` (dotted, below the package) and of all that it imports at its top from this package, in order
    of use, then ``tail``; other imports once, at the top.

    An import of another module of the package inside a function, which needs the package, is left to run time.

    Raises:
        ValueError: two modules define the same name.
    """
    imports: dict[str, None] = {}
    bodies: list[str] = []
    defined: dict[str, str] = {}
    for name in _in_order_of_use(module):
        tree, lines = _parsed(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and node not in tree.body:
                _late(lines, node, name)
        for i, node in enumerate(tree.body):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            if i == 0 and ast.get_docstring(tree) is not None:
                lines[first:last] = [""] * (last - first)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                if not (isinstance(node, ast.ImportFrom) and node.level):
                    imports |= dict.fromkeys(_one_name_each(node))
                lines[first:last] = [""] * (last - first)
            for defines in _names(node):
                if defined.setdefault(defines, name) != name:
                    raise ValueError(f"{name} and {defined[defines]} both define {defines}; rename one.")
        bodies.append(f"# {name}\n\n" + "\n".join(lines).strip())
    imports["import importlib"] = None
    head = (
        f'"""{title}\n\nPart of diffusers-kts, Apache-2.0. Written by ``kts publish``: change the package, not this file.\n"""'
    )
    text = "\n\n\n".join([head + "\n\n" + "\n".join(sorted(imports)), *bodies, *([tail] if tail else [])]) + "\n"
    ast.parse(text)
    return text


def _parsed(module: str) -> tuple[ast.Module, list[str]]:
    source = PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()
    return ast.parse(source), source.splitlines()


def _in_order_of_use(module: str, found: tuple[str, ...] = ()) -> tuple[str, ...]:
    """``found``, then what ``module`` imports at its top and is not among it, then ``module``."""
    for node in _parsed(module)[0].body:
        if isinstance(node, ast.ImportFrom) and node.level and (needs := _absolute(node, module)) not in found:
            found = _in_order_of_use(needs, found)
    return (*found, module)


def _absolute(node: ast.ImportFrom, module: str) -> str:
    """What a relative import in ``module`` names, dotted below the package."""
    return ".".join([*module.split(".")[: -node.level], node.module or ""])


def _one_name_each(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [ast.unparse(ast.Import([alias])) for alias in node.names]
    return [ast.unparse(ast.ImportFrom(node.module, [alias], 0)) for alias in node.names]


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _late(lines: list[str], node: ast.ImportFrom, module: str) -> None:
    """``from .module import name`` within a function, from the installed package."""
    indent = " " * node.col_offset
    source = f'importlib.import_module("diffusers_kts.{_absolute(node, module)}")'
    lines[node.lineno - 1] = "; ".join(
        f"{indent if i == 0 else ''}{a.name} = {source}.{a.name}" for i, a in enumerate(node.names)
    )
