"""Rules of the house that no linter knows: private names stay in their file, no room is named like one of diffusers."""

import ast
from pathlib import Path

import diffusers
import pytest

import diffusers_kts

PACKAGE = Path(diffusers_kts.__file__).parent
FOREIGN = {
    # of diffusers' schedulers, pipelines and configurations
    "_begin_index", "_callback_tensor_inputs", "_compatibles", "_component_specs", "_execution_device", "_init_step_index",
    "_internal_dict", "_optional_components", "_step_index",
    # of torch, Python and gradio
    "_asdict", "_exit", "_fields", "_replace", "_version",
}  # fmt: skip


def private(name):
    return name.startswith("_") and not name.startswith("__")


def defined(tree):
    """Private names that a module makes: functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_private_names_stay_in_their_file(path):
    tree = ast.parse(path.read_text())
    own = {name for name in defined(tree) if private(name)} | FOREIGN
    imported = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names if private(a.name)]
    used = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and private(n.attr) and n.attr not in own]
    assert imported == [] and used == []


def test_no_room_has_the_name_of_a_folder_of_pipelines():
    """diffusers takes the folder of a component's module for a pipeline of its own if it has one of that name."""
    theirs = {path.name for path in (Path(diffusers.__file__).parent / "pipelines").iterdir() if path.is_dir()}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} & theirs <= {"__pycache__"}
