"""Every error a user can meet: one base class, typed children that carry their facts.

The command line turns any of them into one `error:` line, one `hint:` line and the exit code of its class. Anything else that
escapes is a defect of reviver itself.
"""

from __future__ import annotations


class ReviverError(Exception):
    """The base of all errors that the user can act on.

    Args:
        message: one line that says what is wrong, without a full stop.
        hint: one line that says what to do next, if there is something to do.
        facts: what the error is about (a path, a tensor, a version), for programs that catch it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts


class UsageError(ReviverError):
    """The command line or a setting does not make sense, whatever the files hold."""

    exit_code = 2


class CheckFailedError(ReviverError):
    """A check did not hold: `verify` found a difference, `diff --exit-code` a change, a gate was missed."""

    exit_code = 3


class SettingsError(UsageError):
    """A value in `reviver.toml` or in a `REVIVER_*` variable is unknown, of the wrong type or out of range."""


class FactsError(ReviverError):
    """A file of facts cannot be used; `facts["problems"]` holds every problem with its line."""


class EvaluationError(ReviverError):
    """A suite cannot be measured: its file is malformed, or it does not fit the model; `problems` as in `FactsError`."""


class CheckpointError(ReviverError):
    """A checkpoint on disk is damaged or is not what it claims to be."""


class UnsupportedModelError(ReviverError):
    """The model or one of its tensors cannot be edited: tied, fused, quantised or of an unknown architecture."""


class BaseMismatchError(ReviverError):
    """Something derived from one base was met beside another, or the base's files were changed."""


class WorkspaceError(ReviverError):
    """The workspace is missing, incomplete, of a newer schema, or is not one at all."""


class LockedError(WorkspaceError):
    """Another living process is writing to this workspace."""


class VersionNotFoundError(WorkspaceError):
    """No version goes by this name."""


class ManifestError(WorkspaceError):
    """A manifest, patch or other file of the history is malformed, forged or unsafe."""


class UnsafePathError(ManifestError):
    """A path from a manifest, an index or a remote would lead out of its folder."""


class EditorError(ReviverError):
    """An editor of another package cannot be loaded."""


class NumericsError(ReviverError):
    """A result is NaN, infinite or beyond the limit on norms; nothing was written."""


class ResourceError(ReviverError):
    """A device, memory or disk space that the work needs is not there."""


class UnfinishedError(ResourceError):
    """The operation is done and need not be run again; the disk kept it from being logged, or from tidying up."""


class RankError(ReviverError):
    """Another process of the same run ended before the work was done."""


class HubError(ReviverError):
    """The Hub, or the network on the way to it, refused."""


class ModelNotFoundError(HubError):
    """The model, revision or folder does not exist (or is private and this token cannot see it)."""


class GatedModelError(HubError):
    """The model's owners want their conditions accepted first."""


class OfflineError(HubError):
    """The Hub cannot be reached, or offline mode forbids it."""


class TokenError(HubError):
    """No token, or one that the Hub does not accept."""


class PermissionDeniedError(HubError):
    """The token is valid and may not do this."""


class RemoteMovedError(HubError):
    """The remote changed since it was looked at."""
