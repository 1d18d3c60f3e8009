from pathlib import Path

import pandas as pd

from tests.programs import run_program


def test_test_images_get_the_probabilities_of_the_run_and_an_unreadable_one_sets_the_exit_status(
    finished_run: Path, synthetic_cache: Path, tmp_path: Path
) -> None:
    expected = pd.read_csv(finished_run / "test/predictions.csv")
    (tmp_path / "slide.svs").write_bytes(b"slide")
    images = f"images=['{synthetic_cache}/**/*.png','{tmp_path}/slide.svs']"
    outcome = run_program(
        "predict", f"run={finished_run}", images, "trainer.accelerator=cpu", "hydra.run.dir=out", cwd=tmp_path
    )
    assert outcome.status == 1
    assert "slide.svs" in outcome.err
    assert "C02 Synthetic images" in outcome.out + outcome.err
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    table["image"] = [Path(name).name for name in table["image"]]
    both = expected.merge(table.drop_duplicates("image"), on="image", suffixes=("", "_here"))
    assert len(both) == len(expected)
    pd.testing.assert_series_equal(both["prob_malignant_here"], both["prob_malignant"], check_names=False, rtol=1e-5)
    assert both["out_of_distribution"].mean() < 0.5
    page = (tmp_path / "out/predictions.html").read_text(encoding="utf-8")
    assert "#c02" in page  # synthetic images
    assert "#c07" not in page  # no validation set, which is said of results
