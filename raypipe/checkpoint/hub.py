"""Predictors on the Hugging Face Hub: `push` uploads the folder of one, `fetch` downloads one by hf://USER/NAME.

Tokens and the address of the server are those of the package huggingface_hub (HF_TOKEN, HF_ENDPOINT, HF_HOME).
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from raypipe.common.errors import UserError, first_line
from raypipe.common.extras import need

SCHEME = "hf://"
PLACEHOLDER = "hf://USER/NAME"
"""Stands in a model card for the address that the model gets when it is pushed."""
CARD = "README.md"
PUSHED = (CARD, "*.png", "*.json", "*/config.json", "*/model.safetensors")
"""Files of a predictor's folder that are pushed, and downloaded: what further training needs is not among them."""
REFUSED = (401, 403)


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a predictor's folder, in one commit, to a model repository, which is created if there is none.

    repository: USER/NAME. private: whether a new repository is private. Returns its URL. Raises UserError if the folder
    is no complete best/, without a token, or if the server cannot be reached or refuses.
    """
    files = _files(folder)
    hub = _hub("pushing a model")
    if hub.get_token() is None:
        raise UserError("no Hugging Face token; set HF_TOKEN, or run `hf auth login`")
    with _plain_errors(hub, _checked(repository)):
        api = hub.HfApi()
        url = str(api.create_repo(repository, private=private or None, exist_ok=True))
        contents: dict[str, str | bytes] = {name: str(folder / name) for name in files}
        card = (folder / CARD).read_text(encoding="utf-8").replace(PLACEHOLDER, f"{SCHEME}{repository}")
        contents[CARD] = card.encode()
        changes = [hub.CommitOperationAdd(name, content) for name, content in contents.items()]
        # Networks of an earlier predictor, which the new one does not have.
        stale = [name for name in api.list_repo_files(repository) if _is_network(name) and name not in files]
        changes += [hub.CommitOperationDelete(name) for name in stale]
        api.create_commit(repository, changes, commit_message="Predictor trained with raypipe")
    return url


def fetch(uri: str) -> Path:
    """Local copy of the repository hf://USER/NAME, in the cache of huggingface_hub.

    What has not changed is not downloaded again. Raises UserError if the repository cannot be read, and without
    huggingface_hub.
    """
    repository = _checked(uri.removeprefix(SCHEME))
    hub = _hub(f"{uri}: reading it")
    with _plain_errors(hub, repository):
        return Path(hub.snapshot_download(repository, allow_patterns=list(PUSHED)))


def _hub(what: str) -> Any:
    hub = need("huggingface_hub", "hub", what)
    for part in ("constants", "errors", "utils"):
        need(f"{hub.__name__}.{part}", "hub", what)
    for name in ("httpx", "httpx2"):  # of which one, by the version, names every request at the level of raypipe's log
        logging.getLogger(name).setLevel(logging.WARNING)
    hub.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    return hub


def _checked(repository: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"{repository}: must be USER/NAME, as in {PLACEHOLDER}")
    return repository


def _files(folder: Path) -> list[str]:
    """The files to push, relative to the folder. Raises UserError if the folder is no complete best/."""
    if not (folder / "manifest.json").is_file() or not (folder / "autoencoder").is_dir():
        raise UserError(
            f"{folder}: not a predictor's folder (no manifest.json and autoencoder/); give the best/ of an experiment"
        )
    if not (folder / CARD).is_file():
        raise UserError(f"{folder}: has no model card ({CARD}); python -m raypipe.evaluate writes it, scores are kept")
    return sorted({path.relative_to(folder).as_posix() for pattern in PUSHED for path in folder.glob(pattern)})


def _is_network(name: str) -> bool:
    path = PurePosixPath(name)
    return len(path.parts) == 2 and path.name in ("config.json", "model.safetensors")


@contextmanager
def _plain_errors(hub: Any, repository: str) -> Iterator[None]:
    """Convert the errors of huggingface_hub, and of the network below it, to UserError."""
    errors = hub.errors
    server = os.environ.get("HF_ENDPOINT") or hub.constants.ENDPOINT
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(f"{repository}: its owner must first grant access, on its page at {server}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repository}: no such repository at {server}, or a private one that the token (HF_TOKEN) may not read"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in REFUSED:
            raise UserError(f"{repository}: {server} refuses the token (HTTP {status}); it must be one that may write "
                            "there, from HF_TOKEN or `hf auth login`") from None  # fmt: skip
        said = error.server_message or first_line(error)
        raise UserError(f"{repository}: {server} answered HTTP {status} ({said})") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(_nobody(repository, server, error.__cause__ or error)) from None
    except OSError as error:
        raise UserError(f"{repository}: {error.strerror or first_line(error)}") from None
    except (RuntimeError, errors.HTTPError) as error:  # an upload that failed; errors of the HTTP client
        raise UserError(_nobody(repository, server, error.__cause__ or error)) from None


def _nobody(repository: str, server: str, error: BaseException) -> str:
    return f"{repository}: {server} cannot be reached ({first_line(error)}); check the network, and HF_ENDPOINT"
