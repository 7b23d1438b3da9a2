import ast
import base64
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hub_server import Repository, serve
from profusion_pipeline.customization.config import CustomizeConfig
from profusion_pipeline.method.concept_file import FILE, Concept

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # of child processes, which begin in this folder


def make(value: float = 0.5, **facts) -> Concept:
    given = dict(
        latents=torch.full((1, 4, 8, 8), value),
        image_states=torch.full((1, 5, 24), value),
        weights=torch.ones(1).double(),
        changes={"unet.to_q.lora_A.weight": torch.full((4, 8), value), "promptnet.to_q.lora_B.weight": torch.eye(4)},
        class_noun="woman",
        base_model="owner/base",
        base_hash="ab" * 32,
        settings=dataclasses.asdict(CustomizeConfig()),
        steps=100,
        loss=0.25,
    )
    return Concept(**given | facts)


def assert_same(one: Concept, other: Concept) -> None:
    assert one.changes.keys() == other.changes.keys()
    for name, tensor in one._tensors().items():
        assert torch.equal(tensor, other._tensors()[name]) and tensor.dtype == other._tensors()[name].dtype
    for name in ("class_noun", "base_model", "base_hash", "settings", "steps", "loss"):
        assert getattr(one, name) == getattr(other, name)


def test_what_is_saved_comes_back(tmp_path):
    concept = make()
    concept.save_pretrained(tmp_path / "a" / "concept")
    for source in (tmp_path / "a" / "concept", str(tmp_path / "a" / "concept"), tmp_path / "a" / "concept" / FILE):
        assert_same(Concept.from_pretrained(source), concept)
    assert [path.name for path in (tmp_path / "a" / "concept").iterdir()] == [FILE]


def test_the_file_in_memory_is_the_file(tmp_path):
    concept = make(thumbnail=JPEG)
    concept.save_pretrained(tmp_path)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / FILE).write_bytes(concept.to_bytes())
    again = Concept.from_pretrained(tmp_path / "again")
    assert_same(again, Concept.from_pretrained(tmp_path))
    assert again.thumbnail == JPEG


def test_the_header_is_json_that_anybody_can_read(tmp_path):
    make().save_pretrained(tmp_path)
    with safe_open(tmp_path / FILE, framework="np") as file:
        facts = json.loads(file.metadata()["concept"])
    assert facts["base_hash"] == "ab" * 32 and facts["settings"]["rank"] == CustomizeConfig().rank


def test_a_notebook_shows_a_line():
    assert repr(make()) == "Concept('woman', mode='lora', 100 steps, loss 0.2500, 0.00 MB, for 'owner/base')"
    assert len(repr(make(class_noun="x" * 200, base_model="y" * 10**6))) <= 300


JPEG = b"\xff\xd8 of a face"


def test_a_thumbnail_is_kept_and_shown(tmp_path):
    make(thumbnail=JPEG).save_pretrained(tmp_path)
    concept = Concept.from_pretrained(tmp_path)
    assert concept.thumbnail == JPEG
    assert f'<img src="data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}">' in concept._repr_html_()


def test_without_a_thumbnail_there_is_none(tmp_path):
    make(class_noun="<b>").save_pretrained(tmp_path)
    with safe_open(tmp_path / FILE, framework="np") as file:
        assert set(file.metadata()) == {"format", "concept"}
    shown = Concept.from_pretrained(tmp_path)._repr_html_()
    assert "<img" not in shown and "&lt;b&gt;" in shown


@pytest.mark.parametrize("thumbnail", ["text", b"<svg onload=...>", JPEG * 10_000])
def test_thumbnails_that_are_none(thumbnail):
    with pytest.raises(ValueError, match="`thumbnail` must be a JPEG file of at most 100000 bytes"):
        make(thumbnail=thumbnail)


