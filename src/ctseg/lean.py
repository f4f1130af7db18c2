"""MONAI without the packages that it imports for training and tables: for programs that only run networks.

`import monai` imports every part of itself, and with them each optional package that happens to be installed: MLflow,
pandas, scikit-learn, TensorBoard, matplotlib's pyplot. No mask needs these. MONAI takes a missing one calmly: what
would use it says so when it is called. Only while MONAI is imported are they missing; afterwards they can be imported
as ever, so the preview has its matplotlib. To be used by programs of our own, never by the library: another program's
MONAI is not ours to lessen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

UNNEEDED = ("matplotlib", "mlflow", "pandas", "sklearn", "tensorboard", "tensorboardX", "wandb")


class _Absent(MetaPathFinder):
    """A finder that asks nobody further for some packages."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in UNNEEDED:
            raise ModuleNotFoundError(f"No module named {name!r}: left out, since no mask needs it", name=name)
        return None


def import_monai() -> None:
    """Import MONAI without `UNNEEDED`; nothing happens when it is there already."""
    if "monai" in sys.modules:
        return
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        import monai.bundle  # noqa: F401  which brings handlers and engines, too
    finally:
        sys.meta_path.remove(absent)
