"""Pictures of every page, for `docs/gallery.md` and to be looked at.

    python docs/screenshots.py [--all FOLDER]

Without an option it writes the pictures of the gallery into `docs/gallery/`. `--all` writes every
page at 390 and 1,280 pixels, light and dark, in full length, into a folder. Needs Chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.browser import Browser  # noqa: E402
from tests.pages import PAGES, Pages  # noqa: E402

GALLERY = {
    "try": (1280, False, 1150),
    "compare": (1280, True, 800),
    "vote": (390, False, 560),
    "pairs": (1280, False, 1400),
    "arena": (1280, True, 1400),
}
"""Page -> width, dark, height of its picture in the gallery."""


def main() -> None:
    """Make the pages, then their pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", type=Path, default=None)
    args = parser.parse_args()
    folder = args.all or ROOT / "docs" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as work,
        Pages(Path(work)) as pages,
        Browser(Path(work)) as browser,
    ):
        for name in PAGES:
            sizes = {name: GALLERY[name]}
            if args.all:
                sizes = {
                    f"{name}-{width}-{'dark' if dark else 'light'}": (width, dark, 0)
                    for width in (390, 1280)
                    for dark in (False, True)
                }
            for title, (width, dark, height) in sizes.items():
                browser.window(width, dark=dark)
                pages.show(browser, name)
                browser.screenshot(folder / f"{title}.png", height)
                shrink(folder / f"{title}.png")
        print("\n".join(browser.said) or "nothing was said to the console")


def shrink(file: Path) -> None:
    """The picture in 256 colours, which flat pages need no more of."""
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(file, optimize=True)


if __name__ == "__main__":
    main()
