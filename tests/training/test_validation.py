import numpy as np
import torch
from PIL import Image

from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from profusion_pipeline.training.components import load_training_components
from profusion_pipeline.training.validation import draw_validation_grid
from training import short_run, write_base


def test_the_grid_shows_each_photo_and_what_the_pipeline_makes_of_it(tmp_path, components):
    config = short_run(
        model=write_base(tmp_path),
        data=tmp_path,
        output=tmp_path,
        seed=3,
        validation_every=1,
        validation_images=("a", "b"),
        validation_prompts=("S* on the beach", "a red S*"),
        validation_class_noun="dog",
        validation_inference_steps=3,
    )
    training = load_training_components(config)
    generator = np.random.default_rng(0)
    photos = [Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
    promptnet = components["promptnet"]
    grid = np.asarray(draw_validation_grid(training, promptnet, photos, config, resolution=16))
    assert grid.shape == (2 * 16, 3 * 16, 3)

    names = ("vae", "text_encoder", "tokenizer", "unet", "image_encoder", "feature_extractor")
    pipe = ProFusionPipeline(
        **{name: getattr(training, name) for name in names}, promptnet=promptnet, scheduler=components["scheduler"]
    )
    for row, photo in enumerate(photos):
        tiles = grid[16 * row : 16 * (row + 1)].reshape(16, 3, 16, 3).swapaxes(0, 1)  # [3, H, W, 3]
        np.testing.assert_array_equal(tiles[0], np.asarray(photo))
        for tile, prompt in zip(tiles[1:], config.validation_prompts, strict=True):
            expected = pipe(
                prompt,
                image=photo,
                class_noun="dog",
                num_inference_steps=3,
                generator=torch.Generator().manual_seed(3),
            ).images[0]
            assert np.abs(tile.astype(int) - np.asarray(expected).astype(int)).max() <= 1
