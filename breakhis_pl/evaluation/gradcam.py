"""Grad-CAM: which parts of an image speak for a class (Selvaraju et al. 2017); with torch.

The class's logit is differentiated with respect to the network's last map of features; the mean gradient of a channel
is its weight, the positive part of the weighted sum of channels is the map.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from breakhis_pl.errors import ShapeError, join_truncated
from breakhis_pl.evaluation.feature_maps import FeatureMap, last_feature_map
from breakhis_pl.evaluation.gallery import GalleryEntry, choose_gallery, write_gallery
from breakhis_pl.evaluation.predictions import Predictions

BATCH_SIZE = 16
"""Images explained at once; bounds the memory, changes nothing else."""


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor, *, at: FeatureMap | None = None) -> Tensor:
    """How much each part of an image speaks for a class, relative to the part that does most.

    Runs in float32 on the network's device. The network is left as it was: its modes, its gradients, its hooks.

    Args:
        network: From images (n, 3, size, size) to logits (n, n_classes).
        images: Normalized; float, (n, 3, size, size).
        classes: Index of the class to explain, one per image; int, (n,).
        at: The map to explain by, from `explained_map`; None looks for it.

    Returns:
        float32, (n, h, w), in [0, 1], on the network's device. The largest value of a map is 1; a map is 0 everywhere
        where nothing speaks for the class.

    Raises:
        ShapeError: If there is not one class per image, or a class is none of the network's.
        TypeError: If the network has no map of features.

    Source:
        Selvaraju et al., Grad-CAM, ICCV 2017, doi:10.1109/ICCV.2017.74, equations 1 and 2.
    """
    if images.ndim != 4 or classes.shape != images.shape[:1]:
        raise ShapeError(
            f"images of shape {tuple(images.shape)} and classes of shape {tuple(classes.shape)}; "
            "expected (n, 3, h, w) and (n,)"
        )
    device = next(network.parameters()).device
    at = at or explained_map(network, images)
    if at is None:
        raise TypeError(f"{type(network).__name__} has no map of features; expected a network that keeps places apart")
    activations, gradients = _activations_and_gradients(network, at, images.to(device), classes.to(device))
    weights = gradients.mean(dim=(2, 3), keepdim=True)  # (n, channels, 1, 1)
    maps = functional.relu((weights * activations).sum(dim=1, keepdim=True))  # (n, 1, h', w')
    size = (images.shape[2], images.shape[3])
    maps = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)[:, 0]  # (n, h, w)
    highest = maps.amax(dim=(1, 2), keepdim=True)  # (n, 1, 1)
    return torch.where(highest > 0, maps / highest, 0.0)


def explained_map(network: nn.Module, images: Tensor) -> FeatureMap | None:
    """The map of features that Grad-CAM explains a network by; None where it has none.

    Args:
        network: Left as it was.
        images: Normalized; float, (n, 3, size, size); the first one is looked at.
    """
    device = next(network.parameters()).device
    with _evaluating(network), torch.autocast(device.type, enabled=False):
        return last_feature_map(network, images[:1].to(device).float())


def explain(
    network: nn.Module, batches: Iterable[Tensor], classes: Tensor, *, at: FeatureMap | None = None
) -> npt.NDArray[np.float32]:
    """The maps of `grad_cam` for batches of images, one batch at a time in memory.

    Args:
        network: As in `grad_cam`.
        batches: Normalized images; float, (batch, 3, h, w) each.
        classes: Index of the class to explain, one per image of all batches; int, (n,).
        at: As in `grad_cam`.

    Returns:
        float32, (n, h, w), in [0, 1].

    Raises:
        ShapeError: As `grad_cam`, and if there is no image, or not one class per image of all batches.
        TypeError: As `grad_cam`.
    """
    maps: list[Tensor] = []
    done = 0
    for images in batches:
        maps.append(grad_cam(network, images, classes[done : done + len(images)], at=at).cpu())
        done += len(images)
    if done == 0 or done != len(classes):
        raise ShapeError(f"{done} images and {len(classes)} classes; expected at least one, and one class per image")
    return torch.cat(maps).numpy()


def explain_predictions(
    folder: Path,
    network: nn.Module,
    predictions: Predictions,
    *,
    rows: Sequence[int],
    images_of: Callable[[Sequence[int]], Tensor],
    pixels_of: Callable[[Sequence[int]], npt.NDArray[np.uint8]],
    n_per_kind: int = 8,
) -> list[GalleryEntry]:
    """Chooses images worth a look and writes the gallery of them: what in each speaks for the class predicted.

    Of a network without a map of features, as a vision transformer, the gallery shows the images alone.

    Args:
        folder: Where the predictions lie; `gallery/` is made or replaced in it.
        network: The one that predicted.
        predictions: What it predicted.
        rows: Row of the store of each prediction.
        images_of: Normalized images of rows of the store; float, (n, 3, size, size).
        pixels_of: The same images as they are; uint8, (n, size, size, 3), RGB.
        n_per_kind: Images of each kind at most.

    Returns:
        What was written, as `read_gallery` reads it.

    Raises:
        ShapeError: If there is not one row per prediction, or what is given for the rows does not fit together.
        ConfigurationError: If `n_per_kind` is less than 1.
        OSError: If the files cannot be written.
    """
    if len(rows) != len(predictions):
        raise ShapeError(f"{len(rows)} rows of the store and {len(predictions)} predictions; expected one row for each")
    chosen = choose_gallery(predictions, n_per_kind=n_per_kind)
    position = {image: index for index, image in enumerate(predictions.image)}
    positions = [position[entry.image] for entry in chosen]
    of_store = [rows[index] for index in positions]
    batches = (images_of(of_store[start : start + BATCH_SIZE]) for start in range(0, len(of_store), BATCH_SIZE))
    at = explained_map(network, images_of(of_store[:1]))
    classes = torch.from_numpy(predictions.predicted[positions])
    heat = None if at is None else explain(network, batches, classes, at=at)
    return write_gallery(folder, chosen, pixels_of(of_store), heat)


def _activations_and_gradients(
    network: nn.Module, at: FeatureMap, images: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """The last map of features, and the gradient of the classes' logits by it: float32, (n, channels, h', w') each."""
    kept: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # from here to the end of the forward pass; the blocks below need no graph
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # some networks go on in place

    hook = network.get_submodule(at.module).register_forward_hook(keep)
    try:
        # out of a caller's inference mode, whose tensors cannot be differentiated
        with (
            _evaluating(network),
            torch.inference_mode(mode=False),
            torch.no_grad(),
            torch.autocast(images.device.type, enabled=False),
        ):
            logits = network(images.float())  # (n, n_classes)
            _check_classes(classes, n_classes=logits.shape[1])
            # the images of a batch do not meet in evaluation mode, so the gradient of the sum is that of each
            score = logits.gather(1, classes[:, None].long()).sum()
            (gradients,) = torch.autograd.grad(score, kept[-1:])
    finally:
        hook.remove()
    activations = kept[-1].detach()
    if at.is_channels_first:
        return activations, gradients
    return activations.permute(0, 3, 1, 2), gradients.permute(0, 3, 1, 2)


def _check_classes(classes: Tensor, *, n_classes: int) -> None:
    """Refuses classes that the network does not have; on a GPU they would end the process's use of it."""
    wrong = [index for index in classes.tolist() if index not in range(n_classes)]
    if wrong:
        raise ShapeError(f"classes {join_truncated(wrong)} are none of the network's; expected 0 to {n_classes - 1}")


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module is in its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
