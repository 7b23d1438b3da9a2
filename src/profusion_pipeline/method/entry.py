"""The first file of a repository that diffusers runs, there named `pipeline.py`: it runs the rest of the code.

diffusers copies the code of every local repository into one folder and names the modules by their files alone. A second
repository with equal file names would run the files of the first. So this file copies the code into a package of its
own, named by a hash of all files: equal code becomes one package, different code becomes another.

diffusers downloads the files that this text names in import lines, and no others, with three requests to the Hub for
each. So all files but PromptNet's lie one after another in one:

    from .profusion_method import *
    from .promptnet.modeling_promptnet import *
"""

import hashlib
import importlib
import os
import re
from pathlib import Path

from diffusers.utils import DIFFUSERS_DYNAMIC_MODULE_NAME, HF_MODULES_CACHE
from diffusers.utils.dynamic_modules_utils import get_relative_imports

PIPELINE = "pipeline_profusion.ProFusionPipeline"  # of this repository; another base model's has another


def take_apart(code: bytes) -> dict[str, bytes]:
    """The files that lie one after another in one file, each below a line with its name.

    Args:
        code: Content of that file.

    Returns:
        Name -> content; empty if there is no such line.

    Example:
        >>> take_apart(b"# ==== one.py ====\\nx = 1\\n# ==== two.py ====\\ny = 2\\n")
        {'one.py': b'x = 1\\n', 'two.py': b'y = 2\\n'}
    """
    _, *parts = re.split(rb"^# ==== (\w+\.py) ====\r?\n", code, flags=re.MULTILINE)
    return {name.decode(): content for name, content in zip(parts[::2], parts[1::2], strict=True)}


def import_pipeline(entry: Path) -> type:
    """The pipeline's class, from the files of a repository, copied into a package of their own.

    Args:
        entry: This file, with the files that its text names beside and below it.

    Returns:
        `ProFusionPipeline`, of the module `profusion_<hash>.pipeline_profusion`, or what PIPELINE names.

    Example:
        >>> import_pipeline(Path("saved-pipeline/pipeline.py"))  # doctest: +SKIP
        <class 'profusion_0e9d...'.pipeline_profusion.ProFusionPipeline'>
    """
    # The names come from the file's text, not from a list in this code. If two repositories' `pipeline.py` have the
    # same size and the same second of change, Python runs the compiled code of the first for the second, too.
    files = {"entry.py": entry.read_bytes()}
    for name in sorted(get_relative_imports(entry)):
        path = entry.parent / f"{name.replace('.', '/')}.py"
        files |= take_apart(path.read_bytes()) or {path.name: path.read_bytes()}
    parts = [name.encode() + hashlib.sha256(content).digest() for name, content in files.items()]
    package = f"profusion_{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}"
    folder = Path(HF_MODULES_CACHE, package)  # diffusers has put this cache on Python's path
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if not (folder / name).exists():
            part = folder / f"{name}.{os.getpid()}"
            part.write_bytes(content)
            os.replace(part, folder / name)
    importlib.invalidate_caches()
    module, name = PIPELINE.split(".")
    return getattr(importlib.import_module(f"{package}.{module}"), name)


if __name__.startswith(f"{DIFFUSERS_DYNAMIC_MODULE_NAME}."):  # run by diffusers, not imported from an installed package
    # diffusers asks for the class by its name, or takes the only one that there is.
    globals()[PIPELINE.split(".")[1]] = import_pipeline(Path(__file__))
