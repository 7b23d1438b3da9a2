"""Rasterise the parts of a portrait, once: `python examples/avatars/parts.py` writes `parts_64.npz`.

Most shapes are the avataaars of Pablo Stanley (free for personal and commercial use) as packaged in `python_avatars`
(MIT); parts that show film characters, or come from elsewhere, are left out. Eyes with an iris colour, hats that leave
the hair in sight and the enlarged mouths are our own.

Every part is an affine function of its one colour c (premultiplied RGB = base + tint * c), so two renderings, in black
and in white, say all there is to know, and `world.py` needs numpy alone. Needs the extra `avatars`.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

# What a portrait shows of the 264 x 280 canvas: left, top, side length.
VIEW_LEFT, VIEW_TOP, VIEW_SIZE = 12.0, 6.0, 240.0

HAIR_FILES = {
    "big wavy": "big_hair",
    "bob": "bob",
    "bun": "bun",
    "caesar": "caesar",
    "big curly": "curly",
    "long curvy": "curvy",
    "dreadlock": "dreads",
    "frizzy top": "frizzle",
    "afro": "fro",
    "shoulder length": "long_not_too_long",
    "mullet": "shaggy_mullet",
    "short curly": "short_curly",
    "spiky": "short_dreads_2",
    "balding": "sides",
    "long straight": "straight_1",
}
FACIAL_HAIR_FILES = {
    "light beard": "beard_light",
    "big beard": "beard_magestic",
    "beard": "beard_medium",
    "thin moustache": "moustache_fancy",
    "moustache": "moustache_magnum",
}
CLOTHES_FILES = {
    "t-shirt": "shirt_crew_neck",
    "hoodie": "hoodie",
    "shirt and blazer": "blazer_shirt",
    "overalls": "overall",
    "collared sweater": "collar_sweater",
}
GLASSES_FILES = {"round glasses": "round", "square glasses": "prescription_02", "sunglasses": "wayfarers"}
MOUTH_FILES = {
    "neutral": "serious",
    "smiling": "smile",
    "sad": "sad",
    "surprised": "disbelief",
    "angry": "grimace",
    "tongue out": "tongue",
}
BROW_FILES = {
    "neutral": "default",
    "smiling": "default",
    "sad": "sad_concerned",
    "surprised": "raised_excited",
    "angry": "angry",
    "tongue out": "raised_excited",
}
# (rx, ry of the white, radius of the iris, radius of the pupil): large, for the colour must survive 64 pixels.
EYE_SHAPES = {"normal": (16.5, 13.5, 10.5, 4.5), "wide": (17.0, 18.0, 10.5, 4.5), "narrow": (17.0, 8.5, 8.5, 4.0)}
HAT_KINDS = ("beanie", "cap", "crown", "top hat", "headphones", "wizard hat")


def svg(content: str, attributes: str = "") -> str:
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} width="264px" height="280px" viewBox="0 0 264 280"><g {attributes}>{content}</g></svg>'


def rasterise(document: str, size: int) -> np.ndarray:
    """An SVG -> premultiplied RGBA in [0, 1], `[size, size, 4]`, drawn at twice the size and averaged."""
    import skia

    dom = skia.SVGDOM.MakeFromStream(skia.MemoryStream(document.encode(), True))
    dom.setContainerSize(skia.Size(264, 280))
    surface = skia.Surface(size * 2, size * 2)
    canvas = surface.getCanvas()
    canvas.clear(skia.ColorTRANSPARENT)
    canvas.scale(2 * size / VIEW_SIZE, 2 * size / VIEW_SIZE)
    canvas.translate(-VIEW_LEFT, -VIEW_TOP)
    dom.render(canvas)
    info = skia.ImageInfo.Make(size * 2, size * 2, skia.kRGBA_8888_ColorType, skia.kPremul_AlphaType)
    pixels = np.zeros((size * 2, size * 2, 4), np.uint8)
    surface.readPixels(info, pixels, size * 2 * 4, 0, 0)
    return pixels.astype(np.float32).reshape(size, 2, size, 2, 4).mean((1, 3)) / 255


def library_part(path: str, position: tuple[int, int], coloured: str = "", attributes: str = "", scale: float = 1.0):
    """A part of python_avatars at its place on the canvas, as a function of its colour (magnified about its middle)."""
    import python_avatars

    root = ElementTree.parse(Path(os.path.dirname(python_avatars.__file__)) / "avatar_parts" / path).getroot()
    width, height = (float(root.get(side).removesuffix("px")) for side in ("width", "height"))
    x = position[0] + width / 2 * (1 - scale)
    y = position[1] + height / 2 * (1 - scale)

    def draw(colour: str) -> str:
        for element in root.iter():
            if coloured and element.get("id") == coloured:
                element.set("fill", colour)
        content = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
        return svg(content, f'transform="translate({x},{y}) scale({scale})" ' + attributes.replace("COLOUR", colour))

    return draw


def body(colour: str) -> str:
    import python_avatars

    root = ElementTree.parse(
        Path(os.path.dirname(python_avatars.__file__)) / "avatar_parts/styles/transparent.svg"
    ).getroot()
    figure = next(child for child in root if child.get("id") == "Avataaar/Default")
    for child in list(figure):
        if child.get("id") != "Body":
            figure.remove(child)
    for element in root.iter():
        if element.get("id") == "Skin-Color" or element.get("fill") == "#D0C6AC":
            element.set("fill", colour)
    return svg("".join(ElementTree.tostring(child, encoding="unicode") for child in root))


def eyes(shape: str) -> Callable[[str], str]:
    rx, ry, iris, pupil = EYE_SHAPES[shape]

    def draw(colour: str) -> str:
        return svg(
            "".join(
                f'<ellipse cx="{x}" cy="112" rx="{rx}" ry="{ry}" fill="#ffffff"/>'
                f'<circle cx="{x}" cy="112" r="{iris}" fill="{colour}"/>'
                f'<circle cx="{x}" cy="112" r="{pupil}" fill="#101010"/>'
                for x in (105, 159)
            )
        )

    return draw


def hat(kind: str) -> Callable[[str], str]:
    shapes = {
        "beanie": '<path d="M68,84 C66,30 98,14 132,14 C166,14 198,30 196,84 Z" fill="COLOUR"/>'
        '<rect x="64" y="64" width="136" height="24" rx="10" fill="COLOUR"/>'
        '<rect x="64" y="64" width="136" height="24" rx="10" fill="#ffffff" fill-opacity="0.35"/>'
        '<circle cx="132" cy="18" r="11" fill="#ffffff"/>',
        "cap": '<path d="M70,76 C68,34 98,18 132,18 C166,18 196,34 194,76 Z" fill="COLOUR"/>'
        '<path d="M70,76 C100,62 164,62 194,76 C216,84 226,92 224,96 C190,86 120,82 70,76 Z" fill="COLOUR"/>'
        '<path d="M70,76 C100,62 164,62 194,76 C216,84 226,92 224,96 C190,86 120,82 70,76 Z" fill="#000000" '
        'fill-opacity="0.3"/>',
        "crown": '<path d="M82,58 L78,14 L104,34 L132,8 L160,34 L186,14 L182,58 Z" fill="#ffc81e"/>'
        '<rect x="82" y="50" width="100" height="11" fill="#e09a00"/><circle cx="132" cy="44" r="6" fill="#e02040"/>'
        '<circle cx="104" cy="46" r="4.5" fill="#2060e0"/><circle cx="160" cy="46" r="4.5" fill="#2060e0"/>',
        "top hat": '<rect x="84" y="4" width="96" height="60" fill="#1c1c24"/>'
        '<rect x="84" y="40" width="96" height="20" fill="COLOUR"/>'
        '<rect x="58" y="60" width="148" height="12" rx="6" fill="#1c1c24"/>',
        "headphones": '<path d="M70,104 C64,6 200,6 194,104" fill="none" stroke="COLOUR" stroke-width="12"/>'
        '<rect x="56" y="86" width="24" height="46" rx="11" fill="COLOUR"/>'
        '<rect x="184" y="86" width="24" height="46" rx="11" fill="COLOUR"/>'
        '<rect x="72" y="90" width="10" height="38" rx="5" fill="#303038"/>'
        '<rect x="182" y="90" width="10" height="38" rx="5" fill="#303038"/>',
        "wizard hat": '<path d="M146,4 L88,62 L176,62 Z" fill="COLOUR"/>'
        '<ellipse cx="132" cy="64" rx="78" ry="11" fill="COLOUR"/>'
        '<path d="M98,52 L172,52 L176,62 L90,62 Z" fill="#ffc81e"/>',
    }
    return lambda colour: svg(shapes[kind].replace("COLOUR", colour))


def drawings() -> dict[str, Callable[[str], str]]:
    """Name of a part -> (colour -> SVG document)."""
    parts = {"body": body}
    parts |= {
        f"hair:{kind}": library_part(f"top/hair/{file}.svg", (0, 0), "Hair-Color") for kind, file in HAIR_FILES.items()
    }
    parts |= {
        f"facial hair:{kind}": library_part(f"facial_hair/{file}.svg", (49, 72), "Facial-Hair-Color")
        for kind, file in FACIAL_HAIR_FILES.items()
    }
    parts |= {
        f"clothes:{kind}": library_part(f"clothes/{file}.svg", (0, 170), "Fabric-Color")
        for kind, file in CLOTHES_FILES.items()
    }
    parts |= {
        f"glasses:{kind}": library_part(f"accessories/{file}.svg", (62, 85)) for kind, file in GLASSES_FILES.items()
    }
    parts |= {
        f"mouth:{expression}": library_part(f"mouth/{file}.svg", (78, 134), "", 'fill="#000000"', scale=1.25)
        for expression, file in MOUTH_FILES.items()
    }
    parts |= {
        f"brows:{expression}:{shape}": library_part(
            f"eyebrows/{file}{suffix}.svg", (76, 78), "", 'fill="COLOUR" fill-opacity="0.8"'
        )
        for expression, file in BROW_FILES.items()
        for shape, suffix in (("thin", ""), ("thick", "_natural"))
    }
    parts |= {
        f"nose:{shape}": library_part(f"nose/{shape}.svg", (104, 122), "", 'fill="#000000" fill-opacity="0.16"')
        for shape in ("default", "small", "wide")
    }
    parts |= {f"eyes:{shape}": eyes(shape) for shape in EYE_SHAPES}
    parts |= {f"hat:{kind}": hat(kind) for kind in HAT_KINDS}
    return parts


def main(size: int = 64, out: Path | None = None) -> Path:
    """Write every part as `NAME|base` (premultiplied RGBA) and `NAME|tint` (weight of the colour), float16."""
    arrays = {}
    for name, draw in drawings().items():
        black, white = rasterise(draw("#000000"), size), rasterise(draw("#ffffff"), size)
        arrays[f"{name}|base"] = black.astype(np.float16)
        arrays[f"{name}|tint"] = (white - black)[..., :3].mean(-1).astype(np.float16)
    out = out or Path(__file__).with_name(f"parts_{size}.npz")
    np.savez_compressed(out, **arrays)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="side of a portrait in pixels")
    print(main(**vars(parser.parse_args())))