def test_a_torn_thumbnail(tmp_path):
    make().save_pretrained(tmp_path)
    with safe_open(tmp_path / FILE, framework="pt") as file:
        metadata = file.metadata() | {"thumbnail": "no base64!"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / FILE, metadata=metadata)
    with pytest.raises(ValueError, match="holds no concept that can be used"):
        Concept.from_pretrained(tmp_path)


def test_changes_by_component():
    assert list(make().changes_of("unet")) == ["to_q.lora_A.weight"]
    assert list(make().changes_of("promptnet")) == ["to_q.lora_B.weight"]


def test_size(tmp_path):
    make().save_pretrained(tmp_path)
    assert make().num_bytes == 4 * (4 * 8 * 8 + 5 * 24 + 4 * 8 + 16) + 8
    assert 0 < (tmp_path / FILE).stat().st_size - make().num_bytes < 5000


KILLING = """
import os, random, sys
from itertools import cycle
import torch
from killing import kill_at
from test_concept_file import assert_same, make
from profusion_pipeline.method.concept_file import Concept

folder = sys.argv[1]
changes = lambda value: {"unet.w": torch.full((1_000_000,), value)}  # some milliseconds of writing
versions = [make(value, steps=int(value), changes=changes(value)) for value in (1.0, 2.0)]
versions[0].save_pretrained(folder)
found, interrupted, generator = [], 0, random.Random(0)

def save_without_end():
    for version in cycle(versions):
        version.save_pretrained(folder)

for _ in range(20):
    number = generator.randint(1, 12)  # six operations with files make one saving
    assert kill_at(save_without_end, folder, number=number, leash=generator.randint(0, 1))
    interrupted += len(os.listdir(folder)) > 1  # what was being written
    concept = Concept.from_pretrained(folder)
    assert_same(concept, versions[concept.steps - 1])
    found.append(concept.steps)
versions[1].save_pretrained(folder)
assert len(os.listdir(folder)) == 1  # what the kills left is gone
print(interrupted, *sorted(set(found)))
"""


