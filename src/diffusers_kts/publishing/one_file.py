"""Modules of this package as one file, which diffusers loads from a repository where the package is not installed.

diffusers copies a custom file, and files beside it that it imports relatively, into a cache of its own, flat; one file without
relative imports works from every place that it looks in (a component's subfolder, ``custom_pipeline``, a modular block).
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
MEASURING = ("gain", "coordinates", "host_copy", "kpe")
SCHEDULER = (*MEASURING, "standing", "euler", "fused", "scheduling_kts_base", "scheduling_kts_flow_match")
MONITOR = (*MEASURING, "pipeline_kpe_monitor")
BLOCK = (*SCHEDULER, "modular_kts")
CUSTOM_PIPELINE = ("pipeline_flow_class_conditional",)


def one_file(modules: tuple[str, ...], title: str, tail: str = "") -> str:
    """The source of ``modules`` in that order, then ``tail``; their imports once, at the top.

    An import of another module of the package inside a function, which needs the package, is left to run time.

    Raises:
        ValueError: two modules define the same name, or one imports a module at its top that is not among them.
    """
    imports: dict[str, None] = {}
    bodies: list[str] = []
    defined: dict[str, str] = {}
    for name in modules:
        source = (PACKAGE / f"{name}.py").read_text()
        tree, lines = ast.parse(source), source.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and node not in tree.body:
                _late(lines, node)
        for i, node in enumerate(tree.body):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            if i == 0 and ast.get_docstring(tree) is not None:
                lines[first:last] = [""] * (last - first)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                if isinstance(node, ast.ImportFrom) and node.level:
                    if node.module not in modules:
                        raise ValueError(f"{name} imports {node.module}, which is not among {', '.join(modules)}; add it.")
                else:
                    imports |= dict.fromkeys(_one_name_each(node))
                lines[first:last] = [""] * (last - first)
            for defines in _names(node):
                if defined.setdefault(defines, name) != name:
                    raise ValueError(f"{name} and {defined[defines]} both define {defines}; rename one.")
        bodies.append(f"# {name}.py\n\n" + "\n".join(lines).strip())
    imports["import importlib"] = None
    head = (
        f'"""{title}\n\nPart of diffusers-kts, Apache-2.0. Written by ``kts publish``: change the package, not this file.\n"""'
    )
    text = "\n\n\n".join([head + "\n\n" + "\n".join(sorted(imports)), *bodies, *([tail] if tail else [])]) + "\n"
    ast.parse(text)
    return text


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


def _late(lines: list[str], node: ast.ImportFrom) -> None:
    """``from .module import name`` within a function, from the installed package."""
    indent = " " * node.col_offset
    module = f'importlib.import_module("diffusers_kts.{node.module}")'
    lines[node.lineno - 1] = "; ".join(
        f"{indent if i == 0 else ''}{a.name} = {module}.{a.name}" for i, a in enumerate(node.names)
    )
