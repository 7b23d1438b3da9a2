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
    from .customization.augmentation import inpainter as inpainter
    from .customization.config import CustomizeConfig as CustomizeConfig
    from .customization.customize import ProFusionPipeline as ProFusionPipeline
    from .customization.customize import customizing as customizing
    from .demo import demo_portraits as demo_portraits
    from .demo import load_demo_pipeline as load_demo_pipeline
    from .method.concept_file import Concept as Concept
    from .method.learnt_subject import LearntSubject as LearntSubject
    from .method.modeling_promptnet import PromptNet as PromptNet
    from .method.pipeline_profusion_xl import ProFusionXLPipeline as ProFusionXLPipeline
    from .method.subject_embedding import SubjectEmbedding as SubjectEmbedding
    from .publishing.convert import convert_checkpoint as convert_checkpoint
    from .publishing.export import export_pipeline as export_pipeline
    from .publishing.export import push_pipeline as push_pipeline
    from .training.config import TrainingConfig as TrainingConfig

_HOME = {
    "ProFusionPipeline": "customization.customize",  # the class of `method`, given its `customize`
    "ProFusionXLPipeline": "method.pipeline_profusion_xl",
    "SubjectEmbedding": "method.subject_embedding",
    "LearntSubject": "method.learnt_subject",
    "Concept": "method.concept_file",
    "PromptNet": "method.modeling_promptnet",
    "TrainingConfig": "training.config",
    "CustomizeConfig": "customization.config",
    "customizing": "customization.customize",
    "inpainter": "customization.augmentation",
    "convert_checkpoint": "publishing.convert",
    "demo_portraits": "demo",
    "load_demo_pipeline": "demo",
    "export_pipeline": "publishing.export",
    "push_pipeline": "publishing.export",
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
