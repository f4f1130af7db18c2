"""A bundle's `metadata.json` from its task: MONAI's own fields, and a block of ours for the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctseg.errors import ConfigError

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
# What the bundles were built and tested with; constraints.txt pins the same.
TESTED = {
    "monai": "1.6.1",
    "torch": "2.15.0",
    "numpy": "1.26.4",
    "nibabel": "5.4.2",
    "itk": "5.4.7",
    "pytorch-ignite": "0.5.5",
    "segmentation-models-pytorch": "0.6.0",
}


def metadata_of(values: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the metadata of a bundle.

    Args:
        values: the task's values over its kind's, rendered names included.
        task: the task's name, that of its file.
    """
    labels = values["labels"]
    required = {name: version for name, version in TESTED.items() if name not in ("monai", "torch", "numpy")}
    return {
        "schema": SCHEMA,
        "version": str(values["version"]),
        "changelog": {str(version): text for version, text in values["changelog"].items()},
        "monai_version": TESTED["monai"],
        "pytorch_version": TESTED["torch"],
        "numpy_version": TESTED["numpy"],
        "required_packages_version": required,
        "name": values["bundle"],
        "task": values["description"],
        "description": values["description"],
        "authors": values["authors"],
        "copyright": values["copyright"],
        "data_source": values["data"]["source"],
        "data_type": values["modality"],
        "intended_use": values["intended_use"],
        "references": values.get("references", []),
        "network_data_format": _data_format(values),
        "ctseg": {
            "task": task,
            "kind": values["kind"],
            "modality": values["modality"],
            "labels": [{k: v for k, v in label.items() if k not in ("threshold", "clean_up")} for label in labels],
            "evidence": values["evidence"],
            "licence": dict(values["licence"]),
            "weights": dict(values["weights"]) if values["weights"] else None,
            **({} if values.get("needs_weights", True) else {"needs_weights": False}),
            **({"caution": values["caution"]} if values.get("caution") else {}),
            **({"shown_window": list(values["shown_window"])} if values.get("shown_window") else {}),
            **({"flat": True} if values.get("flat") else {}),
            **({"patient_pattern": values["patient_pattern"]} if values.get("patient_pattern") else {}),
            **({"part_of": list(values["part_of"])} if values.get("part_of") else {}),
            **({"quality": dict(values["quality"])} if values.get("quality") else {}),
            **({"depends_on": needs} if (needs := _depends_on(values)) else {}),
        },
    }


def _depends_on(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """The other bundles that the task names: for its input organs, and as its gate.

    Raises:
        ConfigError: an input organ for which the task names no bundle.
    """
    bundles = values.get("organ_bundles") or {}
    organs = values.get("input_organs") or []
    if missing := [organ for organ in organs if organ not in bundles]:
        raise ConfigError(
            f"The task {values['bundle']} has the input organs {', '.join(missing)} but names no bundle that segments "
            "them: add organ_bundles, for example {liver: liver_ct_segmentation}."
        )
    needs = [
        {"bundle": bundles[organ], "as": "input_organ", "organ": organ} for organ in values.get("input_organs", [])
    ]
    return needs + ([{"bundle": values["gate"], "as": "gate"}] if values.get("gate") else [])


def _data_format(values: Mapping[str, Any]) -> dict[str, Any]:
    labels, shape = values["labels"], list(values["patch"])
    channels = {"0": "background", **{str(label["code"]): label["name"] for label in labels}}
    inputs = [*values.get("input_channels", ["image"]), *values.get("further_inputs", [])]
    inputs += [f"{organ} mask" for organ in values.get("input_organs", [])]
    tensor = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": True}
    answer = values.get("answer", "segmentation")
    mask = {
        **tensor,
        "format": "segmentation",
        "num_channels": 1 if len(labels) == 1 else len(labels) + 1,
        "value_range": [0.0, 1.0],
        "channel_def": channels,
    }
    return {
        "inputs": {
            "image": {
                **tensor,
                "format": "hounsfield" if values["modality"] == "CT" and not values.get("flat") else "magnitude",
                "modality": values["modality"],
                "num_channels": len(inputs),
                "value_range": list(values.get("input_range", [0.0, 1.0])),
                "channel_def": {str(number): name for number, name in enumerate(inputs)},
            }
        },
        "outputs": {"pred": _classes(values) if answer == "classification" else mask},
    }


def _classes(values: Mapping[str, Any]) -> dict[str, Any]:
    """A classifier's answer: one number an organ for each image."""
    names = [label["name"] for label in values["labels"]]
    return {
        "type": "probabilities",
        "format": "classification",
        "num_channels": len(names),
        "spatial_shape": [1, len(names)],
        "dtype": "float32",
        "is_patch_data": False,
        "value_range": [0.0, 1.0],
        "channel_def": {str(index): name for index, name in enumerate(names)},
    }
