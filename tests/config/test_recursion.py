"""The notation of layers and schemes."""

import pytest

from megamesh.config.recursion import RecursionLayout, parse_recursion
from megamesh.config.schemes import parse_scheme
from megamesh.errors import ConfigError


@pytest.mark.parametrize(
    ("notation", "layout", "weights", "depth"),
    [
        ("4+8R2+4", RecursionLayout(4, 8, 2, 4, shared=True), 8, 24),
        ("3 + 6r3 + 3", RecursionLayout(3, 6, 3, 3, shared=True), 6, 24),
        ("0+1R1+0", RecursionLayout(0, 1, 1, 0, shared=True), 1, 1),
        ("4+8+8+4", RecursionLayout(4, 8, 2, 4, shared=False), 16, 24),
        ("1+2+1", RecursionLayout(1, 2, 1, 1, shared=False), 2, 4),
    ],
)
def test_layout(notation: str, layout: RecursionLayout, weights: int, depth: int) -> None:
    parsed = parse_recursion(notation)
    assert (parsed, parsed.num_core_weights, parsed.compute_depth) == (layout, weights, depth)
    assert parse_recursion(str(parsed)) == parsed


@pytest.mark.parametrize(
    "notation", ["", "24", "4+8", "4+8R+4", "4-8R2-4", "4+8R2", "a+8R2+4", "4+8R0+4", "4+0R2+4", "4+8+7+4"]
)
def test_what_is_no_layout_is_refused(notation: str) -> None:
    with pytest.raises(ConfigError, match="recursion="):
        parse_recursion(notation)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("base", ("base",)),
        ("mesh", ("mesh",)),
        ("anchor*", ("anchor*",)),
        ("residual+anchor", ("residual", "anchor")),
        ("anchor* + residual", ("residual", "anchor*")),
        ("anchor+anchor*", ("anchor", "anchor*")),
    ],
)
def test_scheme_terms_come_in_one_order(text: str, terms: tuple[str, ...]) -> None:
    assert parse_scheme(text) == terms


@pytest.mark.parametrize(
    "text", ["", "mash", "mesh+anchor", "base+residual", "static+dynamic", "anchor+anchor", "anchor+"]
)
def test_what_is_no_scheme_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="recursion_scheme="):
        parse_scheme(text)
