import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel

from profusion_pipeline.method.modeling_promptnet import PromptNet
from profusion_pipeline.training.trainer import train_steps
from training import assert_same_bits, short_run, start, weights, write_portraits, write_shards

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("fresh_accelerate")]


def state(run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.components.promptnet.named_parameters()}


def test_frozen_models_take_the_precision_and_promptnet_stays_float32(folders):
    run = start(short_run(**folders, mixed_precision="bf16"))
    assert run.components.unet.dtype == run.components.text_encoder.dtype == torch.bfloat16
    assert run.components.vae.dtype == run.components.promptnet.dtype == torch.float32
    record = next(train_steps(run))
    assert record.loss.dtype == torch.float32 and record.loss.isfinite()
    assert {parameter.grad for parameter in run.components.unet.parameters()} == {None}


def test_resolution_sets_the_size_of_latents_and_pictures(folders):
    run = start(short_run(**folders, resolution=32))
    assert (run.latent_shape, run.resolution) == ((4, 16, 16), 32)
    batch = next(run.source.batches([range(2)]))
    assert batch.mean.shape == (2, 4, 16, 16)
    input_ids, positions = run.prompt_tokens(range(2), ["", ""])
    assert positions.tolist() == [4]
    assert input_ids.shape == (1, 77)
    assert next(train_steps(run)).loss.isfinite()


def test_prompts_can_be_left_unpadded(folders):
    run = start(short_run(**folders, pad_prompt=False))
    assert run.prompt_tokens([0], [""])[0].shape == (1, 6)


def captioned_portraits(folder: Path, text: str) -> Path:
    """Portraits that all have the same caption."""
    folder.mkdir()
    file = write_portraits(folder) / "metadata.jsonl"
    rows = [json.loads(line) | {"text": text} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_captions_take_the_place_of_the_prompt(folders, tmp_path, caplog):
    """Where every caption says the same, it is as if that were the prompt; without captions nothing is read."""
    prompt, told = "a photo of S*, smiling", tmp_path / "told"
    captioned_portraits(told, prompt)
    with caplog.at_level("INFO"):
        captioned = start(short_run(**folders | {"data": told}))
    assert "5 of 5 pictures have a caption" in caplog.text
    prompted = start(short_run(**folders, prompt=prompt))
    deaf = start(short_run(**folders | {"data": told}, captions=False))
    plain = start(short_run(**folders))
    losses = [[record.loss.item() for record in train_steps(run)] for run in (captioned, prompted, deaf, plain)]
    assert losses[0] == losses[1] != losses[2] == losses[3]


@pytest.mark.parametrize(
    "settings, text, sentence",
    [
        ({"pad_prompt": False}, "S*, smiling", "`pad_prompt` must be True where pictures have captions"),
        ({}, "smiling", r"The caption of '.*anna-0.png' must be a text that holds 'S\*' exactly once"),
        ({}, "a " * 80 + "S*", "reads 77 tokens, got it at token 81 with 1 positions"),
    ],
)
def test_captions_that_cannot_be_learnt_are_refused(folders, tmp_path, settings, text, sentence):
    told = captioned_portraits(tmp_path / "told", text)
    with pytest.raises(ValueError, match=sentence):
        start(short_run(**folders | {"data": told}, **settings))


def test_averaged_weights_are_lent_and_taken_back(folders):
    run = start(short_run(**folders, max_steps=3))
    average = EMAModel(run.components.promptnet.parameters(), decay=0.9)  # followed by hand
    for _ in train_steps(run):
        average.step(run.components.promptnet.parameters())
    last = state(run)
    with run.averaged_promptnet() as promptnet:
        assert not promptnet.training
        for ours, theirs in zip(promptnet.parameters(), average.shadow_params, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        assert not all(torch.equal(ours, last[name]) for name, ours in state(run).items())
    assert promptnet.training
    assert_same_bits(state(run), last)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_what_is_saved_is_the_average_or_the_last(folders, tmp_path, ema_decay):
    run = start(short_run(**folders, max_steps=2, ema_decay=ema_decay))
    list(train_steps(run))
    run.save_promptnet(tmp_path / "promptnet")
    with run.averaged_promptnet():
        expected = state(run)
    assert_same_bits(weights(tmp_path / "promptnet"), expected)
    assert (ema_decay == 0) == all(torch.equal(expected[name], p) for name, p in state(run).items())
    loaded = PromptNet.from_pretrained(tmp_path / "promptnet")
    assert_same_bits(loaded.state_dict(), expected)


def test_a_checkpoint_restores_everything(folders, tmp_path):
    config = short_run(**folders, lr_scheduler="cosine", keep_checkpoints=2)
    run = start(config)
    for _ in train_steps(run):
        path = run.save_checkpoint(tmp_path)
        if run.step == 4:
            break
    assert [folder.name for folder in sorted(tmp_path.iterdir())] == ["step-00000003", "step-00000004"]
    learnt, average = state(run), [parameter.clone() for parameter in run.ema.shadow_params]
    rate = run.lr_scheduler.get_last_lr()

    other = start(dataclasses.replace(config, max_steps=8, log_every=7, batch_size=1, gradient_accumulation_steps=2))
    other.load_checkpoint(path)
    assert other.step == 4 and other.ema.optimization_step == 4
    assert_same_bits(state(other), learnt)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(other.ema.shadow_params, average, strict=True))
    assert other.lr_scheduler.get_last_lr() == rate
    assert next(train_steps(other)).step == 5


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"learning_rate": 2e-3}, "learning_rate was 0.001 and is 0.002 now"),
        ({"seed": 1}, "seed was 0 and is 1 now"),
        ({"batch_size": 4}, "samples_per_step was 2 and is 4 now"),
        ({"ema_decay": 0.0}, "ema_decay was 0.9 and is 0.0 now"),
    ],
)
def test_going_on_with_other_settings_is_refused(folders, tmp_path, settings, sentence):
    config = short_run(**folders)
    path = start(config).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=f"`resume` needs the settings of '.*step-00000000': {sentence}"):
        start(dataclasses.replace(config, **settings)).load_checkpoint(path)


