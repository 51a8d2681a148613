"""Upload a folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import UserError, reason


def check_upload(repo: str) -> None:
    """Check, without asking the Hub, that something can be uploaded to a repository.

    Args:
        repo: Its name, ``user/name``.

    Raises:
        UserError: If that is no name, the Hub may not be asked, or there is no token for it.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f'--upload {repo}: {reason(error)}') from error
    if repo.count('/') != 1:
        raise UserError(f'--upload {repo}: a repository on the Hub is named USER/NAME')
    if constants.HF_HUB_OFFLINE:
        raise UserError('--upload needs the Hub, and HF_HUB_OFFLINE forbids to ask it: unset it')
    if get_token() is None:
        raise UserError('--upload needs a token that may write: hf auth login, or HF_TOKEN=…')


def upload(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder as one commit, to a repository that is made if there is none.

    Args:
        folder: With files alone.
        repo: ``user/name``.
        private: Of a repository that is made: only its owner sees it.

    Returns:
        Its address.

    Raises:
        UserError: If that fails; the folder is as it was.
    """
    api = HfApi(library_name='cvt_dense')
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f'Publish {folder.name}')
    except Exception as error:  # versions of huggingface_hub differ in their HTTP library, and so in its errors
        raise UserError(
            f'{folder} is whole, and could not be uploaded to {repo} ({reason(error)})',
            f'try again with: hf upload {repo} {folder}',
        ) from error
    return str(url)
