"""Pictures and texts -> features. An encoder's name fixes its weights and its preprocessing.

Preprocessing is done here, with Pillow and in one way, because image processors resize with Pillow or with torchvision,
whichever is installed, and scores move with that.

    name                            weights                                          licence      needs
    clip-vit-b-32, -b-16,           OpenAI's CLIP, by transformers                   MIT          -
      -l-14, -l-14-336
    clip-rn50, -rn101, -rn50x4,     OpenAI's CLIP, by open_clip                      MIT          eval-clip
      -rn50x16, -rn50x64
    dino-vits16, dino-vitb16        DINO (Caron et al. 2021), by transformers        Apache-2.0   -
    demo-clip                       the bundled demo model's own, no download        Apache-2.0   -
    sface                           SFace behind the detector YuNet, by OpenCV       Apache-2.0,  eval-face
                                                                                     MIT
"""

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel, CLIPTextModel, CLIPVisionModel, ViTModel

from ..common.open_pipeline import DEMO_FOLDER
from ..method.framing import crop_strip
from ..method.quoting import quote

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64

# Hub repository, file, SHA-256.
YUNET = (
    "opencv/face_detection_yunet",
    "face_detection_yunet_2023mar.onnx",
    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)
SFACE = (
    "opencv/face_recognition_sface",
    "face_recognition_sface_2021dec.onnx",
    "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
)


@dataclass(frozen=True)
class Encoder:
    """What turns pictures, and with CLIP also texts, into features whose cosine says how alike they are.

    Args:
        images: RGB pictures of any size -> features [N, D]; a row of nan where there is nothing to encode.
        texts: Texts -> features [N, D] in the space of `images`; None if the encoder knows no texts.

    Example:
        >>> mean_colour = Encoder(lambda images: np.stack([np.asarray(image).mean((0, 1)) for image in images]))
        >>> mean_colour.images([Image.new("RGB", (4, 4), "red")]).tolist()
        [[255.0, 0.0, 0.0]]
    """

    images: Callable[[Sequence[Image.Image]], np.ndarray]
    texts: Callable[[Sequence[str]], np.ndarray] | None = None


def load_encoder(name: str, device: str | torch.device = "cpu") -> Encoder:
    """The encoder of this name, its weights from the Hub or its cache.

    Args:
        name: One of `ENCODERS`.
        device: Where torch's models run.

    Returns:
        The encoder.

    Raises:
        ValueError: There is no such encoder, or a downloaded file is not the one that the name stands for.
        ImportError: It needs an extra that is not installed; the sentence names it.
        OSError: Its weights are neither in the cache nor to be had; the sentence says what needs none.

    Example:
        >>> load_encoder("clip-vit-b-32").texts(["a person at the beach"]).shape  # doctest: +SKIP
        (1, 512)
    """
    if name not in ENCODERS:
        raise ValueError(f"There is no encoder {quote(name)}; there are {', '.join(ENCODERS)}.")
    try:
        return ENCODERS[name](device)
    except OSError as error:
        raise OSError(
            f"The weights of the encoder {quote(name)} must be in the Hub's cache, or the Hub must answer; "
            "'demo-clip', for the demo model, needs no download."
        ) from error


