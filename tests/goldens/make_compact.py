"""Makes the compact goldens beside this file from the full recording: `python tests/goldens/make_compact.py FOLDER`.

What is recorded there was computed by the authors' own code. To fit into a clone,
 1. the tokenizer keeps the tokens that the recorded texts use, the token embedding their rows, under new ids
    (`token_ids.json` lists the old ones);
 2. weights that nothing reads any more (CLIP's projections, last text layer, residual heads) become zeros;
 3. of the tensors inside the sampling loop only one scenario's are kept; initial latents and noises are left out where
    the recorded seed draws them again;
 4. numbers are rounded to a fixed step for each tensor, a power of two below its root mean square. That moves what is
    compared by 1e-6 to 6e-5 of its largest value, against a tolerance of 1e-4; the full set is compared as it is.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

HERE = Path(__file__).parent
WEIGHTS = {  # file of weights: bits below its tensors' root mean square
    "original_layout/openclip/pytorch_model.bin": 18,
    "original_layout/promptnet/diffusion_pytorch_model.bin": 18,
    "original_layout/unet/diffusion_pytorch_model.bin": 18,
    "original_layout/vae/diffusion_pytorch_model.bin": 15,  # used once per number, not in a loop
    "promptnet_64/diffusion_pytorch_model.bin": 15,
    "vision_tiny/pytorch_model.bin": 15,
}
RECORDINGS = {"g6_training": 18, "inputs": 18}  # what steps and gradients start from
OTHER_RECORDINGS = 15
SCENARIO_WITH_STEPS = "e5"
SECTIONS = ("settings", "g0_tokens", "tokenizer", "g1", "g2", "g3", "g4", "g6")
TOKEN_EMBEDDING = "text_model.embeddings.token_embedding.weight"


def pack(tensors: dict[str, torch.Tensor], bits: dict[str, int]) -> dict[str, np.ndarray]:
    """Tensors -> arrays for `np.savez_compressed`: integers of 24 bits as three planes of bytes, and their index.

    Equal tensors are kept once.
    """
    index, integers, starts, end = [], [], {}, 0
    for name, tensor in tensors.items():
        values = tensor.double().numpy()
        root_mean_square = float(np.sqrt(np.mean(values**2)))
        exact = not tensor.is_floating_point() or root_mean_square == 0
        step = 1.0 if exact else root_mean_square * 2.0 ** -bits[name]
        content = (values.tobytes(), step)
        if content not in starts:
            starts[content] = end
            integers.append(np.rint(values / step).astype(np.int32).ravel())
            end += values.size
        index.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), step, starts[content]])
    flat = np.concatenate(integers)
    assert np.abs(flat).max() < 2**23
    planes = flat.astype("<i4").view(np.uint8).reshape(-1, 4)
    return {
        "index": np.frombuffer(json.dumps(index).encode(), dtype=np.uint8),
        **{f"byte{i}": planes[:, i].copy() for i in range(3)},
    }


def unpack(arrays) -> dict[str, torch.Tensor]:
    """What `pack` made -> tensors."""
    low, middle, high = (arrays[f"byte{i}"].astype(np.int32) for i in range(3))
    flat = low + (middle << 8) + (high.astype(np.uint8).view(np.int8).astype(np.int32) << 16)
    tensors = {}
    for name, dtype, shape, step, start in json.loads(arrays["index"].tobytes()):
        values = (flat[start : start + int(np.prod(shape))] * step).reshape(shape)
        tensors[name] = torch.from_numpy(values).to(getattr(torch, dtype))
    return tensors


def recorded_texts(golden: dict) -> list[str]:
    """Every string of the recorded settings, and some more: a token too many costs nothing."""
    texts = ["S*", "person"]

    def collect(value) -> None:
        if isinstance(value, str):
            texts.extend([value, *value.split("holder")])
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                collect(item)

    for section in ("settings", "g0_tokens", "g2", "g3", "g4"):
        collect(golden[section])
    return sorted(set(texts))


def used_merges(words: set[str], merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding applies to these words, in the order of the full list."""
    rank = {merge: i for i, merge in enumerate(merges)}
    used = set()
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            best = min(zip(pieces[:-1], pieces[1:], strict=True), key=lambda pair: rank.get(pair, len(merges)))
            if best not in rank:
                break
            used.add(best)
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == best:
                    pieces[i : i + 2] = ["".join(best)]
                i += 1
    return sorted(used, key=rank.__getitem__)