def test_a_kill_leaves_the_old_one_or_the_new_one_whole(tmp_path):
    command = [sys.executable, "-c", KILLING, str(tmp_path / "concept")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    interrupted, *found = map(int, done.stdout.split())
    assert interrupted >= 5  # of 20 kills; else the test would show nothing
    assert found == [1, 2]


KILLING_EVERYWHERE = """
import itertools, sys
from pathlib import Path
from killing import kill_at
from test_concept_file import assert_same, make
from profusion_pipeline.method.concept_file import Concept

folder, old, new = Path(sys.argv[1]), make(1.0, steps=1), make(2.0, steps=2)
for number in itertools.count(1):
    old.save_pretrained(folder)
    killed = kill_at(lambda: new.save_pretrained(folder), folder, number=number, leash=0)
    found = Concept.from_pretrained(folder)
    assert_same(found, new if found.steps == 2 else old)
    if not killed:
        break
    print(found.steps)
"""


def test_a_kill_before_any_file_operation_leaves_the_old_one_or_the_new_one(tmp_path):
    """Not by luck: there is one operation, a rename, before which it is the old one and after which it is the new."""
    command = [sys.executable, "-c", KILLING_EVERYWHERE, str(tmp_path / "concept")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert found == sorted(found) and found.count("1") >= 2 and found.count("2") >= 1


FULL_DISK = """
import resource, sys
from test_concept_file import make
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # to the process, a disk with room for 1000 bytes
make(0.9).save_pretrained(sys.argv[1])
"""


def test_a_full_disk_leaves_the_old_one(tmp_path):
    assert resource.RLIMIT_FSIZE is not None
    make().save_pretrained(tmp_path)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=ENVIRONMENT, timeout=300)
    assert f"OSError: '{tmp_path / FILE}' could not be written, what was there before is whole" in done.stderr
    assert_same(Concept.from_pretrained(tmp_path), make())
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_folder_that_can_not_be_written_to(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "concept"):
        with pytest.raises(OSError, match="file.*' could not be written, what was there before is whole: "):
            make().save_pretrained(folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_user_has_there_stays(tmp_path):
    (tmp_path / ".part").mkdir()
    (tmp_path / ".part" / "notes").write_text("mine")
    make().save_pretrained(tmp_path)
    assert (tmp_path / ".part" / "notes").read_text() == "mine"


def test_sources_that_hold_no_concept(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no concept in the folder .*: no concept.safetensors"):
        Concept.from_pretrained(tmp_path)
    (tmp_path / FILE).write_bytes(b"broken")
    with pytest.raises(ValueError, match="isn't a whole safetensors file"):
        Concept.from_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="is a safetensors file, but holds no concept"):
        Concept.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="There is no concept at 'no-such/place', neither a folder nor on the Hub"):
        Concept.from_pretrained("no-such/place", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(OSError, match="`concept` must be a folder or file that exists, .* got '/no/such/folder'"):
        Concept.from_pretrained("/no/such/folder")
    with pytest.raises(OSError, match="`concept` must be a folder or file that exists") as raised:
        Concept.from_pretrained("a" * 300)
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (dict(weights=torch.zeros(1)), "`weights` must be 0 or more, and not all 0"),
        (dict(weights=torch.full((1,), float("nan"))), "`weights` must hold finite numbers"),
        (dict(latents=torch.zeros(1, 4, 8, 8).cfloat()), "`latents` must be a tensor of floats, got torch.complex64"),
        (dict(image_states=torch.zeros(1, 0, 24)), r"`image_states` must have the shape \[R, N, V\]"),
        (dict(settings={}), "`mode` must be 'lora' or 'full', got None"),
        (dict(settings={"mode": "dora"}), "`mode` must be 'lora' or 'full', got 'dora'"),
        (
            dict(settings={"mode": "lora", "rank": {"a": 1}}),
            "`settings` must hold texts and numbers, got .* for 'rank'",
        ),
        (
            dict(settings={"mode": "lora", "rate": float("nan")}),
            "`settings` must hold finite numbers, got nan for 'rate'",
        ),
        (
            dict(settings={"mode": "lora", "zoom": [[1, [2]]]}),
            r"`settings` must hold texts and numbers, got \[2\] for 'zoom'",
        ),
        (
            dict(settings={"mode": "lora", "zoom": [0, float("nan")]}),
            "`settings` must hold finite numbers, got nan for 'zoom'",
        ),
        (dict(settings=[1]), r"`settings` must be of dict, got \[1\]"),
        (dict(steps=True), "`steps` must be of int, got True"),
        (dict(class_noun=3), "`class_noun` must be of str, got 3"),
        (dict(class_noun=""), "`class_noun` must be of 1 to 200 characters, got ''"),
        (dict(class_noun="x" * 10**5), "`class_noun` must be of 1 to 200 characters, got 'xxx"),
        (dict(steps=-5), "`steps` must be at least 0, got -5"),
        (dict(loss=float("inf")), "`loss` must be a finite number of at least 0, got inf"),
        (dict(loss="1"), "`loss` must be of float, got '1'"),
        (dict(changes={"vae.x": torch.ones(1)}), "`changes` must be of `unet.` or `promptnet.`, got 'vae.x'"),
        (dict(changes={"unet.x": torch.ones(1).int()}), "`unet.x` must be a tensor of floats, got torch.int32"),
        (dict(changes={"unet.x": torch.full((1,), float("inf"))}), "`unet.x` must hold finite numbers"),
    ],
)
def test_what_is_no_concept_is_not_believed(facts, message, tmp_path, monkeypatch):
    with pytest.raises((TypeError, ValueError), match=message):
        make(**facts)
    monkeypatch.setattr(Concept, "__post_init__", lambda self: None)
    make(**facts).save_pretrained(tmp_path)  # as somebody else may write one
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"holds no concept that can be used: {message}"):
        Concept.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "Expecting value"),
        ("[1]", "its header must say class_noun, base_model"),
        ("null", "its header must say class_noun"),
        ("{}", "its header must say class_noun"),
        ("[" * 10**5, "recursion"),
        ("{" * 10, "Expecting property name"),
    ],
)
def test_a_header_that_says_nothing(header, message, tmp_path):
    tensors = {f"subject.{name}": getattr(make(), name) for name in ("latents", "image_states", "weights")}
    save_file(tensors, tmp_path / FILE, metadata={"concept": header})
    with pytest.raises(ValueError, match=f"holds no concept that can be used: .*{message}"):
        Concept.from_pretrained(tmp_path)


