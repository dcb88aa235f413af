"""Finds the folder of a checkpoint or an adapter: on this machine, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from foredraft.engine.models.adapter import CONFIG as ADAPTER_CONFIG
from foredraft.engine.models.adapter import WEIGHTS as ADAPTER_WEIGHTS
from foredraft.engine.models.tokenizer import TOKENIZER_FILES
from foredraft.errors import UserError

_CHECKPOINT = ("config.json", "generation_config.json", *TOKENIZER_FILES, "model.safetensors", "model-*.safetensors",
               "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def find_checkpoint(name: str | Path, revision: str | None = None, token: str | None = None, pickled: bool = False) -> Path:
    """Find a checkpoint directory.

    Parameters
    ----------
    name : str or Path
        A directory, or OWNER/NAME on the Hugging Face hub. config.json, generation_config.json, the safetensors and the
        tokenizer's files are downloaded once.
    revision : str or None
        A branch, tag or commit of the hub's repository.
    token : str or None
        The hub's access token; None is HF_TOKEN or that of the login.
    pickled : bool
        Download pytorch_model.bin if the repository has no safetensors.

    Returns
    -------
    Path
        The directory.

    Raises
    ------
    UserError
        There is no such directory, and the hub has no such repository or cannot be reached; or the repository has only
        pickled weights and `pickled` is false.
    """
    if (path := _folder(name, "checkpoint", revision)) is not None:
        return path
    path = _download(str(name), revision, token, _CHECKPOINT)
    if not any(path.glob("*.safetensors")):
        if pickled:
            return _download(str(name), revision, token, (*_CHECKPOINT, *_PICKLED))
        if _has_pickled(str(name), revision, token):
            at = "" if revision is None else f" --revision {revision}"
            raise UserError(f"{name}: the hub has only pickled weights (pytorch_model.bin); run: foredraft convert "
                            f"{name}{at} --out FOLDER, and give FOLDER")
    return path


def find_adapter(name: str | Path, token: str | None = None) -> Path:
    """Find the directory of a LoRA adapter, as find_checkpoint does."""
    return _folder(name, "adapter", None) or _download(str(name), None, token, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))


def _folder(name: str | Path, kind: str, revision: str | None) -> Path | None:
    """The directory of this name; None if the name may be one of the hub."""
    path = Path(name)
    if path.is_dir():
        if revision is not None:
            raise UserError(f"revision {revision!r} is of a hub repository, and {path} is a directory; leave revision out")
        return path
    if path.exists():
        raise UserError(f"{path}: is a file; give the {kind}'s directory")
    parts = str(name).split("/")
    if len(parts) > 2 or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{name}: no such directory; give the {kind}'s directory or a hub id (google/flan-t5-base)")
    return None


def _download(name: str, revision: str | None, token: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # subfolders hold other formats or other models
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(files),
                                      ignore_patterns=["*/*"]))
    except Exception as error:  # the hub client raises many types
        raise _refusal(name, revision, error) from None


def _has_pickled(name: str, revision: str | None, token: str | None) -> bool:
    from huggingface_hub import HfApi

    try:
        return any(file.startswith("pytorch_model") and file.endswith(".bin")
                   for file in HfApi(token=token).list_repo_files(name, revision=revision))
    except Exception:  # without a connection the files are unknown; the missing safetensors are reported instead
        return False


def _refusal(name: str, revision: str | None, error: Exception) -> UserError:
    """The hub client's error as one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        reason = "its owner must grant you access; ask on its page, and give your token"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"it has no revision {revision!r}; give a branch, tag or commit of it"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "it has no such repository, or shows it only with a token; check the name, or set HF_TOKEN"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        reason = "it cannot be reached, and nothing is in the cache; connect once, or give a directory"
    elif isinstance(error, errors.HfHubHTTPError):
        reason = f"it answers {error.response.status_code} for {error.response.request.url}; try again, or give a directory"
    else:
        lines = str(error).strip().splitlines()
        reason = f"{lines[0][:160] if lines else type(error).__name__}; try again, or give a directory"
    return UserError(f"{name}: no such directory, and the hub did not give it: {reason}")
