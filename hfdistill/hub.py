"""Publish a student: choose the folder, complete its card, upload what is needed to load it and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of httpx or httpx2, by version
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
)
from safetensors import SafetensorError, safe_open

from hfdistill.card import extend_card, hub_id
from hfdistill.errors import HfDistillError
from hfdistill.run_card import run_card_facts
from hfdistill.run_folder import RunFolder, Stage, read_json, read_run

# Beside the model, but no part of it: a training state, a log, or what only this machine needs.
LEFT_OUT = (
    ".*",
    "stage.json",
    "predictions.safetensors",
    "trainer_state.json",
    "training_args.bin",
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "events.out.tfevents*",
    "*.pt",
    "*.pth",
    "*.incomplete",
)
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")
# Beside whole models and beside adapters; one that is left from a push of the other kind says how to load what is gone.
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
STALE = (*WEIGHTS, CONFIG, ADAPTER_CONFIG)
PUBLISHED = ("finetuned", "student")


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload student",
) -> str:
    """Publish a student on the Hub and return the address of its repository.

    `folder` is a run folder (the student of its first finished seed, fine-tuned if it was), the folder of one student
    in a run (RUN/seed-43/student), or any folder of `save_pretrained` with a README.md. The repository is made if it is
    not there; with `private` a public one is refused. `revision` is a branch. Everything appears in one commit, so a
    broken upload publishes nothing.
    Errors: HfDistillError for an incomplete folder, a refused token, a missing right, no network.
    """
    model, run, stage = chosen_student(folder)
    _check_loadable(model)
    if run is not None and stage is not None:
        extend_card(model, run_card_facts(run, stage, repo_id))
    elif not (model / "README.md").is_file():
        raise HfDistillError(
            f"got {model} without README.md, expected a model card; call trainer.create_model_card() or write one"
        )
    with explained(repo_id):
        api = HfApi(token=token, library_name="hfdistill")
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(address.repo_id).private:
            raise HfDistillError(
                f"got private=True, but {address.repo_id} exists and is public; "
                "make it private in its settings, or choose another name"
            )
        if revision is not None:
            api.create_branch(address.repo_id, branch=revision, exist_ok=True)
        files = _published(model)
        api.create_commit(
            address.repo_id,
            [
                *[CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in files],
                *_stale_weights(api, address.repo_id, revision, {file.name for file in files}),
            ],
            revision=revision,
            commit_message=commit_message,
        )
    return str(address) if revision is None else f"{address}/tree/{revision}"


def _stale_weights(api: HfApi, repo_id: str, revision: str | None, new: set[str]) -> list[CommitOperationDelete]:
    """Files of an earlier push that `from_pretrained` would take instead: it prefers one file to shards."""
    there = api.list_repo_files(repo_id, revision=revision)
    stale = [name for name in there if any(fnmatch(name, pattern) for pattern in STALE) and name not in new]
    return [CommitOperationDelete(path_in_repo=name) for name in stale]


def chosen_student(folder: Path) -> tuple[Path, RunFolder | None, Stage | None]:
    """The folder to publish, and the run and stage it belongs to, if any."""
    if (folder / "recipe.yaml").is_file():
        run = read_run(folder)
        for name in PUBLISHED:
            for stage in run.of(name).values():
                return stage.folder, run, stage
        raise HfDistillError(
            f"got {folder} without a finished student, expected one; "
            f"finish the run with `hfdistill run {folder / 'recipe.yaml'}`"
        )
    above = folder.resolve().parent.parent
    if (above / "recipe.yaml").is_file():
        run = read_run(above)
        for stage in run.stages:
            if stage.folder.resolve() == folder.resolve():
                return folder, run, stage
        raise HfDistillError(f"got {folder}, which is not finished; finish the run, then push it")
    return folder, None, None


def _published(model: Path) -> list[Path]:
    files = [file for file in sorted(model.iterdir()) if file.is_file()]
    return [file for file in files if not any(fnmatch(file.name, pattern) for pattern in LEFT_OUT)]


def _check_loadable(model: Path) -> None:
    """Refuse a folder that `from_pretrained` and the pipelines could not use."""
    if (model / ADAPTER_CONFIG).is_file():
        _check_base(model)
    elif not (model / CONFIG).is_file():
        raise HfDistillError(f"got {model} without config.json, expected a folder of save_pretrained")
    weights = [file for file in _published(model) if file.suffix == ".safetensors"]
    index = model / "model.safetensors.index.json"
    if index.is_file():
        named = {str(name) for name in read_json(index).get("weight_map", {}).values()}
        missing = sorted(named - {file.name for file in weights})
        if missing:
            raise HfDistillError(f"got {model} without {', '.join(missing)}, which {index.name} names; save it again")
    if not weights:
        raise HfDistillError(f"got {model} without weights, expected *.safetensors; save the model there first")
    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise HfDistillError(f"got {file}, which cannot be read ({error}); save the model again") from error
    if not any((model / name).is_file() for name in PROCESSORS):
        raise HfDistillError(
            f"got {model} without a processor, expected one of {', '.join(PROCESSORS)}: nobody could prepare inputs; "
            "call save_pretrained of the image processor or tokenizer on that folder"
        )


def _check_base(model: Path) -> None:
    """Refuse adapters of a base that only this machine has."""
    base = read_json(model / ADAPTER_CONFIG).get("base_model_name_or_path")
    if hub_id(base) is None:
        raise HfDistillError(
            f"got adapters in {model} for the base {base!r}, which nobody else has; publish the base, and write its "
            f"name on the Hub as base_model_name_or_path into {ADAPTER_CONFIG}"
        )


@contextmanager
def explained(repo_id: str, example: str = "you/my-student") -> Iterator[None]:
    """Say in our words what went wrong between here and the Hub, while `repo_id` (such as `example`) is published."""
    try:
        yield
    except HfDistillError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        raise HfDistillError(_explanation(cause, repo_id, example)) from error


def _explanation(error: BaseException, repo_id: str, example: str) -> str:
    if isinstance(error, HFValidationError):
        return f"got {repo_id!r}, expected a name such as {example} ({error})"
    if isinstance(error, OfflineModeIsEnabled):
        return "got HF_HUB_OFFLINE=1, so nothing can be published; unset it and push again"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        for known, explanation in _STATUS.items():
            if status == known:
                return f"The Hub refused {repo_id} ({status}): {explanation}"
        return (
            f"The Hub did not take {repo_id} ({status}: {error.server_message or 'no reason given'}); try again later"
        )
    if isinstance(error, HTTPError):
        return (
            f"got no answer from the Hub at {constants.ENDPOINT} ({error}), expected a connection; check it and "
            "HF_ENDPOINT, then push again: nothing was published"
        )
    return f"got an error while publishing {repo_id}: {error}; mend it and push again"


_STATUS = {
    401: "the token is missing or not valid. Run `hf auth login`, or give a token that may write.",
    402: "your storage on the Hub is used up. Free some, or push to a public repository.",
    403: "the token may not write there. Use one with write access, and a namespace that is yours.",
    404: "there is no such repository or branch, or the token may not see it. Check both names.",
    409: "somebody changed it at the same time. Push again.",
    412: "somebody changed it at the same time. Push again.",
    429: "too many requests. Wait some minutes, then push again.",
}
