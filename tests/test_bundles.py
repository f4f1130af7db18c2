"""The same checks for every bundle: complete, not stale, trains, evaluates, infers on the source's grid."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.data import load_net_with_metadata
from PIL import Image

from ctseg.building import build_all, stale
from ctseg.flat.networks import FLAT_NETWORKS
from ctseg.registry import BundleInfo


def read(bundle: BundleInfo, name: str) -> dict[str, Any]:
    return json.loads((bundle.path / "configs" / f"{name}.json").read_text())


def workflow(bundle: BundleInfo, *names: str, **overrides: Any) -> ConfigWorkflow:
    files = [str(bundle.path / "configs" / f"{name}.json") for name in names]
    kind = "train" if "train" in names else "infer"
    if small := {"volume": [32, 32, 32]}.get(bundle.kind, [64, 64] if bundle.flat else None):
        overrides.setdefault("patch", small)  # what a CPU trains on in seconds
    network = read(bundle, "train")["network_def"] if kind == "train" else {}
    if network.get("_target_") == "ctseg.networks.make_flat_network" and network["name"] in FLAT_NETWORKS:
        overrides.setdefault("network_def#filters", [8, 16])  # all of these take them; 31 million parameters take long
    return ConfigWorkflow(config_file=files, workflow_type=kind, logging_file=False, **overrides)


@pytest.fixture
def random_weights(bundle: BundleInfo, tmp_path: Path) -> Path:
    """Weights of the bundle's network as it is before any training, the same each time."""
    torch.manual_seed(0)
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(bundle.path / "configs" / "inference.json")
    path = tmp_path / "weights.pt"
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return path


def datalist_for(bundle: BundleInfo, folder: Path) -> str:
    """Write the tiny data set's datalist with the names of the bundle's labels and input organs; return its name."""
    names = [*bundle.labels, *bundle.input_organs]
    content = json.loads((folder / "datalist.json").read_text())
    content["mask_values"] = {"1": names[0], **({"4": names[1]} if len(names) > 1 else {})}
    (folder / f"{bundle.name}.json").write_text(json.dumps(content))
    return f"{bundle.name}.json"


def test_no_bundle_is_stale(root: Path) -> None:
    assert stale(build_all(root)) == [], "run scripts/build_bundles and commit what it writes"


