"""BreakHis: file names, classes, published counts, official folds, and how a folder becomes a data set.

Source:
    Spanhol, Oliveira, Petitjean, Heutte: A Dataset for Breast Cancer Histopathological Image Classification,
    IEEE TBME 2016, doi:10.1109/TBME.2015.2496264; the authors' lists of five folds (mkfold.tar.gz).
"""

import csv
import glob
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from breakhis_pl.config import BreakHisDataConfig
from breakhis_pl.data.dataset import Dataset, ImageRecord, Subset
from breakhis_pl.errors import DataError, join_truncated, pluralize

CLASS_NAMES = ("benign", "malignant")
"""The classes in the order of their index everywhere: logits, columns, rows of the confusion matrix."""

CLASS_LETTERS = MappingProxyType({"benign": "B", "malignant": "M"})
"""Letter of each class in file names."""

MAGNIFICATIONS = (40, 100, 200, 400)
FOLDS = (1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Subtype:
    """Tumor type: letters in file names, name, folder in the archive, class."""

    code: str
    name: str
    folder: str
    class_name: str


SUBTYPES = MappingProxyType(
    {
        subtype.code: subtype
        for subtype in (
            Subtype("A", "adenosis", "adenosis", "benign"),
            Subtype("F", "fibroadenoma", "fibroadenoma", "benign"),
            Subtype("PT", "phyllodes tumor", "phyllodes_tumor", "benign"),
            Subtype("TA", "tubular adenoma", "tubular_adenoma", "benign"),
            Subtype("DC", "ductal carcinoma", "ductal_carcinoma", "malignant"),
            Subtype("LC", "lobular carcinoma", "lobular_carcinoma", "malignant"),
            Subtype("MC", "mucinous carcinoma", "mucinous_carcinoma", "malignant"),
            Subtype("PC", "papillary carcinoma", "papillary_carcinoma", "malignant"),
        )
    }
)

TASKS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType({"binary": CLASS_NAMES, "subtype": tuple(SUBTYPES)})
"""Classes by `task`, in the order of their index."""

PUBLISHED_COUNTS = MappingProxyType(
    {
        (40, "benign"): 625,  # often printed as 652; only 625 fits the sums of its row and its column
        (40, "malignant"): 1370,
        (100, "benign"): 644,
        (100, "malignant"): 1437,
        (200, "benign"): 623,
        (200, "malignant"): 1390,
        (400, "benign"): 588,
        (400, "malignant"): 1232,
    }
)
"""Number of images by magnification and class (table 1 of Spanhol et al. 2016)."""

IMAGE_SIZE = (700, 460)
"""Width and height of the original images in pixels."""

_FILE_NAME = re.compile(
    r"(?P<stem>(?P<patient>SOB_(?P<class_letter>[BM])_(?P<subtype>[A-Z]{1,2})-(?P<case>[0-9]{2}-[0-9]+)[A-Z]{0,2})"
    r"-(?P<magnification>40|100|200|400)-[0-9]{3})\.(?i:png)"
)


@dataclass(frozen=True, slots=True)
class ImageName:
    """Content of the name of a BreakHis image.

    Attributes:
        file_name: Name of the file, without folders, with the suffix in lower case.
        class_name: "benign" or "malignant".
        subtype: Code of the tumor type, a key of `SUBTYPES`.
        patient: The authors' unit: class, subtype, year and slide number, "SOB_B_TA-14-13200".
        case: Year and accession number without the letters behind it, "14-22549" for 22549AB, CD and G.
        magnification: 40, 100, 200 or 400.
    """

    file_name: str
    class_name: str
    subtype: str
    patient: str
    case: str
    magnification: int

    def target_of(self, task: str) -> int:
        """Return the index in `TASKS[task]`."""
        return TASKS[task].index(self.class_name if task == "binary" else self.subtype)


def parse_file_name(file_name: str) -> ImageName:
    """Parse the name of a BreakHis image.

    Raises:
        DataError: If the name is malformed, or its class and its subtype contradict each other.

    Example:
        >>> parse_file_name("SOB_B_A-14-22549AB-40-001.png").case
        '14-22549'
    """
    match = _FILE_NAME.fullmatch(file_name)
    if match is None:
        raise DataError(
            f"{file_name!r}: is not a BreakHis name; expected SOB_<B or M>_<subtype>-<year>-<slide>-<magnification>-"
            "<number>.png, for example SOB_B_TA-14-13200-40-001.png"
        )
    subtype = SUBTYPES.get(match["subtype"])
    if subtype is None:
        raise DataError(
            f"{file_name!r}: has the unknown subtype {match['subtype']}; expected one of {', '.join(SUBTYPES)}"
        )
    if CLASS_LETTERS[subtype.class_name] != match["class_letter"]:
        raise DataError(
            f"{file_name!r}: has class {match['class_letter']}, but subtype {subtype.code} is {subtype.class_name}"
        )
    return ImageName(
        file_name=f"{match['stem']}.png",
        class_name=subtype.class_name,
        subtype=subtype.code,
        patient=match["patient"],
        case=match["case"],
        magnification=int(match["magnification"]),
    )


def tumor_type(patient: str) -> str | None:
    """Return the code of the tumor type in the name of a patient; None if it is not a BreakHis patient.

    Example:
        >>> tumor_type("SOB_B_TA-14-13200"), tumor_type("patient 7")
        ('TA', None)
    """
    match = _FILE_NAME.fullmatch(f"{patient}-40-001.png")
    return None if match is None or match["subtype"] not in SUBTYPES else match["subtype"]


@dataclass(frozen=True, slots=True)
class OfficialPatient:
    """Patient in the authors' lists.

    Attributes:
        patient: As in `ImageName`.
        subsets: Subset by fold (1 to 5).
        n_images: Number of published images by magnification.
    """

    patient: str
    subsets: MappingProxyType[int, Subset]
    n_images: MappingProxyType[int, int]


@cache
def official_patients() -> MappingProxyType[str, OfficialPatient]:
    """Return the 82 patients of the authors' five lists, by patient.

    Source:
        dsfold1.txt to dsfold5.txt of mkfold.tar.gz, 7,909 rows each; all images of a patient are in the same subset.
    """
    table = resources.files("breakhis_pl.data").joinpath("official_folds.csv").read_text(encoding="utf-8")
    return MappingProxyType(
        {
            row["patient"]: OfficialPatient(
                patient=row["patient"],
                subsets=MappingProxyType({fold: Subset(row[f"fold{fold}"]) for fold in FOLDS}),
                n_images=MappingProxyType({m: int(row[f"images_{m}"]) for m in MAGNIFICATIONS}),
            )
            for row in csv.DictReader(table.splitlines())
        }
    )


def archive_folder(name: ImageName) -> str:
    """Return the folder of an image in the authors' archive, with "/" between its parts.

    Example:
        >>> archive_folder(parse_file_name("SOB_B_TA-14-13200-40-001.png"))
        'BreaKHis_v1/histology_slides/breast/benign/SOB/tubular_adenoma/SOB_B_TA_14-13200/40X'
    """
    slide = name.patient.replace("-", "_", 1)
    subtype = SUBTYPES[name.subtype]
    return f"BreaKHis_v1/histology_slides/breast/{name.class_name}/SOB/{subtype.folder}/{slide}/{name.magnification}X"


class IndexedImage(NamedTuple):
    """Path of an image and the content of its name."""

    path: Path
    name: ImageName


def index_images(root: Path, magnifications: Collection[int]) -> tuple[IndexedImage, ...]:
    """Find all images of some magnifications below a folder, sorted by file name.

    The layout of the folder does not matter: labels are read from file names. Links are followed, hidden files ignored.

    Args:
        root: Folder to search for PNG files; all must have BreakHis names.
        magnifications: Some of 40, 100, 200 and 400.

    Raises:
        DataError: If there are no images, or names are malformed, of unknown patients or duplicates.
    """
    images, faults = _index(root)
    if faults:
        raise _data_error(root, faults)
    return tuple(image for image in images if image.name.magnification in magnifications)


def check_complete(images: Iterable[IndexedImage], magnifications: Collection[int]) -> None:
    """Check that the images are exactly the published ones, by class and by patient.

    Raises:
        DataError: If images are missing, or there are more than published.
    """
    faults = _compare_counts(images, magnifications)
    if faults:
        raise DataError("; ".join(faults))


def open_dataset(config: BreakHisDataConfig, *, task: str, progress_bar: bool) -> Dataset:  # noqa: ARG001
    """Open the data set of a configuration; see `open_breakhis`."""
    return open_breakhis(
        config.root,
        task=task,
        magnifications=config.all_magnifications,
        require_complete=config.require_complete,
        fold=config.fold,
    )


def open_breakhis(
    root: Path, *, task: str, magnifications: Sequence[int], require_complete: bool, fold: int | None = None
) -> Dataset:
    """Open a folder of BreakHis images as a data set.

    Args:
        root: Folder that holds files with BreakHis names, at any depth.
        task: A key of `TASKS`.
        magnifications: Magnifications to use.
        require_complete: Refuse a folder that does not hold exactly the published images.
        fold: The authors' fold that the records have the subset of; None for none.

    Raises:
        DataError: If the folder cannot be used, with all reasons.
    """
    found, faults = _index(root)
    images = [image for image in found if image.name.magnification in magnifications]
    differences = _compare_counts(images, magnifications)
    present = sorted({f"{name.magnification}X" for _, name in found})
    absent = [f"{magnification}X" for magnification in magnifications if f"{magnification}X" not in present]
    if found and absent:
        faults.append(
            f"no images at {', '.join(absent)}, only at {', '.join(present)}; set data.magnification to one of these"
        )
    elif found and differences and require_complete:
        faults += [*differences, "download the archive, or set data.require_complete=false to use what is there"]
    if faults:
        raise _data_error(root, faults)
    classes = TASKS[task]
    return Dataset(
        name="BreakHis",
        records=tuple(
            ImageRecord(
                path,
                name.file_name,
                name.target_of(task),
                name.patient,
                name.case,
                name.magnification,
                None if fold is None else official_patients()[name.patient].subsets[fold],
            )
            for path, name in images
        ),
        classes=classes,
        parents=tuple(CLASS_NAMES.index(SUBTYPES[code].class_name) for code in classes) if task == "subtype" else None,
        parent_classes=CLASS_NAMES,
        is_complete=not differences,
        n_published=sum(PUBLISHED_COUNTS[m, name] for m in magnifications for name in CLASS_NAMES),
        description=_describe(images, magnifications),
    )


def _index(root: Path) -> tuple[list[IndexedImage], list[str]]:
    """Return all images below a folder, sorted by name, and the faults of their names."""
    if not root.is_dir():
        raise DataError(
            f"data.root={root}: is not a folder; set data.root to the folder that holds BreaKHis_v1, run "
            "`uv run python -m breakhis_pl.data.download`, or try data=synthetic"
        )
    images: list[IndexedImage] = []
    malformed: list[str] = []
    for path in sorted(glob.glob("**/*.[pP][nN][gG]", root_dir=root, recursive=True)):  # noqa: PTH207 - follows links
        try:
            images.append(IndexedImage(root / path, parse_file_name(Path(path).name)))
        except DataError as error:
            malformed.append(str(error) if not malformed else path)
    images.sort(key=lambda image: image.name.file_name)
    counts = Counter(name.file_name for _, name in images)
    duplicates = sorted(name for name, n in counts.items() if n > 1)
    unknown = sorted({name.patient for _, name in images} - official_patients().keys())
    faults = []
    if malformed:
        faults.append(
            f"{pluralize(len(malformed), 'PNG file')} without a BreakHis name: {join_truncated(malformed, 3)}"
        )
    if duplicates:
        copies = [str(path.relative_to(root)) for path, name in images if name.file_name == duplicates[0]]
        faults.append(
            f"more than one file of {pluralize(len(duplicates), 'name')}, for example {join_truncated(copies, 2)}; set "
            "data.root to the folder of one copy"
        )
    if unknown:
        faults.append(f"{pluralize(len(unknown), 'patient')} not in the authors' lists: {join_truncated(unknown, 3)}")
    if not images and not malformed:
        faults.append(
            "no PNG files with BreakHis names; run `uv run python -m breakhis_pl.data.download`, or try data=synthetic"
        )
    return images, faults


def _compare_counts(images: Iterable[IndexedImage], magnifications: Collection[int]) -> list[str]:
    """Return how images differ from the published ones: counts of classes, then of patients."""
    names = [name for _, name in images]
    found = Counter((name.class_name, name.magnification) for name in names)
    found.update((name.patient, name.magnification) for name in names)
    published = {(name, m): n for (m, name), n in PUBLISHED_COUNTS.items()}
    published |= {(each.patient, m): n for each in official_patients().values() for m, n in each.n_images.items()}
    texts = [
        f"{name} at {m}X ({found[name, m]:,} of {published.get((name, m), 0):,})"
        for name, m in dict.fromkeys([*published, *found])
        if m in magnifications and found[name, m] != published.get((name, m), 0)
    ]
    return [f"images missing or too many: {join_truncated(texts)}"] if texts else []


def _describe(images: Sequence[IndexedImage], magnifications: Sequence[int]) -> str:
    """Return the numbers of images and patients, found and published."""
    by_class = Counter(name.class_name for _, name in images)
    published = {name: sum(PUBLISHED_COUNTS[m, name] for m in magnifications) for name in CLASS_NAMES}
    classes = ", ".join(f"{by_class[name]:,} of {published[name]:,} {name}" for name in CLASS_NAMES)
    where = ", ".join(f"{m}X" for m in sorted(magnifications))
    n_patients = sum(any(each.n_images[m] for m in magnifications) for each in official_patients().values())
    return (
        f"{len(images):,} of {sum(published.values()):,} images at {where} ({classes}) "
        f"of {len({name.patient for _, name in images})} of {n_patients} patients"
    )


def _data_error(root: Path, faults: Iterable[str]) -> DataError:
    return DataError(f"data.root={root}: " + "\n  ".join(faults))