def test_a_checkpoint_from_before_a_setting_existed_is_gone_on_with(folders, tmp_path):
    config = short_run(**folders)
    path = start(config).save_checkpoint(tmp_path, losses=[0.5])
    state = json.loads((path / "state.json").read_text())
    assert start(config).load_checkpoint(path) == [0.5]
    for name in ("streaming", "shuffle_buffer", "losses"):
        del state[name]
    (path / "state.json").write_text(json.dumps(state))
    assert start(config).load_checkpoint(path) == []
    with pytest.raises(ValueError, match="shuffle_buffer was 1000 and is 5 now"):
        start(dataclasses.replace(config, shuffle_buffer=5)).load_checkpoint(path)


def test_going_on_with_other_shards_is_refused(folders, tmp_path):
    settings = dict(streaming=True, cache_latents=False)
    two, three = (write_shards(tmp_path / f"{count}", shards=count, pictures=2) for count in (2, 3))
    path = start(short_run(**folders | {"data": two}, **settings)).save_checkpoint(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="num_shards was 2 and is 3 now"):
        start(short_run(**folders | {"data": three}, **settings)).load_checkpoint(path)


def test_going_on_with_other_pictures_is_refused(folders, tmp_path):
    path = start(short_run(**folders)).save_checkpoint(tmp_path)
    (tmp_path / "two").mkdir()
    data = write_portraits(tmp_path / "two")
    lines = (data / "metadata.jsonl").read_text().splitlines()
    (data / "metadata.jsonl").write_text("\n".join(lines[:2]))
    with pytest.raises(ValueError, match="num_targets was 5 and is 2 now"):
        start(short_run(**folders | {"data": data})).load_checkpoint(path)
