"""How a ProFusionPipeline is read from a folder or Hub repository; `profusion_repository.py` says what is in one."""

import os
from pathlib import Path

import torch
from diffusers.utils.import_utils import compare_versions

from .modeling_promptnet import PromptNet


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
            pretrained_model_name_or_path: Folder or Hub id; of a ProFusion pipeline, or of Stable Diffusion with
                `promptnet=` and the other parts that it lacks.
            **kwargs: As of `DiffusionPipeline.from_pretrained`: `dtype` (for all models or a dictionary by component;
                float32 if not given, whatever the files are in), `variant`, `revision`, `device_map`, components that
                take the place of the repository's, and so on.

        Returns:
            The pipeline.

        Raises:
            OSError: There is no pipeline there, or not all of one.
            ValueError: A component is missing, or the repository brings code of its own for another component.
        """
        given = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]  # the newer name, and that before 0.40
        keyword = "dtype" if compare_versions("diffusers", ">=", "0.40") else "torch_dtype"
        kwargs[keyword] = next((dtype for dtype in given if dtype is not None), torch.float32)
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        # Every other part refuses to load from half of its files. From the cache of huggingface_hub before 1.0, which
        # doesn't know what an interrupted download left out, a tokenizer would load with settings of its own.
        if "tokenizer" not in kwargs and not Path(pipe.tokenizer.name_or_path, "tokenizer_config.json").is_file():
            raise OSError(
                f"{str(pretrained_model_name_or_path)!r} is not whole, tokenizer/tokenizer_config.json is missing: an "
                "interrupted download goes on when it is loaded again with a connection to the Hub."
            )
        return pipe

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
            config_dict = config_dict | {"promptnet": [PromptNet.__module__, "PromptNet"]}
        return super().extract_init_dict(config_dict, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs) -> dict:
        # Both loading and downloading read the index here. A name with a module in front is what makes diffusers fetch
        # and run that module.
        index = super()._dict_from_json_file(json_file, **kwargs)
        if isinstance(index["_class_name"], list):
            index["_class_name"] = index["_class_name"][1]
        return index
