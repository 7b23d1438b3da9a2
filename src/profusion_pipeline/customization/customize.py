"""Photos of one subject -> a Concept: S* brought nearer to it in some hundred steps of the plain PromptNet objective.

[`customize`] is the whole. [`customizing`] is its inside for whoever wants to watch, draw or stop early: it encodes a
pool of augmented pictures once, puts weights that learn into the pipeline, and takes them out again whatever happens.

Source: Zhou et al. 2023 (arXiv 2305.13579), section 3.2: no regulariser, the loss of the pre-training on augmentations
of one picture, reference and target drawn independently.
"""

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from ..method.base_hash import pipeline_hash
from ..method.concept_file import Concept
from ..method.faces import detector_name
from ..method.image_prompts import projections
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.shared_models import in_use
from ..method.subject_embedding import SubjectEmbedding
from ..method.subject_prompt import find_placeholder
from ..method.text_encoders import tokenize_prompts
from ..method.xl_conditions import whole_picture
from ..training.losses import promptnet_loss
from .augmentation import Painter
from .captioning import PERSON_WORDS, describe_photo
from .config import AUTO, CustomizeConfig
from .learning import Learning
from .learning_weights import LearningWeights, learning_weights
from .subject_pool import EncodedPool, Photo, augmented_pictures, cut_to_faces, encode_pictures, read_photos

logger = logging.get_logger(__name__)


def customize(
    pipe: ProFusionPipeline,
    photo: Photo | Sequence[Photo],
    config: CustomizeConfig | None = None,
    *,
    mask: Photo | Sequence[Photo] | None = None,
    paint: Painter | None = None,
    warn: Callable[[str], None] | None = None,
    **settings: Any,
) -> Concept:
    """Bring S* nearer to the subject of a photo; also the method `customize` of a pipeline.

    Args:
        pipe: A pipeline with PromptNet and image encoder. It is left as it was, bit for bit.
        photo: A PIL image, array, tensor or path, at least 16 pixels on each side; or a list of photos of one subject.
            Then S* of any of them learns to bring back any other, so that it carries what they share. The concept's own
            reference is the first.
        config: All settings; the defaults if None. `caption` is one for all photos or one for each.
        mask: Where the subject is, a picture of the photo's size with light on the subject; a list with one for each
            photo, where there are several. A centred ellipse if None.
        paint: What paints the background in place of `config.background`, for example [`inpainter`]'s.
        warn: With `crop_face`, is called with a sentence if a photo has no face, several, or a small one; the log if
            None.
        **settings: Fields of [`CustomizeConfig`], which go before those of `config`.

    Returns:
        The concept, in float16 on the CPU.

    Raises:
        ImportError: PEFT, bitsandbytes for the 8-bit optimiser, or OpenCV for `crop_face` isn't installed.
        TypeError: Photo, mask or a setting is of another type.
        ValueError: Photo or mask can't be read or don't fit, a setting is out of range, or the pipeline lacks a part.
        FloatingPointError: A loss or a learnt weight is not finite; the sentence names the step.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> pipe.set_progress_bar_config(disable=True)
        >>> settings = dict(prompt="a portrait of S*", caption="wearing a black hoodie", steps=2, pool_size=2)
        >>> concept = customize(pipe, demo_portraits()[0], **settings)
        >>> pipe.load_concept(concept)
    """
    config = dataclasses.replace(config or CustomizeConfig(), **settings)
    given = dict(mask=mask, paint=paint, warn=warn)
    with customizing(pipe, photo, config, **given) as run, pipe.progress_bar(total=config.steps) as bar:
        for record in run.learn():
            bar.set_postfix(loss=f"{record.loss:.4f}")
            bar.update()
        return run.concept()


