"""What a folder or Hub repository of a ProFusionPipeline holds, and how the pipeline writes one.

    model_index.json                   the index; written last, so that half a folder never loads
    README.md                          the model card; one that is there already is kept
    pipeline.py                        what diffusers runs first: `entry.py` under the name that it looks for
    profusion_method.py                the rest of the code: the method's files, one after another
    promptnet/modeling_promptnet.py    PromptNet's code, in the folder where diffusers looks for it
    unet/, vae/, ...                   the components, as diffusers and transformers write them

The code is that of the running pipeline, byte for byte. It lies in few files because diffusers makes three requests for
each in a first load from the Hub, one after another, and one in every later load. (A pipeline of tiny components: 46
requests in all and then 5; with each file of the method by itself, 95 and then 21.)
"""

import ast
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, create_repo, hf_hub_download, list_repo_files, upload_folder

from . import card, whole_files

INDEX, CARD, ENTRY, CODE = "model_index.json", "README.md", "pipeline.py", "profusion_method.py"
PREFIXED = re.compile(r"profusion_\w+\.py")  # most files of the code had such names, until November 2026


def method_files(folder: Path, pipeline: str = "pipeline_profusion.ProFusionPipeline") -> dict[str, bytes]:
    """The code of a repository, read from the folder of the running code.

    Args:
        folder: Of the method's files: in the installed package, or where `entry.py` has copied a repository's code to.
        pipeline: File and name of the repository's pipeline.

    Returns:
        Path in the repository -> content.

    Example:
        >>> list(method_files(Path(__file__).parent))
        ['pipeline.py', 'promptnet/modeling_promptnet.py', 'profusion_method.py']
    """
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"}
    entry = re.sub(rb'^PIPELINE = "[\w.]+"', b'PIPELINE = "%s"' % pipeline.encode(), files.pop("entry.py"), flags=re.M)
    alone = {ENTRY: entry, "promptnet/modeling_promptnet.py": files.pop("modeling_promptnet.py")}
    parts = [b"# ==== %s ====\n%s" % (name.encode(), content) for name, content in files.items()]
    return alone | {CODE: b"# The files of the method. pipeline.py takes them apart and runs them.\n" + b"".join(parts)}


def mend_components(folder: Path) -> None:
    """Make what transformers and diffusers wrote loadable elsewhere, and silent about this machine.

    - transformers 4 reads two files of a tokenizer where 5 writes another, and 5 without torchvision names an image
      processor that 4 does not have.
    - transformers 4 writes special tokens twice, the second time in a form that changes from save to save. 5 does not,
      and neither needs it.
    - transformers 5 loads a model in the dtype that its config names, diffusers in float32: a pipeline of both would
      not fit together, so the configs name float32. `dtype=` still says otherwise.
    - diffusers writes down where a model was loaded from.

    Args:
        folder: What `save_pretrained` wrote; changed in place.

    Example:
        >>> mend_components(Path("saved-pipeline"))  # doctest: +SKIP
    """
    for path in folder.glob("*/config.json"):
        config = _read_json(path)
        config.pop("_name_or_path", None)
        if "transformers_version" in config:
            config["dtype"] = "float32"
        _write_json(path, config)
    for tokenizer in folder.glob("tokenizer*"):
        (tokenizer / "special_tokens_map.json").unlink(missing_ok=True)
        if not (tokenizer / "tokenizer.json").is_file():
            continue
        written = _read_json(tokenizer / "tokenizer.json")
        vocabulary, merges = written["model"]["vocab"], written["model"]["merges"]
        _write_json(tokenizer / "vocab.json", vocabulary)
        lines = ["#version: 0.2", *(pair if isinstance(pair, str) else " ".join(pair) for pair in merges)]
        (tokenizer / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        added = {one["content"]: one["id"] for one in written["added_tokens"] if one["content"] not in vocabulary}
        if added:
            _write_json(tokenizer / "added_tokens.json", added)
    # Private entries are what a pipeline remembers of one that it was made from; diffusers would take some for folders.
    index = {
        name: entry
        for name, entry in _read_json(folder / INDEX).items()
        if not name.startswith("_") or name in ("_class_name", "_diffusers_version")
    }
    if index["feature_extractor"][0] is not None:
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    _write_json(folder / INDEX, index)


def code_of_older_save(entry: str, there: Collection[str]) -> set[str]:
    """Which files of a repository are code of an older version that this one no longer writes.

    Until November 2026 every file of the code lay at the top, and the docstring of `pipeline.py` named them.

    Args:
        entry: Text of that file.
        there: Paths in the repository.

    Returns:
        Paths of `there`; none if somebody else wrote that `pipeline.py`.

    Example:
        >>> entry = "'''What diffusers runs first.\\n\\n    from .pipeline_profusion import *\\n'''"
        >>> code_of_older_save(entry, ["pipeline_profusion.py", "my_notes.py"])
        {'pipeline_profusion.py'}
    """
    try:
        docstring = ast.get_docstring(ast.parse(entry)) or ""
    except (SyntaxError, ValueError):
        return set()
    named = {f"{name}.py" for name in re.findall(r"^ *from \.(\w+) import \*$", docstring, re.MULTILINE)}
    if "pipeline_profusion.py" not in named:
        return set()
    return {path for path in there if path in named or PREFIXED.fullmatch(path)}


def superseded_files(
    there: Collection[str], new: Collection[str], variant: str | None, *, old_code: Collection[str] = ()
) -> list[str]:
    """What of an older save must go when a new one takes its place: its code, and weights that would be read first.

    Weights of other variants and files of others stay.

    Args:
        there: Paths in the repository.
        new: Paths that are about to be written.
        variant: Of the weights that are about to be written.
        old_code: Paths of the older save's code, as [`code_of_older_save`] finds them.

    Returns:
        Paths of `there`.

    Example:
        >>> there = ["unet/model.safetensors.index.json", "unet/model-00001-of-00002.fp16.safetensors"]
        >>> superseded_files(there, ["unet/model.safetensors"], None)
        ['unet/model.safetensors.index.json']
    """
    mark = "" if variant is None else rf"\.{re.escape(variant)}"
    shard, kind = r"(?:-\d{5}-of-\d{5})?", r"\.(?:safetensors|bin)"
    weights = re.compile(rf"(\w+)/\w*model(?:{mark}{shard}{kind}|{kind}\.index{mark}\.json)")
    parts = {path.split("/")[0] for path in new}

    def goes(path: str) -> bool:
        found = weights.fullmatch(path)
        return path not in new and bool(path in old_code or (found and found[1] in parts))

    return sorted(path for path in there if goes(path))


def _read_text(path: str | Path) -> str:
    """Of a file that may be somebody else's, in whatever encoding."""
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _move_into(new: Path, target: Path, variant: str | None) -> None:
    """Put a whole repository in place of an older one: without an index, which nothing loads, until all is there."""
    (target / INDEX).unlink(missing_ok=True)
    files, there = _files(new), _files(target)
    old_code = code_of_older_save(_read_text(target / ENTRY), there) if ENTRY in there else ()
    for path in superseded_files(there, files, variant, old_code=old_code):
        (target / path).unlink()
        if not any((target / path).parent.iterdir()):
            (target / path).parent.rmdir()
    for path in sorted(files - {INDEX}):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / path, target / path)
    os.replace(new / INDEX, target / INDEX)


