"""What a notebook wants: grids of settings and of systems, a preview while drawing, and a look inside S*.

Example:
    >>> from profusion_pipeline import demo_portraits, load_demo_pipeline, notebook
    >>> pipe = load_demo_pipeline()
    >>> notebook.sweep(
    ...     pipe,
    ...     "a portrait of S*, at the beach",
    ...     image=demo_portraits()[0],
    ...     guidance_scale=[2.5, 5.0],
    ...     num_inference_steps=2,
    ... )
    PictureGrid(1 x 2: '' | 'guidance_scale 2.5', 'guidance_scale 5')
"""

from .explain import explain as explain
from .preview import live_preview as live_preview
from .sweeps import blend as blend
from .sweeps import compare as compare
from .sweeps import sweep as sweep
