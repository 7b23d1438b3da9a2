"""The layers, held by reading the imports: a file may import only from layers below its own."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "profusion_pipeline"

LAYERS = {
    # the method
    "fusion_sampling": 0,
    "noise_levels": 0,
    "subject_prompt": 0,
    "subject_embedding": 0,
    "reference_images": 0,
    "profusion_adapters": 0,
    "profusion_batch": 0,
    "profusion_card": 0,
    "profusion_concept": 0,
    "profusion_entry": 0,
    "profusion_inputs": 0,
    "profusion_rows": 0,
    "profusion_running_call": 0,
    "modeling_promptnet": 0,
    "profusion_concept_loader": 1,
    "profusion_encoding": 1,
    "profusion_loading": 1,
    "profusion_repository": 1,
    "pipeline_profusion": 2,
    # learning
    "augmentation": 0,
    "settings": 0,
    "config": 2,
    "data": 0,
    "checkpoints": 0,
    "cuda_graph": 0,
    "training_log": 0,
    "losses": 2,
    "learning_weights": 3,
    "subject_pool": 3,
    "customize": 4,
    "picture_batches": 2,
    "picture_stream": 2,
    "training_components": 3,
    "training_run": 4,
    "validation": 4,
    "trainer": 5,
    # shipping
    "convert": 3,
    "loading": 3,
    "hub": 4,
    "demo": 4,
    # measuring
    "evaluation/__init__": 0,
    "evaluation/metrics": 0,
    "evaluation/encoders": 0,
    "evaluation/machine": 0,
    "evaluation/settings": 2,
    "evaluation/subjects": 2,
    "evaluation/measures": 3,
    "evaluation/systems": 5,
    "evaluation/profusion_system": 6,
    "evaluation/rival_parts": 5,
    "evaluation/e4t": 6,
    "evaluation/baselines": 7,
    "evaluation/pretraining": 7,
    "evaluation/rows": 6,
    "evaluation/plan": 7,
    "evaluation/run": 8,
    "evaluation/costs": 9,
    "evaluation/report": 10,
    "evaluation/plots": 11,
    "evaluation/study": 12,
    "flags": 0,
    "picture_files": 0,
    "cli": 13,
    "__init__": 14,
}

CORE = {"torch", "numpy", "PIL", "transformers", "diffusers", "huggingface_hub", "safetensors"}
TRAINING = {"accelerate", "peft", "datasets", "tqdm"}  # of the extra `train`, and what comes with it
EXTRAS = {
    "learning_weights": TRAINING | {"bitsandbytes"},
    "picture_stream": TRAINING,
    "trainer": TRAINING,
    "training_run": TRAINING,
    "training_components": TRAINING,
}

# The method: these files are also the files of a Hub repository, where nothing but themselves can be imported.
SHIPPED = {
    "pipeline_profusion": {"torch", "transformers", "diffusers"},
    "modeling_promptnet": {"torch", "numpy", "diffusers"},
    "profusion_loading": {"torch", "diffusers"},
    "profusion_card": {"torch", "huggingface_hub"},
    "profusion_repository": {"diffusers", "huggingface_hub"},
    "subject_prompt": {"torch", "transformers", "diffusers"},
    "subject_embedding": {"torch", "safetensors"},
    "reference_images": {"torch", "numpy", "PIL"},
    "profusion_adapters": {"torch", "numpy"},
    "profusion_batch": set(),
    "profusion_concept": {"torch", "safetensors", "huggingface_hub"},
    "profusion_concept_loader": {"torch", "diffusers"},
    "profusion_encoding": {"torch", "PIL", "diffusers"},
    "profusion_entry": {"diffusers"},
    "profusion_inputs": {"torch"},
    "profusion_rows": {"torch"},
    "profusion_running_call": set(),
    "noise_levels": {"torch", "diffusers"},
    "fusion_sampling": {"torch"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The name under which a file stands in LAYERS."""
    return room_of(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(parts: tuple[str, ...]) -> str:
    """A file's own name, or that of its folder; in `evaluation` both, because it has layers of its own."""
    return "/".join([*parts, "__init__"][:2]) if parts[0] == "evaluation" else parts[0]


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(rooms of this package, top-level modules of others) that a file imports anywhere in its code."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            inside = path.parent.relative_to(PACKAGE).parts
            target = (*inside[: len(inside) - node.level + 1], *(node.module or "").split("."))
            ours.add(room_of(target))
    return ours, others - sys.stdlib_module_names


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_down(path):
    ours, others = imports(path)
    below = {target for target, layer in LAYERS.items() if layer < LAYERS[room(path)]}
    assert ours - {room(path)} <= below
    assert others <= CORE | EXTRAS.get(room(path), set())


@pytest.mark.parametrize("module", SHIPPED)
def test_shipped_files_import_only_what_a_hub_repository_has(module):
    ours, others = imports(PACKAGE / f"{module}.py")
    assert others <= SHIPPED[module]
    assert ours <= (set() if module == "modeling_promptnet" else SHIPPED.keys())


@pytest.mark.parametrize("module", SHIPPED)
def test_the_hub_loader_sees_the_same_imports(module):
    """diffusers finds relative imports by regular expression, in docstrings too."""
    from diffusers.utils.dynamic_modules_utils import get_relative_imports

    path = PACKAGE / f"{module}.py"
    named_for_the_loader = SHIPPED.keys() - {module} if module == "profusion_entry" else imports(path)[0]
    assert set(get_relative_imports(path)) == named_for_the_loader


def test_every_layer_entry_is_a_file():
    assert {room(path) for path in FILES} == LAYERS.keys()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_has_its_tests(path):
    mirror = "_".join(path.relative_to(PACKAGE).with_suffix("").parts)
    wanted = f"test_{mirror.removesuffix('___init__').strip('_')}.py"
    assert (Path(__file__).parent / wanted).is_file()
