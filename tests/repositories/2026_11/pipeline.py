"""What diffusers runs first of a repository, where this file is named `pipeline.py`: it runs the rest of the code.

diffusers copies the code of all local repositories to one place, and runs it under module names made from file names
alone. There a second repository would run files of the first, and put its functions in place of the first one's. So the
code moves on, into a package whose name is a hash of what is in it: equal code is one package, other code is another,
and no two versions mix in a process.

diffusers copies those files that stand in import lines of this text, and no others. They are:

    from .fusion_sampling import *
    from .modeling_promptnet import *
    from .noise_levels import *
    from .pipeline_profusion import *
    from .profusion_adapters import *
    from .profusion_batch import *
    from .profusion_card import *
    from .profusion_concept import *
    from .profusion_concept_loader import *
    from .profusion_encoding import *
    from .profusion_inputs import *
    from .profusion_loading import *
    from .profusion_repository import *
    from .profusion_rows import *
    from .profusion_running_call import *
    from .reference_images import *
    from .subject_embedding import *
    from .subject_prompt import *
"""

import hashlib
import importlib
import os
from pathlib import Path

from diffusers.utils import DIFFUSERS_DYNAMIC_MODULE_NAME, HF_MODULES_CACHE
from diffusers.utils.dynamic_modules_utils import get_relative_imports


def import_pipeline(entry: Path) -> type:
    """The pipeline's class, from files of a repository that now lie in a package of their own.

    Args:
        entry: This file, beside the files that its text names.

    Returns:
        `ProFusionPipeline`, of the module `profusion_<hash>.pipeline_profusion`.

    Example:
        >>> import_pipeline(Path("saved-pipeline/pipeline.py"))  # doctest: +SKIP
        <class 'profusion_0e9d...'.pipeline_profusion.ProFusionPipeline'>
    """
    # The names are read from the text and not from this code: Python runs what it compiled before if name, size and
    # second of change are the same, whichever repository's it was. Whose this code is makes no difference.
    names = sorted(get_relative_imports(entry))
    files = {f"{name}.py": entry.with_name(f"{name}.py").read_bytes() for name in names}
    files["profusion_entry.py"] = entry.read_bytes()
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
    return importlib.import_module(f"{package}.pipeline_profusion").ProFusionPipeline


if __name__.startswith(f"{DIFFUSERS_DYNAMIC_MODULE_NAME}."):  # run by diffusers, not imported from an installed package
    ProFusionPipeline = import_pipeline(Path(__file__))
