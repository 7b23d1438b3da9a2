"""Measuring as a whole needs no extra until a measure asks for it."""

import subprocess
import sys

OPTIONAL = ("matplotlib", "open_clip", "cv2", "peft", "accelerate", "datasets", "pandas", "scipy")


def test_no_module_imports_an_extra():
    code = f"""
import importlib, pkgutil, sys
for name in {OPTIONAL}:
    sys.modules[name] = None  # as if it were not installed
import profusion_pipeline.evaluation as evaluation
for found in pkgutil.iter_modules(evaluation.__path__, "profusion_pipeline.evaluation."):
    importlib.import_module(found.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
