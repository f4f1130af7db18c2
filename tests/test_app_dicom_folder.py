"""What belongs to studies is found again: the split ledger, trained networks, the audit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ctseg.registry import app_root

pytest.importorskip("monailabel", reason="the server needs monailabel: scripts/setup server")


@pytest.fixture
def kept_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(app_root()), *sys.path])
    from app_dicom_folder import kept_in

    return kept_in


def test_a_folder_that_was_named_is_used_whatever_the_address(kept_in: Any, tmp_path: Path) -> None:
    """`ctseg serve` names one, and its private Orthanc has another port at each start."""
    first, second = (kept_in(str(tmp_path), f"http://127.0.0.1:{port}/dicom-web") for port in (40001, 40002))
    assert first == second == tmp_path.resolve()


def test_without_a_name_each_address_has_its_own(kept_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path))
    one, other = kept_in("", "http://a/dicom-web"), kept_in("", "http://b/dicom-web")
    assert one.parent == other.parent == tmp_path.resolve() and one != other
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert kept_in("", "http://a/dicom-web").is_relative_to(tmp_path.resolve() / "home" / ".local" / "share" / "ctseg")
