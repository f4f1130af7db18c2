# %% [markdown]
# # 4. Prediction on your own image
#
# The function that the command line and the server call. Networks stay loaded between calls.

# %% tags=["parameters"]
from pathlib import Path

IMAGE = Path("ct.nii.gz")  # NIfTI, NRRD, MetaImage, a DICOM folder or a zip of one
TASK = "liver_ct_segmentation"  # a bundle's name or folder
OUT = Path("out")

# %%
from ctseg import Predictors, segment_volume

predictors = Predictors("auto")
found = segment_volume(IMAGE, task=TASK, predictors=predictors)
print({organ: f"{volume:.1f} ml" for organ, volume in found.volumes_ml.items()})

# %% [markdown]
# The mask has the axes of the file's own array. The picture takes care of left and right: image left is the patient's
# right.

# %%
import matplotlib.pyplot as plt

from ctseg.outputs.folder import write_outputs

files, report = write_outputs(found.prediction, OUT, ("nifti", "png", "json"))
plt.figure(figsize=(14, 6))
plt.imshow(plt.imread(OUT / "preview.png"))
plt.axis("off")
plt.show()

# %% [markdown]
# `OUT/mask.nii.gz` lies on exactly the image's grid. Research use only: not for diagnosis.