def write_compact_tokenizer(source: Path, target: Path, texts: list[str]) -> list[int]:
    """Writes the reduced tokenizer; returns the old id of each new one."""
    backend = CLIPTokenizer.from_pretrained(source).backend_tokenizer
    words = {
        word
        for text in texts
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    }
    merges = [tuple(line.split()) for line in (source / "merges.txt").read_text("utf-8").splitlines()[1:] if line]
    kept_merges = used_merges(words, merges)
    vocab = json.loads((source / "vocab.json").read_text("utf-8"))
    old_ids = [
        *range(512),
        *sorted({vocab["".join(merge)] for merge in kept_merges}),
        49406,
        49407,
    ]  # bytes, ..., bos, eos
    token = {i: text for text, i in vocab.items()}
    target.mkdir(parents=True, exist_ok=True)
    compact = {token[old]: new for new, old in enumerate(old_ids)}
    (target / "vocab.json").write_text(json.dumps(compact, ensure_ascii=False), "utf-8")
    (target / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(merge) for merge in kept_merges)]) + "\n", "utf-8"
    )
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(source / file, target / file)
    return old_ids


def is_dead(file: str, name: str, last_text_layer: int) -> bool:
    """Whether nothing reads this weight: the converter drops it, or it only serves CLIP's own score."""
    return re.match(r"(mid_)?residual_projection", name) is not None or (
        "openclip" in file
        and re.match(rf"(text|visual)_projection|text_model\.encoder\.layers\.{last_text_layer}\.", name) is not None
    )


def make_compact(source: Path, target: Path) -> None:
    """Writes `golden.json`, `token_ids.json`, `tensors.npz` and the layouts' small files into `target`."""
    golden = json.loads((source / "golden.json").read_text("utf-8"))
    old_ids = write_compact_tokenizer(
        source / "original_layout" / "tokenizer", target / "original_layout" / "tokenizer", recorded_texts(golden)
    )
    (target / "token_ids.json").write_text(json.dumps(old_ids) + "\n", "utf-8")
    for config in [*source.glob("*/*.json"), *source.glob("*/*/*config.json")]:
        if config.parent.name != "tokenizer":
            copy = target / config.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = json.loads(config.read_text("utf-8"))
            if config.parent.name == "openclip":
                content["text_config"]["vocab_size"] = len(old_ids)
                last_text_layer = content["text_config"]["num_hidden_layers"] - 1
            copy.write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    tensors, bits = {}, {}
    for file, file_bits in WEIGHTS.items():
        for name, tensor in torch.load(source / file, weights_only=True).items():
            if name == TOKEN_EMBEDDING:
                tensor = tensor[old_ids]
            key = f"{file}:{name}"
            tensors[key] = torch.zeros_like(tensor) if is_dead(file, name, last_text_layer) else tensor
            bits[key] = file_bits
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            scenario, _, what = name.partition("/")
            if file.stem == "g4_sampling" and what != "final_latents" and scenario != SCENARIO_WITH_STEPS:
                continue
            tensors[f"{file.name}:{name}"] = tensor
            bits[f"{file.name}:{name}"] = RECORDINGS.get(file.stem, OTHER_RECORDINGS)
    np.savez_compressed(target / "tensors.npz", **pack(tensors, bits))
    (target / "golden.json").write_text(
        json.dumps({section: golden[section] for section in SECTIONS}, separators=(",", ":")) + "\n", "utf-8"
    )


if __name__ == "__main__":
    make_compact(Path(sys.argv[1]), HERE)