def to_pixels(
    images: Sequence[Image.Image],
    side: int,
    *,
    resize: int | None = None,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> torch.Tensor:
    """Resize the shorter side (bicubic, Pillow's), crop the centre, and normalise.

    Args:
        images: RGB pictures of any size.
        side: Height and width of the crop, in pixels.
        resize: Length that the shorter side gets; `side` if None.
        mean: Of the three channels, subtracted.
        std: Of the three channels, divided by.

    Returns:
        Pixels. [N, 3, side, side]

    Example:
        >>> to_pixels([Image.new("RGB", (30, 60), "white")], 8, mean=(0, 0, 0), std=(1, 1, 1)).mean()
        tensor(1.)
    """
    crops = []
    for image in images:
        image = crop_strip(image, resize or side, resize or side)
        scale = (resize or side) / min(image.size)
        width, height = (max(side, int(length * scale)) for length in image.size)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        crops.append(np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32) / 255)
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)  # [N, 3, side, side]
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def transformers_clip(source: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """A CLIP in transformers' layout.

    Args:
        source: Folder or Hub id.
        device: Where it runs.

    Returns:
        An encoder of pictures and texts.

    Example:
        >>> transformers_clip("openai/clip-vit-base-patch32").texts(["a hat"]).shape  # doctest: +SKIP
        (1, 512)
    """
    model = CLIPModel.from_pretrained(source).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(source)
    side = model.config.vision_config.image_size

    def images(pictures: Sequence[Image.Image]) -> torch.Tensor:
        states = model.vision_model(pixel_values=to_pixels(pictures, side).to(device)).pooler_output
        return model.visual_projection(states)

    def texts(words: Sequence[str]) -> torch.Tensor:
        length = model.config.text_config.max_position_embeddings
        tokens = tokenizer(list(words), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        states = model.text_model(**tokens.to(device)).pooler_output
        return model.text_projection(states)

    return Encoder(_in_batches(images), _in_batches(texts))


def demo_clip(device: str | torch.device = "cpu") -> Encoder:
    """The CLIP that the bundled demo model was trained with: it knows avatars and the demo's few words.

    Args:
        device: Where it runs.

    Returns:
        An encoder of pictures and texts, in float32.

    Example:
        >>> demo_clip().texts(["a portrait of a person with a hat"]).shape
        (1, 128)
    """
    vision = CLIPVisionModel.from_pretrained(DEMO_FOLDER / "image_encoder", dtype=torch.float32).eval().to(device)
    text = CLIPTextModel.from_pretrained(DEMO_FOLDER / "text_encoder", dtype=torch.float32).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER / "tokenizer")
    projections = load_file(DEMO_FOLDER.with_name("clip_projections.safetensors"))
    projections = {name: weight.float().to(device) for name, weight in projections.items()}

    def images(pictures: Sequence[Image.Image]) -> torch.Tensor:
        pixels = to_pixels(pictures, vision.config.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
        return vision(pixel_values=pixels.to(device)).pooler_output @ projections["visual_projection"].T

    def texts(words: Sequence[str]) -> torch.Tensor:
        ids = tokenizer(list(words), padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        ends = (ids == tokenizer.eos_token_id).int().argmax(1)
        states = text(ids).last_hidden_state[torch.arange(len(ids)), ends]
        return states @ projections["text_projection"].T

    return Encoder(_in_batches(images), _in_batches(texts))


def open_clip(name: str, device: str | torch.device = "cpu") -> Encoder:
    """One of OpenAI's CLIPs, by open_clip.

    Args:
        name: As open_clip calls it, e.g. "RN50x4".
        device: Where it runs.

    Returns:
        An encoder of pictures and texts.

    Raises:
        ImportError: open_clip is not installed.

    Example:
        >>> open_clip("RN50").texts(["a hat"]).shape  # doctest: +SKIP
        (1, 1024)
    """
    library = _extra("open_clip", "open_clip_torch", name)
    model = library.create_model(name, pretrained="openai", device=device).eval()
    tokenize = library.get_tokenizer(name)
    side = model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    return Encoder(
        _in_batches(lambda pictures: model.encode_image(to_pixels(pictures, side).to(device))),
        _in_batches(lambda words: model.encode_text(tokenize(list(words)).to(device))),
    )


def dino(source: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """A ViT trained by DINO: the state of its class token, as DreamBooth's metric takes it.

    Args:
        source: Folder or Hub id, in transformers' layout.
        device: Where it runs.

    Returns:
        An encoder of pictures.

    Example:
        >>> dino("facebook/dino-vits16").images([Image.new("RGB", (64, 64))]).shape  # doctest: +SKIP
        (1, 384)
    """
    model = ViTModel.from_pretrained(source, add_pooling_layer=False).eval().to(device)
    side = model.config.image_size

    def images(pictures: Sequence[Image.Image]) -> torch.Tensor:
        pixels = to_pixels(pictures, side, resize=side * 256 // 224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        return model(pixel_values=pixels.to(device)).last_hidden_state[:, 0]

    return Encoder(_in_batches(images))


def sface(device: str | torch.device = "cpu") -> Encoder:
    """A face recogniser: the surest face that YuNet finds, aligned, through SFace; nan where it finds none.

    Args:
        device: Not used: OpenCV runs it on the CPU.

    Returns:
        An encoder of pictures.

    Raises:
        ImportError: OpenCV is not installed.
        ValueError: A downloaded file has another SHA-256.

    Example:
        >>> sface().images([Image.open("me.jpg")]).shape  # doctest: +SKIP
        (1, 128)
    """
    cv2 = _extra("cv2", "opencv-python-headless", "sface")
    detector = cv2.FaceDetectorYN.create(str(_verified(*YUNET)), "", (320, 320))
    recogniser = cv2.FaceRecognizerSF.create(str(_verified(*SFACE)), "")

    def embed(picture: Image.Image) -> np.ndarray:
        pixels = np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])  # OpenCV's order: blue first
        detector.setInputSize(picture.size)
        faces = detector.detect(pixels)[1]
        if faces is None:
            return np.full(128, np.nan)
        surest = max(faces, key=lambda face: face[-1])
        return recogniser.feature(recogniser.alignCrop(pixels, surest))[0].astype(np.float64)

    return Encoder(lambda pictures: np.stack([embed(picture) for picture in pictures]))


def _in_batches(encode: Callable[[Sequence], torch.Tensor]) -> Callable[[Sequence], np.ndarray]:
    @torch.no_grad()
    def encode_all(things: Sequence) -> np.ndarray:
        batches = [encode(things[first : first + BATCH]) for first in range(0, len(things), BATCH)]
        return torch.cat(batches).double().cpu().numpy()  # [N, D]

    return encode_all


def _extra(module: str, package: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The encoder {quote(name)} needs {module}, which is not installed: `pip install {package}`."
        ) from error


def _verified(repo: str, name: str, sha256: str) -> Path:
    path = Path(hf_hub_download(repo, name))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{name} of {repo} must have the SHA-256 {sha256}, got {found}.")
    return path


ENCODERS: dict[str, Callable[[str | torch.device], Encoder]] = {
    "clip-vit-b-32": partial(transformers_clip, "openai/clip-vit-base-patch32"),
    "clip-vit-b-16": partial(transformers_clip, "openai/clip-vit-base-patch16"),
    "clip-vit-l-14": partial(transformers_clip, "openai/clip-vit-large-patch14"),
    "clip-vit-l-14-336": partial(transformers_clip, "openai/clip-vit-large-patch14-336"),
    "clip-rn50": partial(open_clip, "RN50"),
    "clip-rn101": partial(open_clip, "RN101"),
    "clip-rn50x4": partial(open_clip, "RN50x4"),
    "clip-rn50x16": partial(open_clip, "RN50x16"),
    "clip-rn50x64": partial(open_clip, "RN50x64"),
    "dino-vits16": partial(dino, "facebook/dino-vits16"),
    "dino-vitb16": partial(dino, "facebook/dino-vitb16"),
    "demo-clip": demo_clip,
    "sface": sface,
}