def test_stale_notices_a_changed_file(root: Path, tmp_path: Path) -> None:
    files = {tmp_path / path.relative_to(root): text for path, text in build_all(root).items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert stale(files) == []
    changed = next(path for path in files if path.name == "train.json")
    changed.write_text(changed.read_text().replace('"epochs": ', '"epochs": 1'))
    assert stale(files) == [changed]


def test_metadata_fits_the_schema(bundle: BundleInfo, root: Path) -> None:
    metadata = read(bundle, "metadata")
    jsonschema.validate(metadata, json.loads((root / "tests" / "metadata.schema.json").read_text()))
    assert metadata["version"] in metadata["changelog"]
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    named = {name: int(code) for code, name in channels.items() if name != "background"}
    if bundle.classifies:  # one number for each organ, in order
        assert named == {name: index for index, name in enumerate(bundle.labels)}
    else:
        assert named == bundle.labels
    assert bundle.segments != bundle.classifies


def test_has_what_the_model_zoo_wants(bundle: BundleInfo) -> None:
    for name in ("LICENSE", "configs/inference.json", "configs/logging.conf"):
        assert (bundle.path / name).is_file(), name
    assert (bundle.path / "configs" / "train.json").is_file() == bundle.needs_weights
    if bundle.weights is not None:
        assert bundle.weights.stat().st_size <= 10 * 2**20


def test_check_properties(
    bundle: BundleInfo,
    study_of: Callable[[BundleInfo], Path],
    dataset_of: Callable[[BundleInfo], Path],
    tmp_path: Path,
) -> None:
    data = {
        "dataset_dir": str(dataset_of(bundle)),
        "datalist": datalist_for(bundle, dataset_of(bundle)),
        "num_workers": 0,
        "ckpt_dir": str(tmp_path),
    }
    for name, overrides in {"inference": {"image": str(study_of(bundle))}, "train": data}.items():
        if not (bundle.needs_weights or name == "inference"):
            continue
        flow = workflow(bundle, name, device="cpu", **overrides)
        flow.initialize()
        assert not flow.check_properties()


def test_verify_net_in_out(bundle: BundleInfo) -> None:
    verify_net_in_out(
        net_id="network_def",
        config_file=str(bundle.path / "configs" / "inference.json"),
        meta_file=str(bundle.path / "configs" / "metadata.json"),
        device="cpu",
        p=1, n=1, any=16,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # it is what MONAI exports to
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_ckpt_export(bundle: BundleInfo, random_weights: Path, tmp_path: Path) -> None:
    if not bundle.needs_weights:
        pytest.skip(f"{bundle.name} has no weights to export")
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(random_weights),
        meta_file=str(bundle.path / "configs" / "metadata.json"),
        config_file=str(bundle.path / "configs" / "inference.json"),
        key_in_ckpt="",
    )
    network, metadata, _ = load_net_with_metadata(str(tmp_path / "model.ts"))
    image = metadata["network_data_format"]["inputs"]["image"]
    with torch.inference_mode():
        answer = network(torch.zeros(1, image["num_channels"], *image["spatial_shape"]))
    assert answer.shape[1] == metadata["network_data_format"]["outputs"]["pred"]["num_channels"]


def _one_key(transforms: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """What a list of dictionary transforms does to one key, with its keys and modes reduced to that one."""
    reduced = []
    for transform in transforms:
        keys = transform["keys"] if isinstance(transform["keys"], list) else [transform["keys"]]
        if key in keys:
            own = {**transform, "keys": [key]}
            if isinstance(own.get("mode"), list):
                own["mode"] = [own["mode"][keys.index(key)]]
            reduced.append(own)
    return reduced


def test_training_and_inference_prepare_an_image_alike(trainable: BundleInfo) -> None:
    inference = _one_key(read(trainable, "inference")["preprocessing"]["transforms"], "image")
    train = read(trainable, "train")
    validation = _one_key(train["validate"]["preprocessing"]["transforms"], "image")
    training = _one_key(train["train"]["preprocessing"]["transforms"], "image")
    assert inference
    assert validation == inference
    assert training[: len(inference)] == inference
    assert train["network_def"] == read(trainable, "inference")["network_def"]


def test_imports_resolve(bundle: BundleInfo) -> None:
    for name in ("inference", "train") if bundle.needs_weights else ("inference",):
        for line in read(bundle, name)["imports"]:
            exec(compile(line.removeprefix("$"), bundle.name, "exec"), {})


def test_nothing_refers_outside_the_bundle(bundle: BundleInfo) -> None:
    for path in (bundle.path / "configs").glob("*.json"):
        text = path.read_text()
        assert "../" not in text
        assert str(Path.home()) not in text


def test_trains_and_evaluates_on_tiny_data(
    trainable: BundleInfo, dataset_of: Callable[[BundleInfo], Path], tmp_path: Path
) -> None:
    tiny_dataset = dataset_of(trainable)
    common = {
        "dataset_dir": str(tiny_dataset),
        "datalist": datalist_for(trainable, tiny_dataset),
        "device": "cpu",
        "batch_size": 2,
        "num_workers": 0,
        "val_interval": 1,
    }
    train = workflow(trainable, "train", epochs=1, ckpt_dir=str(tmp_path), **common)
    train.run()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint_epoch=1.pt", "model.pt"]

    resumed = workflow(trainable, "train", epochs=2, resume=True, ckpt_dir=str(tmp_path), **common)
    resumed.run()
    assert (tmp_path / "checkpoint_epoch=2.pt").is_file()
    state = resumed.parser.get_parsed_content("train::trainer").state
    assert state.iteration == 2 * state.epoch_length

    evaluate = workflow(
        trainable, "train", "evaluate", checkpoint=str(tmp_path / "model.pt"), report_dir=str(tmp_path), **common
    )
    evaluate.run()
    ledger = (tiny_dataset / "split.csv").read_text()
    patients = {line.split(",")[0] for line in ledger.splitlines() if ",validation," in line}
    if trainable.classifies:
        report = json.loads((tmp_path / "presence.json").read_text())
        assert set(report["labels"]) == set(report["patients"]) == set(trainable.labels)
        assert all(set(found) == patients for found in report["patients"].values())
    else:
        report = json.loads((tmp_path / "dice.json").read_text())
        assert set(report["values"]) == patients
        assert set(report["values"].popitem()[1]) == set(trainable.labels)


def test_inference_keeps_the_grid(
    bundle: BundleInfo, study_of: Callable[[BundleInfo], Path], random_weights: Path, tmp_path: Path
) -> None:
    f_study = study_of(bundle)
    weights = {"checkpoint": str(random_weights)} if bundle.needs_weights else {}
    flow = workflow(bundle, "inference", image=str(f_study), output_dir=str(tmp_path), **weights)
    flow.run()
    slices = 1 if bundle.flat else nibabel.load(f_study).shape[2]
    if bundle.classifies:
        rows = (tmp_path / "f" / "presence.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["slice", *map(str, range(1, slices + 1))]
    elif bundle.flat:
        with Image.open(tmp_path / "f" / "mask.png") as mask, Image.open(f_study) as picture:
            assert mask.size == picture.size
            assert set(np.unique(np.asarray(mask))) <= {0, 255} | set(bundle.labels.values())
    else:
        source, mask = nibabel.load(f_study), nibabel.load(tmp_path / "f" / "mask.nii.gz")
        assert mask.shape == source.shape
        assert mask.get_data_dtype() == np.uint8
        assert mask.affine.tobytes() == source.affine.tobytes()
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, *bundle.labels.values()}


def test_training_without_a_gpu_stops_with_a_sentence_from_any_directory(
    few_trainable: BundleInfo, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, so training would start")
    config = few_trainable.path / "configs" / "train.json"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config)]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Training runs on CUDA and PyTorch sees no GPU here")
    assert "--device cpu" in last
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
