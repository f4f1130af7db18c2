# %% [markdown]
# # 2. Training
#
# The bundle's own training, as `python -m monai.bundle run` runs it. It wants a CUDA GPU; `DEVICE = "cpu"` insists.

# %% tags=["parameters"]
from pathlib import Path

TASK = "liver_ct_segmentation"
DATA = Path("data")
RUN = Path("runs/first")
DEVICE = None  # the GPU; "cpu" to insist on the processor
SETTINGS = {}  # any value of the configuration, e.g. {"epochs": 20, "batch_size": 8}

# %%
import monai.bundle

from ctseg.registry import get_bundle

configs = get_bundle(TASK).path / "configs"
settings = dict(SETTINGS) if DEVICE is None else {"device": DEVICE, **SETTINGS}
monai.bundle.run(config_file=str(configs / "train.json"), dataset_dir=str(DATA), ckpt_dir=str(RUN), **settings)

# %% [markdown]
# `RUN/model.pt` has the best validation Dice. The curves, from what the checkpoint carries:

# %%
import csv

with (RUN / "history.csv").open() as file:
    epochs = list(csv.DictReader(file))
for row in epochs[-5:]:
    print({name: value for name, value in row.items() if value and name in ("epoch", "train_loss", "val_mean_dice")})

# %%
import matplotlib.pyplot as plt

plt.figure(figsize=(12, 4))
plt.imshow(plt.imread(RUN / "curves.png"))
plt.axis("off")
plt.show()
