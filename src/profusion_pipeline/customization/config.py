"""What customising takes, as a frozen dataclass: each setting's documentation, and the source of the command line.

Only the standard library is imported here, so that `profusion customize --help` needs no torch.
"""

import dataclasses

from ..common.settings import check_settings, setting
from ..method.checks import check_characters
from ..method.quoting import quote

AUTO = "auto"  # the caption that a captioning model writes, the cut that a face finder makes


@dataclasses.dataclass(frozen=True, kw_only=True)
class CustomizeConfig:
    """How to customise a pipeline to one person: one field per setting, its help sentence in the metadata.

    Raises:
        TypeError: A field has another type than annotated.
        ValueError: A field is out of its range, or two fields contradict each other.

    Example:
        >>> config = CustomizeConfig(class_noun="woman", steps=50)
        >>> config.mode, config.rank
        ('lora', 4)
    """

    # What is learnt
    class_noun: str = setting("person", help="What the subject is, in plain words; calls with the concept say it.")
    mode: str = setting(
        "lora",
        help="What learns: lora (adapters on the attention of UNet and PromptNet, a file of a few MB) or full (all of "
        "PromptNet and the UNet's to_q, to_k and to_v, as the authors do).",
        choices=("lora", "full"),
    )
    rank: int = setting(4, help="Rank of the adapters; not read in full mode.", minimum=1, maximum=4096)
    prompt: str = setting("a photo of S*", help="The text under which S* must bring the subject back.")
    caption: str | tuple[str, ...] | None = setting(
        None,
        help='What the photo shows besides the subject, "wearing a green hoodie, smiling", or one for each of several '
        "photos: it is learnt with the prompt, so that S* need not carry it. "
        '"auto" asks the captioner, whose mistakes are learnt as the person.',
    )
    captioner: str = setting(
        "Salesforce/blip-image-captioning-base",
        help='With caption "auto", folder or Hub id of an image-to-text model that transformers knows.',
    )
    caption_leaves_out: tuple[str, ...] = setting(
        (),
        help='With caption "auto", words about the subject: phrases of the caption with one of them are dropped. If '
        "none are given, those about people (woman, hair, beard, eyes, young, ...).",
    )
    pad_prompt: bool = setting(
        True,
        help="Pad the prompt to the tokenizer's length, as sampling does (the authors trained unpadded).",
    )

    # Optimisation
    steps: int = setting(100, help="Optimiser steps.", minimum=1, maximum=10**6)
    batch_size: int = setting(4, help="Pairs of reference and target per step.", minimum=1, maximum=10_000)
    learning_rate: float | None = setting(
        None, help="Learning rate of AdamW; 3e-4 in lora mode and 2e-5 (the authors') in full mode if not given."
    )
    weight_decay: float = setting(1e-2, help="AdamW's decoupled weight decay.", minimum=0.0)
    max_grad_norm: float = setting(
        1.0, help="The gradient is scaled down to this norm if it is longer; 0 leaves it alone.", minimum=0.0
    )
    optimizer: str = setting(
        "adamw",
        help="The optimiser: adamw, or adamw8bit, which takes a quarter of its memory for tensors of 4096 numbers or "
        "more (needs bitsandbytes).",
        choices=("adamw", "adamw8bit"),
    )
    seed: int = setting(
        0, help="Decides augmentations, pairs, noise, timesteps and first weights.", minimum=0, maximum=2**63 - 1
    )

    # The photo
    crop_face: str | None = setting(
        None,
        help="With auto, each photo and its mask are cut to the face, as the pictures of FFHQ were; needs OpenCV 4. "
        "The path of an ONNX file of YuNet does so with that detector. If not given, to a square around the middle.",
    )

    # Augmentation
    pool_size: int = setting(
        32,
        help="Pictures made of the photo, encoded once, from which references and targets are drawn; the first is the "
        "photo itself, so 1 means no augmentation.",
        minimum=1,
        maximum=10_000,
    )
    rotation: float = setting(10.0, help="Greatest rotation, in degrees.", minimum=0.0, maximum=180.0)
    translation: float = setting(
        0.08, help="Greatest shift, as a share of the picture's side.", minimum=0.0, maximum=0.5
    )
    zoom: float = setting(
        0.15, help="Greatest enlargement or shrinking: 0.15 means 1 / 1.15 to 1.15 times.", minimum=0.0, maximum=1.0
    )
    flip: bool = setting(False, help="Mirror every second picture; faces are not symmetric, so rather not.")
    background: str = setting(
        "mixed",
        help="What takes the place of the background outside the subject's mask: nothing (keep), noise, a blurred "
        "copy, a solid colour, or one of the three by chance (mixed).",
        choices=("keep", "noise", "blur", "colour", "mixed"),
    )
    ellipse: float = setting(
        0.8,
        help="Width of the centred ellipse that counts as the subject where no mask is given, as a share of the "
        "picture's width; its height is a quarter more.",
        minimum=0.1,
        maximum=2.0,
    )

    # What is kept
    keep_thumbnail: bool = setting(
        False,
        help="Keep the photo, 128 pixels large, in the concept's file, for whoever looks at it in a notebook or the "
        "app. Ask the person on it first: the file shows them to everybody who has it.",
    )

    # Machine
    mixed_precision: str | None = setting(
        None,
        help="Precision of the forward passes, the pipeline's own if not given; weights that learn are float32.",
        choices=("fp16", "bf16"),
    )
    gradient_checkpointing: bool = setting(
        False, help="Recompute activations in the backward pass: less memory, about a third slower."
    )
    cuda_graph: bool = setting(
        True,
        help="On a GPU, record the kernels of the fourth step and replay them: several times faster. Not done with "
        "gradient_checkpointing or off-loading; False for models that can't be recorded.",
    )

    def __post_init__(self):
        check_settings(self)
        texts = [
            ("class_noun", self.class_noun),
            ("prompt", self.prompt),
            *(("caption", text) for text in self.captions),
        ]
        for name, text in texts:
            if not text.strip():
                raise ValueError(f"`{name}` must not be empty, got {quote(text)}.")
            check_characters(name, text)
        if AUTO in self.captions and self.caption != AUTO:
            raise ValueError(f"`caption` must be {AUTO!r} alone, for all photos, or texts, got {quote(self.caption)}.")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` must be greater than 0, got {self.learning_rate}.")

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions; none if there is none."""
        return (self.caption,) if isinstance(self.caption, str) else self.caption or ()

    @property
    def learning_prompts(self) -> list[str]:
        """The prompt with each caption after a comma; the prompt alone if there is none."""
        return [f"{self.prompt}, {caption.strip()}" for caption in self.captions] or [self.prompt]

    @property
    def learning_prompt(self) -> str:
        """Of the first photo, for those who learn from one."""
        return self.learning_prompts[0]

    @property
    def rate(self) -> float:
        """The learning rate given, or the one that suits the mode."""
        return {"lora": 3e-4, "full": 2e-5}[self.mode] if self.learning_rate is None else self.learning_rate
