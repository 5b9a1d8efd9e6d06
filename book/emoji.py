"""Make vae_lib/assets/emoji.zip anew: `python -m book.emoji PACKAGE`.

PACKAGE is the folder that the npm package emoji-datasource-google 16.0.0 unpacks to:

    npm pack emoji-datasource-google@16.0.0
    tar xzf emoji-datasource-google-16.0.0.tgz  # makes the folder `package`

Its faces and people, 64 x 64 pixels there, become 32 x 32. A picture is named after its kind, its
design and its skin tones: `person-fantasy/santa.webp` is the yellow one of what is also
`person-fantasy/santa.light.webp`, and two people have two tones, `.light.dark`. So all that stands
before the first full stop is the design.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

from PIL import Image

from vae_lib.images import EMOJI

SIDE = 32
KINDS = ("Smileys & Emotion", "People & Body")
TONES = dict(
    zip(
        ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"),
        ("light", "medium-light", "medium", "medium-dark", "dark"),
        strict=True,
    )
)


def members(package: Path) -> dict[str, Path]:
    """Return the pictures of faces and people, by the names that they get, in their order."""
    found = {}
    for emoji in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        if emoji["category"] not in KINDS:
            continue
        for tones, one in {"": emoji, **emoji.get("skin_variations", {})}.items():
            if one["has_img_google"]:
                spoken = [TONES[tone] for tone in tones.split("-") if tone]
                name = ".".join([f"{emoji['subcategory']}/{emoji['short_name']}", *spoken, "webp"])
                if name in found:
                    raise ValueError(f"package: two pictures would be {name}.")
                found[name] = package / "img" / "google" / "64" / one["image"]
    return dict(sorted(found.items()))


def small(file: Path) -> bytes:
    """Return a picture at 32 x 32 in lossless WebP, which takes a fifth less than PNG here."""
    with Image.open(file) as image:
        # Pillow multiplies colours by alpha before it resamples, so that the colour of what is
        # transparent does not bleed into what is not.
        picture = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", lossless=True, quality=100, method=6)
    return stream.getvalue()


def pack(package: Path, target: Path = EMOJI) -> None:
    """Write the zip; with the same Pillow and libwebp always the same bytes."""
    with zipfile.ZipFile(target, "w") as archive:
        for name, file in members(package).items():
            entry = zipfile.ZipInfo(name)  # of 1980, whenever it is made
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, small(file))


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
