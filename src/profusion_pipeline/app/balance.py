"""Between the person and the prompt: the scales that one slider moves along."""

from typing import NamedTuple

from ..method.checks import check_number


class Balance(NamedTuple):
    """The two scales of the refinement stage.

    Args:
        guidance_scale: ω_1, towards the person.
        class_guidance_scale: ω_2, towards the prompt.
    """

    guidance_scale: float
    class_guidance_scale: float


# From more of the prompt to more of the person, as customised avatars have it without a fusion stage (docs/study.md);
# the two ends go beyond what was measured there.
FRONTIER = (Balance(1.25, 5.0), Balance(1.9, 5.0), Balance(2.5, 5.0), Balance(3.75, 5.0), Balance(3.75, 2.5))


def balance(position: float) -> Balance:
    """The scales at a place between the ends of `FRONTIER`, on straight lines between its points.

    Args:
        position: 0 for most of the prompt, 1 for most of the person.

    Returns:
        The scales.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of its range.

    Example:
        >>> balance(0.5)
        Balance(guidance_scale=2.5, class_guidance_scale=5.0)
    """
    place = check_number("position", position, at_most=1) * (len(FRONTIER) - 1)
    before = FRONTIER[int(place)]
    after = FRONTIER[min(int(place) + 1, len(FRONTIER) - 1)]
    share = place - int(place)
    return Balance(*(round(one + share * (other - one), 4) for one, other in zip(before, after, strict=True)))
