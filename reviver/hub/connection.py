"""Which Hub is spoken to, as whom, and how its answers become errors that a person can act on.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` are read by `huggingface_hub` itself; the fields here
only override them. No token is ever written, shown or put in an error.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from reviver import __version__
from reviver.errors import (
    GatedModelError,
    HubError,
    ModelNotFoundError,
    OfflineError,
    PermissionDeniedError,
    RemoteMovedError,
    ReviverError,
    TokenError,
    UsageError,
)
from reviver.files import disk_error
from reviver.text import printable

# The HTTP library is httpx in huggingface_hub 1.x and httpx2 in 2.x; its base error is the first base of the Hub's.
_TRANSPORT_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]
_SECRET = re.compile(r"(hf_|api_org_|Bearer\s+)[A-Za-z0-9_\-]{4,}")
_LOGIN = "run `hf auth login`, or set HF_TOKEN to a token from {url}/settings/tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One Hub and one identity; every field left out comes from the environment."""

    endpoint: str | None = None
    """The address of the Hub, without a final slash."""
    token: str | None = field(default=None, repr=False)
    """The access token; never shown."""
    cache: Path | None = None
    """The folder that `huggingface_hub` keeps downloads in."""

    @property
    def url(self) -> str:
        """The address of the Hub."""
        return str(self.endpoint or constants.ENDPOINT)

    @property
    def cache_folder(self) -> Path:
        """The folder that holds the Hub's cache, whether or not it exists yet."""
        return self.cache or Path(constants.HF_HUB_CACHE)

    def api(self) -> HfApi:
        """Return the client that speaks to this Hub."""
        return HfApi(endpoint=self.endpoint, token=self.token, library_name="reviver", library_version=__version__)

    def known_token(self) -> str | None:
        """Return the token that requests will carry, or None if there is none.

        Raises:
            HubError: the token's source (a sign-in service) failed.
        """
        with translated(self, None):
            return self.token or get_token()

    def required_token(self) -> str:
        """Return the token that a write needs.

        Raises:
            TokenError: there is none.
        """
        token = self.known_token()
        if token is None:
            raise TokenError("no Hugging Face token was found, and writing to the Hub needs one", hint=self.login_hint)
        return token

    @property
    def login_hint(self) -> str:
        """What a person without a (valid) token does next."""
        return _LOGIN.format(url=self.url)


def check_model_id(text: str, *, what: str = "model id") -> str:
    """Return `text` if it is a well-formed Hub id, `name` or `org/name`.

    Raises:
        UsageError: it is not.
    """
    try:
        if not text:
            raise HFValidationError("empty")
        validate_repo_id(text)
    except HFValidationError:
        raise UsageError(
            f"`{printable(text, 100)}` is not a valid {what}",
            hint="an id is `org/name`: letters, digits, `-`, `_` and `.`, at most 96 characters",
            model=text,
        ) from None
    return text


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and log lines of `huggingface_hub` while it works for us, and restore them afterwards.

    Its warnings quote the addresses of requests, signed upload links among them, and it draws over our own progress.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    # HF_HUB_DISABLE_PROGRESS_BARS=0 is a person asking for those bars; only an unset variable leaves the choice to us.
    silence_bars = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if silence_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if silence_bars:
            enable_progress_bars()


@contextmanager
def translated(connection: Connection, model: str | None, *, revision: str | None = None) -> Iterator[None]:
    """Turn whatever `huggingface_hub` or the network raises inside into one of our typed errors."""
    try:
        yield
    except ReviverError:
        raise
    except Exception as error:
        ours = hub_error(error, connection, model, revision=revision)
        if ours is None:
            raise
        # The original text may quote a signed link or a header, so that it is not chained into a traceback.
        raise ours from None


