"""A collection becomes a data folder: a datalist of the pairs that passed every check, and the ledger of its split.

Nothing is copied: the datalist names the images where they lie. Only where each structure has a mask of its own, one
label map is made of them, in `labels/` of the data folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.collections import FLAT_KINDS, KINDS, Candidate, Collection, Layout, Refusal, find_collection
from ctseg.collections.turned import TRANSFORM
from ctseg.datalist import DATALIST, LEDGER, read_cases, write_cases
from ctseg.errors import ConfigError, CtsegError, InputError, LedgerError, OutputError
from ctseg.ledger import Ledger
from ctseg.prepare.givensplits import read_split
from ctseg.prepare.ownsplits import own_split
from ctseg.prepare.pairchecks import Measured, Pair, measure_pair, read_pair
from ctseg.prepare.plan import Request, check_values, codes_of, flat_values, is_slice, slice_keys, with_patients
from ctseg.registry import BundleInfo
from ctseg.volume import Volume

if TYPE_CHECKING:
    from ctseg.turning.report import Turned

LABELS = "labels"


@dataclass(frozen=True)
class Taken:
    """A case that passed every check.

    Attributes:
        candidate: the case as listed.
        item: its entry in the datalist, paths absolute.
        measured: what was counted.
        split: its patient's side.
    """

    candidate: Candidate
    item: dict[str, Any]
    measured: Measured
    split: str


@dataclass(frozen=True)
class Prepared:
    """What became of a collection.

    Attributes:
        collection: as listed.
        codes: structure -> value of the label maps made here; empty where none was made.
        asked: structures that the user named.
        taken: the cases of the datalist.
        refused: the others, with the reason.
        notes: sentences for the user.
        turns: of the kind "turned": each taken case before and after its turn.
    """

    collection: Collection
    codes: dict[str, int]
    asked: frozenset[str]
    taken: tuple[Taken, ...]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]
    turns: tuple[Turned, ...] = ()


def prepare(
    request: Request,
    bundle: BundleInfo,
    say: Callable[[str], None] = lambda text: None,
    steps: Callable[[Sequence[Candidate]], Any] = iter,
) -> Prepared:
    """List a collection, check every pair, and write datalist and ledger.

    Args:
        request: what is asked for.
        bundle: the task; its labels and modality count.
        say: called with a sentence when a stage begins.
        steps: wraps the list of cases, to show progress.

    Raises:
        CtsegError: nothing can be begun: no such collection, an option is missing or wrong, a given split conflicts
            with the ledger. What is wrong with a case never raises; it is in `refused`.
    """
    earlier = _earlier(request)
    # What the network takes beside the image is joined as well, without being asked for.
    more = (*bundle.input_organs, *request.structures)
    layout = Layout(
        (*bundle.labels, *more), request.columns, request.flags, request.suffix, request.masks, request.values,
        request.pictures,
    )  # fmt: skip
    collection = find_collection(request.source, request.kind, layout)
    say(f"found {collection.saw}")
    request = dataclasses.replace(request, kind=collection.kind, colors=request.colors or collection.colors)
    _check_turn(collection, request.turn, bundle)
    codes = codes_of(collection, bundle, more)
    _check_flat(collection, bundle)
    values = {**collection.values, **flat_values(collection, request, bundle), **request.values}
    check_values(collection, values, bundle, request.structures)
    keys = slice_keys(collection, request)
    named, refused = with_patients(collection.candidates, request.patient or bundle.patient_pattern)
    ledger = Ledger(request.out / LEDGER)
    given: dict[str, str] = {}
    own: dict[str, str] = {}
    notes = list(collection.notes)
    if request.split is None and not request.draw:
        own, more_notes = own_split(named, ledger)
        notes += more_notes
    elif request.split is not None:
        split = read_split(request.split, request.fold)
        say(f"taking over {split.saw}")
        given = split.patients((candidate.case_id, patient) for candidate, patient in named)
        _check_ledger(given, ledger)
        if not given:
            raise ConfigError(f"{request.split} names none of the {len(named)} cases; check its names against theirs")
    checker = _Checker(request, bundle.modality, codes, values, keys, given, ledger, earlier)
    say(f"checking {len(named)} cases")
    patients = dict((candidate.case_id, patient) for candidate, patient in named)
    for candidate in steps([candidate for candidate, _ in named]):
        checker.check(candidate, patients[candidate.case_id])
    refused = [*collection.refused, *refused, *checker.refused]
    taken = tuple(_assigned(checker.taken, ledger, given or own))
    if taken:
        write_cases(request.out, [*earlier.values(), *(case.item for case in taken)])
    asked = frozenset([*request.values.values(), *request.structures])
    refused.sort(key=lambda refusal: refusal.case_id)
    return Prepared(collection, codes, asked, taken, tuple(refused), tuple(notes), tuple(checker.turns))


class _Checker:
    """Goes through the cases one by one and sorts them into taken and refused."""

    def __init__(
        self,
        request: Request,
        modality: str,
        codes: Mapping[str, int],
        values: Mapping[int, str],
        keys: Mapping[str, Any],
        given: Mapping[str, str],
        ledger: Ledger,
        earlier: dict[str, dict[str, Any]],
    ) -> None:
        self.request, self.modality, self.codes, self.values, self.keys = request, modality, codes, values, keys
        self.given, self.ledger, self.earlier = given, ledger, earlier
        self.taken: list[Taken] = []
        self.turns: list[Turned] = []
        self.refused: list[Refusal] = []
        self._seen: dict[str, Taken] = {}
        self._resizes = request.sizes == "resize"

    def check(self, candidate: Candidate, patient: str) -> None:
        try:
            self.taken.append(self._checked(candidate, patient))
        except OutputError:  # no case's fault: the disk is full or the folder read-only
            raise
        except (CtsegError, OSError, ValueError, MemoryError) as error:
            self.refused.append(Refusal(candidate.case_id, " ".join(str(error).split()) or type(error).__name__))

    def _checked(self, candidate: Candidate, patient: str) -> Taken:
        side = self.ledger.split_of(patient) or self.given.get(patient, "")
        if self.given and not side:
            raise InputError("the given split does not name it: add it there, or prepare without --split")
        keys = {**candidate.keys, **self.keys} if is_slice(candidate) else dict(candidate.keys)
        pair = read_pair(candidate, _reading_keys(keys, self.values), self.modality, self.codes, self._resizes)
        made = not isinstance(candidate.label, Path)
        values = {code: name for name, code in self.codes.items()} if made else self.values
        flags = {} if self.request.flags == "masks" else candidate.present
        measured = measure_pair(pair, values, flags, others=self.request.other_labels)
        self._check_unique(candidate, patient, measured)
        if self.request.empty == "refuse" and not any(measured.voxels.values()):
            raise InputError("its mask is empty: nothing is outlined; leave out --empty refuse to keep such images")
        label = candidate.label
        if TRANSFORM in keys:
            self.turns.append(_look_at(candidate, pair.image))
        if TRANSFORM in keys and self.request.turn == "mask":
            keys.pop(TRANSFORM)
            label = self._written(pair, candidate)
            candidate = dataclasses.replace(candidate, label=label, keys=keys)
        if pair.changed:
            keys.pop("mask_colors", None)
        if not isinstance(label, Path) or pair.changed:
            label = self._written(pair, candidate)
        item = {
            "case_id": candidate.case_id,
            "patient": patient,
            "image": str(candidate.image.resolve()),
            "label": str(label.resolve()),
            "mask_values": {str(value): name for value, name in values.items()},
            **keys,
        }
        if self.request.kind == "slices":
            item["presence"] = {name: int(count > 0) for name, count in measured.voxels.items()}
        taken = Taken(candidate, item, measured, side)
        self._seen.setdefault(measured.digest, taken)
        return taken

    def _written(self, pair: Pair, candidate: Candidate) -> Path:
        if candidate.keys.get("flat"):
            from ctseg.flat.pairs import write_pair_labels

            made = not isinstance(candidate.label, Path)
            path = self.request.out / LABELS / f"{candidate.case_id}.png"
            return write_pair_labels(pair, self.codes if made else None, path)
        from ctseg.outputs.writing import write_mask

        return write_mask(pair.labels, pair.image, self.request.out / LABELS / f"{candidate.case_id}.nii.gz")

    def _check_unique(self, candidate: Candidate, patient: str, measured: Measured) -> None:
        twin = self._seen.get(measured.digest)
        if twin is not None and twin.item["patient"] != patient:
            raise InputError(
                f"its image has the same voxels as {twin.candidate.case_id} of patient {twin.item['patient']}: one "
                "study under two patients could be trained and tested on; give both the same patient, or remove one"
            )
        known = self.earlier.get(candidate.case_id)
        if known is not None and Path(known["image"]).resolve() != candidate.image.resolve():
            raise InputError(f"the datalist has a case of this name already, of the image {known['image']}; rename one")
        self.earlier.pop(candidate.case_id, None)


def _reading_keys(keys: Mapping[str, Any], values: Mapping[int, str]) -> dict[str, Any]:
    """The keys with which a case is read before its item exists: a flat mask must know what its values mean."""
    return (
        {**keys, "mask_values": {str(value): name for value, name in values.items()}}
        if keys.get("flat")
        else dict(keys)
    )


def _check_flat(collection: Collection, bundle: BundleInfo) -> None:
    """Refuse flat images for a bundle of volumes, and the other way round."""
    if collection.candidates and bundle.flat != (collection.kind in FLAT_KINDS):
        kinds = [kind for kind in KINDS if (kind in FLAT_KINDS) == bundle.flat]
        what = "flat images" if bundle.flat else "volumes"
        raise ConfigError(
            f"bundle {bundle.name} looks at {what}, but {collection.saw} were found: say --kind {'|'.join(kinds)}, or "
            "name another task"
        )


def _check_turn(collection: Collection, turn: str, bundle: BundleInfo) -> None:
    """Refuse to leave turning to a pipeline that does not turn: its masks would lie beside their organs."""
    if collection.kind != "turned" or turn == "mask":
        return
    config = bundle.path / "configs" / "train.json"
    if not config.is_file() or "ApplyItkTransformd" not in config.read_text(encoding="utf-8"):
        raise ConfigError(
            f"--turn ct leaves the turn to the training, but the pipeline of {bundle.name} has no "
            "ctseg.transforms.ApplyItkTransformd; leave out --turn, or add that step to its configuration"
        )


def _look_at(candidate: Candidate, image: Volume) -> Turned:
    from ctseg.reading import read_volume
    from ctseg.turning.itktransforms import read_transform
    from ctseg.turning.report import look_at

    mask = read_volume(Path(str(candidate.label)), "label")
    return look_at(candidate.case_id, image, read_transform(candidate.keys[TRANSFORM]), mask)


def _earlier(request: Request) -> dict[str, dict[str, Any]]:
    """The cases that a datalist has already and that stay."""
    path = request.out / DATALIST
    if not path.exists() or request.existing == "replace":
        return {}
    if request.existing == "refuse":
        raise OutputError(
            f"{path} is there already: pass --add to keep its cases and add these, or --replace to make it anew "
            "(the ledger stays in both)"
        )
    return {case["case_id"]: case for case in read_cases(request.out)}


def _check_ledger(given: Mapping[str, str], ledger: Ledger) -> None:
    """Refuse before the long work what `Ledger.assign` would refuse after it."""
    for patient, side in given.items():
        known = ledger.split_of(patient)
        if known not in (None, side):
            raise LedgerError(
                f"the given split has patient {patient} in {side}, but {ledger.path} has it in {known}: a patient "
                "never changes side; prepare into a new folder for a new experiment"
            )


def _assigned(taken: Sequence[Taken], ledger: Ledger, given: Mapping[str, str]) -> list[Taken]:
    patients = {case.item["patient"] for case in taken}
    if patients:
        ledger.assign({patient: side for patient, side in given.items() if patient in patients})
        ledger.draw(patients)
    return [dataclasses.replace(case, split=ledger.split_of(case.item["patient"]) or "") for case in taken]
