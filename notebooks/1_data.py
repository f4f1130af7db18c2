# %% [markdown]
# # 1. Data
#
# From a folder of images and masks to a data folder that every bundle trains on: checked pair by pair, split by
# patient, the split frozen. The four notebooks follow each other; change the parameters, run all cells.
#
# Open this file as a notebook in JupyterLab (with the package jupytext), VS Code or PyCharm: `# %%` begins a cell.
# Or run it as it is: `python notebooks/1_data.py`.

# %% tags=["parameters"]
from pathlib import Path

SOURCE = Path("my_cts")  # images/case1.nii.gz ... and labels/case1.nii.gz ...
TASK = "liver_ct_segmentation"  # the bundle that will be trained; ctseg tasks lists them
LABELS = {"liver": 1}  # what the values of the masks mean
DATA = Path("data")  # the data folder that is made

# %%
from ctseg.cli import main

names = [f"--label={name}={value}" for name, value in LABELS.items()]
main(["prepare", str(SOURCE), "-o", str(DATA), "--task", TASK, "--kind", "pairs", *names])

# %% [markdown]
# Refused cases are named above with the reason. `DATA` holds `datalist.json`, the ledger `split.csv`, and a page of
# sample pictures with the masks drawn in: look at it before anything else.

# %%
import json

from ctseg.datalist import cases_of

listed = json.loads((DATA / "datalist.json").read_text())
print(len(listed["cases"]), "cases of", len({case["patient"] for case in listed["cases"]}), "patients")
for part in ("train", "validation", "test"):
    print(part, sorted(case["case_id"] for case in cases_of(part, dataset_dir=DATA)))
