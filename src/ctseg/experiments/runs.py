"""Running a list of experiments: each trains and is evaluated in processes of its own, and can be interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ctseg.datalist import LEDGER, read_cases
from ctseg.errors import ConfigError, CtsegError, ResourceError
from ctseg.experiments.files import Experiment, bundle_of, scaled_stages
from ctseg.experiments.logs import LONGEST, last_words, tell_epochs
from ctseg.files import file_sha256, write_beside
from ctseg.ledger import Ledger
from ctseg.registry import BundleInfo

STATE, LOG, REPORT, MODEL = "run.json", "log.txt", "evaluation", "model.pt"
TRIPTYCHS = "triptychs"  # folder in the report
FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"
_OURS = {"dataset_dir", "datalist", "ckpt_dir", "device", "epochs", "resume", "checkpoint", "split", "report_dir"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How the experiments are run.

    Attributes:
        data: the data folder, with datalist and ledger.
        datalist: file name of the datalist in it.
        out: each experiment gets the folder OUT/TASK/NAME.
        device: "cpu", "cuda:1"; None leaves it to the bundle, which insists on a GPU.
        epochs: instead of the experiment's own; stages are scaled.
        split: that is evaluated.
        overrides: settings by their place in the configuration, laid over every experiment.
        bundles: the folder of the bundles; None takes the shipped ones.
    """

    data: Path
    out: Path
    datalist: str = "datalist.json"
    device: str | None = None
    epochs: int | None = None
    split: str = "validation"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    bundles: Path | None = None


def run_experiments(experiments: Sequence[Experiment], plan: Plan, say: Say) -> list[dict[str, Any]]:
    """Run each experiment; what one meets does not stop the others.

    Returns:
        The state of each, as it lies in its folder.

    Raises:
        ConfigError: when the overrides change what the runner sets itself.
        InputError: when the datalist cannot be read.
        KeyboardInterrupt: after the running one was marked as interrupted.
    """
    if taken := [place for place in plan.overrides if place in _OURS]:
        raise ConfigError(f"--set cannot change {', '.join(taken)}, which the runner sets itself; use its options")
    read_cases(plan.data, plan.datalist)  # a missing datalist is nobody's experiment's fault
    states = []
    for number, experiment in enumerate(experiments, start=1):
        say(f"[{number}/{len(experiments)}] {experiment.name}")
        states.append(_run_or_say_why(experiment, plan, say))
        if states[-1]["status"] == FAILED:
            say(f"  failed: {states[-1]['reason']}")
    return states


