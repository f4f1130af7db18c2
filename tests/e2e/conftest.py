"""Two servers that several modules share: one as it starts by itself, and one with tokens that listens everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers_site import Site, running_site


@pytest.fixture(scope="session")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server without tokens, started without a host."""
    pytest.importorskip("monailabel", reason="the server's extra is not installed")
    with running_site(tmp_path_factory.mktemp("open"), None, tokens=False) as site:
        yield site


@pytest.fixture(scope="session")
def guarded_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with a users file that listens on all addresses."""
    pytest.importorskip("monailabel", reason="the server's extra is not installed")
    with running_site(tmp_path_factory.mktemp("guarded"), "0.0.0.0", tokens=True) as site:
        yield site
