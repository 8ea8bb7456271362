"""push: publish a version on the Hub, its checkpoint at the root and its whole chain in `edits/`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reviver.errors import LockedError, UsageError
from reviver.history.chain import check_chain
from reviver.history.version import Version
from reviver.history.workspace import Workspace
from reviver.hub.card import (
    MAXIMUM_CARD_BYTES,
    BaseCard,
    Card,
    CardEdit,
    license_warnings,
    read_base_card,
    render_card,
)
from reviver.hub.connection import Connection, check_model_id
from reviver.hub.plan import Plan, PushOperation, full_name, make_plan
from reviver.hub.push import carry_out
from reviver.hub.release import (
    CARD,
    Release,
    ReleaseFile,
    checkpoint_files,
    edit_files,
    inline_file,
    manifest_file,
    place_of_base_file,
    with_sums,
)
from reviver.progress import NullProgress, Progress
from reviver.text import plural, printable

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReport:
    """What a push did, or with `dry_run` would do."""

    repository: str
    url: str
    version: str
    """Also the name of the tag."""
    dry_run: bool
    done: bool
    """Whether anything had to be written; False where the repository holds the version already."""
    created: bool
    """Whether the repository was (or would be) made."""
    private: bool | None
    commit: str | None
    """The commit that holds the version; None with `dry_run`."""
    replaces: str | None
    """The version that the repository showed before, if it was another one."""
    facts_included: bool
    operations: tuple[PushOperation, ...]
    bytes_added: int
    bytes_copied: int
    """Copied by the Hub itself, from the base's repository."""
    bytes_kept: int
    warnings: tuple[str, ...]


def push(
    workspace_dir: Path,
    repository: str | None = None,
    *,
    version: str = "head",
    public: bool = False,
    base_model: str | None = None,
    include_facts: bool = False,
    dry_run: bool = False,
    message: str | None = None,
    progress: Progress | None = None,
    connection: Connection | None = None,
) -> PushReport:
    """Publish a version in a model repository, as one commit and a tag; nothing is written if it is there already.

    Args:
        workspace_dir: the workspace's folder.
        repository: `org/name`, or `name` for the signed-in person's own; None is the one of the last push.
        version: any name of a version.
        public: make the repository public; it counts only when the repository is made.
        base_model: the Hub id that the card names as base; None takes it from the pin.
        include_facts: publish the facts' text and their single results too.
        dry_run: only look, and say what would happen.
        message: the commit's title.

    Raises:
        UsageError: an id is malformed, or no repository was named and none is remembered.
        VersionNotFoundError, ManifestError, BaseMismatchError, CheckpointError: the version is missing or damaged here.
        TokenError, PermissionDeniedError, RemoteMovedError, OfflineError, HubError: what the Hub or network refused.
    """
    progress = progress or NullProgress()
    connection = connection or Connection()
    workspace = Workspace.open(workspace_dir)
    remembered = last_repository(workspace)
    wanted = repository or remembered
    if wanted is None:
        raise UsageError(
            "no repository was named", hint="name it once, `reviver push org/name`; later pushes remember it"
        )
    chain = workspace.chain(workspace.version(version).name)
    check_chain(chain, workspace.pin().fingerprint)
    if base_model is not None:
        check_model_id(base_model, what="base model")
    if not dry_run:
        connection.required_token()
    name = full_name(connection, wanted)
    release, warnings = make_release(workspace, chain, name, base_model=base_model, include_facts=include_facts)
    known = {one.name: manifest_file(one) for one in workspace.versions()}
    plan = make_plan(release, name, connection=connection, known=known, public=public)
    warnings = (*plan.warnings, *warnings)
    url = f"{connection.url}/{name}"
    if dry_run:
        if connection.known_token() is None:
            warnings = (*warnings, "no Hugging Face token was found: the push itself needs one")
        private = plan.remote.private if plan.remote.exists else not public
        return _report(plan, release, url, warnings, include_facts=include_facts, dry_run=True, private=private)
    publication = carry_out(
        plan,
        release,
        connection=connection,
        message=(message or "").strip() or _title(chain[-1]),
        public=public,
        progress=progress,
    )
    done = plan.commit_needed or plan.tag_needed
    if done or remembered != name:
        warnings = (*warnings, *_remember(workspace, name, release.version, publication.commit))
    return _report(
        plan,
        release,
        url,
        warnings,
        include_facts=include_facts,
        dry_run=False,
        private=publication.private,
        commit=publication.commit,
        copied=publication.copied,
    )


