"""What the pages name is there: links and their anchors, paths, keys, pictures; and the front page stays short."""

import re

import pytest
import yaml

from megamesh.config.neox import IGNORED, RENAMED
from megamesh.config.sections import SECTIONS
from tests.examples.pages import ROOT, Page, pages

PAGES = {page.name: page for page in pages()}
LARGEST_FRONT_PAGE = 12_000
LARGEST_PICTURE = 60_000


@pytest.mark.parametrize("name", PAGES)
def test_links_paths_and_keys_of_a_page(name: str) -> None:
    page, here = PAGES[name], (ROOT / name).parent
    for link in page.links:
        path, _, anchor = link.partition("#")
        target = here / path if path else ROOT / name
        assert target.exists(), f"{name} links {link}"
        if anchor:
            other = str(target.resolve().relative_to(ROOT))
            anchors = Page(other, target.read_text()).anchors
            assert anchor in anchors, f"{name} links {link}; {other} has {sorted(anchors)}"
    for span in page.spans:
        if re.fullmatch(r"(tests|tools|megamesh|examples|docker)/[\w./+*-]*", span):
            assert list(ROOT.glob(span.rstrip("/"))), f"{name} names {span}"
    known = (
        {key for keys in SECTIONS.values() for key in keys.model_fields}
        | RENAMED.keys()
        | IGNORED.keys()
        | {"fp16", "bf16"}
    )
    for block in page.blocks:
        if block.language == "yaml":
            unknown = {key.replace("-", "_") for key in yaml.safe_load(block.text)} - known
            assert not unknown, f"{name}:{block.line}: unknown keys {unknown}"


def test_the_front_page_is_short_and_pictures_are_small() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= LARGEST_FRONT_PAGE
    pictures = [path for path in (ROOT / "examples").rglob("*.png") if "runs" not in path.parts]
    assert pictures
    shown = {((ROOT / page.name).parent / link).resolve() for page in PAGES.values() for link in page.links}
    for picture in pictures:
        assert picture.stat().st_size < LARGEST_PICTURE, picture
        assert picture in shown, f"no page shows {picture}"