def read_state(folder: Path) -> dict[str, Any]:
    """Return what is known of an experiment; empty when nothing has run."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _run_or_say_why(experiment: Experiment, plan: Plan, say: Say) -> dict[str, Any]:
    folder = plan.out.resolve() / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as mine:
        run = _Run(experiment, plan, folder, say)
        if not mine:  # its state is the other's to write
            reason = f"another process is running it in {folder}; wait for it, or end it"
            return {**run.state, "experiment": experiment.name, "status": FAILED, "reason": reason}
        try:
            return run.to_the_end()
        except CtsegError as error:
            return run.save(status=FAILED, reason=" ".join(str(error).split())[:LONGEST])
        except KeyboardInterrupt:
            run.save(status=INTERRUPTED, reason="stopped by hand; run the same command again to go on")
            raise


class _Run:
    """One experiment on its way: checked, trained, evaluated, each part only when it is not done yet."""

    def __init__(self, experiment: Experiment, plan: Plan, folder: Path, say: Say) -> None:
        self.experiment = experiment
        self.plan = plan
        self.folder = folder
        self.say = say
        self.state = read_state(folder)

    def save(self, **known: Any) -> dict[str, Any]:
        """Add to the state and write it."""
        one = self.experiment
        about = {
            "experiment": one.name,
            "task": one.task,
            "file": str(one.path),
            "theirs": one.theirs,
            "grid": one.grid,
        }
        self.state = {**self.state, **about, **known}
        write_beside(self.folder / STATE, (json.dumps(self.state, indent=2) + "\n").encode())
        return self.state

    def to_the_end(self) -> dict[str, Any]:
        """Do what is left to do and return the state.

        Raises:
            CtsegError: in one sentence, when it cannot go on.
        """
        bundle = bundle_of(self.experiment, self.plan.bundles)
        self._check_settings(bundle)
        own = int(self.experiment.content.get("epochs") or _declared(bundle, "epochs"))
        epochs = self.plan.epochs or own
        trained, done = self.state.get("trained"), {"split": self.plan.split, "epochs": epochs}
        if trained == epochs and self.state.get("evaluated") == done:
            self.say("  is finished already")
            return self.save(status=FINISHED, reason="")
        if isinstance(trained, int) and trained > epochs:
            raise ConfigError(f"it was trained for {trained} epochs already, more than {epochs}; name another --out")
        self.save(status=INTERRUPTED, reason="was ended from outside; run the same command again to go on")
        self.save(bundle=f"{bundle.name} {bundle.version}", planned=epochs, own_epochs=own)
        if trained != epochs:
            self._train(bundle, epochs)
        self._evaluate(bundle, done)
        return self.save(status=FINISHED, reason="")

    def _check_settings(self, bundle: BundleInfo) -> None:
        """Refuse to go on under other settings than those that the experiment was begun with."""
        plan = self.plan
        settings = {
            "the experiment's file": file_sha256(self.experiment.path),
            "the bundle's train.json": file_sha256(bundle.path / "configs" / "train.json"),
            "--data": str(plan.data.resolve()),
            "the datalist": file_sha256(plan.data / plan.datalist),
            "--set": dict(plan.overrides),
        }
        before = self.state.get("settings") or settings
        changed = [name for name, value in settings.items() if before.get(name) != value]
        if changed:
            raise ConfigError(
                f"it was begun with another state of {', '.join(changed)}; expected the same to go on: "
                f"name another --out, or remove {self.folder}"
            )
        self.save(settings=settings)

    def _train(self, bundle: BundleInfo, epochs: int) -> None:
        stages = self.experiment.content.get("stages")
        # What is prepared is shared: many experiments look at the same images in the same way.
        shared = self.plan.overrides.get("cache_dir", str(self.plan.out.resolve() / "prepared"))
        settings: dict[str, Any] = {"resume": True, "epochs": epochs, "cache_dir": shared}
        if stages and "stages" not in self.plan.overrides:
            settings["stages"] = scaled_stages(stages, epochs)
        self._call("training", bundle, ("train",), settings)
        if not (self.folder / MODEL).is_file():
            raise ConfigError("the training kept no weights: no validation gave a value of the monitored metric")
        self.save(trained=epochs, evaluated=None, patients=self._patients())

    def _evaluate(self, bundle: BundleInfo, done: Mapping[str, Any]) -> None:
        begun = time.perf_counter()
        report, model = self.folder / REPORT, self.folder / MODEL
        for old in report.glob("*.json") if report.is_dir() else []:
            old.unlink()
        settings: dict[str, Any] = {"checkpoint": str(model), "split": self.plan.split, "report_dir": str(report)}
        if bundle.segments:
            pictures = {
                "_target_": "ctseg.evaluation.triptychs.Triptychs",
                "labels": "@labels",
                "save_to": str(report / TRIPTYCHS),
            }
            settings["validate#additional_metrics#val_triptychs"] = pictures
            for old in (report / TRIPTYCHS).glob("*.*"):  # of an evaluation on another split
                old.unlink()
        settings |= self.experiment.content["experiment"].get("evaluation") or {}  # what only an evaluation has
        self._call("evaluation", bundle, ("train", "evaluate"), settings)
        seconds = round(time.perf_counter() - begun, 1)
        self.save(evaluated=dict(done), evaluation_seconds=seconds, patients=self._patients())

    def _call(self, what: str, bundle: BundleInfo, configs: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Run the bundle in a process of its own, with its output in the log.

        Raises:
            ResourceError: when the process was ended from outside; ConfigError: with its last words.
        """
        file = self.folder / f"{what}.json"
        write_beside(file, (json.dumps({**self._common(), **settings}, indent=2) + "\n").encode())
        first, *rest = (str(bundle.path / "configs" / f"{name}.json") for name in configs)
        files = [first, str(self.experiment.path), *rest, str(file)]
        command = [sys.executable, "-u", "-m", "monai.bundle", "run", f"--config_file={files}"]
        self.say(f"  {what}")
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            begin = log.tell()
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            code = _followed(command, self.folder, log, begin, self.say)
        if code < 0:
            name = signal.Signals(-code).name
            raise ResourceError(f"the {what} was ended from outside by {name} (out of memory?); run it again to go on")
        if code:
            raise ConfigError(f"{what}: {last_words(self.folder / LOG, begin)}")

    def _common(self) -> dict[str, Any]:
        plan = self.plan
        device = {} if plan.device is None else {"device": plan.device}
        return {
            "dataset_dir": str(plan.data.resolve()),
            "datalist": plan.datalist,
            "ckpt_dir": str(self.folder),
            "run_name": self.experiment.path.stem,
            "track_dir": str(plan.out.resolve() / "tracking"),
            **device,
            **plan.overrides,
        }

    def _patients(self) -> dict[str, int]:
        """How many patients each split has."""
        ledger = Ledger(self.plan.data / LEDGER)
        found = {case["patient"] for case in read_cases(self.plan.data, self.plan.datalist)}
        return {split: len(found & set(ledger.patients(split))) for split in ("train", "validation", "test")}


def _declared(bundle: BundleInfo, key: str) -> Any:
    return json.loads((bundle.path / "configs" / "train.json").read_text(encoding="utf-8"))[key]


def _followed(command: Sequence[str], folder: Path, log: TextIO, begin: int, say: Say) -> int:
    """Run a command to its end, telling each epoch; return its code. An interruption ends the command first."""
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, pass_fds=_inherited(folder))
    read = begin
    try:
        while process.poll() is None:
            time.sleep(0.2)
            read = tell_epochs(Path(log.name), read, say)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    tell_epochs(Path(log.name), read, say)
    return process.returncode


_LOCKS: dict[Path, int] = {}


def _inherited(folder: Path) -> tuple[int, ...]:
    """The lock goes to the process too: it holds as long as one of the two lives."""
    return (_LOCKS[folder],) if folder in _LOCKS else ()


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Keep a second runner away from a folder; gives false when another process works in it."""
    import fcntl

    with (folder / ".lock").open("w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        _LOCKS[folder] = stream.fileno()
        try:
            yield True
        finally:
            del _LOCKS[folder]