def make_release(
    workspace: Workspace, chain: Sequence[Version], repository: str, *, base_model: str | None, include_facts: bool
) -> tuple[Release, tuple[str, ...]]:
    """Return what is published of a version, and what its publisher should know.

    Raises:
        ManifestError, CheckpointError: the version is damaged on this disk.
    """
    version = chain[-1]
    folder = workspace.checkpoint(version.name)
    base = version.manifest.base
    files = checkpoint_files(version, folder)
    # Only a base that was fetched from the Hub has a revision; for a local folder `model` is just the folder's name.
    origin = base.model if base.revision is not None and _is_model_id(base.model) else None
    revision = base.revision if base.revision is not None and _COMMIT.fullmatch(base.revision) else None
    card = Card(
        repository=repository,
        version=version.name,
        base_model=base_model or origin,
        base_revision=revision if base_model in (None, origin) else None,
        base_fingerprint=base.fingerprint,
        base=_base_card(files),
        base_path=next((file.path for file in files if file.path == place_of_base_file(CARD)), None),
        edits=tuple(_card_edit(one) for one in chain),
        metrics=version.manifest.metrics,
        changed_files=tuple((file.path, file.size, file.sha256) for file in files if file.base_path is None),
        tensors=len({tensor.name for one in chain for tensor in one.manifest.tensors}),
        facts_included=include_facts,
    )
    history = edit_files(chain, include_facts=include_facts)
    warnings = list(license_warnings(card))
    if include_facts:
        lacking = [one.name for one in chain if not one.facts_file.exists()]
        if lacking:
            warnings.append(f"the facts' text of {', '.join(lacking)} is not on this disk, so it is not published")
    release = Release(
        version=version.name,
        files=with_sums([*files, *history, inline_file(CARD, render_card(card))]),
        base_model=origin,
        base_revision=revision,
    )
    return release, tuple(warnings)


def last_repository(workspace: Workspace) -> str | None:
    """Return the repository of the last push from this workspace, or None."""
    for operation in reversed(workspace.operations()):
        name = operation.detail.get("repository") if operation.verb == "push" else None
        if isinstance(name, str) and _is_model_id(name):
            return name
    return None


def _remember(workspace: Workspace, repository: str, version: str, commit: str) -> tuple[str, ...]:
    """Log the push; the work of another process is no reason to call a finished push a failure."""
    try:
        with workspace.lock("push"):
            workspace.record("push", {"repository": repository, "version": version, "commit": commit})
    except LockedError:
        return ("the push is done but not in the operation log, because another process is writing to the workspace",)
    return ()


def _report(
    plan: Plan,
    release: Release,
    url: str,
    warnings: tuple[str, ...],
    *,
    include_facts: bool,
    dry_run: bool,
    private: bool | None,
    commit: str | None = None,
    copied: bool = True,
) -> PushReport:
    add, copy = plan.total("add"), plan.total("copy")
    return PushReport(
        repository=plan.repository,
        url=url,
        version=release.version,
        dry_run=dry_run,
        done=plan.commit_needed or plan.tag_needed,
        created=not plan.remote.exists,
        private=private,
        commit=commit,
        replaces=plan.replaces,
        facts_included=include_facts,
        operations=plan.operations,
        bytes_added=add if copied else add + copy,
        bytes_copied=copy if copied else 0,
        bytes_kept=plan.total("keep"),
        warnings=warnings,
    )


def _title(version: Version) -> str:
    text = version.manifest.message.strip() or plural(version.manifest.facts.count, "fact")
    return printable(f"{version.name}: {text}", 200)


def _is_model_id(text: str) -> bool:
    try:
        check_model_id(text)
    except UsageError:
        return False
    return True


def _base_card(files: Sequence[ReleaseFile]) -> BaseCard:
    for file in files:
        if file.path == place_of_base_file(CARD) and isinstance(file.origin, Path):
            with file.origin.open("rb") as opened:
                return read_base_card(opened.read(MAXIMUM_CARD_BYTES).decode("utf-8", "replace"))
    return BaseCard()


def _card_edit(version: Version) -> CardEdit:
    manifest = version.manifest
    return CardEdit(
        name=version.name,
        id=manifest.id,
        message=manifest.message,
        facts=manifest.facts.count,
        facts_sha256=manifest.facts.sha256,
        patch_bytes=manifest.patch.size,
        editor=manifest.editor.name,
        editor_url=manifest.editor.reference_url,
        filter=manifest.filter.name,
        rank=manifest.filter.rank,
        energy=manifest.filter.energy,
    )
