"""Families are described in their own modules, and named nowhere else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from deployments.config import DENOISING_STAGES
from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES

ROOT = Path(__file__).parents[4]
# where stages are named, one of which is called as the family that it was made for
STAGES = {"deployments/config.py", "serve_app/app.py"}
NAMED = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, get_args(FamilyName)))})(?![\w-])")


def literals(source: str) -> Iterator[ast.Constant]:
    """The strings of a module's code, f-strings' parts among them; its docstrings are none."""
    tree = ast.parse(source)
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node


def test_settings_take_the_names_of_the_families() -> None:
    assert tuple(FAMILIES) == get_args(FamilyName)


def test_what_refines_is_what_others_are_refined_by() -> None:
    refined_by = {family.refined_by for family in FAMILIES.values()} - {None}
    assert refined_by == {family for family in FAMILIES.values() if family.refines}


def test_no_other_module_names_a_family() -> None:
    modules = [path for room in ("deployments", "serve_app") for path in (ROOT / room).rglob("*.py")]
    assert len(modules) > 100
    named = []
    for path in modules:
        module = path.relative_to(ROOT)
        if module.parent.as_posix() == "deployments/engine/families":
            continue
        for literal in literals(path.read_text(encoding="utf-8")):
            is_stage = module.as_posix() in STAGES and literal.value in DENOISING_STAGES
            if NAMED.search(str(literal.value)) and not is_stage:
                named.append(f"{module}:{literal.lineno}: {literal.value!r}")
    assert named == []


def test_a_name_in_code_is_seen() -> None:
    source = '"""Of sd15."""\nif family == "sdxl" or f"for sdxl-refiner {x}" or "demo-sd15" or "sdxl_base":\n    pass\n'
    assert [literal.value for literal in literals(source) if NAMED.search(str(literal.value))] == [
        "sdxl",
        "for sdxl-refiner ",
    ]
