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


# From more of the prompt to more of the person, as avatars have it: pairs that were measured, and that no other of the
# same grid was ahead of (docs/frontiers), without a fusion stage.
FROM_PHOTO = (Balance(5.0, 5.0), Balance(5.0, 2.5))  # promptnet.json
FROM_CONCEPT = (Balance(1.9, 5.0), Balance(2.5, 5.0), Balance(3.75, 5.0))  # sampling.json


def balance(position: float, *, learnt: bool = False) -> Balance:
    """The scales at a place between the ends of a measured frontier, on straight lines between its points.

    Args:
        position: 0 for most of the prompt, 1 for most of the person.
        learnt: Whether the person is a concept, which needs less guidance than a photo.

    Returns:
        The scales.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of its range.

    Example:
        >>> balance(0.5)
        Balance(guidance_scale=5.0, class_guidance_scale=3.75)
    """
    points = FROM_CONCEPT if learnt else FROM_PHOTO
    place = check_number("position", position, at_most=1) * (len(points) - 1)
    before, after = points[int(place)], points[min(int(place) + 1, len(points) - 1)]
    share = place - int(place)
    return Balance(*(round(one + share * (other - one), 4) for one, other in zip(before, after, strict=True)))
