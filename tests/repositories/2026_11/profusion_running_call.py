"""What a callback sees of a running call, under the names that diffusers' pipelines have for it."""


class RunningCallMixin:
    """The scales of a running call, how many steps it has, and whether it goes on.

    A callback changes a scale for the steps that follow by setting the attribute behind it, which is how diffusers'
    pipelines have it: `pipe._guidance_scale = 0.0`. Rows that lose their weight are not computed any more.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> def only_half_way(pipe, index, timestep, tensors):
        ...     pipe._interrupt = index + 1 >= pipe.num_timesteps // 2
        ...     return tensors
        >>> images = pipe("a portrait of S*", image=demo_portraits()[0], callback_on_step_end=only_half_way).images
    """

    @property
    def guidance_scale(self) -> float:
        """ω_1, towards the subject."""
        return self._guidance_scale

    @property
    def class_guidance_scale(self) -> float:
        """ω_2, towards the text."""
        return self._class_guidance_scale

    @property
    def fusion_guidance_scale(self) -> float:
        """ω_f, towards subject and text in the fusion stage."""
        return self._fusion_guidance_scale

    @property
    def cross_attention_kwargs(self) -> dict | None:
        """What the UNet's attention processors take."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """The number of steps that the call makes, which `strength` shortens."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call skips its remaining steps; a callback sets `pipe._interrupt = True`."""
        return self._interrupt
