"""Browser page that predicts pictures; works offline, and on this machine only unless `host` is set."""

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from PIL import Image

from breakhis_pl.config import AppConfig, TrainConfig, validate
from breakhis_pl.data.dataset import Subset
from breakhis_pl.data.images import UInt8Array
from breakhis_pl.errors import BreakHisError, ConfigurationError
from breakhis_pl.evaluate import moved
from breakhis_pl.inference.ood import Float32Array
from breakhis_pl.inference.predict import to_table
from breakhis_pl.inference.predictor import NOTICE, Picture, Predictor, Unreadable, open_predictor
from breakhis_pl.reporting.checks import Check, prediction_checks
from breakhis_pl.reporting.gallery import tint
from breakhis_pl.reporting.pages import data_uri
from breakhis_pl.reporting.runs import read_run
from breakhis_pl.run_folder import RunFolder, check_same_images
from breakhis_pl.train import make_data

log = logging.getLogger(__name__)

N_NEIGHBORS = 6
SIDE = 448
"""Width of the shown picture in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainImages:
    """Train images of a run.

    Attributes:
        names: Name, patient and class of each; (n,).
        pixels: uint8, (n, size, size, 3).
        features: Features of the backbone, divided by their length; float32, (n, n_features).
    """

    names: list[str]
    pixels: UInt8Array
    features: Float32Array

    def nearest(self, feature: Float32Array) -> list[tuple[UInt8Array, str]]:
        """Return pixels and names of the images whose features have the smallest angles to a feature, (n_features,)."""
        similarity = self.features @ (feature / np.linalg.norm(feature))
        order = np.argsort(-similarity, kind="stable")[:N_NEIGHBORS]
        return [(self.pixels[index], f"{self.names[index]}, similarity {similarity[index]:.2f}") for index in order]


@torch.inference_mode()
def features_of(predictor: Predictor, pixels: UInt8Array) -> Float32Array:
    """Compute the features of the backbone, float32 (n, n_features), of pixels, uint8 (n, size, size, 3)."""
    batches = np.array_split(pixels, max(1, len(pixels) // 32))
    found = [predictor.classifier.network.backbone(predictor.normalize(batch)).float().cpu() for batch in batches]
    features: Float32Array = torch.cat(found).numpy()
    return features


def open_train_images(config: AppConfig, predictor: Predictor) -> TrainImages | None:
    """Return the train images of a run; None if they are not there any more."""
    record = RunFolder(config.run).read()
    try:
        trained = validate(TrainConfig, moved(record.config, config.data))
        data = make_data(trained, device="cpu", evaluate_on=())
        check_same_images(record, config.run, **data.identity())
    except BreakHisError as error:
        log.info("without train images: %s", error)
        return None
    indices = data.split.indices(Subset.TRAIN)
    records = [data.dataset.records[index] for index in indices]
    pixels = data.cache.pixels[list(indices)].numpy()
    features = features_of(predictor, pixels)
    names = [f"{each.patient}, {data.dataset.classes[each.target]}" for each in records]
    return TrainImages(names, pixels, features / np.linalg.norm(features, axis=1, keepdims=True))


def predict_files(predictor: Predictor, paths: list[str]) -> tuple[list[Picture], Markup]:
    """Predict pictures.

    Returns:
        Readable pictures; an HTML table of all, with the reason for unreadable ones.
    """
    decoded = [predictor.decode(Path(path)) for path in paths]
    pictures = [each for each in decoded if isinstance(each, Picture)]
    table = to_table(pictures, predictor)
    highest = table[[f"prob_{name}" for name in predictor.classifier.parent_classes]].max(axis=1)
    shown = pd.DataFrame(
        {
            "picture": [picture.path.name for picture in pictures],
            "predicted": table["predicted"],
            "probability": highest.map("{:.3f}".format),
            **({"decision": table["decision"]} if "decision" in table else {}),
            "out of distribution": table["out_of_distribution"].replace({"true": "yes", "false": "no"}),
        }
    )
    unreadable = [(each.path.name, each.reason) for each in decoded if isinstance(each, Unreadable)]
    reasons = pd.DataFrame(unreadable, columns=["picture", "predicted"]).reindex(columns=shown.columns, fill_value="")
    shown = pd.concat([shown, reasons])
    return pictures, to_html(shown) if len(shown) else Markup()


def to_html(table: pd.DataFrame) -> Markup:
    """Format a table as HTML with escaped cells."""
    lines = [Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row) for row in table.to_numpy()]
    body = Markup("").join(Markup("<tr>{}</tr>").format(line) for line in lines)
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in table)
    text = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)
    return Markup('<div style="overflow-x: auto">{}</div>').format(text)


def nearest_html(nearest: Sequence[tuple[UInt8Array, str]]) -> Markup:
    """Write train images with their names below."""
    style = "margin: 0; width: 9rem; font-size: 0.8rem; overflow-wrap: anywhere"
    figures = [
        Markup(
            '<figure style="{}"><img src="{}" alt="" style="width: 100%"><figcaption>{}</figcaption></figure>'
        ).format(style, data_uri(jpeg(pixels), "image/jpeg"), name)
        for pixels, name in nearest
    ]
    return Markup('<div style="display: flex; flex-wrap: wrap; gap: 0.7rem">{}</div>').format(Markup("").join(figures))


def jpeg(pixels: UInt8Array) -> bytes:
    """Return the content of a JPEG file of pixels, uint8 (size, size, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def describe(predictor: Predictor, name: str, checks: Sequence[Check]) -> str:
    """Describe the network, the checks that it did not pass, and how it decides, in Markdown."""
    classifier, calibration = predictor.classifier, predictor.calibration
    text = f"## {classifier.config.backbone}, run {name}\n\n**{NOTICE}**\n"
    text += "".join(f"\n- {check}" for check in checks)
    if calibration is not None:
        text += (
            f"\n\nDecision: {classifier.parent_classes[-1]} from a calibrated probability of "
            f"{calibration.threshold:.3f}, fitted on {calibration.n_images:,} validation images for a sensitivity of "
            f"{calibration.sensitivity:g}."
        )
    return text


def build(predictor: Predictor, train_images: TrainImages | None, *, name: str, checks: Sequence[Check]) -> Any:
    """Build the page, a gradio.Blocks.

    Raises:
        ConfigurationError: If gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError("app.py: needs the package gradio; run `uv sync --extra app`") from error

    def show(pictures: list[Picture], number: int | None, strength: float) -> tuple[Any, ...]:
        """Return overlay, caption and nearest train images of a picture."""
        if number is None:
            return None, "", ""
        picture = pictures[number]
        pixels = picture.pixels[None]
        probabilities = predictor.predict(pixels)[0][0]
        try:
            heat = predictor.explain(pixels, np.array([probabilities.argmax()]))[0]
            mixed = (1 - strength) * picture.pixels + strength * tint(picture.pixels, heat)
        except ConfigurationError:  # a network without a feature map
            mixed = picture.pixels
        overlay = Image.fromarray(np.round(mixed).astype(np.uint8))
        overlay = overlay.resize((SIDE, max(1, round(SIDE * picture.height / picture.width))), Image.Resampling.BICUBIC)
        classes = predictor.classifier.parent_classes
        values = ", ".join(f"{each} {value:.3f}" for each, value in zip(classes, probabilities, strict=True))
        caption = f"{picture.path.name}, {picture.width} x {picture.height} pixels: {values}"
        nearest = [] if train_images is None else train_images.nearest(features_of(predictor, pixels)[0])
        return overlay, caption, nearest_html(nearest)

    def receive(paths: list[str] | None, strength: float) -> tuple[Any, ...]:
        pictures, table = predict_files(predictor, paths or [])
        choices = [(picture.path.name, number) for number, picture in enumerate(pictures)]
        first = 0 if pictures else None
        return pictures, table, gr.Dropdown(choices=choices, value=first), *show(pictures, first, strength)

    with gr.Blocks(title="breakhis_pl", analytics_enabled=False) as page:
        gr.Markdown(describe(predictor, name, checks))
        pictures = gr.State([])
        files = gr.File(label="Pictures", file_count="multiple", type="filepath")
        table = gr.HTML()
        with gr.Row():
            with gr.Column():
                chosen = gr.Dropdown(label="Picture", choices=[])
                strength = gr.Slider(0, 1, value=0.7, step=0.05, label="Strength of the heat map")
                caption = gr.Textbox(label="Probabilities", interactive=False)
            image = gr.Image(
                label="What supports the predicted class (Grad-CAM)",
                interactive=False,
                type="pil",
                buttons=["download", "fullscreen"],
            )
        gr.Markdown("Nearest train images, by the features of the network:", visible=train_images is not None)
        nearest = gr.HTML(visible=train_images is not None)
        shown = [image, caption, nearest]
        files.change(receive, [files, strength], [pictures, table, chosen, *shown])
        chosen.input(show, [pictures, chosen, strength], shown)
        strength.release(show, [pictures, chosen, strength], shown)
    return page


def serve(config: AppConfig) -> None:
    """Serve the page until the program is stopped.

    Raises:
        BreakHisError: If run, device or port cannot be used.
    """
    predictor = open_predictor(config.run, checkpoint=config.checkpoint, trainer=config.trainer)
    checks = prediction_checks(read_run(config.run))
    page = build(predictor, open_train_images(config, predictor), name=config.run.resolve().name, checks=checks)
    import gradio as gr  # noqa: PLC0415 - an extra

    log.info("http://%s:%d (Ctrl-C stops it)", config.host, config.port)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        page.launch(
            server_name=config.host, server_port=config.port, share=False, quiet=True, theme=theme, footer_links=[]
        )
    except OSError as error:
        raise ConfigurationError(f"port={config.port}: cannot be used ({error}); choose another one") from error
