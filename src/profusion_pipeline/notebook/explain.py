"""A look inside S*: the words nearest to it at every timestep, how long it is, and where the picture attends to it."""

import html
import math
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..common.picture_grid import PictureGrid
from ..method.checks import check_count
from ..method.pipeline_profusion import ProFusionPipeline
from ..method.quoting import quote
from ..method.reference_images import Reference
from ..method.shared_models import in_use
from ..method.subject_prompt import find_placeholder, token_ids, tokenize_subject_prompts

WORDS = 5  # that are named at each timestep


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What was seen inside S* while one picture was drawn.

    Attributes:
        picture: The picture.
        timesteps: From noise to picture.
        norms: Length of S* at each timestep, mean of the pseudo words.
        word_norm: Length of an ordinary word of the text encoder's, the median, for comparison.
        nearest: At each timestep the words nearest to S*, each with its cosine, nearest first.
        maps: For S* and the other words of the prompt, the share of the picture's attention that goes to the word in
            each place, mean over timesteps, layers and heads. [h, w] each

    Example:
        >>> explanation.maps["S*"].shape  # doctest: +SKIP
        (8, 8)
    """

    picture: Image.Image
    timesteps: list[int]
    norms: list[float]
    word_norm: float
    nearest: list[list[tuple[str, float]]]
    maps: dict[str, np.ndarray]

    def __repr__(self) -> str:
        words = ", ".join(repr(word) for word, _ in self.nearest[-1])
        return f"Explanation({len(self.timesteps)} timesteps, last nearest words {words})"

    @property
    def overlays(self) -> PictureGrid:
        """The picture, and beside it each word's map laid over it: bright where the word is attended to most."""
        side = max(self.picture.size)
        shown = [self.picture, *(_overlay(self.picture, one) for one in self.maps.values())]
        return PictureGrid([shown], [""], ["the picture", *self.maps], cell=128 if side <= 128 else 192)

    def _repr_png_(self) -> bytes:
        return self.overlays._repr_png_()

    def _repr_html_(self) -> str:
        every = max(1, len(self.timesteps) // 8)
        rows = list(zip(self.timesteps, self.norms, self.nearest, strict=True))[::every]
        lines = [
            f"<tr><td>{t}</td><td>{norm:.2f}</td><td>"
            + html.escape(", ".join(f"{word} {cosine:.2f}" for word, cosine in words))
            + "</td></tr>"
            for t, norm, words in rows
        ]
        head = f"<tr><th>t</th><th>‖S*‖ (a word: {self.word_norm:.2f})</th><th>nearest words, with cosine</th></tr>"
        return f"{data_image(self._repr_png_())}<table>{head}{''.join(lines)}</table>"


def data_image(png: bytes) -> str:
    """A picture as HTML that needs no file.

    Args:
        png: The bytes of a PNG file.

    Returns:
        An `img` tag.

    Example:
        >>> data_image(b"")
        '<img src="data:image/png;base64,">'
    """
    return f'<img src="data:image/png;base64,{b64encode(png).decode()}">'


def explain(
    pipe: ProFusionPipeline, photo: Reference | list[Reference] | None, prompt: str, *, seed: int = 0, **call: Any
) -> Explanation:
    """Draw one picture of a photo's subject, and look at S* meanwhile.

    Without fusion stage, in which S* is made of other latents at the same timesteps.

    Args:
        pipe: The pipeline; it is left as it was. Nobody else may draw with its models meanwhile.
        photo: Of the subject; None where `subject` or a loaded concept says who S* is.
        prompt: With the placeholder.
        seed: Of the noise.
        **call: Other arguments of the pipeline's call, such as `num_inference_steps` and `guidance_scale`.

    Returns:
        What was seen.

    Raises:
        ValueError: The prompt holds no placeholder, `guidance_scale` is 0, or the call refuses something.
        RuntimeError: Another thread is drawing with these models.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> seen = explain(load_demo_pipeline(), demo_portraits()[0], "a portrait of S*", num_inference_steps=2)
        >>> len(seen.norms), list(seen.maps)
        (2, ['S*', 'portrait'])
    """
    seed = check_count("seed", seed, at_least=0, at_most=2**64 - 1)
    if not isinstance(prompt, str):
        raise TypeError(f"`prompt` must be one text, got {quote(prompt)}.")
    placeholder = pipe.config.placeholder
    prompt = prompt.replace(pipe.config.placeholder_alias or placeholder, placeholder)
    prefix, suffix = find_placeholder(prompt, placeholder)
    call = {"num_fusion_steps": 0, **call}
    if call["num_fusion_steps"] != 0 or call.get("guidance_scale") == 0:
        raise ValueError(
            "`explain` looks at S* in the refinement stage: `num_fusion_steps` must be 0 and `guidance_scale` above 0."
        )
    with _watched(pipe) as seen:
        who = {} if photo is None else {"image": photo}
        picture = pipe(prompt, **who, **call, generator=torch.Generator().manual_seed(seed)).images[0]
    num_subject_tokens = len(seen.embeds[0])
    _, positions = tokenize_subject_prompts(
        pipe.tokenizer, [prompt], placeholder=placeholder, num_subject_tokens=num_subject_tokens
    )
    position = int(positions)
    table = _word_table(pipe, position)
    attention = seen.attention / seen.layers  # [T, h, w]
    tokens = _tokens_of_words(pipe, prefix, suffix, position, num_subject_tokens)
    return Explanation(
        picture=picture,
        timesteps=seen.timesteps,
        norms=[float(vectors.norm(dim=-1).mean()) for vectors in seen.embeds],
        word_norm=float(table.norm(dim=-1).median()),
        nearest=[nearest_words(vectors.mean(0), table, pipe.tokenizer) for vectors in seen.embeds],
        maps={word: attention[at].sum(0).numpy() for word, at in tokens.items()},
    )


def nearest_words(vector: torch.Tensor, table: torch.Tensor, tokenizer: Any, count: int = WORDS) -> list:
    """The words whose vectors point most nearly where another does.

    Args:
        vector: [D]
        table: A row for each token of the tokenizer. [n, D]
        tokenizer: That names the rows.
        count: How many.

    Returns:
        Pairs of word and cosine, nearest first.

    Example:
        >>> from profusion_pipeline import load_demo_pipeline
        >>> tokenizer, table = load_demo_pipeline().tokenizer, torch.eye(3)
        >>> [round(cosine, 2) for _, cosine in nearest_words(torch.tensor([0.0, 3.0, 4.0]), table, tokenizer, 2)]
        [0.8, 0.6]
    """
    cosines = torch.cosine_similarity(table.float(), vector[None].float())  # [n]
    best = cosines.topk(min(count, len(cosines)))
    words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return [(word.replace("</w>", ""), cosine) for word, cosine in zip(words, best.values.tolist(), strict=True)]


def attention_to_tokens(query: torch.Tensor, key: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """softmax(scale · q kᵀ), mean over heads: how each place of a picture shares its attention among tokens.

    Args:
        query: Of the places. [N, heads x d]
        key: Of the tokens. [T, heads x d]
        heads: Of the attention.
        scale: Of the product.

    Returns:
        Rows that sum to one. [N, T]

    Example:
        >>> attention_to_tokens(torch.zeros(4, 8), torch.zeros(5, 8), 2, 1.0)[0].tolist()[0]
        0.20000000298023224
    """
    query, key = (one.float().unflatten(1, (heads, -1)).transpose(0, 1) for one in (query, key))  # [heads, ., d]
    return (scale * query @ key.transpose(1, 2)).softmax(-1).mean(0)


class _Seen:
    """What was seen of one call: S* of each prediction [L, D], its timestep, and the sum of attention [T, h, w]."""

    def __init__(self):
        self.embeds, self.timesteps = [], []
        self.attention, self.layers = 0, 0

    def see_words(self, promptnet: nn.Module, args: tuple, output: Any) -> None:
        self.embeds.append(output[0][0].detach().float().cpu())
        self.timesteps.append(int(args[1]))
        self.side = tuple(args[0].shape[-2:])  # of the latents
        self.references = len(args[0])

    def see_attention(self, query: torch.Tensor, key: torch.Tensor, layer: nn.Module) -> None:
        rows = range(len(query) - self.references, len(query))  # of S*, which are the last
        shares = sum(attention_to_tokens(query[row], key[row], layer.heads, layer.scale) for row in rows) / len(rows)
        factor = math.isqrt(math.prod(self.side) // len(shares))
        grid = shares.T.unflatten(1, (self.side[0] // factor, self.side[1] // factor))[None]  # [1, T, h', w']
        grid = nn.functional.interpolate(grid, self.side, mode="bilinear", align_corners=False)[0]
        self.attention, self.layers = self.attention + grid.detach().cpu(), self.layers + 1


@contextmanager
def _watched(pipe: ProFusionPipeline) -> Iterator[_Seen]:
    """Hooks on PromptNet and on the UNet's attention to text, for this block only."""
    seen = _Seen()
    models = (pipe.unet, pipe.promptnet)
    with ExitStack() as undo:
        undo.enter_context(in_use(models, to_change=True, advice="explain while no other thread draws with it"))
        undo.callback(pipe.promptnet.register_forward_hook(seen.see_words).remove)
        for name, layer in pipe.unet.named_modules():
            if name.endswith("attn2"):
                _watch_attention(layer, seen, undo)
        yield seen


def _watch_attention(layer: nn.Module, seen: _Seen, undo: ExitStack) -> None:
    queries = []

    def see_key(module: nn.Module, args: tuple, key: torch.Tensor) -> None:
        seen.see_attention(queries.pop(), key, layer)

    undo.callback(layer.to_q.register_forward_hook(lambda module, args, query: queries.append(query)).remove)
    undo.callback(layer.to_k.register_forward_hook(see_key).remove)


def _tokens_of_words(
    pipe: ProFusionPipeline, prefix: str, suffix: str, position: int, num_subject_tokens: int
) -> dict[str, list[int]]:
    """The tokens of S* and of each word of three letters or more, among those of a prompt."""
    after = position + num_subject_tokens
    tokens = {pipe.config.placeholder: list(range(position, after))}
    for first, text in ((1, prefix), (after, suffix)):
        word, at = "", []
        for number, token in enumerate(pipe.tokenizer.convert_ids_to_tokens(token_ids(pipe.tokenizer, text)), first):
            word, at = word + token, [*at, number]
            if token.endswith("</w>"):
                word = word.removesuffix("</w>")
                if len(word) > 2 and word.isalpha() and number < pipe.tokenizer.model_max_length:
                    tokens.setdefault(word, []).extend(at)
                word, at = "", []
    return tokens


def _word_table(pipe: ProFusionPipeline, position: int) -> torch.Tensor:
    """What would stand in S*'s place if it were a word: token and position embedding. [n, D]"""
    embeddings = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).embeddings
    table = embeddings.token_embedding.weight + embeddings.position_embedding.weight[position]
    return table.detach().float().cpu()


def _overlay(picture: Image.Image, attention: np.ndarray) -> Image.Image:
    """The picture, dark where there is least attention and as it is where there is most."""
    attention = (attention - attention.min()) / max(float(np.ptp(attention)), 1e-9)
    light = Image.fromarray(attention.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    share = 0.15 + 0.85 * np.asarray(light).clip(0, 1)[..., None]
    return Image.fromarray((np.asarray(picture.convert("RGB")) * share).round().astype(np.uint8))
