"""What a callback sees of a running call and changes in it, under the names that diffusers' pipelines have for it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from . import checks, prediction

# That a callback may change.
SCALES = ("guidance_scale", "class_guidance_scale", "fusion_guidance_scale", "guidance_rescale")


class CallbackMixin:
    """The scales of a running call, how many steps it has, and whether it goes on.

    A callback changes a scale for the steps that follow by setting the attribute with `_` in front, which is how
    diffusers' own callbacks do it: `pipe._guidance_scale = 0.0`. Rows that lose their weight are not computed any more.

    Example:
        >>> from profusion_pipeline import demo_portraits, load_demo_pipeline
        >>> pipe = load_demo_pipeline()
        >>> def only_half_way(pipe, index, timestep, tensors):
        ...     pipe._interrupt = index + 1 >= pipe.num_timesteps // 2
        >>> images = pipe("a portrait of S*", image=demo_portraits()[0], callback_on_step_end=only_half_way).images
    """

    def _tensor_inputs(self, callback: Callable | None, names: Sequence[str]) -> Sequence[str]:
        """Which tensors a callback is shown: those of its own `tensor_inputs`, else the call's."""
        checks.check_callback(callback)
        names = getattr(callback, "tensor_inputs", names)
        checks.check_choices("callback_on_step_end_tensor_inputs", names, self._callback_tensor_inputs)
        return names

    def _show_to_callbacks(self, state: prediction.CallState, num_timesteps: int) -> None:
        for name in SCALES:
            setattr(self, f"_{name}", getattr(state.guidance, name))
        self._cross_attention_kwargs, self._num_timesteps = state.cross_attention_kwargs, num_timesteps
        self._interrupt = False

    def _call_back(
        self,
        callback: Callable,
        tensor_inputs: Sequence[str],
        i: int,
        t: torch.Tensor,
        latents: torch.Tensor,
        state: prediction.CallState,
    ) -> tuple[torch.Tensor, prediction.CallState]:
        """Latents and state after a callback, which may have changed tensors and scales, or only looked."""
        tensors = {
            "latents": latents,
            "prompt_embeds": state.class_states,
            "negative_prompt_embeds": state.null_states,
        }
        if state.added is not None:
            tensors["pooled_prompt_embeds"] = state.added.class_pooled
            tensors["negative_pooled_prompt_embeds"] = state.added.null_pooled
        changed = tensors | (callback(self, i, t, {name: tensors[name] for name in tensor_inputs}) or {})
        for name, tensor in tensors.items():
            if tensor is not None and changed[name].shape != tensor.shape:
                raise ValueError(
                    f"`{name}` from `callback_on_step_end` must have the shape {tuple(tensor.shape)}, got "
                    f"{tuple(changed[name].shape)}."
                )
        guidance = replace(state.guidance, **{name: getattr(self, f"_{name}") for name in SCALES})
        added = state.added and replace(
            state.added,
            class_pooled=changed["pooled_prompt_embeds"],
            null_pooled=changed["negative_pooled_prompt_embeds"],
        )
        return changed["latents"], replace(
            state,
            added=added,
            guidance=guidance,
            class_states=changed["prompt_embeds"],
            null_states=changed["negative_prompt_embeds"],
        )

    @property
    def guidance_scale(self) -> float:
        """ω_1 of the running call, towards the subject."""
        return self._guidance_scale

    @property
    def class_guidance_scale(self) -> float:
        """ω_2 of the running call, towards the text."""
        return self._class_guidance_scale

    @property
    def fusion_guidance_scale(self) -> float:
        """ω_f of the running call, towards subject and text in the fusion stage."""
        return self._fusion_guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """φ of the running call, how far guided predictions get the deviation of ε_{S*,C}."""
        return self._guidance_rescale

    @property
    def cross_attention_kwargs(self) -> dict | None:
        """What the UNet's attention processors take in the running call."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """The number of steps that the running call makes, which `strength` shortens."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the running call skips its remaining steps."""
        return self._interrupt
