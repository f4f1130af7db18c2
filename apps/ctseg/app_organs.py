"""Several organs in one request: each by the bundle that segments it, merged in the order of the request.

No organ is named here. A bundle's metadata says in `part_of` which model of several organs it belongs to; the model's
name, its organs and their usual order come from there.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app_infer import described, wanted_device
from app_networks import Networks
from app_results import wanted_dtype, wanted_extension, write_result
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list

from ctseg.errors import BundleError, ConfigError, CtsegError
from ctseg.organchoice import Selection, choose_organs, combined_bundle, ordered_members
from ctseg.registry import BundleInfo

logger = logging.getLogger(__name__)

_naming = threading.Lock()


def composites_of(bundles: Mapping[str, BundleInfo]) -> list[str]:
    """Return the names of the models of several organs that bundles belong to; a bundle's own name is never one."""
    names = {name for info in bundles.values() for name in info.part_of}
    for name in names & bundles.keys():
        logger.warning("No model of several organs is called %s: a bundle has this name", name)
    return sorted(names - bundles.keys())


class OrgansTask(InferTask):
    """A model of several organs: `params` may hold `organs`, a list or names with commas, in order of priority."""

    def __init__(self, name: str, networks: Networks, results: Path) -> None:
        """Describe the model; nothing is loaded yet.

        Args:
            name: the model's.
            networks: what it runs.
            results: folder for the masks that are sent.
        """
        self.name = name
        self._networks = networks
        self._results = results
        super().__init__(InferType.SEGMENTATION, {}, 3, "", {})

    def is_valid(self) -> bool:
        """Listed always, and says what to do where none of its bundles is trained."""
        return True

    def info(self) -> dict[str, Any]:
        """Return what a bundle's task returns; `organs` are all that may be asked for."""
        bundles = self._networks.bundles()
        organs = self._usual(bundles)
        answer: dict[str, Any] = super().info()
        ready = bool(organs)
        organs = organs or ordered_members(bundles, self.name)
        try:
            combined = selection_of(organs, bundles).bundle
        except CtsegError as error:
            return {**answer, "description": str(error), "version": "", "trained": False, "status": "broken"}
        said = f"Several organs in one mask: {', '.join(organs)}. The first of params' organs wins a shared voxel."
        answer.update(
            labels=combined.labels,
            description=said if ready else f"{said} Not usable yet: none of its bundles is trained.",
            version=combined.version,
            trained=ready,
            status="trained" if ready else "untrained",
            modality=combined.modality,
            evidence=combined.evidence,
            organs=organs,
        )
        return answer

    def config(self) -> dict[str, Any]:
        """Return the options that a viewer shows: a list's first entry is the usual one."""
        devices = device_list()
        return {
            "device": devices if "cpu" in devices else [*devices, "cpu"],
            "organs": self._options(self._usual(self._networks.bundles())),
        }

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment one image.

        Args:
            request: `image` (a path that the app has checked), `organs`, `device`, and the result's form.

        Returns:
            The mask's file, called segmentation, and what is said about it.

        Raises:
            CtsegError: one sentence, for everything that the caller can mend.
        """
        begin = time.perf_counter()
        request = {**request, "result_extension": request.get("result_extension") or ".nii.gz"}
        extension = wanted_extension(request)
        wanted_dtype(request)  # before the work, not after
        device = wanted_device(request.get("device"))
        selection = self.selection(request.get("organs"), request.get("task"))
        prediction = self._networks.segment(Path(request["image"]), selection, device)
        start = time.perf_counter()
        written = write_result(prediction.label_map, prediction.volume, self._results, request)
        file = _named(written, f"segmentation{extension}")
        end = time.perf_counter()
        answer = described(prediction, write=end - start, total=end - begin)
        answer["organs"] = list(selection.labels)
        logger.info("Segmented %s on %s: %s", ", ".join(selection.labels), prediction.device, answer["latencies"])
        return str(file), answer

    def selection(self, asked: Any, task: Any = None) -> Selection:
        """Return what a request's `organs` and `task` mean; no organs are the usual ones.

        Raises:
            ConfigError, BundleError: see `ctseg.organchoice.choose_organs`; no bundle of the model is trained.
        """
        bundles = self._networks.bundles()
        usual = self._usual(bundles)
        if not asked or asked == self._options(usual):  # some clients send all options back
            if not usual:
                raise BundleError(
                    f"none of the bundles of {self.name} is trained, so it cannot segment yet; train one first "
                    "(ctseg tasks lists them)"
                )
            return selection_of(usual, bundles, task)
        names = [name.strip() for name in asked.split(",") if name.strip()] if isinstance(asked, str) else asked
        if not isinstance(names, list):
            raise ConfigError(f"organs is {names!r}: expected a list of names, in order of priority")
        return selection_of(names, bundles, task)

    def _usual(self, bundles: Mapping[str, BundleInfo]) -> list[str]:
        """The organs of the model whose bundles can run now, in order of priority."""
        usable = {name: info for name, info in bundles.items() if info.ready and not self._networks.problem(info)}
        return ordered_members(usable, self.name)

    @staticmethod
    def _options(organs: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([",".join(organs), *organs]))


def selection_of(organs: Sequence[str], bundles: Mapping[str, BundleInfo], task: Any = None) -> Selection:
    """Return what is to run for organs of the served bundles.

    Args:
        organs: in order of priority.
        bundles: those that are served.
        task: name of the bundle to take wherever it has the organ.

    Raises:
        ConfigError: no such task, or see `ctseg.organchoice.choose_organs`.
    """
    if task and (not isinstance(task, str) or task not in bundles):
        known = ", ".join(name for name, info in bundles.items() if info.segments)
        raise ConfigError(
            f"there is no task {str(task)[:100]!r}; the known ones are: {known}; name one, or leave it out"
        )
    choices = choose_organs(organs, bundles, task=bundles[task] if task else None)
    return Selection(combined_bundle(choices), choices)


def organ_tasks(bundles: Mapping[str, BundleInfo], networks: Networks, results: Path) -> dict[str, InferTask]:
    """Return the models of several organs, by name."""
    return {name: OrgansTask(name, networks, results) for name in composites_of(bundles)}


def _named(file: Path, name: str) -> Path:
    """Give an answer the name that its reader sees, in a folder of its own; emptied ones of earlier answers go."""
    with _naming:
        for old in file.parent.glob("answer-*"):
            try:
                old.rmdir()
            except OSError:  # its answer is still being sent
                continue
        folder = file.parent / f"answer-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        return file.rename(folder / name)
