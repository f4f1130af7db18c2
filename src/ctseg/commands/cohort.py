"""The options of `ctseg segment` that make its input a cohort, and the end of such a run."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ctseg import __version__, labelcodes
from ctseg.budget.reckoning import share_of
from ctseg.cohort.records import FAILED, FINISHED, MANIFEST
from ctseg.cohort.running import Cohort, Outcome, run_cohort
from ctseg.cohort.share import TORCHRUN, Share, parse_share, torchrun_share
from ctseg.cohort.studies import counted
from ctseg.cohort.worker import Settings
from ctseg.dependencies import check_dependencies, dependencies_of, needed
from ctseg.errors import ConfigError
from ctseg.files import file_sha256
from ctseg.registry import BundleInfo, verify_weights

SOME_FAILED, INTERRUPTED = 1, 130


def add_options(segment: argparse.ArgumentParser) -> None:
    """Add what belongs to cohorts to the options of `segment`."""
    group = segment.add_argument_group(
        "many studies",
        "With --workers, INPUT is a folder of studies: each NIfTI, NRRD or MetaImage file, each zip and each folder of "
        "DICOM files below it gets a folder in OUT. Without it, a folder is one DICOM study. The same command goes on "
        "where it was left. Exit code 0: all are finished; 1: some are not, see manifest.csv.",
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="segment every study below INPUT, N side by side (start with 1)"
    )
    group.add_argument("--only", metavar="PATTERN", help="only studies whose path below INPUT matches: '*/ct.nii.gz'")
    group.add_argument(
        "--names",
        choices=("path", "id"),
        help="result folders named by the path below INPUT, or by an id where paths name patients (default: path)",
    )
    group.add_argument(
        "--share",
        metavar="SHARE",
        help=f"this process's part: 2/8 for the second of eight, or {TORCHRUN} to be told by torchrun (default: all)",
    )


def is_asked_for(arguments: argparse.Namespace) -> bool:
    """Whether the input is a cohort.

    Raises:
        ConfigError: an option of cohorts comes without --workers.
    """
    if arguments.workers is not None:
        return True
    for option in ("only", "names", "share"):
        if getattr(arguments, option) is not None:
            raise ConfigError(f"--{option} is for many studies; add --workers N to segment each study below the folder")
    return False


def run(
    arguments: argparse.Namespace, bundles: Sequence[BundleInfo], kinds: tuple[str, ...], say: Callable[[str], None]
) -> None:
    """Segment a cohort.

    Args:
        arguments: of `ctseg segment`.
        bundles: what runs on each study.
        kinds: the kinds of output.
        say: gets lines for who waits.

    Raises:
        CtsegError: nothing can be done.
        SystemExit: with 1 when not every study is finished, with 130 when it was interrupted.
    """
    with _ended_by_sigterm():
        share = Share() if arguments.share is None else parse_share(arguments.share) or torchrun_share()
        cohort = Cohort(
            folder=arguments.input,
            out=arguments.out,
            settings=_settings(arguments, kinds),
            made_with=made_with(arguments, bundles, kinds),
            workers=arguments.workers,
            only=arguments.only,
            by_id=arguments.names == "id",
            share=share,
        )
        outcome = run_cohort(cohort, say)
        if outcome.interrupted:
            say(f"interrupted: {_counts(outcome)}; what is finished stays, and the same command goes on")
            raise SystemExit(INTERRUPTED)
        say(f"{_counts(outcome)}; see {arguments.out / MANIFEST}.csv and .json")
        _leave(share.worst(0 if outcome.all_well else SOME_FAILED))


def _leave(code: int) -> None:
    if code:
        raise SystemExit(code)


def _counts(outcome: Outcome) -> str:
    failed, finished, of = outcome.count(FAILED), outcome.count(FINISHED), len(outcome.share)
    rest = of - failed - finished
    return f"{finished} of {counted(of)} finished, {failed} failed" + (f", {rest} not done" if rest else "")


def _settings(arguments: argparse.Namespace, kinds: tuple[str, ...]) -> Settings:
    return Settings(
        task=None if arguments.task is None else str(arguments.task),
        organs=arguments.organs,
        codes=_absolute(arguments.codes),
        kinds=kinds,
        faces=arguments.faces,
        overwrite=arguments.overwrite,
        device=arguments.device,
        slot=0,
        threads=1,
        runtime=arguments.runtime,
        max_ram=None if arguments.max_ram is None else share_of(arguments.max_ram, arguments.workers),
    )


def _absolute(codes: str) -> str:
    return codes if codes in labelcodes.presets() else str(Path(codes).absolute())


def made_with(arguments: argparse.Namespace, bundles: Sequence[BundleInfo], kinds: tuple[str, ...]) -> dict[str, Any]:
    """Return what decides a result besides the study: versions, options, and every bundle that has a part in it.

    Raises:
        BundleError: a bundle cannot run.
    """
    for info in bundles:
        verify_weights(info)
        check_dependencies(info)
    labels = {name: code for info in bundles for name, code in info.labels.items()}
    own = arguments.codes == labelcodes.OWN
    return {
        "ctseg": __version__,
        "organs": arguments.organs,
        "kinds": kinds,
        "faces": arguments.faces,
        "codes": arguments.codes if own else labelcodes.codes_for(_asked(labels, arguments.organs), arguments.codes),
        **({} if arguments.runtime == "torch" else {"runtime": arguments.runtime}),
        "bundles": sorted({tuple(_state(info)) for bundle in bundles for info in _with_needed(bundle)}),
    }


def _asked(labels: dict[str, int], organs: Sequence[str] | None) -> dict[str, int]:
    return labels if organs is None else {name: labels[name] for name in organs}


def _with_needed(info: BundleInfo) -> Iterator[BundleInfo]:
    yield info
    for dependency in dependencies_of(info):
        yield from _with_needed(needed(dependency, info.path))


def _state(info: BundleInfo) -> list[str]:
    inference = info.path / "configs" / "inference.json"
    files = [file for file in (inference, info.weights) if file is not None and file.is_file()]
    return [info.name, info.version, *(file_sha256(file) for file in files)]


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Take the signal with which engines and queues end a process for a Ctrl-C."""

    def interrupted(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
