"""The one place that calls torch-fidelity: its Inception network, and its FID, KID, Inception Score, precision and recall.

Each number is computed by the function that torch-fidelity's own command runs, with that command's defaults, so both agree;
precision and recall do so with its ``--feature-extractor inception-v3-compat``, since its default for them is VGG16.
"""

import importlib.util
from pathlib import Path

import torch

from ..errors import brief, install
from .checkpoints import sha256
from .feature_space import FeatureSpace
from .frechet import FeatureStatistics, PrecisionRecall

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
PUBLISHED = "6726825d"  # the published file's hash begins with it
FEATURES = 2048
NEIGHBORS = 3  # of precision and recall
SPLITS = 10  # of the Inception Score
SUBSETS = 100  # of KID


class Inception:
    """torch-fidelity's Inception-v3, of images (b, 1 or 3, H, W), float in [0, 1].

    Args:
        weights (`Path`, *optional*): by default the file where torch-fidelity leaves what it downloads.
        device (`torch.device`): where it runs.

    Raises:
        ValueError: torch-fidelity is not installed, or there are no such weights.
    """

    name = "Inception-v3 (torch-fidelity)"
    resize = "to 299x299, bilinear as in TensorFlow 1 (torch-fidelity)"

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        path = weights or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
        missing = []
        if importlib.util.find_spec("torch_fidelity") is None or importlib.util.find_spec("torchvision") is None:
            missing.append(f"torch-fidelity with torchvision is not installed ({install('eval')}).")
        if not path.is_file():
            missing.append(f"Inception's weights are not at {path}; put the file {ADDRESS} there.")
        if missing:
            raise ValueError(" ".join(missing))
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        layers = [str(FEATURES), "logits_unbiased"]
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity would unpickle anything
            network = FeatureExtractorInceptionV3("inception", layers, feature_extractor_weights_path=str(path))
        except Exception as error:  # whatever a file that is something else makes torch raise
            raise ValueError(f"{path} is no Inception weight file ({brief(error)}); use {ADDRESS}.") from error
        self.device, self.sha256 = torch.device(device), sha256([path])
        self.network = network.to(self.device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 2048 + 1008): features, then logits, as `split` takes them apart."""
        rgb = images.expand(-1, 3, -1, -1)
        return torch.cat(self.network((255 * rgb).round().to(torch.uint8)), 1)

    def space(self, logits: bool = False) -> FeatureSpace:
        """Its 2048 features, with ``logits`` followed by these."""
        network = self if logits else lambda images: split(self(images))[0]
        return FeatureSpace(self.name, network, self.device, sha256=self.sha256, resize=self.resize)


def split(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, 2048) and logits (n, 1008)."""
    return outputs[:, :FEATURES].contiguous(), outputs[:, FEATURES:].contiguous()


def statistics(features: torch.Tensor) -> FeatureStatistics:
    """Mean and covariance as torch-fidelity rounds them (the mean in float32)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    found = fid_features_to_statistics(features)
    return FeatureStatistics(found["mu"], found["sigma"])


def fid(samples: FeatureStatistics, reference: FeatureStatistics) -> float:
    """Frechet Inception distance (Heusel et al. 2017)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    both = [{"mu": s.mean, "sigma": s.covariance} for s in (samples, reference)]
    if both[0]["mu"].dtype != both[1]["mu"].dtype:  # files of other programs hold float64, which torch-fidelity will not mix
        both = [{name: value.astype("float64") for name, value in s.items()} for s in both]
    return fid_statistics_to_metric(*both, verbose=False)[KEY_METRIC_FID]


def kid(samples: torch.Tensor, reference: torch.Tensor, subset_size: int) -> tuple[float, float]:
    """Kernel Inception distance (Binkowski et al. 2018) of features: mean and standard deviation over random subsets."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    found = kid_features_to_metric(samples, reference, kid_subsets=SUBSETS, kid_subset_size=subset_size, verbose=False)
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


def inception_score(logits: torch.Tensor) -> tuple[float, float]:
    """Inception Score (Salimans et al. 2016): mean and standard deviation over splits."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    found = isc_features_to_metric(logits, SPLITS)
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]


def precision_recall(samples: torch.Tensor, reference: torch.Tensor) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of features."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    found = prc_features_to_metric(samples, reference, prc_neighborhood=NEIGHBORS, save_cpu_ram=True, verbose=False)
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL], NEIGHBORS)
