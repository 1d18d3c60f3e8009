import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from breakhis_pl.config import DataConfig
from breakhis_pl.data.breakhis import official_patients
from breakhis_pl.data.datamodule import Batch, BreakHisDataModule
from breakhis_pl.data.dataset import Dataset, Subset, open_dataset
from breakhis_pl.data.export import main as export
from breakhis_pl.data.splits import make_split, official_split
from breakhis_pl.errors import ConfigurationError, DataError
from breakhis_pl.models.classifier import Classifier
from tests.configs import train_config

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
ROWS = pd.DataFrame(
    {
        "image": [f"{index}.png" for index in range(12)],
        "label": ["b", "a", "c"] * 4,
        "patient": [f"p{index // 3}" for index in range(12)],
        "split": ["train"] * 6 + ["val"] * 3 + ["test"] * 3,
    }
)


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., list[str]]:
    """Write a table, and a file for each of its images; return the overrides that name it."""

    def write(table: pd.DataFrame, *missing: str) -> list[str]:
        for name in set(table.get("image", ())) - set(missing):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        table.to_csv(tmp_path / "images.csv", index=False)
        return ["data=table", f"data.table={tmp_path / 'images.csv'}"]

    return write


Write = Callable[..., list[str]]


def config_of(*overrides: str) -> DataConfig:
    return train_config(*overrides).data


def open_table(*overrides: str) -> Dataset:
    return open_dataset(config_of(*overrides), task="binary")


def test_rows_become_records_sorted_by_name_whatever_the_order_and_the_other_columns(write_table: Write) -> None:
    table = ROWS.assign(case="c1", magnification="20", weight="0.5", scanner="x").sample(frac=1, random_state=0)
    dataset = open_table(*write_table(table))
    first = dataset.records[0]
    assert dataset.classes == dataset.parent_classes == ("a", "b", "c")
    assert [record.image for record in dataset.records] == sorted(ROWS["image"])
    assert (first.target, first.patient, first.case, first.magnification) == (1, "p0", "c1", 20)
    assert (first.subset, first.weight) == (Subset.TRAIN, 0.5)


def test_intervals_resample_cases_else_patients_else_images(write_table: Write) -> None:
    by_case = open_table(*write_table(ROWS.assign(case="c")))
    by_patient = open_table(*write_table(ROWS))
    by_image = open_table(*write_table(ROWS.drop(columns="patient")))
    assert [len({record.case for record in each.records}) for each in (by_case, by_patient, by_image)] == [1, 4, 12]
    assert [each.has_patients for each in (by_case, by_patient, by_image)] == [True, True, False]


def test_a_description_has_the_singular_of_one(write_table: Write) -> None:
    dataset = open_table(*write_table(ROWS.assign(patient="p0", split="train")))
    assert dataset.description.endswith("of 1 patient in 1 case")


def test_images_in_several_folders_are_named_by_their_paths(write_table: Write) -> None:
    names = [f"{folder}/{index}.png" for folder in "xy" for index in range(6)]
    dataset = open_table(*write_table(ROWS.assign(image=names)))
    assert [record.image for record in dataset.records] == names


@pytest.mark.parametrize(("positive", "classes"), [("a", ("b", "a")), ("b", ("a", "b")), ("null", ("a", "b"))])
def test_the_positive_class_is_the_last_one(write_table: Write, positive: str, classes: tuple[str, ...]) -> None:
    overrides = write_table(ROWS.assign(label=["a", "b"] * 6))
    assert open_table(*overrides, f"data.positive={positive}").classes == classes


def test_the_split_comes_from_the_columns_or_keeps_patients_together(write_table: Write) -> None:
    def subsets(*overrides: str, rows: pd.DataFrame = ROWS) -> dict[str, set[str]]:
        keys = [*write_table(rows), *overrides]
        split = make_split(open_table(*keys), config_of(*keys), seed=0)
        found = pd.Series([record.patient for record in split.records]).groupby([str(each) for each in split.subsets])
        return {name: set(patients) for name, patients in found}

    folds = ROWS.assign(fold=ROWS["patient"].str[1:])
    assert subsets() == {"train": {"p0", "p1"}, "val": {"p2"}, "test": {"p3"}}
    assert subsets("data.fold=2", rows=folds) == {"train": {"p0", "p1", "p3"}, "test": {"p2"}}
    drawn = subsets("data.split=ratio", "data.val_fraction=0.3")
    assert sum(map(len, drawn.values())) == len(set.union(*drawn.values())) == 4
    assert subsets("data.split=null", rows=ROWS.drop(columns="split")).keys() == {"train", "test"}


def test_whole_numbers_may_have_a_decimal_point(write_table: Write) -> None:
    whole = ROWS.assign(fold=ROWS["patient"].str[1:], magnification=["20"] * 8 + ["40"] * 4)
    points = whole.assign(fold=whole["fold"] + ".0", magnification=whole["magnification"] + ".0")
    expected, found = (
        open_table(*write_table(table), "data.magnification=20", "data.fold=2").records for table in (whole, points)
    )
    assert found == expected
    assert len(found) == 8


