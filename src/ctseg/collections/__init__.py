"""Collections of images with labels, as others lay them out on disk, told apart and listed case by case.

Each module of this package knows one layout. It reads names and tables, never an image: whether a pair fits is judged
later, case by case (`ctseg.prepare.pairchecks`), so that one bad case does not hide the next.
"""

from __future__ import annotations

from ctseg.collections.detecting import FLAT_KINDS, KINDS, find_collection
from ctseg.collections.listing import Candidate, Collection, Layout, Refusal

__all__ = ["FLAT_KINDS", "KINDS", "Candidate", "Collection", "Layout", "Refusal", "find_collection"]
