"""The words of an evaluation's report: names of metrics, and what they mean to a reader who is no engineer."""

from __future__ import annotations

NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "f_beta": "F-beta",
    "accuracy": "accuracy",
    "specificity": "specificity",
    "nsd": "NSD",
    "hd95_mm": "HD95, mm",
    "hd_mm": "Hausdorff, mm",
}
SHORT = {**NAMES, "hd95_mm": "HD95", "hd_mm": "Hausdorff"}
WHERE = {
    "both": "both masks",
    "reference only": "the reference only (missed)",
    "prediction only": "the prediction only (invented)",
    "neither": "neither mask",
}
HOW_TO_READ = {
    "Prediction and reference": "The mask to be judged, and the mask it is judged by, most often drawn by a person. "
    "The values say how alike the two are, not whether the reference is right.",
    "Dice": "Overlap: twice the common volume divided by the sum of both. 1 is identical, 0 has nothing in common. "
    "Small and thin organs get lower values for the same error at the edge.",
    "IoU": "Overlap, stricter: the common volume divided by the volume of both together (Jaccard).",
    "Precision": "How much of the prediction is right. Low: too much is drawn.",
    "Recall": "How much of the organ was found. Low: parts are missing.",
    "F-beta": "Precision and recall in one figure; beta says how much more recall counts. With beta 1 it equals Dice.",
    "NSD": "Normalised surface Dice: the part of the two surfaces that lies within the tolerance of the other one, so "
    "near to how much would need no redrawing.",
    "HD95": "95 % of each surface is nearer to the other one than this, in mm. 0 is identical.",
    "Hausdorff": "The largest distance from one surface to the other, in mm; a single stray voxel decides it.",
    "Accuracy and specificity": "Right voxels among all, and among those outside the organ. Nearly always close to 1, "
    "since most of a scan is not the organ; they grow with the field of view.",
    "95 % interval": "How far the mean may move if other patients had been chosen: the middle 95 % of means over draws "
    "of patients (bootstrap). With few patients it is itself uncertain, and most often too narrow.",
    "Bland-Altman": "The difference of the two volumes against their mean. The solid line is the mean difference, the "
    "dashed ones hold 95 % of differences if these are normally distributed.",
}