def test_messages_of_a_split_are_in_the_terms_of_a_table(write_table: Write) -> None:
    def refused(table: pd.DataFrame, *overrides: str) -> str:
        keys = [*write_table(table), *overrides]
        with pytest.raises(DataError) as caught:
            make_split(open_table(*keys), config_of(*keys), seed=0)
        return str(caught.value)

    train_lacks_c = ROWS.assign(label=["a", "b"] * 3 + ["a", "b", "c"] * 2)
    assert refused(train_lacks_c).startswith("the split of images.csv: train has no c image")
    one_patient_of_c = ROWS.assign(label=["a", "b", "b"] * 3 + ["a", "b", "c"])
    found = refused(one_patient_of_c, "data.split=ratio")
    assert found.startswith("data.test_fraction=0.3: c has fewer than two cases")
    one_image_of_c = one_patient_of_c.drop(columns=["patient", "split"])
    assert refused(one_image_of_c).startswith("data.test_fraction=0.3: c has fewer than two images")
    assert "images.csv has validation images" in refused(ROWS, "data.val_fraction=0.2")
    with pytest.raises(DataError, match="comes without a split"):
        official_split(open_table(*write_table(ROWS.drop(columns="split"))))


def changed(**columns: Mapping[int, str]) -> pd.DataFrame:
    """Return the rows with other cells, by column and row."""
    table = ROWS.assign(fold=ROWS["patient"], magnification="20", weight="1", case=ROWS["patient"])
    for name, cells in columns.items():
        table[name] = table[name].mask(table.index.isin(cells), table.index.map(cells))
    return table


