"""Which version of a package is installed."""

from __future__ import annotations

import numpy as np

from contract.versions import installed


def test_a_package_says_its_version_and_what_is_not_installed_none() -> None:
    assert installed("numpy") == np.__version__
    assert installed("no-such-package-anywhere") is None
