"""Publishing a version: what the repository then holds to the byte, and everything that can get in the way."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
import yaml
from hub_fake import READER, WRITER, FakeHub, Repository, Stored
from huggingface_hub import constants
from small_workspace import (
    EDITED,
    FIRST,
    SECOND,
    add_version,
    base_files,
    drop_checkpoint,
    facts_of,
    make_base,
    make_workspace,
)

from reviver.errors import (
    CheckpointError,
    HubError,
    ManifestError,
    OfflineError,
    PermissionDeniedError,
    RemoteMovedError,
    ReviverError,
    TokenError,
    UsageError,
    VersionNotFoundError,
)
from reviver.history.workspace import Workspace
from reviver.hub.connection import Connection
from reviver.hub.source import resolve_source
from reviver.verbs.checkout import checkout
from reviver.verbs.push import PushReport, push

REPOSITORY = "alice/edited"

# huggingface_hub streams an upload by an argument that its HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning"
)


@pytest.fixture
def local(tmp_path: Path) -> Workspace:
    """A workspace on a local base, with one version."""
    workspace = make_workspace(tmp_path / "work", make_base(tmp_path / "base"))
    add_version(workspace, message="correct the capitals")
    return workspace


@pytest.fixture
def from_hub(tmp_path: Path, hub: FakeHub, reader: Connection) -> Workspace:
    """A workspace on a base that was fetched from the Hub, with one version."""
    base = make_base(tmp_path / "base")
    files = {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    hub.add_model("org/base", files)
    source = resolve_source("org/base", connection=reader)
    workspace = make_workspace(tmp_path / "work", source.folder, model="org/base", revision=source.revision)
    add_version(workspace, message="correct the capitals")
    return workspace


def expected_files(workspace: Workspace, name: str, *, facts: bool = False) -> dict[str, bytes]:
    """Return what the repository must hold beside the card, SHA256SUMS and .gitattributes, read from the disk."""
    checkpoint = workspace.checkpoint(name)
    found = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    files = {path: file.read_bytes() for path, file in found.items()}
    files["base/README.md"] = files.pop("README.md")
    for version in workspace.chain(name):
        names = ["manifest.json", "patch.safetensors", *(["facts.jsonl", "results.jsonl"] if facts else [])]
        files |= {f"edits/{version.name}/{one}": (version.folder / one).read_bytes() for one in names}
    return files


def published(repository: Repository) -> dict[str, bytes]:
    return {
        path: data
        for path, data in repository.files.items()
        if path not in ("README.md", "SHA256SUMS", ".gitattributes")
    }


def check_sums(repository: Repository, folder: Path) -> None:
    """Write the repository out and let coreutils check it; every file but .gitattributes must be covered."""
    for path, data in repository.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    covered = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
    assert covered == set(repository.files) - {"SHA256SUMS", ".gitattributes"}


def check_error(error: ReviverError) -> None:
    assert error.hint
    for text in (error.message, error.hint, repr(error.facts)):
        assert "\n" not in text
        assert WRITER not in text and READER not in text


def actions(report: PushReport) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for operation in report.operations:
        found.setdefault(operation.action, set()).add(operation.path)
    return found


def test_a_new_repository_holds_the_version_to_the_byte(hub, writer, local, tmp_path):
    report = push(local.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    assert published(repository) == expected_files(local, "v1")
    check_sums(repository, tmp_path / "copy")
    assert repository.private
    assert [commit.title for commit in repository.commits] == ["initial commit", "v1: correct the capitals"]
    assert repository.tags == {"v1": repository.head.oid}
    assert report.commit == repository.head.oid
    assert (report.done, report.created, report.private, report.version) == (True, True, True, "v1")
    assert report.url == f"{hub.url}/{REPOSITORY}"
    assert report.bytes_added == sum(map(len, repository.files.values())) - len(repository.files[".gitattributes"])
    assert report.bytes_copied == report.bytes_kept == 0
    whole = b"".join(repository.files.values())
    for fact in facts_of(1):
        assert fact.target_new.encode() not in whole, "facts' text only on request"


def test_the_card_says_what_was_done(hub, writer, local):
    push(local.root, REPOSITORY, connection=writer, base_model="org/origin")
    text = hub.repositories[REPOSITORY].files["README.md"].decode()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "org/origin"
    assert front["base_model_relation"] == "finetune"
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["en", "de"]
    assert front["pipeline_tag"] == "text-generation"
    assert front["library_name"] == "transformers"
    assert "reviver" in front["tags"]
    for words in ("3 facts", "memit", "https://arxiv.org/abs/2210.07229", "revive", "rank 8", "0.9667", "reviver init"):
        assert words in text
    assert hub.repositories[REPOSITORY].head.files[FIRST].sha256 in text


def test_pushing_again_does_nothing(hub, writer, local):
    push(local.root, REPOSITORY, connection=writer)
    before = len(hub.repositories[REPOSITORY].commits)
    logged = len(local.operations())
    hub.requests.clear()
    report = push(local.root, connection=writer)
    assert not report.done
    assert report.repository == REPOSITORY, "the last repository is remembered"
    assert report.commit == hub.repositories[REPOSITORY].head.oid
    assert actions(report).keys() == {"keep"}
    assert hub.writes == []
    assert len(hub.repositories[REPOSITORY].commits) == before
    assert len(local.operations()) == logged


def test_the_push_is_logged_and_moves_no_head(hub, writer, local):
    push(local.root, REPOSITORY, connection=writer)
    last = local.operations()[-1]
    assert (last.verb, last.head_before, last.head_after, last.version) == ("push", "v1", "v1", None)
    assert last.detail["repository"] == REPOSITORY
    assert last.detail["commit"] == hub.repositories[REPOSITORY].head.oid


def test_a_second_version_sends_only_what_changed(hub, writer, local, tmp_path):
    push(local.root, REPOSITORY, connection=writer)
    first = hub.repositories[REPOSITORY].head
    add_version(local)
    hub.uploads.clear()
    report = push(local.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    assert published(repository) == expected_files(local, "v2")
    check_sums(repository, tmp_path / "copy")
    assert actions(report)["add"] == {
        FIRST,
        "README.md",
        "SHA256SUMS",
        "edits/v2/manifest.json",
        "edits/v2/patch.safetensors",
    }
    assert len(hub.uploads) == 2
    assert report.replaces == "v1"
    assert repository.tags == {"v1": first.oid, "v2": repository.head.oid}
    assert repository.head.parent == first.oid
    assert repository.head.title == "v2: 3 facts"


def test_facts_on_request_and_taken_back(hub, writer, local, tmp_path):
    push(local.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    tagged = repository.head.oid
    report = push(local.root, REPOSITORY, connection=writer, include_facts=True)
    assert published(repository) == expected_files(local, "v1", facts=True)
    check_sums(repository, tmp_path / "copy")
    assert report.facts_included and report.replaces is None
    assert repository.tags == {"v1": tagged}, "a tag never moves"
    report = push(local.root, REPOSITORY, connection=writer)
    assert actions(report)["delete"] == {"edits/v1/facts.jsonl", "edits/v1/results.jsonl"}
    assert published(repository) == expected_files(local, "v1")


def test_an_earlier_version_can_be_shown_again(hub, writer, local):
    push(local.root, REPOSITORY, connection=writer)
    add_version(local)
    push(local.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    tags = dict(repository.tags)
    report = push(local.root, REPOSITORY, version="v1", connection=writer)
    assert report.replaces == "v2"
    assert actions(report)["delete"] == {"edits/v2/manifest.json", "edits/v2/patch.safetensors"}
    assert published(repository) == expected_files(local, "v1")
    assert repository.tags == tags


def test_files_of_others_stay(hub, writer, local):
    push(local.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    repository.commit({**repository.head.files, "images/logo.png": Stored(b"png", False)}, "a logo")
    add_version(local)
    push(local.root, REPOSITORY, connection=writer)
    assert repository.files["images/logo.png"] == b"png"


@pytest.mark.parametrize("can_copy", [True, False])
def test_unchanged_shards_are_copied_on_the_hub_or_sent(hub, writer, from_hub, can_copy, tmp_path):
    hub.can_copy = can_copy
    report = push(from_hub.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    assert published(repository) == expected_files(from_hub, "v1")
    check_sums(repository, tmp_path / "copy")
    assert actions(report)["copy"] == {SECOND}
    size = len(repository.files[SECOND])
    shard = hashlib.sha256(repository.files[SECOND]).hexdigest()
    if can_copy:
        assert hub.copies == [SECOND]
        assert shard not in hub.uploads
        assert report.bytes_copied == size
    else:
        assert hub.uploads.count(shard) == 1
        assert len(hub.uploads) == len(set(hub.uploads)), "nothing is sent twice"
        assert report.bytes_copied == 0
    assert len(repository.commits) == 2
    front = yaml.safe_load(repository.files["README.md"].decode().split("---\n")[1])
    assert front["base_model"] == "org/base"


def test_a_copy_source_with_other_bytes_is_not_used(hub, writer, from_hub):
    base = hub.repositories["org/base"]
    base.head.files[SECOND] = Stored(b"something else", True)
    report = push(from_hub.root, REPOSITORY, connection=writer)
    assert "copy" not in actions(report)
    assert published(hub.repositories[REPOSITORY]) == expected_files(from_hub, "v1")


def test_a_base_that_is_gone_is_no_obstacle(hub, writer, from_hub):
    del hub.repositories["org/base"]
    assert "copy" not in actions(push(from_hub.root, REPOSITORY, connection=writer))


def test_dry_run_writes_nothing_anywhere(hub, writer, local):
    before = {path: path.lstat().st_mtime_ns for path in local.root.rglob("*")}
    report = push(local.root, REPOSITORY, connection=writer, dry_run=True)
    assert hub.writes == []
    assert {path: path.lstat().st_mtime_ns for path in local.root.rglob("*")} == before
    assert REPOSITORY not in hub.repositories
    assert (report.dry_run, report.done, report.created, report.private, report.commit) == (
        True,
        True,
        True,
        True,
        None,
    )
    real = push(local.root, REPOSITORY, connection=writer)
    assert report.operations == real.operations
    assert report.bytes_added == real.bytes_added
    add_version(local)
    hub.requests.clear()
    planned = push(local.root, connection=writer, dry_run=True)
    assert hub.writes == []
    assert actions(planned) == actions(push(local.root, connection=writer))


def test_dry_run_needs_no_token(hub, reader, local):
    report = push(local.root, REPOSITORY, connection=reader, dry_run=True)
    assert any("token" in warning for warning in report.warnings)
    assert hub.writes == []


def test_public_and_private(hub, writer, local):
    report = push(local.root, "alice/open", connection=writer, public=True)
    assert report.private is False and not hub.repositories["alice/open"].private
    again = push(local.root, "alice/open", connection=writer)
    assert any("is public" in warning for warning in again.warnings)
    push(local.root, "alice/closed", connection=writer)
    closed = push(local.root, "alice/closed", connection=writer, public=True)
    assert hub.repositories["alice/closed"].private
    assert any("stays so" in warning for warning in closed.warnings)


def test_a_bare_name_is_the_persons_own(hub, writer, local):
    assert push(local.root, "mine", connection=writer).repository == "alice/mine"


def test_the_remote_that_moves_meanwhile_is_left_as_it_is(hub, writer, local):
    push(local.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    add_version(local)

    def somebody() -> None:
        repository.commit({**repository.head.files, "notes.txt": Stored(b"mine", False)}, "somebody else")

    hub.before_commit = somebody
    with pytest.raises(RemoteMovedError, match="changed on the Hub") as caught:
        push(local.root, REPOSITORY, connection=writer)
    check_error(caught.value)
    assert repository.head.title == "somebody else"
    assert "v2" not in repository.tags
    push(local.root, REPOSITORY, connection=writer)
    assert repository.files["notes.txt"] == b"mine"
    assert published(repository).items() >= expected_files(local, "v2").items()


def test_another_history_is_never_written_over(hub, writer, local, tmp_path):
    push(local.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    before = repository.head.oid
    other = make_workspace(tmp_path / "other", make_base(tmp_path / "other-base"))
    add_version(other, message="another first version")
    with pytest.raises(RemoteMovedError, match="holds `v1`, which is another one here") as caught:
        push(other.root, REPOSITORY, connection=writer)
    check_error(caught.value)
    add_version(local)
    push(local.root, REPOSITORY, connection=writer)
    clone = make_workspace(tmp_path / "clone", make_base(tmp_path / "elsewhere" / "base"))
    add_version(clone, message="correct the capitals")
    with pytest.raises(RemoteMovedError, match="holds `v2`, which this workspace does not have"):
        push(clone.root, REPOSITORY, connection=writer)
    assert repository.commits[-1].parent == before


def test_a_model_of_others_is_never_written_over(hub, writer, local):
    hub.add_model("alice/precious", {"config.json": b"{}", "model.safetensors": b"weights"})
    with pytest.raises(RemoteMovedError, match="holds a model that reviver did not push") as caught:
        push(local.root, "alice/precious", connection=writer)
    check_error(caught.value)
    assert hub.writes == []
    hub.add_model("alice/prepared", {"README.md": b"# soon", ".gitattributes": b""})
    assert push(local.root, "alice/prepared", connection=writer).done


def test_a_tag_with_other_bytes_is_an_error(hub, writer, local):
    push(local.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    first = repository.tags.pop("v1")
    changed = repository.commit({**repository.head.files, FIRST: Stored(b"other bytes", True)}, "tampered")
    repository.tags["v1"] = changed.oid
    with pytest.raises(RemoteMovedError, match="the tag `v1`") as caught:
        push(local.root, REPOSITORY, connection=writer)
    check_error(caught.value)
    assert repository.tags == {"v1": changed.oid}
    repository.tags["v1"] = first
    assert push(local.root, REPOSITORY, connection=writer).done, "the head is put right again"
    assert published(repository) == expected_files(local, "v1")


def test_a_commit_without_its_tag_is_only_tagged(hub, writer, local):
    hub.fail("POST", "/tag/", 500, times=1)
    with pytest.raises(HubError):
        push(local.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    commit = repository.head.oid
    assert repository.tags == {}
    report = push(local.root, REPOSITORY, connection=writer)
    assert report.done
    assert repository.head.oid == commit
    assert repository.tags == {"v1": commit}


def test_an_interrupted_upload_goes_on_where_it_was(hub, writer, local, monkeypatch, tmp_path):
    monkeypatch.setattr("reviver.hub.push._TOGETHER_BYTES", 1024)
    second = local.checkpoint("v1") / SECOND
    digest = hashlib.sha256(second.read_bytes()).hexdigest()
    hub.fail("PUT", digest, 403, times=1)
    with pytest.raises(ReviverError) as caught:
        push(local.root, REPOSITORY, connection=writer)
    check_error(caught.value)
    repository = hub.repositories[REPOSITORY]
    assert [commit.title for commit in repository.commits] == ["initial commit"], (
        "nothing is visible before all is sent"
    )
    sent = list(hub.uploads)
    assert sent and digest not in sent
    hub.uploads.clear()
    push(local.root, REPOSITORY, connection=writer)
    assert hub.uploads == [digest]
    assert published(repository) == expected_files(local, "v1")


def test_a_dropped_connection_is_tried_again(hub, writer, local):
    hub.fail("PUT", "/lfs/", None, times=1)
    assert push(local.root, REPOSITORY, connection=writer).done
    assert published(hub.repositories[REPOSITORY]) == expected_files(local, "v1")


def test_a_hub_that_drops_a_file_is_found_out(hub, writer, local):
    commit_of = Repository.commit

    def forgetful(self, files, title):
        return commit_of(self, {path: stored for path, stored in files.items() if path != "tokenizer.json"}, title)

    repository = hub.repositories.setdefault(REPOSITORY, Repository())
    repository.commit({}, "first")
    repository.commit = forgetful.__get__(repository)  # type: ignore[method-assign]
    with pytest.raises(HubError, match=r"does not hold `tokenizer\.json`"):
        push(local.root, REPOSITORY, connection=writer)
    assert repository.tags == {}


def test_tokens_and_rights(hub, local, tmp_path):
    cases = [
        (Connection(endpoint=hub.url, cache=tmp_path), TokenError, "no Hugging Face token"),
        (Connection(endpoint=hub.url, token="hf_nobodynobody", cache=tmp_path), TokenError, "does not accept"),
        (Connection(endpoint=hub.url, token=READER, cache=tmp_path), PermissionDeniedError, "may not"),
    ]
    for connection, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            push(local.root, REPOSITORY, connection=connection)
        check_error(caught.value)
        assert "nobodynobody" not in caught.value.message
    with pytest.raises(PermissionDeniedError, match="namespace bob"):
        push(local.root, "bob/edited", connection=Connection(endpoint=hub.url, token=WRITER, cache=tmp_path))
    assert hub.repositories == {}
    assert "hf_" not in repr(Connection(endpoint=hub.url, token=WRITER))


def test_no_network(hub, local, tmp_path, writer, monkeypatch):
    with pytest.raises(OfflineError, match="cannot be reached") as caught:
        push(local.root, REPOSITORY, connection=Connection(endpoint="http://127.0.0.1:9", token=WRITER, cache=tmp_path))
    check_error(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match="offline mode is on") as caught:
        push(local.root, REPOSITORY, connection=writer)
    check_error(caught.value)
    assert hub.requests == []


def test_what_is_wrong_on_this_disk(hub, writer, local, tmp_path):
    with pytest.raises(UsageError, match="no repository was named"):
        push(local.root, connection=writer)
    with pytest.raises(UsageError, match="not a valid repository"):
        push(local.root, "a/b/c", connection=writer)
    with pytest.raises(UsageError, match="not a valid base model"):
        push(local.root, REPOSITORY, base_model="<b>", connection=writer)
    with pytest.raises(VersionNotFoundError):
        push(local.root, REPOSITORY, version="v9", connection=writer)
    with pytest.raises(VersionNotFoundError):
        push(local.root, REPOSITORY, version="base", connection=writer)
    shard = local.checkpoint("v1") / FIRST
    good = shard.read_bytes()
    shard.write_bytes(good[:-1])
    with pytest.raises(CheckpointError, match="bytes, not"):
        push(local.root, REPOSITORY, connection=writer)
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="was changed since") as caught:
        push(local.root, REPOSITORY, connection=writer)
    check_error(caught.value)
    assert [commit.title for commit in hub.repositories[REPOSITORY].commits] == ["initial commit"]
    shard.write_bytes(good)
    patch = local.version("v1").patch_file
    kept = patch.read_bytes()
    patch.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(ManifestError, match="is not the file"):
        push(local.root, REPOSITORY, connection=writer)
    patch.write_bytes(kept)
    drop_checkpoint(local, "v1")
    with pytest.raises(CheckpointError, match="not on this disk") as caught:
        push(local.root, REPOSITORY, connection=writer)
    assert "reviver checkout v1" in str(caught.value.hint)


def test_a_base_that_was_pushed_by_reviver_keeps_its_own_history_aside(hub, writer, tmp_path):
    base = make_base(tmp_path / "base")
    for name in ("edits/v1/manifest.json", "SHA256SUMS", "base/README.md"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"of the base")
    workspace = make_workspace(tmp_path / "work", base)
    version = add_version(workspace)
    push(workspace.root, REPOSITORY, connection=writer)
    repository = hub.repositories[REPOSITORY]
    assert repository.files["base/edits/v1/manifest.json"] == b"of the base"
    assert repository.files["base/SHA256SUMS"] == b"of the base"
    assert repository.files["base/base/README.md"] == b"of the base"
    assert repository.files["base/README.md"] == base_files()["README.md"]
    assert repository.files["edits/v1/manifest.json"] == (version.folder / "manifest.json").read_bytes()
    check_sums(repository, tmp_path / "copy")


def test_what_was_published_gives_the_same_bytes_again(hub, writer, from_hub, reader, tmp_path):
    """What the card tells a reader to do, without the facts' text."""
    add_version(from_hub)
    push(from_hub.root, REPOSITORY, connection=writer)
    files = hub.repositories[REPOSITORY].files
    source = resolve_source("org/base", connection=reader)
    rebuilt = make_workspace(tmp_path / "rebuilt", source.folder, model="org/base", revision=source.revision)
    for path, data in files.items():
        if path.startswith("edits/v"):
            (rebuilt.root / path).parent.mkdir(parents=True, exist_ok=True)
            (rebuilt.root / path).write_bytes(data)
    checkout(rebuilt.root, "v2")
    assert (rebuilt.checkpoint("v2") / FIRST).read_bytes() == files[FIRST]


