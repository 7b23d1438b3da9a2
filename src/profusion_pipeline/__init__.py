"""ProFusion (Zhou et al. 2023, arXiv 2305.13579) as a diffusers pipeline.

One portrait and a prompt in, pictures of that person out. The names below are the public ones; each is imported when
it is first asked for, so `import profusion_pipeline` itself costs nothing.

Example:
    >>> from profusion_pipeline import load_demo_pipeline
    >>> pipe = load_demo_pipeline()
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .augmentation import inpainter as inpainter
    from .config import CustomizeConfig as CustomizeConfig
    from .config import TrainingConfig as TrainingConfig
    from .convert import convert_checkpoint as convert_checkpoint
    from .customize import customizing as customizing
    from .demo import demo_portraits as demo_portraits
    from .demo import load_demo_pipeline as load_demo_pipeline
    from .hub import export_pipeline as export_pipeline
    from .hub import push_pipeline as push_pipeline
    from .modeling_promptnet import PromptNet as PromptNet
    from .pipeline_profusion import ProFusionPipeline as ProFusionPipeline
    from .profusion_concept import Concept as Concept
    from .subject_embedding import SubjectEmbedding as SubjectEmbedding

_HOME = {
    "ProFusionPipeline": "pipeline_profusion",
    "SubjectEmbedding": "subject_embedding",
    "Concept": "profusion_concept",
    "PromptNet": "modeling_promptnet",
    "TrainingConfig": "config",
    "CustomizeConfig": "config",
    "customizing": "customize",
    "inpainter": "augmentation",
    "convert_checkpoint": "convert",
    "demo_portraits": "demo",
    "load_demo_pipeline": "demo",
    "export_pipeline": "hub",
    "push_pipeline": "hub",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # the next look-up does not come here again
    return value


def __dir__():
    return sorted({*globals(), *_HOME})
