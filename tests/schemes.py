"""The schemes that tests run over: all that the registry has, some sums, and one of a user's own."""

from megamesh.config.keys import RecursionConfig
from megamesh.config.schemes import names
from megamesh.model.recursion.scheme import describe

OWN = "tests.own_scheme:Momentum"
SUMS = ["residual+anchor", "anchor+anchor*", "residual+anchor+anchor*"]
SCHEMES = [*names(), *SUMS]


def divides(scheme: str) -> bool:
    """Whether tensor ranks divide its tokens."""
    return describe(RecursionConfig(recursion="1+1R2+1", recursion_scheme=scheme)).divides_tokens


DIVIDED = [scheme for scheme in names() if divides(scheme)]
