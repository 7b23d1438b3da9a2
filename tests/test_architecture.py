"""The rooms of the house, held by reading the imports: packages in their order, and no circles anywhere."""

import ast
import graphlib
import re
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "profusion_pipeline"
TESTS = Path(__file__).parent

# A package imports from those before it; of one line, in one direction only.
ORDER = [
    {"common", "method"},
    {"training", "publishing"},
    {"customization", "demo"},
    {"evaluation", "notebook"},
    {"generate"},
    {"app"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {package: level for level, packages in enumerate(ORDER) for package in packages}

CORE = {"torch", "numpy", "PIL", "transformers", "diffusers", "huggingface_hub", "safetensors", "filelock"}
TRAINING = {"accelerate", "peft", "datasets", "tqdm"}  # of the extra `train`, and what comes with it
EXTRAS = {
    "customization.learning_weights": TRAINING | {"bitsandbytes"},
    "evaluation.machine": {"psutil"},
    "notebook.preview": {"IPython"},
    "training.stream": TRAINING,
    "training.trainer": TRAINING,
    "training.run": TRAINING,
    "training.components": TRAINING,
    "training.trackers": TRAINING,
}

# The method: these files are also the files of a Hub repository, where nothing but themselves can be imported.
SHIPPED = {
    "pipeline_profusion": {"torch", "diffusers"},
    "base_model": {"torch", "transformers", "diffusers"},
    "fusion_stage": {"torch", "diffusers"},
    "noisy_latents": {"torch", "diffusers"},
    "modeling_promptnet": {"torch", "numpy", "diffusers"},
    "learnt_adapters": {"torch"},
    "learnt_subject": {"diffusers", "torch", "transformers"},
    "image_prompts": {"torch", "diffusers"},
    "loading": {"torch", "diffusers", "transformers"},
    "card": {"torch", "huggingface_hub"},
    "repository": {"huggingface_hub"},
    "older_saves": {"huggingface_hub"},
    "subject_prompt": {"torch", "transformers", "diffusers"},
    "subject_embedding": {"torch", "safetensors"},
    "whole_files": {"safetensors"},
    "reference_images": {"torch", "numpy", "PIL"},
    "picture_file": {"PIL"},
    "faces": {"numpy", "PIL", "diffusers"},
    "framing": {"torch", "PIL", "diffusers", "transformers"},
    "quoting": set(),
    "adapters": {"torch", "numpy"},
    "base_hash": {"torch", "numpy"},
    "concept_file": {"torch", "safetensors", "huggingface_hub"},
    "concept_loader": {"torch", "diffusers"},
    "encoding": {"torch", "PIL", "diffusers", "transformers"},
    "entry": {"diffusers"},
    "call_inputs": set(),
    "checks": set(),
    "tensor_checks": {"torch"},
    "callbacks": {"torch"},
    "output": {"PIL", "diffusers"},
    "prediction": {"torch"},
    "text_encoders": {"torch", "transformers"},
    "xl_conditions": {"torch"},
    "pipeline_profusion_xl": {"torch", "PIL", "transformers", "diffusers"},
    "prompt_pieces": {"torch", "transformers"},
    "recipes": set(),
    "text_alignment": {"torch", "transformers"},
    "guidance_rows": {"torch"},
    "guidance_scales": set(),
    "call_texts": {"torch"},
    "shared_models": set(),
    "control": {"torch", "PIL", "diffusers"},
    "mask_picture": {"torch", "numpy", "PIL"},
    "noise_levels": {"torch", "diffusers"},
    "structure": {"torch", "PIL", "diffusers"},
    "fusion_sampling": {"torch"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """Dotted, below the package; a package's own file has the package's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def module_of_a_call(call: ast.Call, path: Path) -> str | None:
    """The module of this package, below the package, that `import_module` or `__import__` is asked for by its name."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    named = call.args[0] if function in ("import_module", "__import__") and call.args else None
    if not (isinstance(named, ast.Constant) and isinstance(named.value, str)):
        return None
    inside = [PACKAGE.name, *path.parent.relative_to(PACKAGE).parts]
    name = resolve_name(named.value, ".".join(inside)) if named.value.startswith(".") else named.value
    return name.removeprefix(f"{PACKAGE.name}.") if name.startswith(f"{PACKAGE.name}.") else None


def imports(path: Path, code: str | None = None) -> tuple[set[str], set[str]]:
    """(modules of this package, top-level modules of others) that a file imports anywhere in its code."""
    ours, others = set(), set()
    modules = {module_name(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if code is None else code)):
        if isinstance(node, ast.Import):
            others |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.Call):
            ours |= {module_of_a_call(node, path)} - {None}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            inside = path.parent.relative_to(PACKAGE).parts
            target = [*inside[: len(inside) - node.level + 1], *(node.module or "").split(".")]
            target = ".".join(part for part in target if part)
            for alias in node.names:  # `from . import x` names a module, or something of the package
                whole = f"{target}.{alias.name}".strip(".")
                ours.add(whole if whole in modules else target)
    return ours, others - sys.stdlib_module_names


@pytest.mark.parametrize(
    "code",
    [
        "from ..customization import customize",
        "from ..customization.customize import customizing",
        "importlib.import_module('profusion_pipeline.customization.customize')",
        "import_module('..customization.customize', __package__)",
        "__import__('profusion_pipeline.customization.customize')",
    ],
)
def test_an_import_is_seen_however_it_is_written(code):
    assert imports(PACKAGE / "method" / "concept_loader.py", code)[0] == {"customization.customize"}


GRAPH = {module_name(path): imports(path)[0] for path in FILES}


@pytest.mark.parametrize("module", GRAPH)
def test_packages_import_those_before_them(module):
    package = module.split(".")[0]
    too_high = {target for target in GRAPH[module] if LEVEL[target.split(".")[0]] > LEVEL[package]}
    assert not too_high


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_of_others(path):
    assert imports(path)[1] <= CORE | EXTRAS.get(module_name(path), set())


def test_no_circle_of_modules():
    graphlib.TopologicalSorter(GRAPH).prepare()


def test_no_circle_of_packages():
    packages = {package: set() for package in LEVEL}
    for module, targets in GRAPH.items():
        package = module.split(".")[0]
        packages[package] |= {target.split(".")[0] for target in targets} - {package}
    graphlib.TopologicalSorter(packages).prepare()


@pytest.mark.parametrize("module", SHIPPED)
def test_shipped_files_import_only_what_a_hub_repository_has(module):
    ours, others = imports(PACKAGE / "method" / f"{module}.py")
    assert others <= SHIPPED[module]
    assert ours <= (set() if module == "modeling_promptnet" else {f"method.{name}" for name in SHIPPED})


@pytest.mark.parametrize("module", SHIPPED)
def test_the_hub_loader_sees_no_imports_but_those_of_the_entry(module):
    """diffusers asks the Hub anew for each import that it finds, by regular expression, in docstrings too."""
    from diffusers.utils.dynamic_modules_utils import get_relative_imports

    seen = set(get_relative_imports(PACKAGE / "method" / f"{module}.py"))
    assert seen == ({"profusion_method", "promptnet.modeling_promptnet"} if module == "entry" else set())


def test_every_file_of_the_method_is_shipped():
    assert {path.stem for path in (PACKAGE / "method").glob("*.py")} == SHIPPED.keys() | {"__init__"}


@pytest.mark.parametrize("path", [path for path in FILES if not path.name.startswith("__")], ids=module_name)
def test_every_file_has_its_tests(path):
    assert (TESTS / path.relative_to(PACKAGE).with_name(f"test_{path.name}")).is_file()


def test_the_call_can_be_read_in_one_go():
    """Its body has at most 130 lines, and no numbered step more than 30."""
    path = PACKAGE / "method" / "pipeline_profusion.py"
    functions = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if is_function(node)]
    (call,) = (node for node in functions if node.name == "__call__")
    first, last = call.body[1].lineno - 1, call.end_lineno  # from the first step's title on
    lines = path.read_text(encoding="utf-8").splitlines()[first - 1 : last]
    titles = [number for number, line in enumerate(lines) if re.match(r" {8}# \d+\. ", line)]
    lengths = [end - begin for begin, end in zip(titles, [*titles[1:], len(lines)], strict=True)]
    assert titles[0] == 0 and len(titles) == 9
    assert len(lines) <= 130 and max(lengths) <= 30, (len(lines), lengths)


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef)


def files_named_in_prose(text: str) -> set[str]:
    return set(re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", text))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_named_in_prose_are_there(path):
    folders = (PACKAGE, *(TESTS.parent / name for name in ("tests", "examples", "benchmarks")))
    there = {file.name for folder in folders for file in folder.rglob("*.py")} | {
        "pipeline.py",
        "app.py",
    }  # of a repository, of a Space
    assert files_named_in_prose(path.read_text(encoding="utf-8")) <= there


def test_a_file_named_in_prose_is_seen():
    assert files_named_in_prose("`old_name.py` has it, and `method/entry.py`, not os.py") == {"old_name.py", "entry.py"}


def unfinished_errors(code: str) -> set[str]:
    """Texts of errors that don't end with a full stop, of those that are written where the error is raised."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = node.exc.args[0]
            last = text.values[-1] if isinstance(text, ast.JoinedStr) else text
            written = isinstance(text, ast.JoinedStr | ast.Constant)
            if written and not (isinstance(last, ast.Constant) and str(last.value).endswith(".")):
                found.add(ast.unparse(node.exc))
    return {error for error in found if not error.startswith(("argparse.ArgumentTypeError", "AttributeError"))}


def test_an_error_without_its_full_stop_is_seen():
    code = "raise ValueError('no')\nraise ValueError(f'{x}')\nraise ValueError('Yes.')\nraise OSError(text)"
    assert unfinished_errors(code) == {"ValueError('no')", "ValueError(f'{x}')"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_errors_end_with_a_full_stop(path):
    assert not unfinished_errors(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_can_be_read_in_one_go(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
