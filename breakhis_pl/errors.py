"""Every error the package raises on purpose; each is also a standard type.

    BreakHisError
    ├── ConfigurationError (ValueError)         a key or value of the configuration
    ├── FileNameError (ValueError)              a file name that is no BreakHis name
    ├── DataFolderError (FileNotFoundError)     a data folder that is missing, or holds no usable images
    ├── IncompleteDataError (ValueError)        images are missing from a data folder, or too many are there
    ├── ImageError (ValueError)                 a file that is no readable image
    ├── SplitError (ValueError)                 a split that cannot be made, or is not usable
    ├── WeightsError (ValueError)               pretrained weights that are missing or do not fit
    ├── CheckpointError (ValueError)            a checkpoint that is missing, or is something else
    ├── RunFolderError (FileNotFoundError)      a folder that is no run folder
    ├── PredictionsError (ValueError)           a predictions.csv that cannot be evaluated
    ├── ShapeError (ValueError)                 arrays that are empty or do not match
    ├── StorageError (OSError)                  a folder that cannot be written to, or a full disk
    ├── TrainingError (ArithmeticError)         a training that went wrong
    ├── DownloadError (OSError)                 a download that failed
    └── ArchiveError (ValueError)               an archive that is damaged or unsafe to unpack

At the command line each of them is one message and an exit status that is not 0, without a traceback.
"""

from collections.abc import Iterable


class BreakHisError(Exception):
    """Base of all errors raised on purpose. Its text says what is wrong, what was expected, what to do next."""


class ConfigurationError(BreakHisError, ValueError):
    """A key or a value of the configuration is not possible."""


class FileNameError(BreakHisError, ValueError):
    """A file name does not follow the grammar of BreakHis."""


class DataFolderError(BreakHisError, FileNotFoundError):
    """A data folder does not exist or holds nothing that can be used."""


class IncompleteDataError(BreakHisError, ValueError):
    """A data folder does not hold exactly the published images."""


class ImageError(BreakHisError, ValueError):
    """Files that should be images are not, or changed."""


class SplitError(BreakHisError, ValueError):
    """Images cannot be divided into subsets as asked."""


class WeightsError(BreakHisError, ValueError):
    """Pretrained weights are missing, unreadable or made for another network."""


class CheckpointError(BreakHisError, ValueError):
    """A checkpoint is missing, unreadable or not one of this package."""


class RunFolderError(BreakHisError, FileNotFoundError):
    """A folder is not the folder of a run."""


class PredictionsError(BreakHisError, ValueError):
    """A table of predictions is malformed."""


class ShapeError(BreakHisError, ValueError):
    """Arrays are empty, or their shapes do not match."""


class StorageError(BreakHisError, OSError):
    """A folder cannot be written to, or the disk is full."""


class TrainingError(BreakHisError, ArithmeticError):
    """A training went wrong."""


class DownloadError(BreakHisError, OSError):
    """A download failed."""


class ArchiveError(BreakHisError, ValueError):
    """An archive is damaged, or would write outside its folder."""


class Stopped(BaseException):
    """A signal asked the process to end, as a scheduler does; no error, so nothing handles it on the way.

    Attributes:
        signum: Of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class Pruned(BaseException):
    """A trial of a study is not worth going on with; no error, so nothing handles it on the way."""


def listed(names: Iterable[object], limit: int = 10) -> str:
    """The first names joined by commas, then how many more there are.

    Args:
        names: What to list, in order.
        limit: How many to spell out.

    Example:
        >>> listed(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    texts = [str(name) for name in names]
    shown = ", ".join(texts[:limit])
    return shown if len(texts) <= limit else f"{shown} and {len(texts) - limit} more"
