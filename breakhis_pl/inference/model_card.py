"""The model card of an exported network: what it is for, what it was trained and tested on, what not to use it for.

Source:
    Mitchell et al., Model Cards for Model Reporting, FAT* 2019, doi:10.1145/3287560.3287596, for the sections.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from breakhis_pl.metrics.evaluation import format_estimate
from breakhis_pl.metrics.registry import shown
from breakhis_pl.reporting.checks import run_checks
from breakhis_pl.reporting.pages import Table, table_to_markdown, to_markdown
from breakhis_pl.reporting.runs import read_run


def model_card(run_folder: Path, metadata: Mapping[str, Any]) -> str:
    """Write the card of the network of a run, in Markdown.

    Args:
        run_folder: The run folder; without a test result, the card says so.
        metadata: What the exported file holds.
    """
    run = read_run(run_folder)
    counts = run.data.get("n_images", {})
    images = [f"{subset}: {', '.join(f'{n:,} {name}' for name, n in of.items())}" for subset, of in counts.items()]
    calibration = metadata["calibration"]
    decision = calibration and (
        f"{metadata['classes'][-1]} from a calibrated probability of {calibration['threshold']:.3f} on (temperature "
        f"{calibration['temperature']:.3f}), fitted on {calibration['n_images']:,} validation images for a sensitivity "
        f"of {calibration['sensitivity']:g}"
    )
    facts = {
        "Network": metadata["backbone"],
        "Classes": ", ".join(metadata["classes"]),
        "Input": f"RGB pixels, uint8 (n, {metadata['image_size']}, {metadata['image_size']}, 3), resized "
        f"{metadata['resized']}; normalization is part of the file",
        "Output": "logits, float32 (n, n_classes); their softmax are the probabilities",
        "Decision": decision,
        "Images": metadata["data"],
        "Split": "; ".join(images),
        "Commit": metadata["commit"],
        "Checkpoint (SHA-256)": metadata["checkpoint_sha256"],
        "License of the images": metadata.get("license"),
    }
    blocks = [f"# {to_markdown(metadata['backbone'])}, run {to_markdown(run_folder.resolve().name)}"]
    blocks.append(
        f"**{metadata['notice']}** It is meant for research on histology images like those it was trained on."
    )
    blocks.append("\n".join(f"- {name}: {to_markdown(text)}" for name, text in facts.items() if text))
    if run.metrics is None or run.predictions is None:
        return "\n\n".join([*blocks, "The run has no test result."]) + "\n"
    rows = [
        [metric.title, format_estimate(run.metrics[metric.name])] for metric in shown("key", run.predictions.n_classes)
    ]
    table = Table("", ["Metric", "Test images, 95% interval over cases"], rows)
    blocks += ["## Results", table_to_markdown(table), "## What to know before using it"]
    blocks.append("\n".join(f"- {to_markdown(check)}" for check in run_checks(run)) or "All checks are passed.")
    blocks.append(
        "Images of other scanners, stains, magnifications or organs may be predicted wrongly with high confidence."
    )
    return "\n\n".join(blocks) + "\n"
