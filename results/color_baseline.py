"""Print the AUROC of a logistic regression on color statistics: `uv run python results/color_baseline.py <images>`.

Mean and standard deviation of red, green and blue of an image; trained and tested on fold 2 at 200X.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from breakhis_pl.data.breakhis import open_breakhis
from breakhis_pl.data.dataset import Subset
from breakhis_pl.data.splits import official_split

dataset = open_breakhis(Path(sys.argv[1]), task="binary", magnifications=[200], require_complete=False, fold=2)
split = official_split(dataset)
pixels = [np.asarray(Image.open(record.path).convert("RGB"), dtype=float) for record in split.records]
features = np.array([[*each.mean((0, 1)), *each.std((0, 1))] for each in pixels])  # (n_images, 6)
target = np.array([record.target for record in split.records])
train, test = (list(split.indices(subset)) for subset in (Subset.TRAIN, Subset.TEST))
model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(features[train], target[train])
auroc = roc_auc_score(target[test], model.decision_function(features[test]))
sys.stdout.write(f"{len(train)} train and {len(test)} test images: AUROC {auroc:.3f}\n")
