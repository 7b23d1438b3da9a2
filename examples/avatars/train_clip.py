"""Train the tokenizer and a mini CLIP: its towers become the text encoder and the image encoder of the demo model.

Contrastive loss between pictures and captions, and a second loss: every attribute must be readable from the tokens of
the text, and from those of the picture, by attention pooling. Without it the text-to-image model does not bind colours
to things.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from attributes import HIDDEN, VALUES, labels
from loop import Schedule, draw_generator, fit, processes
from pictures import pictures, portraits, to_tensor
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModel
from world import Portrait, caption

WIDTH, MAX_TOKENS = 192, 64
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# CLIP's own rule for words, digits and punctuation.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(folder: Path, people: list[Portrait], vocabulary: int = 1000) -> None:
    """A byte-pair encoding of captions in CLIP's file format; any other text still encodes, byte by byte."""
    rng = random.Random(0)
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=EOS))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        end_of_word_suffix="</w>",
        special_tokens=[BOS, EOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator((caption(portrait, rng) for portrait in people), trainer)
    model = json.loads(bpe.to_str())["model"]
    for byte in sorted(alphabet):  # CLIP wants every byte at the end of a word, too
        model["vocab"].setdefault(f"{byte}</w>", len(model["vocab"]))
    folder.mkdir(parents=True, exist_ok=True)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 6, "projection_dim": 128}
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    text = {
        **tower,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        **ids,
    }
    vision = {**tower, "num_hidden_layers": 3, "image_size": 64, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


class AttributeProbe(nn.Module):
    """One attention query and one linear head for each attribute, over a sequence of hidden states."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(VALUES), WIDTH) * 0.1)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(values)) for values in VALUES.values())

    def forward(self, states: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        attention = (torch.einsum("bnd,kd->bkn", states, self.queries) * 4 * WIDTH**-0.5).softmax(-1)
        pooled = torch.einsum("bkn,bnd->bkd", attention, states)
        losses = [
            cross_entropy(head(pooled[:, column]).float(), target[:, column], ignore_index=HIDDEN, reduction="sum")
            for column, head in enumerate(self.heads)
        ]
        return sum(losses) / len(target)


class ContrastiveWithAttributes(nn.Module):
    def __init__(self, clip: CLIPModel, tokenizer, images, people: list[Portrait], batch_size: int, seed: int = 2):
        super().__init__()
        self.clip, self.text_probe, self.image_probe = clip, AttributeProbe(), AttributeProbe()
        self.tokenizer, self.images, self.people = tokenizer, images, people
        self.targets = labels(people)
        self.batch_size, self.seed = batch_size, seed

    def forward(self, draw: int) -> torch.Tensor:
        device = self.clip.device
        generator = draw_generator(self.seed, draw)
        rows = torch.randint(len(self.people), (self.batch_size,), generator=generator)
        rng = random.Random(draw)
        texts = [caption(self.people[row], rng) for row in rows]
        pixels = to_tensor(self.images[rows.numpy()]).to(device)
        target = self.targets[rows].to(device)
        said = target.clone()
        said[:, list(VALUES).index("eye_shape")] = HIDDEN  # no caption tells the shape of the eyes
        output = self.clip(input_ids=tokenize(self.tokenizer, texts).to(device), pixel_values=pixels)
        logits = output.logits_per_text.float()
        pairs = torch.arange(self.batch_size, device=device)
        contrastive = (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2
        text = self.text_probe(output.text_model_output.last_hidden_state, said)
        image = self.image_probe(output.vision_model_output.last_hidden_state, target)
        return contrastive + text / 4 + image / 4


@torch.no_grad()
def retrieval(clip: CLIPModel, tokenizer, images, people: list[Portrait]) -> float:
    """How often the caption that a picture is nearest to is its own."""
    rng = random.Random(0)
    texts = tokenize(tokenizer, [caption(portrait, rng) for portrait in people])
    output = clip(input_ids=texts, pixel_values=to_tensor(images))
    similarity = normalize(output.image_embeds) @ normalize(output.text_embeds).T
    return (similarity.argmax(1) == torch.arange(len(people))).float().mean().item()


def main(work: Path, count: int = 30_000, steps: int = 380, batch_size: int = 64) -> Path:
    """Train, save `work/{tokenizer,clip,text_encoder,image_encoder,feature_extractor}`."""
    torch.manual_seed(0)
    people, held_out = portraits("train", count), portraits("validation", 500)
    held_out_images = pictures("validation", 500, work / "data")
    with processes().main_process_first():
        if not (work / "tokenizer" / "vocab.json").exists():
            train_tokenizer(work / "tokenizer", people[:20_000])
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    objective = ContrastiveWithAttributes(
        new_clip(tokenizer), tokenizer, pictures("train", count, work / "data"), people, batch_size
    )
    schedule = Schedule(steps=steps, learning_rate=1.5e-3, ema_decay=0.99, weight_decay=1e-2)
    clip = fit(objective, schedule, work / "clip_training").clip
    if not processes().is_main_process:
        return work / "clip"
    clip.save_pretrained(work / "clip")
    for name, tower in (("text_encoder", CLIPTextModel), ("image_encoder", CLIPVisionModel)):
        tower.from_pretrained(work / "clip").save_pretrained(work / name)
    CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(work / "feature_extractor")
    share = retrieval(clip, tokenizer, held_out_images, held_out)
    print(f"{share:.3f} of 500 validation pictures find their own caption among all 500")
    return work / "clip"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/avatars"), help="folder for data and weights")
    parser.add_argument("--steps", type=int, default=380, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs a step and process")
    main(**vars(parser.parse_args()))
