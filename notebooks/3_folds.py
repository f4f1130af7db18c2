# %% [markdown]
# # 3. Cross-validation
#
# Each patient is held out once, and nobody is trained on who is held out. Test patients of the ledger are in no fold.
# It goes on where it was left.

# %% tags=["parameters"]
from pathlib import Path

TASK = "liver_ct_segmentation"
DATA = Path("data")
FOLDS = Path("runs/folds")
K = 5
MORE = []  # further options of ctseg folds, e.g. ["--device", "cpu", "--epochs", "20"]

# %%
from ctseg.cli import main

main(["folds", TASK, "--data", str(DATA), "--k", str(K), "--out", str(FOLDS), *MORE])

# %%
import json

summary = json.loads((FOLDS / "summary.json").read_text())
print(json.dumps(summary, indent=2)[:2000])

# %% [markdown]
# The median case of all that were held out: image, reference, prediction.

# %%
import matplotlib.pyplot as plt

plt.figure(figsize=(12, 4))
plt.imshow(plt.imread(FOLDS / "median.png"))
plt.axis("off")
plt.show()
