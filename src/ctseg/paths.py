"""Where a bundle lies, told to its own configuration."""

from __future__ import annotations

import inspect
from pathlib import Path

from ctseg.errors import BundleError


def bundle_root() -> str:
    """Return the root folder of the bundle whose configuration is being parsed.

    A MONAI configuration cannot learn its own place: a plain `monai.bundle run` sets no `bundle_root`. The workflow
    that parses it can: this walks up the stack to the `ConfigWorkflow`, which keeps the folder of its files. Where a
    caller asks a workflow's parser itself, that workflow is among the caller's variables.

    Raises:
        BundleError: when called outside a `ConfigWorkflow` (other callers override `bundle_root` in the configuration).
    """
    from monai.bundle import ConfigParser, ConfigWorkflow

    frame, parser = inspect.currentframe(), None
    while frame is not None:
        here = frame.f_locals
        if parser is None and isinstance(here.get("self"), ConfigParser):
            parser = here["self"]
        for workflow in (here.get("self"), *here.values()):
            if not isinstance(workflow, ConfigWorkflow):
                continue
            if workflow is here.get("self") or (parser is not None and getattr(workflow, "parser", None) is parser):
                folder = Path(workflow.config_root_path).resolve()
                return str(folder.parent if folder.name == "configs" else folder)
        frame = frame.f_back
    raise BundleError(
        "bundle_root was asked for outside a run of a bundle, where its folder cannot be known: "
        "set `bundle_root` in the configuration, for example --bundle_root bundles/liver_ct_segmentation."
    )