def test_llama_bases_come_with_advice(hub, writer, tmp_path):
    base = make_base(tmp_path / "base", card="---\nlicense: llama3.1\n---\n")
    workspace = make_workspace(tmp_path / "work", base)
    add_version(workspace)
    report = push(workspace.root, REPOSITORY, base_model="meta-llama/Llama-3.1-8B", connection=writer)
    assert any("begin with `Llama`" in warning for warning in report.warnings)
    assert any("notice" in warning for warning in report.warnings)
    assert "Built with Llama" in hub.repositories[REPOSITORY].files["README.md"].decode()
    named = push(workspace.root, "alice/Llama-edited", base_model="meta-llama/Llama-3.1-8B", connection=writer)
    assert not any("begin with" in warning for warning in named.warnings)


def test_the_published_checkpoint_is_a_base_that_can_be_fetched(hub, writer, local, tmp_path):
    """The circle closes: what was pushed resolves by its tag to the edited bytes."""
    push(local.root, REPOSITORY, connection=writer)
    source = resolve_source(f"{REPOSITORY}@v1", connection=writer)
    assert source.revision == hub.repositories[REPOSITORY].tags["v1"]
    assert (source.folder / FIRST).read_bytes() == (local.checkpoint("v1") / FIRST).read_bytes()
    assert source.expected_sha256[FIRST] == hashlib.sha256((local.checkpoint("v1") / FIRST).read_bytes()).hexdigest()
    assert EDITED in (source.folder / "model.safetensors.index.json").read_text()