FAULTS: dict[str, tuple[pd.DataFrame, list[str], str]] = {
    "missing column": (ROWS.drop(columns="label"), [], "line 1.*label"),
    "column twice": (pd.concat([ROWS, ROWS["label"]], axis=1), [], "line 1.*label"),
    "misspelled column": (ROWS.rename(columns={"patient": "Patient_ID", "split": "subset"}), [], "Patient_ID.*subset"),
    "no rows": (ROWS[:0], [], "rows"),
    "empty cell": (changed(label={4: ""}), [], "line 6.*label"),
    "unknown file": (ROWS, ["7.png"], "line 9.*7.png"),
    "duplicate path": (changed(image={4: "./0.png"}), [], "line 6"),
    "one class": (ROWS.assign(label="a"), [], "label"),
    "label in two cases": (changed(label={4: "A"}), [], "line 6:.*a, A"),
    "label with a space": (changed(label={1: "in situ", 4: "insitu", 7: "In situ"}), [], "in situ, insitu, In situ"),
    "other subset": (changed(split={4: "validation"}), [], "line 6.*split"),
    "patient on both sides": (changed(split={0: "test"}), [], "line 2, 3, 4.*p0"),
    "case on both sides": (changed(split={0: "test"}).drop(columns="patient"), [], "line 2, 3, 4.*p0"),
    "patient in two cases": (changed(case={0: "p9"}), [], "line 2, 3, 4.*p0"),
    "class in one subset": (changed(label={2: "a", 5: "a", 8: "a"}), [], "line 13.*c"),
    "magnification": (changed(magnification={4: "20x"}), [], "line 6.*magnification"),
    "weight": (changed(weight={4: "0"}), [], "line 6.*weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_table_is_named_with_file_and_line(write_table: Write, fault: str) -> None:
    table, missing, expected = FAULTS[fault]
    with pytest.raises(DataError, match=f"(?s)images.csv.*{expected}"):
        open_table(*write_table(table, *missing))


def test_a_relative_and_an_absolute_path_of_one_picture_are_a_duplicate(write_table: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 6"):
        open_table(*write_table(changed(image={4: str(tmp_path / "0.png")})))


@pytest.mark.parametrize("key", ["fold=9", "positive=a", "magnification=40", "split=official"])
def test_a_key_that_does_not_fit_the_table_is_named(write_table: Write, key: str) -> None:
    table = changed().drop(columns="split")
    with pytest.raises(DataError, match=key.partition("=")[0]):
        open_table(*write_table(table), f"data.{key}")


def test_all_faults_are_in_one_message(write_table: Write) -> None:
    with pytest.raises(DataError) as caught:
        open_table(*write_table(changed(label={4: ""}, weight={5: "x"}, split={0: "test"}), "7.png"))
    assert len(str(caught.value).splitlines()) == 4


NO_TABLES = {
    b"": "image is missing",
    b"image,label\na,\xe9\n": "line 2",
    b"image|label\na|b\n": "image is missing",
    b"image,label\na,b\na,b,c\na,b,c,d\n": "line 3, 4.*quotes",
    b"image,label\na\n": "line 2.*label is empty",
    b'image,label\n"a,b\n': "line 2.*CSV.*quote",
    None: "is not a file",
}


@pytest.mark.parametrize("content", NO_TABLES)
def test_other_files_are_refused_by_name_and_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "images.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)images\.csv.*{NO_TABLES[content]}"):
        open_table("data=table", f"data.table={tmp_path / 'images.csv'}")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_spreadsheets_separate_values_by_semicolons_or_tabs(write_table: Write, tmp_path: Path, separator: str) -> None:
    keys = write_table(ROWS)
    expected = open_table(*keys).records
    ROWS.assign(note="1,5").to_csv(tmp_path / "images.csv", sep=separator, index=False)
    assert open_table(*keys).records == expected


def test_a_data_set_of_your_own_is_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "camelyon.py").write_text(
        "def open_dataset(config, *, task, progress_bar):\n    return config.slides\n"
    )
    (tmp_path / "own").mkdir()
    (tmp_path / "camelyon.py").rename(tmp_path / "own" / "camelyon.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_table("data.source=own.camelyon", "+data.slides=3") == 3
    with pytest.raises(ConfigurationError, match=r"data\.source"):
        open_table("data.source=own.nothing")
    with pytest.raises(ConfigurationError, match="open_dataset"):
        open_table("data.source=splits")


def make_data(cache: Path, *overrides: str) -> BreakHisDataModule:
    config = train_config(*overrides, f"data.cache_dir={cache}", "data.image_size=32", "augmentation=strong")
    data = BreakHisDataModule(config.data, config.augmentation, seed=3, progress_bar=False)
    data.setup()
    return data


def test_the_exported_table_of_breakhis_gives_the_same_bits(write_images: Callable[..., Path], tmp_path: Path) -> None:
    root, table = write_images(*(f"{patient}-200-001.png" for patient in official_patients())), tmp_path / "t" / "b.csv"
    table.parent.mkdir()
    assert export(["--root", str(root), "--allow-incomplete", "--fold", "3", "--table", str(table)]) == 0
    ours = ["data.fold=3", f"data.root={root}", "data.require_complete=false"]
    breakhis, own = make_data(tmp_path / "c", *ours), make_data(tmp_path / "d", "data=table", f"data.table={table}")
    identities = [{**data.identity(), "description": None} for data in (breakhis, own)]
    assert identities[0] == identities[1]
    assert (breakhis.mean, breakhis.std, breakhis.dataset.classes) == (own.mean, own.std, own.dataset.classes)
    for record, other in zip(breakhis.dataset.records, own.dataset.records, strict=True):
        assert record.path.samefile(other.path)
        names = ("image", "target", "patient", "case", "magnification", "subset", "weight")
        assert [getattr(record, name) for name in names] == [getattr(other, name) for name in names]
    for indices, others in zip(breakhis.train_dataloader(), own.train_dataloader(), strict=True):
        for expected, found in zip(breakhis.batch(indices, epoch=4)[:3], own.batch(others, epoch=4)[:3], strict=True):
            assert torch.equal(expected, found)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_pictures_of_other_formats_are_decoded(write_table: Write, tmp_path: Path, kind: str) -> None:
    overrides = write_table(ROWS)
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, kind)
    for name in ROWS["image"]:
        (tmp_path / name).write_bytes(content.getvalue())
    data = make_data(tmp_path / "cache", *overrides)
    assert abs(float(data.cache.pixels.float().mean()) - PIXELS.mean()) < 3


def test_weights_multiply_the_loss_of_their_images(write_table: Write, tmp_path: Path) -> None:
    overrides = write_table(ROWS.assign(weight=[str(1 + index / 4) for index in range(12)]))
    for name in ROWS["image"]:
        Image.fromarray(PIXELS).save(tmp_path / name)
    data = make_data(tmp_path / "cache", *overrides)
    weights = data.batch(torch.tensor([0, 5])).weights
    assert weights is not None
    assert weights.tolist() == [data.dataset.records[index].weight for index in (0, 5)]


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_the_train_loss_is_linear_in_the_weights(monkeypatch: pytest.MonkeyPatch, mixup: float) -> None:
    model = train_config("model.weights=none", "model.head=linear").model.model_dump()
    classes = ("a", "b", "c")
    classifier = Classifier(model, classes=classes, parents=None, parent_classes=classes, image_size=32, mixup=mixup)
    for name in ("log", "update_metrics"):
        monkeypatch.setattr(classifier, name, lambda *_, **__: None)
    images, targets = (
        torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0, 1]),
    )

    def loss(weights: torch.Tensor | None) -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return float(classifier.eval().training_step(Batch(images, targets, targets, weights), 0))

    first, second = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]), torch.tensor([2.0, 0.1, 4.0, 1.0, 0.5])
    assert loss(torch.ones(5)) == pytest.approx(loss(None))
    assert loss(first) != pytest.approx(loss(second))
    assert loss(first + second) == pytest.approx(loss(first) + loss(second))
