"""The generated reference."""

from pathlib import Path

from megamesh.config.load import SECTION_OF
from megamesh.config.reference import reference
from megamesh.config.sections import SECTIONS

FILE = Path(__file__).parents[2] / "examples" / "configs" / "REFERENCE.md"


def test_the_reference_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == reference(), (
        "run python -m megamesh.config.reference examples/configs/REFERENCE.md"
    )


def test_every_key_is_described() -> None:
    text = reference()
    for key, section in SECTION_OF.items():
        assert f"| `{key}` |" in text
        assert SECTIONS[section].model_fields[key].description