def hub_error(
    error: BaseException, connection: Connection, model: str | None, *, revision: str | None = None
) -> ReviverError | None:
    """Return the error that a person sees for one of the Hub's, or None if it is none of the Hub's."""
    shown = f"`{printable(model, 100)}`" if model else "the Hub"
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return hub_error(error.__cause__, connection, model, revision=revision) or _said(error, shown)
    if isinstance(error, OfflineModeIsEnabled):
        return OfflineError(
            f"{shown} cannot be asked for: offline mode is on",
            hint="unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) and run the command again",
            model=model,
        )
    if isinstance(error, LocalEntryNotFoundError):
        return OfflineError(
            f"{shown} is not complete in the cache, and the Hub cannot be asked",
            hint="run the command again with the network, or give a local folder",
            model=model,
        )
    if isinstance(error, LocalTokenNotFoundError):
        return TokenError("no Hugging Face token was found", hint=connection.login_hint)
    if isinstance(error, HFValidationError):
        return UsageError(f"{shown} is not a valid id", hint="an id is `org/name`", model=model)
    if isinstance(error, HfHubHTTPError):
        return _answer_error(error, connection, model, shown, revision)
    if isinstance(error, (_TRANSPORT_ERROR, ConnectionError, TimeoutError)):
        what = "did not answer in time" if "Timeout" in type(error).__name__ else "cannot be reached"
        return OfflineError(
            f"{connection.url} {what}",
            hint="check the network and HF_ENDPOINT and run the command again; HF_HUB_OFFLINE=1 uses the cache alone",
            endpoint=connection.url,
        )
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
    ):
        return disk_error(error, Path(error.filename) if error.filename else connection.cache_folder / "models")
    if isinstance(error, (RuntimeError, ValueError)) or type(error).__module__.startswith("huggingface_hub"):
        return _said(error, shown)
    return None


def _answer_error(
    error: HfHubHTTPError, connection: Connection, model: str | None, shown: str, revision: str | None
) -> ReviverError:
    """Return the error for an answer of the Hub that refuses."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return GatedModelError(
            f"{shown} is gated: its owners want their conditions accepted first",
            hint=f"accept them at {connection.url}/{model}, then run `hf auth login`",
            model=model,
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(
            f"{shown} has no revision `{printable(revision or 'main', 80)}`",
            hint=f"see the branches, tags and commits at {connection.url}/{model}/commits/main",
            model=model,
            revision=revision,
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{shown} does not exist on {connection.url}, or is private and this token cannot see it",
            hint="check the spelling; for a private model run `hf auth login` first",
            model=model,
        )
    if status == 401:
        return TokenError("the Hub does not accept the token", hint=connection.login_hint)
    if status == 403:
        return PermissionDeniedError(
            f"the token may not do this to {shown}{_quoted(error)}",
            hint=f"use a token with write access to it ({connection.url}/settings/tokens), or another repository",
            model=model,
        )
    if status == 412:
        return RemoteMovedError(
            f"{shown} changed on the Hub while this was prepared",
            hint="run the command again: it starts from the new state",
            model=model,
        )
    if status == 429:
        return HubError("the Hub asks for fewer requests", hint="wait a few minutes and run the command again")
    if status >= 500:
        return HubError(f"the Hub has a failure of its own (status {status})", hint="run the command again in a while")
    if status == 404:
        return ModelNotFoundError(
            f"the Hub does not know a part of {shown}{_quoted(error)}", hint="check the id and the revision"
        )
    return HubError(
        f"the Hub refused a request about {shown} (status {status}){_quoted(error)}",
        hint="see what it says and run it again",
    )


def _quoted(error: HfHubHTTPError) -> str:
    """Return what the server said, made safe to show, behind a colon; empty if it said nothing."""
    said = error.server_message or error.response.headers.get("X-Error-Message") or ""
    said = without_secrets(printable(" ".join(said.split()), 200)).rstrip(".")
    return f": {said}" if said else ""


def _said(error: BaseException, shown: str) -> HubError:
    """Return the error for something that only its own text explains."""
    text = without_secrets(printable(" ".join(str(error).split()), 200)).rstrip(".") or type(error).__name__
    return HubError(
        f"the exchange with {shown} failed: {text}", hint="run the command again; what was sent already is kept"
    )


def without_secrets(text: str) -> str:
    """Return `text` with everything that looks like an access token taken out."""
    return _SECRET.sub(r"\1…", text)
