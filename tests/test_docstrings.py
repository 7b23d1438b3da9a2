"""Every public function and class says what it takes, as its signature has it, and shows itself in use."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest
from diffusers.utils import BaseOutput

import profusion_pipeline
from profusion_pipeline.common.flags import argument_help

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
                ours = inspect.isfunction(method) and method.__module__ == module.__name__
                if ours and (method_name == "__call__" or not method_name.startswith("_")):
                    yield f"{name}.{method_name}", method


THINGS = {
    f"{module.__name__.removeprefix('profusion_pipeline.')}.{name}": thing
    for module in MODULES
    for name, thing in public(module)
}
METHOD = re.compile(r"\.[A-Z]\w*\.\w+$")


def is_record(thing) -> bool:
    """What a function returns several things in; the function's example shows it."""
    return inspect.isclass(thing) and issubclass(thing, (tuple, BaseOutput))


def is_check(name: str) -> bool:
    """A check of one value under a name: what it lets pass is one line, and the errors are its documentation."""
    return name.split(".")[-1].startswith("check_")


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
    if is_check(name):
        return
    helps = documented(thing)
    if inspect.isclass(thing) and "__init__" not in vars(thing) and not helps:
        return  # a class that inherits its `__init__`, whose arguments are said where it stands
    assert helps.keys() == set(parameters(thing))


@pytest.mark.parametrize(
    "name", [name for name, thing in THINGS.items() if not (METHOD.search(name) or is_record(thing) or is_check(name))]
)
def test_there_is_an_example(name):
    assert re.search(r"^Examples?:", inspect.getdoc(THINGS[name]) or "", re.MULTILINE)


def examples(name: str) -> str:
    """The code of a docstring's examples: the text with its `>>>` lines, or what stands in fenced blocks."""
    doc = inspect.getdoc(THINGS[name]) or ""
    fenced = re.findall(r"^```python\n(.*?)^```$", doc, re.DOTALL | re.MULTILINE)
    return doc if ">>> " in doc else "\n".join(fenced)


@pytest.mark.parametrize("name", [name for name in THINGS if examples(name)])
def test_the_example_runs(name, tmp_path, monkeypatch):
    code = examples(name)
    if re.search(r"load_demo_pipeline\(|demo_portraits\(", code) and not MODEL.is_file():
        pytest.skip("the demo model is not there: `make train-demo` trains it")
    monkeypatch.chdir(tmp_path)
    names = dict(vars(sys.modules[THINGS[name].__module__]))
    if ">>> " not in code:
        exec(compile(code, name, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(code, names, name, None, None)
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
