import ast
import inspect
import subprocess
import sys
from importlib.metadata import version

import pytest

import profusion_pipeline


@pytest.mark.parametrize("name", profusion_pipeline.__all__)
def test_public_names_are_there(name):
    assert getattr(profusion_pipeline, name)
    assert name in dir(profusion_pipeline)


def test_import_is_lazy():
    heavy = "{'torch', 'numpy', 'PIL', 'diffusers', 'transformers'}"
    code = f"import sys, profusion_pipeline; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'profusion_pipeline' has no attribute 'ProFusionPipelin'"):
        _ = profusion_pipeline.ProFusionPipelin


def test_what_type_checkers_see_is_what_is_there():
    tree = ast.parse(inspect.getsource(profusion_pipeline))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == profusion_pipeline._HOME


def test_version_is_the_installed_one():
    assert version("profusion-pipeline") == profusion_pipeline.__version__