def upload_repository(
    folder: Path,
    repo_id: str,
    *,
    variant: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> CommitInfo:
    """Upload a folder as one commit, which also deletes what it supersedes. A model card on the Hub is kept.

    Args:
        folder: The repository.
        repo_id: An existing repository on the Hub.
        variant: Of the weights in the folder.
        commit_message: Of the commit.
        token: For the Hub; None takes the stored one.
        create_pr: Whether to open a pull request rather than commit.
        subfolder: Where in the repository the folder goes.

    Returns:
        The commit.

    Example:
        >>> upload_repository(Path("profusion-sd2"), "me/profusion-sd2")  # doctest: +SKIP
    """
    place = f"{subfolder}/" if subfolder else ""
    there = [path.removeprefix(place) for path in list_repo_files(repo_id, token=token) if path.startswith(place)]
    old_code = ()
    if ENTRY in there:
        old_code = code_of_older_save(_read_text(hf_hub_download(repo_id, f"{place}{ENTRY}", token=token)), there)
    return upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=subfolder,
        commit_message=commit_message or "Upload ProFusionPipeline",
        token=token,
        create_pr=create_pr,
        ignore_patterns=[CARD] if CARD in there else None,
        delete_patterns=superseded_files(there, _files(folder), variant, old_code=old_code) or None,
    )


