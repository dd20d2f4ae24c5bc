"""What needs torch-fidelity, in a process of its own: its command and ours on the same pictures, and all that only ours does.

A build of torchvision fits one build of torch, and breaks transformers beside another. So it lies in a folder of its own, and
the two operators without which it cannot be imported are declared: torch-fidelity needs it for data sets that are not in use.

    TORCH_HOME=FOLDER python fidelity_worker.py PICTURES REFERENCE    prints JSON
"""

import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch

operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.fidelity import main as fidelity_command  # noqa: E402

from diffusers_kts import cli  # noqa: E402
from diffusers_kts.features import inception as fidelity  # noqa: E402
from diffusers_kts.features.choice import feature_space  # noqa: E402
from diffusers_kts.features.frechet import FeatureStatistics  # noqa: E402

SUBSET = 8


class Untrained(FeatureExtractorInceptionV3):
    """torch-fidelity's network with random numbers, scaled so that the signal reaches the last layer."""

    def load_state_dict(self, state_dict):
        torch.manual_seed(0)
        for weight in self.parameters():
            if weight.ndim == 4:
                torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
        self.fc.weight.data.mul_(30)  # so that classes differ, and the Inception Score is not 1


class Malice:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def both_commands(pictures: str, reference: str, weights: Path) -> dict:
    theirs = io.StringIO()
    sys.argv = ["fidelity", "--input1", pictures, "--input2", reference, "--cpu", "--json", "--silent", "--no-cache"]
    sys.argv += ["--fid", "--kid", "--isc", "--prc", "--feature-extractor", "inception-v3-compat"]
    sys.argv += ["--feature-extractor-weights-path", str(weights), "--kid-subset-size", str(SUBSET)]
    with redirect_stdout(theirs):
        fidelity_command()
    sys.argv = ["kts", "evaluate", pictures, "--reference", reference, "--device", "cpu", "--kid-subset-size", str(SUBSET)]
    with redirect_stdout(sys.stderr):
        try:
            cli.main()
        except SystemExit as stop:
            if stop.code:
                raise
    return {"theirs": json.loads(theirs.getvalue()), "ours": json.loads(Path("kts-evaluation/evaluation.json").read_text())}


def main(pictures: str, reference: str) -> None:
    weights = Path(torch.hub.get_dir()) / "checkpoints" / fidelity.WEIGHTS
    weights.parent.mkdir(parents=True)
    torch.save({}, weights)
    torch.save(Untrained("inception", ["2048"], feature_extractor_weights_path=str(weights)).state_dict(), weights)
    result = both_commands(pictures, reference, weights)

    space = feature_space("auto")
    result["auto"] = [space.name, *space(torch.zeros(2, 1, 8, 8)).shape]
    a = FeatureStatistics(np.array([0, 1, 2], np.float32), np.diag([1.0, 4.0, 9.0]))
    b = FeatureStatistics(np.array([1.0, 1.0, 4.0]), np.diag([4.0, 4.0, 0.0]))
    result["of statistics"] = fidelity.fid(a, b)
    torch.save({"weight": Malice()}, "malice.pth")
    try:
        fidelity.Inception(Path("malice.pth"))
    except ValueError as error:
        result["refusal"] = str(error)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
