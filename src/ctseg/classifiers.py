"""The parts of a classifier: a timm encoder, whole or cut at a depth, and a linear head."""

from __future__ import annotations

import torch
from torch import nn

from ctseg.errors import ConfigError


class Classifier(nn.Module):
    """A timm encoder, pooled to one vector an image, and a linear head: logits (B, classes).

    Args:
        encoder: a timm model without its classifier.
        classes: logits; 1 says whether something is on the image.
        normalise: bring the vector to mean 0 and deviation 1 before the head. What is averaged over an image varies
            little, so that without it a head over a frozen encoder learns very slowly.
    """

    def __init__(self, encoder: nn.Module, classes: int, normalise: bool = False) -> None:
        super().__init__()
        size = int(encoder.head_hidden_size)  # type: ignore[arg-type]
        self.encoder = encoder
        self.norm = Normalised(size) if normalise else nn.Identity()
        self.head = nn.Linear(size, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes) of images (B, C, H, W)."""
        return self.head(self.norm(self.encoder(image)))


class Normalised(nn.BatchNorm1d):
    """Batch normalisation without weights of its own that also takes a batch of one image in training."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return (B, channels); a single image is normalised by what was seen so far."""
        learns = self.training and vectors.shape[0] > 1
        # Written out, not by super(), which TorchScript does not know.
        return nn.functional.batch_norm(vectors, self.running_mean, self.running_var, None, None, learns, 0.1, self.eps)


class CutEncoder(nn.Module):
    """A timm encoder up to one of its halvings, averaged over the image: (B, channels).

    Its names are those of segmentation-models-pytorch's timm encoders (`tu-NAME`), so that one's weights fit the other.

    Args:
        model: timm's `features_only` network with one output.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head_hidden_size = int(model.feature_info.channels()[-1])  # type: ignore[union-attr,operator]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the mean of each channel."""
        return self.model(image)[-1].mean(dim=(2, 3))


def load_encoder(encoder: nn.Module, path: str) -> None:
    """Load an encoder from the part `encoder.` of another network's weights, every name and shape exactly.

    Raises:
        BundleError: when the file cannot be read as tensors.
        ConfigError: when its encoder is another.
    """
    from ctseg.weights import read_weights

    weights = {key[len("encoder.") :]: value for key, value in read_weights(path).items() if key.startswith("encoder.")}
    try:
        encoder.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"The encoder in {path} does not fit this classifier's ({first}): expected the same encoder, depth and "
            "channels; correct network_def#encoder_file, or train without it."
        ) from error
