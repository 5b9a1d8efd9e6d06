"""Take the pictures that stand for the widgets: `python -m tests.widget_pictures [FOLDER]`.

The pages of FOLDER (`_build/html` unless given) show them on paper and without scripts, and so do
the notebooks. Call it after a change of how a widget looks, then build again.
"""

import base64
import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests import browser

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "book" / "_static" / "widgets"
# Where each widget stands; a page may hold several.
PAGES = {
    "plane": "chapters/13-latent-space.html",
    "sliders": "chapters/13-latent-space.html",
    "draw": "chapters/05-output.html",
    "bells": "chapters/03-loss.html",
    "gap": "chapters/03-loss.html",
    "beta": "chapters/10-which-beta.html",
}
PLACE = """document.querySelector('[data-widget="{}"]')"""


def wait(tab, script, seconds=20):
    """Run a script until its value is true; raise if it never is."""
    for _ in range(20 * seconds):
        if tab.run(script):
            return
        time.sleep(0.05)
    raise TimeoutError(script)


def bring(tab, site, widget, page=None):
    """Open the page of a widget, scroll to it and wait until it is there."""
    tab.open((site / (page or PAGES[widget])).as_uri())
    place = PLACE.format(widget)
    tab.run(f"{place}.scrollIntoView({{block: 'start', behavior: 'instant'}})")
    wait(tab, f"Boolean({place}.vae && {place}.querySelector('.vae-said').textContent)")
    # One above it that came to life moves it.
    tab.run(f"{place}.scrollIntoView({{block: 'start', behavior: 'instant'}})")
    return place


def picture(tab, place):
    """Return a widget as a PNG of few colours."""
    box = tab.run(
        f"(b => [b.x + scrollX, b.y + scrollY, b.width, b.height])"
        f"({place}.querySelector('.vae-body').getBoundingClientRect())"
    )
    clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}
    shot = tab.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(48, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main(site):
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as profile, browser.Browser(browser.find(), profile) as tab:
        tab.size(1300, 1000)
        for widget in PAGES:
            taken = picture(tab, bring(tab, site, widget))
            (PICTURES / f"{widget}.png").write_bytes(taken)
            print(f"{widget}: {len(taken):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "_build" / "html")