@contextmanager
def customizing(
    pipe: ProFusionPipeline,
    photo: Photo | Sequence[Photo],
    config: CustomizeConfig,
    *,
    mask: Photo | Sequence[Photo] | None = None,
    paint: Painter | None = None,
    warn: Callable[[str], None] | None = None,
) -> Iterator["Customization"]:
    """A customising under way; when the block ends, by an error or Ctrl-C too, the pipeline is the one of before.

    Args:
        pipe: As of [`customize`].
        photo: As of [`customize`].
        config: All settings.
        mask: As of [`customize`].
        paint: As of [`customize`].
        warn: As of [`customize`].

    Yields:
        A [`Customization`].

    Raises:
        TypeError: As of [`customize`].
        ValueError: As of [`customize`].
        RuntimeError: Another thread is drawing with these models.

    Example:
        >>> from profusion_pipeline import CustomizeConfig, demo_portraits, load_demo_pipeline
        >>> pipe, losses = load_demo_pipeline(), []
        >>> config = CustomizeConfig(prompt="a portrait of S*", steps=50, pool_size=2)
        >>> with customizing(pipe, demo_portraits()[0], config) as run:
        ...     for record in run.learn():
        ...         losses.append(record.loss)
        ...         if record.step == 2:
        ...             break
        ...     concept = run.concept()
        >>> concept.steps, len(losses)
        (2, 2)
    """
    _check_pipeline(pipe)
    for prompt in config.learning_prompts:
        find_placeholder(prompt, pipe.config.placeholder)
    photos, masks = read_photos(photo, mask)
    if config.crop_face is not None:
        photos, masks = cut_to_faces(photos, masks, warn, config.crop_face)
    if len(config.learning_prompts) not in (1, len(photos)):
        raise ValueError(
            f"`caption` must be one for all photos or one for each of {len(photos)}, got {len(config.captions)}."
        )
    if config.caption == AUTO:
        config = _captioned(config, photos, pipe._execution_device)
    if any(masks) and config.background == "keep" and paint is None:
        raise ValueError("`mask` is given, but `background` is 'keep', which paints nothing outside of it.")
    models, advice = (pipe.unet, pipe.promptnet, *pipe._text_encoders), "customise while no other thread draws with it"
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))  # a server's handler may run under it, and nothing learns there
        undo.enter_context(in_use(models, to_change=True, advice=advice))
        fingerprint = pipeline_hash(pipe)
        subject = pipe.encode_subject(photos[0])
        height, width = (side * pipe.vae_scale_factor for side in subject.latents.shape[-2:])
        pictures = [
            picture
            for photo, mask in zip(photos, masks, strict=True)
            for picture in augmented_pictures(photo, config, side=min(height, width), mask=mask, paint=paint)
        ]
        pool = encode_pictures(pipe, pictures, height, width)
        undo.callback(pipe.maybe_free_model_hooks)
        undo.enter_context(_off_device(pipe.vae, pipe.image_encoder))
        undo.enter_context(_gradient_checkpointing(config.gradient_checkpointing, pipe.unet, pipe.promptnet))
        learning = undo.enter_context(learning_weights(pipe, config))
        thumbnail = small_jpeg(photos[0]) if config.keep_thumbnail else None
        yield Customization(pipe, config, pool, learning, subject, fingerprint, thumbnail)


class Customization(Learning):
    """Weights that learn, and what they learn from; made by [`customizing`].

    Args:
        pipe: With the learning weights in it.
        config: All settings.
        pool: From which references and targets are drawn.
        learning: What learns, as from [`learning_weights`].
        subject: Of the photo itself, for the concept.
        fingerprint: Of the base's weights, for the concept.
        thumbnail: Of the photo, for the concept, if it is to be kept.

    Example:
        >>> with customizing(pipe, photo, config) as run:  # doctest: +SKIP
        ...     for record in run.learn():
        ...         print(record.step, record.loss)
    """

    def __init__(
        self,
        pipe: ProFusionPipeline,
        config: CustomizeConfig,
        pool: EncodedPool,
        learning: LearningWeights,
        subject: SubjectEmbedding,
        fingerprint: str,
        thumbnail: bytes | None = None,
    ):
        super().__init__(pipe, config, pool, learning.weights.values())
        self.learning, self.subject = learning, subject
        self.fingerprint, self.thumbnail = fingerprint, thumbnail
        cells = subject.latents.shape[-2:]
        if len(pipe._text_encoders) > 1:  # Stable Diffusion XL
            sizes = whole_picture(*(side * pipe.vae_scale_factor for side in cells))
            self.constants = self.noise_schedule | {"sizes": sizes.to(self.device)}
        else:
            self.constants = self.noise_schedule
        prompts = tokenize_prompts(
            pipe._tokenizers,
            config.learning_prompts,
            placeholder=pipe.config.placeholder,
            num_subject_tokens=pipe.promptnet.num_subject_tokens(*cells),
            pad=config.pad_prompt,
        )
        # [captions, T], or [captions, 2, T] for two text encoders, and [captions]
        self.input_ids, self.positions = (tensor.to(self.device) for tensor in prompts)

    def draw_pairs(self, numbers: Sequence[int], pool: EncodedPool | None = None) -> dict[str, torch.Tensor]:
        """Each target is learnt under the caption of its photo.

        Args:
            numbers: As of [`Learning`].
            pool: As of [`Learning`].

        Returns:
            Arguments of `promptnet_loss`, on the pipeline's device.
        """
        target, _ = self.choose(numbers, len(self.pool.mean)).to(self.device)  # [B]
        caption = target // self.config.pool_size % len(self.positions)  # of one caption for all photos the only one
        texts = dict(input_ids=self.input_ids[caption], positions=self.positions[caption])  # [B, (2,) T], [B]
        return super().draw_pairs(numbers, pool) | texts

    def objective(self, **pairs: torch.Tensor) -> torch.Tensor:
        """The loss of PromptNet's own training.

        Args:
            **pairs: As from `draw_pairs`.

        Returns:
            The loss `[]`.
        """
        pipe = self.pipe
        return promptnet_loss(pipe.unet, pipe._text_encoders, pipe.promptnet, **pairs, **self.constants).loss

    def concept(self) -> Concept:
        """What was learnt so far.

        Returns:
            The concept, in float16 on the CPU.

        Raises:
            FloatingPointError: A weight is not finite.
        """
        changes = {}
        for name, weight in self.learning.weights.items():
            change = weight.detach() - self.learning.before.get(name, 0)
            changes[name] = change.to("cpu", torch.float16)
            if not torch.isfinite(changes[name]).all():
                raise FloatingPointError(
                    f"Not all of {name} are finite in float16 after step {self.step} of {self.config.steps}, so "
                    "nothing was made: try a lower `learning_rate`."
                )
        told = {
            "learning_rate": self.config.rate,
            "crop_face": detector_name(self.config.crop_face),
            "captioner": _without_folder(self.config.captioner),
        }
        return Concept(
            **vars(self.subject.to("cpu", torch.float16)),
            changes=changes,
            class_noun=self.config.class_noun,
            base_model=_without_folder(str(self.pipe.name_or_path or "a pipeline without name")),
            base_hash=self.fingerprint,
            settings=dataclasses.asdict(self.config) | told,
            steps=self.step,
            loss=float(np.mean(self.losses[-10:])),
            thumbnail=self.thumbnail,
        )


