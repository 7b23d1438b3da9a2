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

import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, create_repo

from . import card, checks, image_prompts, older_saves, whole_files

CODE = "profusion_method.py"


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
    alone = {older_saves.ENTRY: entry, "promptnet/modeling_promptnet.py": files.pop("modeling_promptnet.py")}
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
        for name, entry in _read_json(folder / older_saves.INDEX).items()
        if not name.startswith("_") or name in ("_class_name", "_diffusers_version")
    }
    if index["feature_extractor"][0] is not None:
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    _write_json(folder / older_saves.INDEX, index)


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
            OSError: It could not be written; the pipeline is in memory as before.
            TypeError: An argument is unknown, or has no meaning without `push_to_hub`.
            ValueError: Concepts or LoRAs are loaded, `base_model` is no Hub id or `license` is not one word.
        """
        card.check_facts(base_model=base_model, license=license)
        checks.check_files(variant, max_shard_size)
        self._check_no_adapters()
        if kwargs and not push_to_hub:
            raise TypeError(f"`save_pretrained` takes {', '.join(kwargs)} with `push_to_hub=True` only.")
        target = Path(os.path.abspath(save_directory))
        if os.path.isfile(target):  # which says no of names that no file can have
            raise NotADirectoryError(f"`save_directory` must be a folder, {str(save_directory)!r} is a file.")
        repo_id, private = kwargs.pop("repo_id", target.name), kwargs.pop("private", None)
        if push_to_hub:
            repo_id = create_repo(repo_id, private=private, token=kwargs.get("token"), exist_ok=True).repo_id
        with whole_files.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            # In an old folder, which may be a disk of its own: files can be moved within one only.
            with whole_files.scratch_folder(target if target.exists() else target.parent) as scratch:
                new = scratch / "new"
                super().save_pretrained(new, safe_serialization, variant=variant, max_shard_size=max_shard_size)
                facts = dict(base_model=base_model, license=license, readme=readme)
                self.complete_repository(new, repo_id, has_card=(target / older_saves.CARD).exists(), **facts)
                if target.exists():
                    older_saves.move_into(new, target, variant)
                else:
                    os.replace(new, target)
        if push_to_hub:
            older_saves.upload_repository(target, repo_id, variant=variant, **kwargs)

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
        checks.check_files(variant, max_shard_size)
        self._check_no_adapters()
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with TemporaryDirectory() as scratch:
            folder = Path(scratch, repo_id.split("/")[-1])
            super().save_pretrained(folder, safe_serialization, variant=variant, max_shard_size=max_shard_size)
            self.complete_repository(folder, repo_id, base_model=base_model, license=license, readme=readme)
            return older_saves.upload_repository(
                folder,
                repo_id,
                variant=variant,
                commit_message=commit_message,
                token=token,
                create_pr=create_pr,
                subfolder=subfolder,
            )

    def _check_no_adapters(self) -> None:
        """Saved with adapters, a folder would not load elsewhere.

        A UNet's weights then have names that nothing loads; a text encoder is left out, and its adapter names it by the
        place where it was loaded from.
        """
        if image_prompts.projections(self.unet):
            raise ValueError(
                "A pipeline can't be saved while its UNet holds an IP-Adapter: `unload_ip_adapter()` first."
            )
        changed = [name for name, part in self.components.items() if getattr(part, "peft_config", None)]
        if changed:
            raise ValueError(
                f"A pipeline can't be saved while there are adapters in {' and '.join(changed)}: `unload_concept()`, "
                "and `unload_lora_weights()` if there are LoRAs, which stay in the weights after `fuse_lora()`. "
                "Concepts are saved by themselves."
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
        _write_json(folder / older_saves.INDEX, _read_json(folder / older_saves.INDEX) | names)
        if not has_card:
            text = readme or card.model_card(
                name,
                components=self.components,
                placeholder=self.config.placeholder,
                base_model=base_model,
                license=license,
            )
            (folder / older_saves.CARD).write_text(text, encoding="utf-8")
