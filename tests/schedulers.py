"""Every diffusers scheduler that Stable Diffusion takes, in the variants that the fusion stage must carry."""

import diffusers
import pytest

NOISE_SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
KARRAS = dict(use_karras_sigmas=True)

# name -> class, further settings
VARIANTS = {
    "ddim": ("DDIMScheduler", dict(clip_sample=False)),
    "ddim-sd": ("DDIMScheduler", dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)),
    "ddim-trailing": ("DDIMScheduler", dict(clip_sample=False, timestep_spacing="trailing")),
    "ddpm": ("DDPMScheduler", dict(clip_sample=False)),
    "pndm": ("PNDMScheduler", dict(skip_prk_steps=True)),
    "pndm-prk": ("PNDMScheduler", dict()),
    "lcm": ("LCMScheduler", dict()),
    "tcd": ("TCDScheduler", dict()),
    "euler": ("EulerDiscreteScheduler", dict()),
    "euler-karras": ("EulerDiscreteScheduler", KARRAS),
    "euler-leading": ("EulerDiscreteScheduler", dict(timestep_spacing="leading", steps_offset=1)),
    "euler-a": ("EulerAncestralDiscreteScheduler", dict()),
    "heun": ("HeunDiscreteScheduler", dict()),
    "heun-karras": ("HeunDiscreteScheduler", KARRAS),
    "kdpm2": ("KDPM2DiscreteScheduler", dict()),
    "kdpm2-karras": ("KDPM2DiscreteScheduler", KARRAS),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", dict()),
    "lms": ("LMSDiscreteScheduler", dict()),
    "lms-karras": ("LMSDiscreteScheduler", KARRAS),
    "dpm++": ("DPMSolverMultistepScheduler", dict()),
    "dpm++-karras": ("DPMSolverMultistepScheduler", KARRAS),
    "dpm++-3": ("DPMSolverMultistepScheduler", dict(solver_order=3)),
    "dpm++-sde": ("DPMSolverMultistepScheduler", dict(algorithm_type="sde-dpmsolver++")),
    "dpm++-single": ("DPMSolverSinglestepScheduler", dict()),
    "dpm++-single-karras": ("DPMSolverSinglestepScheduler", KARRAS),
    "dpm++-single-3": ("DPMSolverSinglestepScheduler", dict(solver_order=3)),
    "unipc": ("UniPCMultistepScheduler", dict()),
    "unipc-karras": ("UniPCMultistepScheduler", KARRAS),
    "deis": ("DEISMultistepScheduler", dict()),
    "deis-karras": ("DEISMultistepScheduler", KARRAS),
    "sa-solver": ("SASolverScheduler", dict()),
}
# Those whose step takes "sample" prediction (the others say so when they are asked to step).
NO_SAMPLE_PREDICTION = ("pndm", "euler-a", "kdpm2")


def make(variant: str, **settings):
    """The scheduler of that name. LMS needs scipy."""
    name, own = VARIANTS[variant]
    if variant.startswith("lms"):
        pytest.importorskip("scipy")
    return getattr(diffusers, name)(**NOISE_SCHEDULE, **own | settings)
