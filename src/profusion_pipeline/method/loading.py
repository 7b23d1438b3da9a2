"""How a ProFusionPipeline is read from a folder or Hub repository; `repository.py` says what is in one."""

import os
from collections.abc import Collection
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils.import_utils import compare_versions

from . import checks, modeling_promptnet, quoting, whole_files

WHERE = ("cache_dir", "local_files_only", "proxies", "revision", "token")  # what says where a file of the Hub is found


class LoadingMixin:
    """Reading a pipeline, with this code or, by `DiffusionPipeline`, with that of the repository.

    Example:
        >>> from profusion_pipeline import ProFusionPipeline
        >>> issubclass(ProFusionPipeline, LoadingMixin)
        True
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Load a pipeline from a folder or the Hub with this code: code in the repository is never run.

        Args:
            pretrained_model_name_or_path: Folder or Hub id; of a ProFusion pipeline, or of Stable Diffusion, with
                `promptnet=`, `image_encoder=` and `feature_extractor=` where S* is to be made of pictures.
            **kwargs: As of `DiffusionPipeline.from_pretrained`: `dtype` (for all models or a dictionary by component;
                float32 if not given, whatever the files are in), `variant`, `revision`, `device_map`, components that
                take the place of the repository's, and so on.

        Returns:
            The pipeline.

        Raises:
            OSError: There is no pipeline there, or not all of one.
            ValueError: The index is malformed, a component is missing, or the repository brings code of its own for
                another component.
        """
        name = checks.check_place("pretrained_model_name_or_path", pretrained_model_name_or_path)
        index = cls.load_config(name, **{key: kwargs[key] for key in WHERE if key in kwargs})
        optional = {*cls._optional_components, *kwargs}
        _check_components(index, name, components=sorted(cls._get_signature_keys(cls)[0]), optional=optional)
        given = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]  # the newer name, and that before 0.40
        keyword = "dtype" if compare_versions("diffusers", ">=", "0.40") else "torch_dtype"
        kwargs[keyword] = next((dtype for dtype in given if dtype is not None), torch.float32)
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        # Every other part refuses to load from half of its files. From the cache of huggingface_hub before 1.0, which
        # doesn't know what an interrupted download left out, a tokenizer would load with settings of its own.
        if "tokenizer" not in kwargs and not Path(pipe.tokenizer.name_or_path, "tokenizer_config.json").is_file():
            raise OSError(
                f"{whole_files.shown_path(pretrained_model_name_or_path)} is not whole, "
                "tokenizer/tokenizer_config.json is missing: an "
                "interrupted download goes on when it is loaded again with a connection to the Hub."
            )
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """A pipeline around another's models, which may have no PromptNet.

        Args:
            pipeline: Of the same base, for example `StableDiffusionPipeline`.
            **kwargs: As of `DiffusionPipeline.from_pipe`: components in place of its own, and settings.

        Returns:
            The pipeline; models are shared.

        Example:
            >>> from profusion_pipeline import load_demo_pipeline
            >>> pipe = load_demo_pipeline()
            >>> type(pipe).from_pipe(pipe).unet is pipe.unet
            True
        """
        # diffusers takes PromptNet for a part that must be there, because `__init__` has no default for it.
        return super().from_pipe(pipeline, **{"promptnet": getattr(pipeline, "promptnet", None)} | kwargs)

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs) -> tuple[dict, dict, dict]:
        """As `ConfigMixin.extract_init_dict`, but PromptNet is the class that this code imported.

        The index names a file in PromptNet's folder instead. With this package its code must not run. Without it,
        diffusers refuses that file wherever it passes no `trust_remote_code` on: for `device_map="balanced"`, and where
        the caller brings a PromptNet.

        Args:
            config_dict: The index.
            **kwargs: As there.

        Returns:
            As there: what the pipeline is made of, what is not known, what is hidden.
        """
        if config_dict.get("promptnet", [None, None])[1] == "PromptNet":
            config_dict = config_dict | {"promptnet": [modeling_promptnet.PromptNet.__module__, "PromptNet"]}
        return super().extract_init_dict(config_dict, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs) -> dict:
        # Both loading and downloading read the index here. A name with a module in front is what makes diffusers fetch
        # and run that module.
        try:
            index = super()._dict_from_json_file(json_file, **kwargs)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{quoting.quote(json_file)} must be JSON, got {quoting.brief(error)}.") from error
        _check_form(index, json_file, components=cls._get_signature_keys(cls)[0])
        if isinstance(index["_class_name"], list):
            index["_class_name"] = index["_class_name"][1]
        return index


def _check_form(index: object, file: str | os.PathLike, *, components: Collection[str]) -> None:
    """That diffusers can read an index, or the sentence that says where it can't."""
    if not isinstance(index, dict):
        raise ValueError(f"{quoting.quote(file)} must be a JSON object, got {quoting.quote(index)}.")
    name = index.get("_class_name")
    if not (isinstance(name, str) and name) and not _is_pair(name):
        raise ValueError(
            f"In {quoting.quote(file)}, `_class_name` must be the pipeline's class, alone or with its module in "
            f"front, got {quoting.quote(name)}."
        )
    parts = {key: value for key, value in index.items() if isinstance(value, list) or key in components}
    for key, value in parts.items():
        if key not in ("_class_name", "_ignore_files") and not _is_pair(value) and value != [None, None]:
            raise ValueError(
                f"In {quoting.quote(file)}, {quoting.quote(key)} must be a pair of library and class, got "
                f"{quoting.quote(value)}."
            )


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(word, str) and word for word in value)


def _check_components(index: dict, source: str, *, components: Collection[str], optional: Collection[str]) -> None:
    """That an index names the components that nobody else brings, and classes that diffusers and transformers have."""
    file = quoting.quote(Path(source, "model_index.json"))
    named = [name for name in components if index.get(name, [None])[0]]
    if missing := [f"`{name}`" for name in components if name not in named and name not in optional]:
        raise ValueError(
            f"`from_pretrained` expected the components {' and '.join(missing)} in {file} or as arguments, got neither."
        )
    for name in named:
        library, class_name = index[name]
        home = {"diffusers": diffusers, "transformers": transformers}.get(library)
        home = home or getattr(diffusers.pipelines, library, None)
        if home and class_name != "PromptNet" and not hasattr(home, class_name):
            raise ValueError(
                f"In {file}, `{name}` must be a class that is installed, got {quoting.quote(index[name])}."
            )