def _without_folder(name: str) -> str:
    """A Hub id as it is; of a folder its own name alone, because where it lies is nobody's business."""
    return Path(name).name if Path(name).exists() else name


def _captioned(config: CustomizeConfig, photos: Sequence[Image.Image], device: torch.device) -> CustomizeConfig:
    """With what a captioning model says of each photo; it is told, for it wants to be read."""
    options = dict(leave_out=config.caption_leaves_out or PERSON_WORDS, device=device)
    captions = tuple(describe_photo(photo, config.captioner, **options) for photo in photos)
    for caption in captions:
        logger.warning("Customising with the caption %r; if it is wrong, give a better one.", caption)
    return dataclasses.replace(config, caption=captions[0] if len(captions) == 1 else captions)


def small_jpeg(photo: Image.Image, side: int = 128) -> bytes:
    """A photo as a thumbnail.

    Args:
        photo: RGB, of any size.
        side: Of the square that it fits into.

    Returns:
        The bytes of a JPEG file, without what the photo's own file says of place and time.

    Example:
        >>> small_jpeg(Image.new("RGB", (4000, 3000)))[:2].hex()
        'ffd8'
    """
    small, file = photo.copy(), io.BytesIO()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    small.info = {}
    small.save(file, "jpeg", quality=85)
    return file.getvalue()


@contextmanager
def _off_device(*models: torch.nn.Module) -> Iterator[None]:
    places = [(model, model.device) for model in models]
    try:
        for model in models:
            model.to("cpu")
        yield
    finally:
        for model, device in places:
            model.to(device)


@contextmanager
def _gradient_checkpointing(wanted: bool, *models: torch.nn.Module) -> Iterator[None]:
    switched = [model for model in models if wanted and not model.is_gradient_checkpointing]
    try:
        for model in switched:
            model.enable_gradient_checkpointing()
        yield
    finally:
        for model in switched:
            model.disable_gradient_checkpointing()


def _check_pipeline(pipe: Any) -> None:
    for name in ("promptnet", "image_encoder", "feature_extractor"):
        if getattr(pipe, name, None) is None:
            raise ValueError(f"Customising needs a pipeline with `{name}`, this {type(pipe).__name__} has none.")
    for model in (pipe.unet, pipe.promptnet, *pipe._text_encoders):
        if any(weight.is_inference() for weight in model.parameters()):
            raise ValueError(
                f"Customising needs weights that gradients can go through, {type(model).__name__} was loaded under "
                "`torch.inference_mode()`: load the pipeline outside of it."
            )
    for model in (pipe.unet, pipe.promptnet):
        if any(getattr(layer, "fused_projections", False) for layer in model.modules()):
            raise ValueError(
                f"Customising changes to_q, to_k and to_v, which {type(model).__name__} has fused: "
                "`unfuse_qkv_projections()` first."
            )
    if projections(pipe.unet):
        raise ValueError("Customising needs a UNet without IP-Adapters: `unload_ip_adapter()` first.")
    if not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise ValueError(
            f"Customising needs a scheduler with alphas_cumprod, {type(pipe.scheduler).__name__} has none: "
            "`pipe.scheduler = DDIMScheduler.from_config(...)` first."
        )


# The class doesn't import what makes it customisable: its file travels to repositories, and this one stays here.
ProFusionPipeline._customize = customize