def test_a_cut_file_is_an_error(tmp_path):
    make().save_pretrained(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="isn't a whole safetensors file"):
        Concept.from_pretrained(tmp_path)


def test_the_card_says_how_to_use_it():
    card = make().card("ada/ada-2")
    assert card.data.base_model == "owner/base" and card.data.tags == ["profusion", "concept"]
    assert "# ada-2" in card.text and "pipe.load_concept('ada/ada-2')" in card.text
    assert "| rank | 4 |" in card.text and "one woman" in card.text and "consent" in card.text


@pytest.mark.parametrize("name", ["model", "a pipeline without name", "[a](b)/c", "a/b\n# c"])
def test_the_card_names_no_folder_as_a_hub_model(name):
    card = make(base_model=name).card("ada/ada")
    assert card.data.base_model is None
    loads = [line for line in card.text.splitlines() if "Pipeline.from_pretrained(" in line]
    assert len(loads) == 2
    assert all(
        "'owner/base-model'" in line and "# put the folder or Hub id of the base model here" in line for line in loads
    )
    assert "\n# c" not in card.text and "](b)/c" not in card.text.replace("\\](b)/c", "")


def test_the_card_learns_the_hub_id_of_the_base_model():
    card = make(base_model="model").card("ada/ada", base_model="ada/avatars")
    assert card.data.base_model == "ada/avatars" and "| base model | ada/avatars |" in card.text
    assert "ProFusionPipeline.from_pretrained('ada/avatars')\n" in card.text
    with pytest.raises(ValueError, match="`base_model` must be the id of a model on the Hub"):
        make().push_to_hub("ada/ada", base_model="a folder")


def test_the_card_shows_the_way_without_the_package():
    text = make().card("ada/ada").text
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert "DiffusionPipeline.from_pretrained('owner/base', trust_remote_code=True)" in blocks[0]
    assert "ProFusionPipeline.from_pretrained('owner/base')" in blocks[1]
    for block in blocks:
        ast.parse(block)
        assert "pipe.load_concept('ada/ada')" in block


def test_the_card_keeps_its_form_whatever_the_words():
    settings = dataclasses.asdict(CustomizeConfig()) | {"prompt": "a | photo\n# of S*"}
    text = make(class_noun="woman\n# Licence", settings=settings).card("ada/ada").text
    assert "one woman \\# Licence, learnt" in text and "| prompt | a \\| photo \\# of S\\* |" in text


PUSHING = """
from test_concept_file import assert_same, make
from profusion_pipeline.method.concept_file import Concept
make().push_to_hub("ada/concept", private=True)
make().push_to_hub("ada/described")
assert_same(Concept.from_pretrained("ada/concept"), make())
"""


def test_push_and_load_over_http(tmp_path):
    """In a process that knows no other Hub."""
    with serve() as hub:
        hub.repositories["ada/described"] = described = Repository()
        described.commit({"README.md": b"my own words"})
        environment = ENVIRONMENT | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "any"}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", PUSHING]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE)
        assert done.returncode == 0, done.stderr
        repository = hub.repositories["ada/concept"]
    assert len(repository.commits) == 2  # that of making it, and ours
    commit = repository.commits[repository.refs["main"]]
    assert {"README.md", FILE} <= commit.keys()
    assert b"pipe.load_concept('ada/concept')" in commit["README.md"]
    commit = described.commits[described.refs["main"]]
    assert commit["README.md"] == b"my own words" and FILE in commit
