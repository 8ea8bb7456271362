"""A fake Hub for every test here, and nothing of the person's own cache or token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fake import WRITER, FakeHub, running_hub
from huggingface_hub import constants

from reviver.hub.connection import Connection


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the tests away from the person's token and cache, and from the Xet protocol that the fake does not speak."""
    home = tmp_path / "hf-home"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def reader(hub: FakeHub, tmp_path: Path) -> Connection:
    """Somebody who is not signed in."""
    return Connection(endpoint=hub.url, cache=tmp_path / "cache")


@pytest.fixture
def writer(hub: FakeHub, tmp_path: Path) -> Connection:
    """Somebody who may write."""
    return Connection(endpoint=hub.url, token=WRITER, cache=tmp_path / "cache")
