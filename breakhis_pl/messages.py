"""Messages of errors that a user can cause, in one line each; imports no torch."""

import difflib
import re
import traceback
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from breakhis_pl.errors import BreakHisError, join_truncated


def explain(error: BaseException) -> str | None:
    """Return the message of an error that a user can cause; None for one that needs a traceback."""
    if isinstance(error, BreakHisError):
        return mask_password(str(error))
    if isinstance(error, HydraException | OmegaConfBaseException):
        if isinstance(error, MissingConfigException) and error.options is not None:
            text = _explain_option(error)
        else:
            text = _explain_override(error)
        return mask_password(text)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; finished epochs are kept"
    if type(error).__name__ == "OutOfMemoryError":
        keys = "data.batch_size or data.image_size, or set data.pixels=host or trainer.cuda_graphs=false"
        return f"{str(error).splitlines()[0]} Lower {keys}"
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames}
    if "hydra" in modules and "breakhis_pl" not in modules:  # Hydra's own checks of the command raise many kinds
        return mask_password("; ".join(map(str.strip, str(error).splitlines()))) or type(error).__name__
    return None


def mask_password(text: str) -> str:
    """Replace passwords in URLs by asterisks.

    Example:
        >>> mask_password("tuning.storage=postgresql://alice:secret@host/studies")
        'tuning.storage=postgresql://alice:***@host/studies'
    """
    return re.sub(r"(://[^:/@\s]*:)\S*(?=@)|(password=)[^&\s'\"]*", r"\1\2***", text)


def _explain_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = [name for name in error.options or () if not name.startswith("_")]
    near = difflib.get_close_matches(option, options, n=1)
    message = f"{group}={option}: no such option; "
    message += f"did you mean {group}={near[0]}?" if near else f"options are {join_truncated(options, 20)}"
    if group == "model":
        message += f" Any network of torchvision: model=torchvision model.backbone={option}"
    return message


def _explain_override(error: BaseException) -> str:
    """Turn Hydra's message about an override into one line."""
    text, cause = str(error), error.__cause__ or error.__context__
    unknown = re.search(r"Could not override '([^'@]+)", text)
    if unknown is not None:
        key = unknown[1]
        parent = getattr(cause, "parent_node", None)
        valid = [str(name) for name in parent] if isinstance(parent, DictConfig) else _groups()
        if key in valid:
            hint = "set trainer.accelerator=<device>" if key == "trainer" else "see --help"
            return f"{key}: has no options in this program; {hint}"
        if not valid:
            return f"{key}: unknown key; +{key}=<value> adds it"
        near = difflib.get_close_matches(key.rpartition(".")[2], valid, n=1)
        prefix = str(getattr(cause, "full_key", key)).rpartition(".")[0]  # of the group that lacks the key
        hint = (
            f"did you mean {f'{prefix}.' if prefix else ''}{near[0]}?"
            if near
            else f"keys are {join_truncated(valid, 30)}"
        )
        return f"{key}: unknown key; {hint}"
    ambiguous = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if ambiguous is not None:
        key, _, value = ambiguous[1].partition("=")
        if re.fullmatch(r"\d+,\d+", value):
            return (
                f"{ambiguous[1]}: a decimal number has a point, {key}={value.replace(',', '.')}; several values need -m"
            )
        return f"{ambiguous[1]}: several values need -m; a comma in one value needs two quotes: \"{key}='{value}'\""
    first = text.splitlines()[0] if text else type(error).__name__
    if first.startswith("Error merging override") and cause is not None:
        first += f": {str(cause).splitlines()[0]}"
    if (
        "LexerNoViableAlt" in text
        or "mismatched input" in text
        or "token recognition" in text
        or "extraneous input" in text
    ):
        first += "; a value with special characters needs quotes inside quotes, as in \"data.root='/my data/x=1'\""
    return first


def _groups() -> list[str]:
    conf = Path(__file__).resolve().parent.parent / "conf"
    return sorted(path.name for path in conf.iterdir() if path.is_dir())
