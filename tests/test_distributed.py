"""Training on several processes: two on this CPU stand in for two GPUs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from test_bundles import datalist_for

from ctseg.ledger import Ledger
from ctseg.registry import BundleInfo
from ctseg.weights import read_weights


def test_two_processes_train_one_network(
    few_trainable: BundleInfo,
    dataset_of: Callable[[BundleInfo], Path],
    tmp_path: Path,
    clean_environment: dict[str, str],
) -> None:
    tiny_dataset = dataset_of(few_trainable)
    datalist = datalist_for(few_trainable, tiny_dataset)
    names = {path.name: path for path in tiny_dataset.iterdir() if path.suffix != ".csv"}
    for name, path in names.items():
        (tmp_path / name).symlink_to(path)
    # Each process needs a patient to validate on.
    Ledger(tmp_path / "split.csv").assign({f"p{n}": "validation" if n < 2 else "train" for n in range(6)})
    configs = [str(few_trainable.path / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    options = {
        "config_file": str(configs), "dataset_dir": tmp_path, "datalist": datalist, "backend": "gloo", "device": "cpu",
        "epochs": 1, "batch_size": 1, "num_workers": 0, "val_interval": 1, "ckpt_dir": tmp_path / "out",
    }  # fmt: skip
    if small := {"volume": "[32,32,32]", "flat": "[64,64]"}.get(few_trainable.kind):
        options["patch"] = small  # what a CPU trains on in seconds
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "monai.bundle", "run", *(f"--{name}={value}" for name, value in options.items())]
    environment = {**clean_environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    # A process sometimes aborts in C++, cause unknown (3 of about 20 runs, none with PYTHONFAULTHANDLER); when in the
    # run was not seen. Only that message is let pass, and what was trained must be there all the same.
    aborted_at_exit = "terminate called without an active exception" in done.stderr
    assert done.returncode == 0 or aborted_at_exit, done.stderr[-12000:]
    assert done.stdout.count("Saved checkpoint at epoch: 1") == 1, "only the first process writes"
    assert not any(name.startswith("module.") for name in read_weights(tmp_path / "out" / "model.pt"))
