"""A photo -> what is in it beside the subject, in words: the caption to customise with, by a captioning model.

What the caption says, S* need not carry. So what it says about the person (a woman, long brown hair) must go, or S*
would carry that no more either; the clothes, the place and what the person does stay.
"""

import re
from collections.abc import Sequence

import torch
from PIL import Image

from ..method.quoting import brief, quote

# A phrase with one of these is about the person; who customises to a dog or a mug gives a list of their own.
PERSON_WORDS = (
    *("man", "men", "woman", "women", "person", "people", "boy", "girl", "child", "kid", "baby", "guy", "lady", "he"),
    *("she", "male", "female", "gentleman", "toddler", "teenager", "adult", "face", "head", "portrait", "selfie"),
    *("hair", "haired", "bald", "blonde", "blond", "brunette", "redhead", "ponytail", "braid", "braids", "bangs"),
    *("beard", "bearded", "mustache", "moustache", "goatee", "stubble", "eye", "eyes", "eyed", "eyebrows", "nose"),
    *("skin", "skinned", "freckles", "old", "young", "elderly"),
)
# A new phrase begins at these; "and" joins what is worn, so it doesn't part phrases.
_NEW_PHRASE = re.compile(
    r",|\.|\b(?=(?:wearing|with|in|on|at|near|by|under|behind|beside|holding|standing|sitting|smiling|laughing|looking|"
    r"posing|against|while|outside|inside)\b)"
)


def without_person(caption: str, leave_out: Sequence[str] = PERSON_WORDS) -> str:
    """The phrases of a caption that have none of some words.

    Args:
        caption: A sentence in plain English, as captioning models write it.
        leave_out: Words, in lower case, that say who it is.

    Returns:
        What is left, phrases that stood side by side still so, others after a comma; empty if nothing is.

    Example:
        >>> without_person("a woman with long brown hair wearing a green hoodie at the beach")
        'wearing a green hoodie at the beach'
    """
    kept, gap = "", False
    for phrase in filter(None, (piece.strip() for piece in _NEW_PHRASE.split(caption.strip()))):
        if {*re.findall(r"\w+", phrase.lower())} & {*leave_out}:
            gap = True
        else:
            kept += (", " if gap and kept else " " if kept else "") + phrase
            gap = False
    return kept


def describe_photo(
    photo: Image.Image,
    captioner: str,
    *,
    leave_out: Sequence[str] = PERSON_WORDS,
    device: torch.device | str = "cpu",
) -> str:
    """What a captioning model sees in a photo, without the person. The model is loaded, asked once and forgotten.

    Args:
        photo: RGB.
        captioner: Folder or Hub id of an image-to-text model that transformers knows: BLIP, GIT and their kin.
        leave_out: As of [`without_person`].
        device: Where the model runs.

    Returns:
        The caption, to be read and mended: what is wrong in it, the customised person learns in its place.

    Raises:
        ValueError: The model can't be loaded, or says nothing but who it is.

    Example:
        >>> describe_photo(photo, "Salesforce/blip-image-captioning-base")  # doctest: +SKIP
        'wearing a green hoodie at the beach'
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(captioner)
        model = AutoModelForImageTextToText.from_pretrained(captioner).to(device).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`captioner` must name an image-to-text model, got {quote(captioner)}: {brief(error)}."
        ) from error
    inputs = processor(images=photo, return_tensors="pt").to(device)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=40)  # [1, T]
    said = processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    caption = without_person(said, leave_out)
    if not caption:
        raise ValueError(f"`caption` 'auto': {quote(captioner)} says nothing but who it is, {quote(said)}; write one.")
    return caption
