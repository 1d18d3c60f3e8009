"""The facts of BreakHis: grammar of its file names, classes, published counts, official folds.

Source:
    Spanhol, Oliveira, Petitjean, Heutte: A Dataset for Breast Cancer Histopathological Image Classification,
    IEEE TBME 2016, doi:10.1109/TBME.2015.2496264; the authors' lists of five folds (mkfold.tar.gz).
"""

import csv
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from types import MappingProxyType

from breakhis_pl.errors import FileNameError, SplitError, listed

CLASS_NAMES = ("benign", "malignant")
"""The classes in the order of their index everywhere: logits, columns, rows of the confusion matrix."""

MAGNIFICATIONS = (40, 100, 200, 400)
FOLDS = (1, 2, 3, 4, 5)


class Subset(StrEnum):
    """The part of a split that an image belongs to."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Subtype:
    """A tumor type: its letters in file names, its name, the archive's folder, its class."""

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
"""What a network tells apart, by `task`: classes in the order of their index."""

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

FILE_NAME_FORM = (
    "SOB_<B or M>_<subtype>-<year>-<slide>-<magnification>-<number>.png, as in SOB_B_TA-14-13200-40-001.png"
)

_FILE_NAME = re.compile(
    r"(?P<patient>SOB_(?P<class_letter>[BM])_(?P<subtype>[A-Z]{1,2})-(?P<case>[0-9]{2}-[0-9]+)[A-Z]{0,2})"
    r"-(?P<magnification>40|100|200|400)-(?P<number>[0-9]{3})\.png"
)


@dataclass(frozen=True, slots=True)
class ImageName:
    """What the name of a BreakHis image says.

    Attributes:
        file_name: Name of the file, without folders.
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

    @property
    def target(self) -> int:
        """Index of the class in `CLASS_NAMES`."""
        return CLASS_NAMES.index(self.class_name)

    def target_of(self, task: str) -> int:
        """Index of what a network of this task should say, in `TASKS[task]`."""
        return self.target if task == "binary" else TASKS[task].index(self.subtype)


def parse_file_name(file_name: str) -> ImageName:
    """What a BreakHis file name says.

    Raises:
        FileNameError: If the name does not follow the grammar, or its class and its subtype contradict each other.

    Example:
        >>> parse_file_name("SOB_B_A-14-22549AB-40-001.png").case
        '14-22549'
    """
    match = _FILE_NAME.fullmatch(file_name)
    if match is None:
        raise FileNameError(f"{file_name!r} is no BreakHis name; expected {FILE_NAME_FORM}")
    subtype = SUBTYPES.get(match["subtype"])
    if subtype is None:
        raise FileNameError(f"{file_name!r} names the unknown subtype {match['subtype']}; expected {listed(SUBTYPES)}")
    if subtype.class_name[0].upper() != match["class_letter"]:
        raise FileNameError(f"{file_name!r} says {match['class_letter']}, but {subtype.code} is {subtype.class_name}")
    return ImageName(
        file_name=file_name,
        class_name=subtype.class_name,
        subtype=subtype.code,
        patient=match["patient"],
        case=match["case"],
        magnification=int(match["magnification"]),
    )


@dataclass(frozen=True, slots=True)
class OfficialPatient:
    """A patient of the authors' lists.

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
    """The 82 patients of the authors' five lists, by patient.

    Source:
        dsfold1.txt to dsfold5.txt of mkfold.tar.gz, 7,909 rows each; every patient lies on one side in each.
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


def official_subset(patient: str, fold: int) -> Subset:
    """Subset of a patient in one of the authors' folds.

    Raises:
        SplitError: If the patient is in none of the authors' lists, or there is no such fold.
    """
    if fold not in FOLDS:
        raise SplitError(f"fold {fold} does not exist; the authors published folds {listed(FOLDS)}")
    official = official_patients().get(patient)
    if official is None:
        raise SplitError(f"patient {patient} is in none of the authors' lists")
    return official.subsets[fold]


def archive_folder(name: ImageName) -> str:
    """Folder of an image inside the authors' archive, with "/" between its parts.

    Example:
        >>> archive_folder(parse_file_name("SOB_B_TA-14-13200-40-001.png"))
        'BreaKHis_v1/histology_slides/breast/benign/SOB/tubular_adenoma/SOB_B_TA_14-13200/40X'
    """
    slide = name.patient.replace("-", "_", 1)
    subtype = SUBTYPES[name.subtype]
    return f"BreaKHis_v1/histology_slides/breast/{name.class_name}/SOB/{subtype.folder}/{slide}/{name.magnification}X"
