"""What training takes, as a frozen dataclass: each setting's documentation, and the source of the command line.

Only the standard library is imported here, so that `profusion train --help` needs no torch.
"""

import dataclasses

from ..common.settings import check_settings, setting
from ..method.checks import check_characters
from ..method.quoting import quote


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train a PromptNet on pictures: one field per setting, its help sentence in the metadata.

    The defaults are the authors' recipe on FFHQ (batch 8, learning rate 2e-5, 80,000 steps, EMA 0.9999).

    Raises:
        TypeError: A field has another type than annotated.
        ValueError: A field is out of its range, or two fields contradict each other.

    Example:
        >>> config = TrainingConfig(model="sd2-folder", data="portraits", output="runs/first", max_steps=1000)
        >>> config.batch_size, config.learning_rate
        (8, 2e-05)
    """

    # What to learn from, and what comes out
    model: str = setting(
        help='Folder or Hub id of the base pipeline, or "demo": vae, text_encoder, tokenizer, unet, scheduler, '
        "image_encoder and feature_extractor; a promptnet found there is trained on, else a new one starts from the "
        "unet.",
        resumable=True,
    )
    data: str = setting(
        help="Folder of pictures, searched at every depth; its metadata.jsonl, if there is one, lists the pictures to "
        "learn (file_name) and other pictures of the same person (ref_img: one name or a list).",
        resumable=True,
    )
    allow_outside_files: bool = setting(
        False,
        help="Learn pictures that metadata.jsonl names outside of data, or links that lead out of it; for data that "
        "you trust with all your files.",
        resumable=True,
    )
    streaming: bool = setting(
        False,
        help="Read data as it comes, with the datasets library: folder or Hub id of WebDataset shards (.tar) or of "
        "parquet files, one picture per sample; of several processes each reads all of it and decodes its share.",
    )
    shuffle_buffer: int = setting(
        1000,
        help="With streaming, samples that are kept in memory (as encoded files) and shuffled together; the order of "
        "the shards is drawn anew in each epoch.",
        minimum=1,
    )
    output: str = setting(
        help="Folder of the run: promptnet/ at the end, and checkpoints/, validation/, logs and log.jsonl on the way.",
        resumable=True,
    )
    image_encoder: str | None = setting(
        None,
        help="Folder or Hub id of a CLIP vision model with its preprocessor, for a base pipeline without "
        "image_encoder and feature_extractor (plain SD2).",
        resumable=True,
    )

    # The sentence that S* must complete
    prompt: str = setting(
        "a photo of S*", help="The text under which S* must bring the picture back, where it has no caption."
    )
    placeholder: str = setting(
        "S*", help="How prompt and captions write the pseudo word; it must occur in each exactly once."
    )
    captions: bool = setting(
        True,
        help='Learn a picture under its own caption where it has one, "a photo of S*, smiling, at the beach": what the '
        "caption says S* need not. It is text in metadata.jsonl or parquet files, a .txt or the text of a .json in "
        "WebDataset.",
    )
    caption_dropout: float = setting(
        0.0,
        help="Probability with which each comma-separated part of a caption is left out, drawn anew for every sample; "
        "the part with the placeholder stays.",
        minimum=0.0,
        maximum=1.0,
    )
    pad_prompt: bool = setting(
        True,
        help="Pad the prompt to the tokenizer's length, as sampling does (the authors trained unpadded: the UNet then "
        "meets the padding rows for the first time when sampling).",
    )

    # A new PromptNet
    region_kernel_size: int | None = setting(
        None,
        help="Side of the square of PromptNet's region map (1/8 of the latent grid) that makes one pseudo word; None "
        "takes the whole map at the unet's own size: one pseudo word per picture.",
        minimum=1,
    )
    region_proj_channel: int = setting(
        128, help="Channels of each tap of a new PromptNet before they are joined.", minimum=1
    )

    # Pictures
    resolution: int | None = setting(
        None,
        help="Side in pixels to which pictures are scaled and centre-cropped; None takes the unet's own.",
        minimum=8,
        maximum=4096,
    )
    reference: str = setting(
        "same",
        help="The reference photo of a picture: the same picture, or another one of the person (ref_img in "
        "metadata.jsonl, drawn anew each time).",
        choices=("same", "other"),
    )
    horizontal_flip: bool = setting(
        False, help="Mirror a picture and its reference with probability one half; faces are better left as they are."
    )
    cache_latents: bool = setting(
        True,
        help="Encode every picture once and keep VAE posterior and vision states in memory in half precision (the log "
        "says how much); without, pictures are read and encoded anew each time.",
    )
    num_workers: int = setting(
        0,
        help="Processes that read pictures ahead; if any, one more puts batches together (with cache_latents) "
        "and one draws noise. 0 does all this in between.",
        minimum=0,
        maximum=1000,
        resumable=True,
    )

    # Optimisation
    max_steps: int = setting(80_000, help="Optimiser steps in all.", minimum=1, resumable=True)
    batch_size: int = setting(8, help="Pictures per forward pass and process.", minimum=1, resumable=True)
    gradient_accumulation_steps: int | None = setting(
        None,
        help="Forward passes per optimiser step: the effective batch is this many times larger. If not given, what "
        "accelerate launch says, or 1.",
        minimum=1,
        resumable=True,
    )
    learning_rate: float = setting(2e-5, help="Peak learning rate of AdamW.", minimum=0.0)
    lr_scheduler: str = setting(
        "constant",
        help="How the learning rate goes over max_steps, by its name in diffusers.",
        choices=("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    warmup_steps: int = setting(0, help="Steps over which the learning rate rises linearly from 0.", minimum=0)
    adam_beta1: float = setting(0.9, help="Decay of AdamW's mean of gradients.", minimum=0.0, maximum=0.999999)
    adam_beta2: float = setting(0.999, help="Decay of AdamW's mean of squares.", minimum=0.0, maximum=0.999999)
    adam_epsilon: float = setting(1e-8, help="Added to AdamW's denominator.", minimum=0.0)
    weight_decay: float = setting(1e-2, help="AdamW's decoupled weight decay.", minimum=0.0)
    max_grad_norm: float = setting(
        1.0, help="The gradient is scaled down to this norm if it is longer; 0 leaves it alone.", minimum=0.0
    )
    ema_decay: float = setting(
        0.9999,
        help="Decay of the moving average of the weights, which is what is saved; 0 saves the last weights.",
        minimum=0.0,
        maximum=0.999999,
    )
    snr_gamma: float | None = setting(
        None, help="Min-SNR weighting of the loss at this gamma (5 is usual); None weighs all timesteps alike."
    )
    subject_l2: float = setting(
        0.0,
        help="Weight of the mean squared norm of S* in the loss: a regulariser to compare with, which the method does "
        "without.",
        minimum=0.0,
    )

    # Machine
    mixed_precision: str | None = setting(
        None,
        help="Precision of the forward passes; weights that learn stay float32. If not given, what accelerate launch "
        "says, or no.",
        choices=("no", "fp16", "bf16"),
    )
    gradient_checkpointing: bool = setting(
        False, help="Recompute activations in the backward pass: less memory, about a third slower.", resumable=True
    )
    seed: int = setting(
        0, help="Decides order, noise, timesteps and a new PromptNet's first weights.", minimum=0, maximum=2**63 - 1
    )

    # Keeping and showing
    resume: bool = setting(
        False, help="Go on from the newest checkpoint in output; start from nothing if there is none.", resumable=True
    )
    checkpoint_every: int = setting(1000, help="Steps between checkpoints; 0 writes none.", minimum=0, resumable=True)
    keep_checkpoints: int = setting(
        2, help="Newest checkpoints that are kept; older ones are deleted.", minimum=1, resumable=True
    )
    log_every: int = setting(
        50,
        help="Steps between lines of log.jsonl (loss, learning rate, pictures per second).",
        minimum=1,
        resumable=True,
    )
    report_to: tuple[str, ...] = setting(
        (),
        help="Trackers of accelerate that are told what log.jsonl is and shown the validation pictures: tensorboard, "
        "wandb, trackio, mlflow, comet_ml, aim, clearml, dvclive or swanlab; all, or none. If not given, tensorboard "
        "where it is installed.",
        resumable=True,
    )
    push_to_hub: bool = setting(
        False,
        help="Publish the base pipeline with the trained promptnet, in float32, as hub_model_id in the end; needs a "
        "token of the Hub (hf auth login, or HF_TOKEN in the environment).",
        resumable=True,
    )
    hub_model_id: str | None = setting(
        None, help="Repository on the Hub to publish, such as me/portraits; made before the training.", resumable=True
    )
    validation_every: int = setting(
        0, help="Steps between grids of validation pictures; 0 draws none.", minimum=0, resumable=True
    )
    validation_images: tuple[str, ...] = setting(
        (), help="Reference photos of the validation grid, one row each.", resumable=True
    )
    validation_prompts: tuple[str, ...] = setting(
        (), help="Prompts with the placeholder, one column of the validation grid each.", resumable=True
    )
    validation_class_noun: str = setting(
        "person", help="What S* is, in a word, for the class prompt of the validation pictures.", resumable=True
    )
    validation_inference_steps: int = setting(
        50, help="Denoising steps of a validation picture.", minimum=1, resumable=True
    )

    def __post_init__(self):
        check_settings(self)
        for name in ("model", "data", "output", "placeholder"):
            if not getattr(self, name).strip():
                raise ValueError(f"`{name}` must not be empty, got {quote(getattr(self, name))}.")
        for name, prompts in (("prompt", (self.prompt,)), ("validation_prompts", self.validation_prompts)):
            for prompt in prompts:
                if prompt.count(self.placeholder) != 1:
                    raise ValueError(
                        f"`{name}` must hold the placeholder {quote(self.placeholder)} exactly once, "
                        f"got {quote(prompt)}."
                    )
        for name in ("prompt", "placeholder", "validation_class_noun"):
            check_characters(name, getattr(self, name))
        check_characters("validation_prompts", "".join(self.validation_prompts))
        if self.learning_rate == 0:
            raise ValueError("`learning_rate` must be greater than 0, got 0.")
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise ValueError(f"`snr_gamma` must be greater than 0, or None for no weighting, got {self.snr_gamma}.")
        if self.lr_scheduler == "constant" and self.warmup_steps:
            raise ValueError(
                f"`warmup_steps` must be 0 with lr_scheduler='constant', got {self.warmup_steps}: "
                "use lr_scheduler='constant_with_warmup'."
            )
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"`warmup_steps` must be less than max_steps={self.max_steps}, got {self.warmup_steps}.")
        if self.horizontal_flip and self.cache_latents:
            raise ValueError(
                "`horizontal_flip` must be False with cache_latents=True, which encodes each picture once."
            )
        if self.push_to_hub != bool(self.hub_model_id):
            raise ValueError(
                "`push_to_hub` and `hub_model_id` must be given together, got "
                f"push_to_hub={self.push_to_hub} and hub_model_id={quote(self.hub_model_id)}."
            )
        if self.streaming and self.cache_latents:
            raise ValueError("`cache_latents` must be False with streaming=True, which reads each picture as it comes.")
        if self.streaming and self.reference != "same":
            raise ValueError(
                f"`reference` must be 'same' with streaming=True, whose samples are single pictures, got "
                f"{quote(self.reference)}."
            )
        if self.validation_every and not (self.validation_images and self.validation_prompts):
            raise ValueError(
                f"`validation_every` is {self.validation_every}, so `validation_images` and `validation_prompts` must "
                "name at least one photo and one prompt."
            )
