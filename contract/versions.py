"""Which version of a package is installed, for every record that says what made it (beside all hops)."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def installed(name: str) -> str | None:
    """As the package itself says; None where it is not installed, as the product in a checkout of its own."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
