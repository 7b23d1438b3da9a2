"""The file that diffusers runs first. How whole repositories load is shown in fresh processes by `test_hub_ways.py`."""

import inspect
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from diffusers.utils import dynamic_modules_utils
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module, get_relative_imports

from profusion_pipeline.method import entry
from profusion_pipeline.method.repository import method_files
from test_architecture import SHIPPED

SOURCE = Path(entry.__file__).parent


def write_version(folder: Path, old: str = "", new: str = "") -> Path:
    """The code of a repository in which one word is another, in the names of files too."""
    for path, content in method_files(SOURCE).items():
        file = folder / path.replace(old, new)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.replace(old.encode(), new.encode()))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A place of its own for the code that diffusers copies."""
    folder, usual = tmp_path / "modules", dynamic_modules_utils.HF_MODULES_CACHE
    for module in (dynamic_modules_utils, dynamic_modules_utils.importlib.import_module("diffusers.utils")):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr(entry, "HF_MODULES_CACHE", str(folder))
    # Another test of this process may have put the usual place there, with the same code in it.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(usual)])
    forget_remote_code()  # of other tests' pipelines
    yield folder
    forget_remote_code()


def forget_remote_code() -> None:
    for name in [name for name in sys.modules if re.match(r"diffusers_modules\b|profusion_[0-9a-f]{16}\b", name)]:
        del sys.modules[name]


def load(folder: Path) -> type:
    return get_class_from_dynamic_module(folder, "pipeline.py", class_name="ProFusionPipeline", trust_remote_code=True)


def home(pipeline_class: type) -> Path:
    return Path(sys.modules[pipeline_class.__module__].__file__).parent


def files_of(folder: Path) -> dict[str, bytes]:
    """The code of a repository, by the names that the files have in the package."""
    (joined,) = folder.glob("profusion_*.py")
    return {
        "entry.py": (folder / "pipeline.py").read_bytes(),
        "modeling_promptnet.py": (folder / "promptnet" / "modeling_promptnet.py").read_bytes(),
    } | entry.take_apart(joined.read_bytes())


def test_it_names_the_files_of_a_repository():
    names = get_relative_imports(SOURCE / "entry.py")
    assert {f"{name.replace('.', '/')}.py" for name in names} == method_files(SOURCE).keys() - {"pipeline.py"}


def test_a_file_is_taken_apart_at_the_names_only():
    code = b"# A comment\n# ==== one.py ====\n# ==== not a name ====\n\n# ==== two.py ====\r\n x # ==== three.py ====\n"
    assert entry.take_apart(code) == {
        "one.py": b"# ==== not a name ====\n\n",
        "two.py": b" x # ==== three.py ====\n",
    }
    assert entry.take_apart((SOURCE / "modeling_promptnet.py").read_bytes()) == {}


def test_the_code_lies_in_a_package_of_its_own_byte_for_byte(tmp_path, cache):
    pipeline_class = load(write_version(tmp_path / "one"))
    folder = home(pipeline_class)
    assert folder.parent == cache and pipeline_class.__module__ == f"{folder.name}.pipeline_profusion"
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {f"{name}.py" for name in SHIPPED}
    for path in folder.glob("*.py"):
        assert path.read_bytes() == (SOURCE / path.name).read_bytes()


def test_equal_code_is_one_class(tmp_path, cache):
    one, two = write_version(tmp_path / "one"), write_version(tmp_path / "two")
    assert load(one) is load(two)


WORDS = [("", ""), ("profusion_method", "profusion_mathod"), ("renew_noise", "ronew_noise"), ("S*", "U*")]


def test_other_code_of_the_same_size_in_the_same_second(tmp_path, cache, monkeypatch):
    """Python knows what it compiled before by name, size and second of change: all three are the same here.

    The words differ in the entry itself and in the name of a file, in two files, and in prose only.
    """
    folders = [write_version(tmp_path / f"version-{i}", *words) for i, words in enumerate(WORDS)]
    assert len({(folder / "pipeline.py").stat().st_size for folder in folders}) == 1
    assert len({(folder / "pipeline.py").read_bytes() for folder in folders}) == 2
    copy = shutil.copyfile

    def copy_at_noon(source, target):
        copy(source, target)
        os.utime(target, (43200, 43200))

    monkeypatch.setattr(dynamic_modules_utils.shutil, "copyfile", copy_at_noon)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    homes = {}
    for _ in range(25):
        for folder in folders:
            place = homes.setdefault(folder, home(load(folder)))
            assert place == home(load(folder))
    for folder, place in homes.items():
        assert len(list(place.glob("*.py"))) == len(SHIPPED)
        assert {path.name: path.read_bytes() for path in place.glob("*.py")} == files_of(folder)
    assert len(set(homes.values())) == len(WORDS)
    assert (cache / "diffusers_modules" / "local" / "__pycache__").is_dir()


def test_a_file_that_is_changed_by_hand(tmp_path, cache):
    """Whoever tries something in a repository's file gets what they wrote, in the same process too."""
    folder = write_version(tmp_path / "mine")
    before = load(folder)
    path = folder / "profusion_method.py"
    path.write_text(path.read_text().replace("num_inference_steps: int = 50", "num_inference_steps: int = 20"))
    for pipeline_class, steps in ((before, 50), (load(folder), 20)):
        assert inspect.signature(pipeline_class.__call__).parameters["num_inference_steps"].default == steps


def test_half_of_an_older_copy_is_made_whole(tmp_path, cache):
    """What a kill while copying leaves: some files whole, some not there, some under another name."""
    folder = write_version(tmp_path / "one")
    place = home(load(folder))
    (place / "fusion_sampling.py").replace(place / "fusion_sampling.py.1234")
    (place / "entry.py").unlink()
    for name in [name for name in sys.modules if name.startswith(place.name)]:  # as in another process
        del sys.modules[name]
    assert home(load(folder)) == place
    assert (place / "fusion_sampling.py").read_bytes() == (SOURCE / "fusion_sampling.py").read_bytes()
    assert (place / "entry.py").is_file()
