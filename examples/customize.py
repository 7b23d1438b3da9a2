"""From one portrait to a customised grid: `python examples/customize.py --image me.png`."""

import argparse
from collections.abc import Sequence

import torch
from diffusers.utils import make_image_grid
from PIL import Image

from profusion_pipeline import CustomizeConfig, customizing, demo_portraits, load_demo_pipeline
from profusion_pipeline.demo import DEMO_CAPTIONS, DEMO_CONCEPT_SETTINGS, DEMO_CUSTOMIZE, DEMO_SETTINGS
from profusion_pipeline.method.reference_images import load_reference_image

PROMPTS = (
    "a portrait of S*",
    "a portrait of S*, wearing a red hoodie",
    "a portrait of S*, in space",
    "a neon picture of S*",
)


def main(
    image: str | None = None,
    caption: str | None = None,
    prompts: Sequence[str] = PROMPTS,
    steps: int = 100,
    num_inference_steps: int = 25,
    concept_folder: str = "my-concept",
    out: str = "customized.png",
) -> list[float]:
    """Customise the demo model to a photo, save the concept, and draw before (above) and after. Returns the losses."""
    pipe = load_demo_pipeline()
    photo = demo_portraits()[0] if image is None else load_reference_image(image)

    caption = DEMO_CAPTIONS[0] if image is None else caption
    config = CustomizeConfig(**DEMO_CUSTOMIZE, steps=steps, caption=caption)
    losses = []
    with customizing(pipe, photo, config) as run:  # pipe.customize(photo, config) does all of this at once
        for record in run.learn():
            losses.append(record.loss)
            print(f"step {record.step:3d}   loss {record.loss:.4f}   {record.seconds:.2f} s")
        concept = run.concept()
    concept.save_pretrained(concept_folder)

    def draw(**settings) -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        return pipe(list(prompts), generator=generators, num_inference_steps=num_inference_steps, **settings).images

    before = draw(image=photo, **DEMO_SETTINGS)
    pipe.load_concept(concept_folder)  # from here on S* needs no photo
    after = draw(**DEMO_CONCEPT_SETTINGS)
    rows = [photo.resize(before[0].size), *before, photo.resize(before[0].size), *after]
    make_image_grid(rows, rows=2, cols=1 + len(prompts), resize=192).save(out)
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", help="a portrait; one of the bundled ones if not given")
    parser.add_argument("--caption", help="what the portrait shows beside the person: clothes, place, expression")
    parser.add_argument("--steps", type=int, default=100, help="of customising")
    parser.add_argument("--concept-folder", default="my-concept", help="where the concept is kept")
    parser.add_argument("--out", default="customized.png", help="the picture")
    main(**vars(parser.parse_args()))
