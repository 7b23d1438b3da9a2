"""Every public function and class says what it takes, as its signature has it, and shows itself in use."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import profusion_pipeline
from profusion_pipeline.flags import argument_help

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "src" / "profusion_pipeline" / "demo" / "model" / "model_index.json"
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(profusion_pipeline.__path__, "profusion_pipeline.")
]


def public(module):
    """(name, object) of the functions, classes and methods that a module defines for others."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing):
            yield name, thing
            for method_name, method in vars(thing).items():
                method = getattr(method, "__func__", method)  # of a classmethod or staticmethod
                if inspect.isfunction(method) and (method_name == "__call__" or not method_name.startswith("_")):
                    yield f"{name}.{method_name}", method


THINGS = {
    f"{module.__name__.removeprefix('profusion_pipeline.')}.{name}": thing
    for module in MODULES
    for name, thing in public(module)
}
TOP_LEVEL = {name: thing for name, thing in THINGS.items() if not re.search(r"\.[A-Z]\w*\.\w+$", name)}


def parameters(thing) -> list[str]:
    if dataclasses.is_dataclass(thing):
        return [field.name for field in dataclasses.fields(thing)]
    return [name for name in inspect.signature(thing).parameters if name not in ("self", "cls")]


def documented(thing) -> dict[str, str]:
    doc = re.sub(r"^Attributes:", "Args:", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    return argument_help(doc)


@pytest.mark.parametrize("name", THINGS)
def test_arguments_agree_with_the_signature(name):
    thing = THINGS[name]
    doc = thing.__doc__
    assert doc and doc.strip()
    if dataclasses.is_dataclass(thing) and all(field.metadata.get("help") for field in dataclasses.fields(thing)):
        return  # a config: each field has its help sentence
    helps = documented(thing)
    assert list(helps) == parameters(thing)
    assert all(helps.values())


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_there_is_an_example(name):
    assert re.search(r"^Examples?:", inspect.getdoc(TOP_LEVEL[name]) or "", re.MULTILINE)