class RepositoryMixin:
    """Writing a pipeline as a repository that loads anywhere, also where this code is not installed.

    Example:
        >>> from profusion_pipeline import ProFusionPipeline
        >>> issubclass(ProFusionPipeline, RepositoryMixin)
        True
    """

    PIPELINE = "pipeline_profusion.ProFusionPipeline"  # its file and class in a repository

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        base_model: str | None = None,
        license: str | None = None,
        readme: str | None = None,
        **kwargs,
    ) -> None:
        """Write the pipeline as a folder that loads anywhere: weights, code, index and model card.

        A new folder appears whole or not at all. In an existing one files are replaced, and the index comes last;
        weights of other variants, a model card and files of others are kept.

        Args:
            save_directory: The folder.
            safe_serialization: Whether weights are safetensors; pickles otherwise.
            variant: A word in the names of the weight files, such as `fp16`.
            max_shard_size: Largest size of a weight file, in bytes or like `"5GB"`. diffusers' and transformers' own
                limits if None.
            push_to_hub: Whether to upload the folder too.
            base_model: For the model card: Hub id of the model that PromptNet was trained with.
            license: For the model card: the Hub's word for a licence.
            readme: Text of the model card; None has one written.
            **kwargs: With `push_to_hub`: `repo_id` (the folder's name if not given), `commit_message`, `private`,
                `token`, `create_pr`.

        Raises:
            NotADirectoryError: `save_directory` is a file.
            TypeError: An argument is unknown, or has no meaning without `push_to_hub`.
            ValueError: Concepts or LoRAs are loaded, `base_model` is no Hub id or `license` is not one word.
        """
        card.check_facts(base_model=base_model, license=license)
        self._check_no_adapters()
        if kwargs and not push_to_hub:
            raise TypeError(f"`save_pretrained` takes {', '.join(kwargs)} with `push_to_hub=True` only.")
        target = Path(os.path.abspath(save_directory))
        if target.is_file():
            raise NotADirectoryError(f"`save_directory` must be a folder, {str(save_directory)!r} is a file.")
        repo_id, private = kwargs.pop("repo_id", target.name), kwargs.pop("private", None)
        if push_to_hub:
            repo_id = create_repo(repo_id, private=private, token=kwargs.get("token"), exist_ok=True).repo_id
        target.parent.mkdir(parents=True, exist_ok=True)
        # In an old folder, which may be a disk of its own: files can be moved within one only.
        with whole_files.scratch_folder(target if target.exists() else target.parent) as scratch:
            new = scratch / "new"
            super().save_pretrained(new, safe_serialization, variant=variant, max_shard_size=max_shard_size)
            facts = dict(base_model=base_model, license=license, readme=readme)
            self.complete_repository(new, repo_id, has_card=(target / CARD).exists(), **facts)
            if target.exists():
                _move_into(new, target, variant)
            else:
                os.replace(new, target)
        if push_to_hub:
            upload_repository(target, repo_id, variant=variant, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        max_shard_size: int | str | None = None,
        base_model: str | None = None,
        license: str | None = None,
        readme: str | None = None,
    ) -> CommitInfo:
        """Upload the pipeline as one commit; the repository is made if it is not there. A model card there is kept.

        Args:
            repo_id: Repository on the Hub, with the organisation in front if it is one's.
            commit_message: Of the commit.
            private: Whether a new repository is private; the account's default if None.
            token: For the Hub; None takes the stored one.
            create_pr: Whether to open a pull request rather than commit.
            safe_serialization: Whether weights are safetensors; pickles otherwise.
            variant: A word in the names of the weight files, such as `fp16`.
            subfolder: Where in the repository the pipeline goes. diffusers loads pipelines from its top only.
            max_shard_size: Largest size of a weight file.
            base_model: For the model card: Hub id of the model that PromptNet was trained with.
            license: For the model card: the Hub's word for a licence.
            readme: Text of the model card; None has one written.

        Returns:
            The commit.

        Raises:
            ValueError: Concepts or LoRAs are loaded, `base_model` is no Hub id or `license` is not one word.
        """
        card.check_facts(base_model=base_model, license=license)
        self._check_no_adapters()
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with TemporaryDirectory() as scratch:
            folder = Path(scratch, repo_id.split("/")[-1])
            super().save_pretrained(folder, safe_serialization, variant=variant, max_shard_size=max_shard_size)
            self.complete_repository(folder, repo_id, base_model=base_model, license=license, readme=readme)
            return upload_repository(
                folder,
                repo_id,
                variant=variant,
                commit_message=commit_message,
                token=token,
                create_pr=create_pr,
                subfolder=subfolder,
            )

    def _check_no_adapters(self) -> None:
        """Layers with adapters have other weights' names, which nothing would load again."""
        changed = [name for name, part in self.components.items() if getattr(part, "peft_config", None)]
        if changed:
            raise ValueError(
                f"A pipeline can't be saved while {' and '.join(changed)} hold adapters: `unload_concept()`, and "
                "`unload_lora_weights()` if there are LoRAs. Concepts are saved by themselves."
            )

    def complete_repository(
        self,
        folder: Path,
        name: str,
        *,
        has_card: bool = False,
        base_model: str | None = None,
        license: str | None = None,
        readme: str | None = None,
    ) -> None:
        """Write what diffusers leaves out of a folder: the code, an index that names it, and the model card.

        Args:
            folder: With the components and diffusers' own index in it.
            name: For the model card: Hub id or folder, as it stands in the examples.
            has_card: Whether there is a model card already, which is kept.
            base_model: For the model card: Hub id of the model that PromptNet was trained with.
            license: For the model card: the Hub's word for a licence.
            readme: Text of the model card; None has one written.
        """
        mend_components(folder)
        for path, content in method_files(Path(__file__).parent, self.PIPELINE).items():
            (folder / path).parent.mkdir(exist_ok=True)  # of PromptNet, which may be missing
            (folder / path).write_bytes(content)
        names = {"_class_name": ["pipeline", self.PIPELINE.split(".")[1]]}
        if self.promptnet is not None:
            names["promptnet"] = ["modeling_promptnet", "PromptNet"]
        _write_json(folder / INDEX, _read_json(folder / INDEX) | names)
        if not has_card:
            text = readme or card.model_card(
                name,
                components=self.components,
                placeholder=self.config.placeholder,
                base_model=base_model,
                license=license,
            )
            (folder / CARD).write_text(text, encoding="utf-8")
