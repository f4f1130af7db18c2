"""Active learning replayed on a labelled collection: which strategy needs the fewest labels, if any beats chance.

Every strategy begins with the same patients for the same seed; after each training it chooses the next ones from its
own network's scores. Patients are the unit, since an annotator is asked for a patient. All are measured on the ledger's
validation patients, test patients are never touched.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.annotation.acquisition import pooled, score_image
from ctseg.annotation.strategies import NEEDS, STRATEGIES, CaseScore, Pool, choose
from ctseg.datalist import cases_of
from ctseg.errors import ConfigError, InputError
from ctseg.files import write_beside
from ctseg.registry import BundleInfo

RESULTS = "simulation.json"


@dataclass(frozen=True)
class Plan:
    """What is replayed.

    Attributes:
        strategies: names, `random` among them.
        seeds: how often each is replayed, from another start.
        start: patients with a label in the first round.
        step: patients that are chosen after each round.
        rounds: how many trainings each replay has.
        epochs: of each training, from random weights.
        runs: of the network for each image where the strategy compares several.
        way: how these differ: "augment" or "dropout".
    """

    strategies: tuple[str, ...]
    seeds: int
    start: int
    step: int
    rounds: int
    epochs: int
    runs: int = 3
    way: str = "augment"


@dataclass(frozen=True)
class Round:
    """One training of a replay.

    Attributes:
        strategy: its name.
        seed: which replay.
        round: which training, from 0.
        labelled: the patients that it learnt from.
        dice: mean over the validation patients.
        chosen: the patients that are added for the next one.
        seconds: training, measuring and choosing together.
    """

    strategy: str
    seed: int
    round: int
    labelled: tuple[str, ...]
    dice: float
    chosen: tuple[str, ...]
    seconds: float


def check_plan(plan: Plan, patients: int) -> None:
    """Refuse a plan that cannot be carried out.

    Raises:
        ConfigError: an unknown strategy, no `random` to compare with, or numbers below 1.
        InputError: more patients are asked for than there are to train on.
    """
    if unknown := [name for name in plan.strategies if name not in STRATEGIES]:
        raise ConfigError(f"There is no strategy {unknown[0]!r}: expected any of {', '.join(STRATEGIES)}.")
    if "random" not in plan.strategies:
        raise ConfigError("The strategies lack random, with which the others are compared: add it.")
    for name in ("seeds", "start", "step", "rounds", "epochs"):
        if getattr(plan, name) < 1:
            raise ConfigError(f"{name} is {getattr(plan, name)}: expected 1 at least.")
    needed = plan.start + plan.step * (plan.rounds - 1)
    if needed > patients:
        raise InputError(
            f"The plan labels {needed} patients, but {patients} train: ask for fewer rounds, a smaller start or step."
        )


def simulate(
    bundle: BundleInfo,
    data: Path,
    plan: Plan,
    out: Path,
    *,
    datalist: str = "datalist.json",
    device: str = "cpu",
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Round]:
    """Replay annotation; a second call with the same `out` goes on where the first was stopped.

    Args:
        bundle: whose train.json trains.
        data: the data folder, with datalist and ledger.
        plan: what is replayed.
        out: folder for the results and the prepared cases.
        datalist: the datalist's name.
        device: "cpu" or "cuda:N".
        overrides: values in place of those in train.json, such as a smaller network.
        say: told of each training.

    Raises:
        ConfigError, InputError: see `check_plan`; or `out` holds the results of another plan.
        SystemExit: a sentence of the configuration.
    """
    cases = {split: cases_of(split, data, datalist) for split in ("train", "validation")}
    patients = sorted({case["patient"] for case in cases["train"]})
    check_plan(plan, len(patients))
    settings = {
        "bundle": bundle.name,
        "plan": json.loads(json.dumps(asdict(plan))),
        "overrides": dict(overrides or {}),
        "patients": {split: len({case["patient"] for case in found}) for split, found in cases.items()},
    }
    done = _read(out / RESULTS, settings)
    trainer = _Trainer(bundle, data, out, plan, device, dict(overrides or {}), cases)
    for seed in range(plan.seeds):
        start = tuple(patients[index] for index in np.random.default_rng(seed).permutation(len(patients))[: plan.start])
        labelled = dict.fromkeys(plan.strategies, start)
        for number in range(plan.rounds):
            for strategy in plan.strategies:
                if _found(done, strategy, seed, number) is None:
                    # The first training is the same for all: it is done once, and each strategy chooses from it.
                    sharing = [s for s in plan.strategies if number == 0 and _found(done, s, seed, 0) is None]
                    last = number == plan.rounds - 1
                    new = trainer.rounds(sharing or [strategy], seed, number, labelled[strategy], last)
                    done += new
                    content = {"settings": settings, "rounds": [asdict(r) for r in done]}
                    write_beside(out / RESULTS, (json.dumps(content, indent=1) + "\n").encode())
                    names, one = ", ".join(r.strategy for r in new), new[0]
                    say(
                        f"{names}, seed {seed}: {len(one.labelled)} patients, Dice {one.dice:.3f} ({one.seconds:.0f} s)"
                    )
                known = _found(done, strategy, seed, number)
                labelled[strategy] = (*labelled[strategy], *(known.chosen if known else ()))
    return done


def _found(done: Sequence[Round], strategy: str, seed: int, number: int) -> Round | None:
    return next((one for one in done if (one.strategy, one.seed, one.round) == (strategy, seed, number)), None)


def _read(path: Path, settings: Mapping[str, Any]) -> list[Round]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): move it away, or name another folder.") from error
    if content.get("settings") != json.loads(json.dumps(settings)):
        raise InputError(f"{path} holds the results of another plan: name another folder.")
    rows = content["rounds"]
    return [Round(**{**row, "labelled": tuple(row["labelled"]), "chosen": tuple(row["chosen"])}) for row in rows]


@dataclass
class _Trainer:
    bundle: BundleInfo
    data: Path
    out: Path
    plan: Plan
    device: str
    overrides: dict[str, Any]
    cases: Mapping[str, Sequence[dict[str, Any]]]

    def rounds(
        self, strategies: Sequence[str], seed: int, number: int, labelled: tuple[str, ...], last: bool
    ) -> list[Round]:
        """Train on some patients, measure, and choose the next ones by each strategy."""
        begin = time.perf_counter()
        train = [case for case in self.cases["train"] if case["patient"] in labelled]
        work = self.out / "run"
        shutil.rmtree(work, ignore_errors=True)
        flow = self._flow(train, work, seed)
        flow.run()
        parser = flow.parser
        dice = float(parser.get_parsed_content("validate::evaluator").state.metrics["val_mean_dice"])
        chosen = [() if last else self._choose(parser, name, seed, number, labelled) for name in strategies]
        flow.finalize()
        shutil.rmtree(work, ignore_errors=True)
        seconds = round(time.perf_counter() - begin, 1)
        return [
            Round(name, seed, number, labelled, dice, own, seconds)
            for name, own in zip(strategies, chosen, strict=True)
        ]

    def _flow(self, train: list[dict[str, Any]], work: Path, seed: int) -> Any:
        from monai.bundle import ConfigWorkflow

        flow = ConfigWorkflow(
            config_file=str(self.bundle.path / "configs" / "train.json"),
            workflow_type="train",
            logging_file=False,
            **{
                "bundle_root": str(self.bundle.path),
                "dataset_dir": str(self.data),
                "ckpt_dir": str(work),
                "cache_dir": str(self.out / "prepared"),
                "device": self.device,
                "epochs": self.plan.epochs,
                "val_interval": self.plan.epochs,
                "num_workers": 0,
                "progress": False,
                "seed": seed,
                **self.overrides,
                "train#data": train,
                "validate#data": list(self.cases["validation"]),
            },
        )
        flow.initialize()
        return flow

    def _choose(self, parser: Any, strategy: str, seed: int, number: int, labelled: tuple[str, ...]) -> tuple[str, ...]:
        patients = sorted({case["patient"] for case in self.cases["train"]})
        wanted = patients if strategy in NEEDS else []
        known = self._scores(parser, wanted, self.plan.runs if strategy == "disagreement" else 0)
        left = [known.get(patient, CaseScore(patient)) for patient in patients if patient not in labelled]
        done = [known.get(patient, CaseScore(patient)) for patient in labelled]
        rng = np.random.default_rng([seed, number, *strategy.encode()])
        organs = parser.get_parsed_content("labels")
        return tuple(choose(strategy, Pool(left, done, organs), self.plan.step, rng))

    def _scores(self, parser: Any, patients: Sequence[str], runs: int) -> dict[str, CaseScore]:
        import torch

        from ctseg.devices import as_device
        from ctseg.slicecache import cached_dataset

        if not patients:
            return {}
        network = parser.get_parsed_content("network").eval()
        inferer = parser.get_parsed_content("validate::inferer")
        names = parser.get_parsed_content("labels")
        cases = [case for case in self.cases["train"] if case["patient"] in patients]
        items: Any = cached_dataset(
            cases, parser.get_parsed_content("validate::preprocessing"), cache_dir=str(self.out / "prepared")
        )
        found: dict[str, list[CaseScore]] = {}
        for case, item in zip(cases, items, strict=True):
            image = item["image"][None].to(as_device(self.device))
            with torch.inference_mode():
                score = score_image(image, lambda seen: inferer(seen, network), network, names, self.plan.way, runs)
            found.setdefault(case["patient"], []).append(score)
        return {patient: pooled(patient, parts) for patient, parts in found.items()}
