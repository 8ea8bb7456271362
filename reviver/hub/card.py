"""The model card of a pushed version: what was edited, how, measured how well, and how to load and rebuild it.

The text is a function of the version alone, so that the same version always gives the same bytes. The facts' text is
not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped]

from reviver.hub.markdown import code, escaped, link, table
from reviver.text import human_bytes, plural

MAXIMUM_CARD_BYTES = 4 * 1024 * 1024
# YAML is slow on deep nesting, so only the few declarations that matter are parsed, and only within these bounds.
_MAXIMUM_DECLARED = 16 * 1024
_MAXIMUM_BRACKETS = 200
_DECLARED = ("license", "license_name", "license_link", "pipeline_tag", "language")
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]{2,8})?|multilingual|code")
# Llama 3 and later want their name at the beginning of a derived model's, Llama 2 does not (licences, section 1.b).
_LLAMA = re.compile(r"llama[-_ ]?(?:[3-9]|1[0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCard:
    """What the base's own card says that a derived model's must repeat."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    pipeline_tag: str | None = None
    language: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CardEdit:
    """One version of the chain, as the card tells it."""

    name: str
    id: str
    message: str
    facts: int
    facts_sha256: str
    patch_bytes: int
    editor: str
    editor_url: str
    filter: str
    rank: int | None = None
    energy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Everything that the card says."""

    repository: str
    version: str
    base_model: str | None
    """A Hub id, already checked; None where the base came from a local folder and nobody named its origin."""
    base_revision: str | None
    base_fingerprint: str
    base: BaseCard = field(default_factory=BaseCard)
    base_path: str | None = None
    """Where the base's own card stands in the repository, if it had one."""
    edits: tuple[CardEdit, ...]
    """The chain, oldest first; the last is the version."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    changed_files: tuple[tuple[str, int, str], ...] = ()
    """Path, size and SHA-256 of every file that differs from the base's."""
    tensors: int = 0
    facts_included: bool = False


def read_base_card(text: str) -> BaseCard:
    """Return what the base's README.md declares; anything malformed, oversized or odd counts as not declared."""
    match = _FRONT_MATTER.match(text[:MAXIMUM_CARD_BYTES])
    declared = "" if match is None else _declarations(match[1])
    if len(declared) > _MAXIMUM_DECLARED or declared.count("[") + declared.count("{") > _MAXIMUM_BRACKETS:
        return BaseCard()
    try:
        data = yaml.safe_load(declared)
    except (yaml.YAMLError, ValueError, RecursionError):
        return BaseCard()
    if not isinstance(data, dict):
        return BaseCard()
    languages = data.get("language")
    listed = languages if isinstance(languages, list) else [languages]
    license = data.get("license")
    license = license[0] if isinstance(license, list) and len(license) == 1 else license
    url = data.get("license_link")
    return BaseCard(
        license=_word(license),
        license_name=_word(data.get("license_name")),
        license_link=url if isinstance(url, str) and re.fullmatch(r"[A-Za-z0-9:/._\-]{1,300}", url) else None,
        pipeline_tag=_word(data.get("pipeline_tag")),
        language=tuple(one for one in listed[:50] if isinstance(one, str) and _LANGUAGE.fullmatch(one)),
    )


def _declarations(front: str) -> str:
    """Return the lines of the wanted keys, each with what is indented or listed below it."""
    kept = []
    wanted = False
    for line in front.splitlines():
        if line[:1] not in ("", " ", "-", "#"):
            wanted = line.partition(":")[0].rstrip() in _DECLARED
        if wanted:
            kept.append(line)
    return "\n".join(kept)


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def license_warnings(card: Card) -> tuple[str, ...]:
    """Return what the base's licence asks of the person who publishes, as far as its name tells."""
    warnings = []
    if card.base_model is None:
        warnings.append("the card names no base model, because the base is a local folder; name it with `--base-model`")
    elif card.base.license is None:
        warnings.append("the base's card declares no licence: check its terms before you publish")
    if is_llama(card):
        if not card.repository.rpartition("/")[2].startswith("Llama"):
            warnings.append("the Llama licence wants the name of a derived model to begin with `Llama`")
        warnings.append(
            "the Llama licence wants its text and a notice to go along: check that both are in the repository"
        )
    return tuple(warnings)


def is_llama(card: Card) -> bool:
    """Tell whether the base is under a Llama licence that asks for a name and a notice."""
    named = (card.base.license, card.base.license_name, (card.base_model or "").rpartition("/")[2])
    return any(name is not None and _LLAMA.match(name.removeprefix("Meta-").removeprefix("meta-")) for name in named)


def front_matter(card: Card) -> dict[str, Any]:
    """Return the card's metadata, as the Hub reads it."""
    data: dict[str, Any] = {}
    if card.base_model is not None:
        data["base_model"] = card.base_model
        data["base_model_relation"] = "finetune"
    for key in ("license", "license_name", "license_link"):
        value = getattr(card.base, key)
        if value is not None:
            data[key] = value
    if card.base.language:
        data["language"] = list(card.base.language)
    data["library_name"] = "transformers"
    data["pipeline_tag"] = card.base.pipeline_tag or "text-generation"
    data["tags"] = ["reviver", "model-editing", "knowledge-editing"]
    return data


def render_card(card: Card) -> bytes:
    """Return README.md."""
    metadata = yaml.safe_dump(
        front_matter(card), sort_keys=True, allow_unicode=True, default_flow_style=False, width=1000
    )
    sections = [
        _opening(card),
        _edits(card),
        _metrics(card),
        _loading(card),
        _rebuilding(card),
        _hashes(card),
    ]
    return f"---\n{metadata}---\n\n{chr(10).join(section for section in sections if section)}".encode()


def _opening(card: Card) -> str:
    version = card.edits[-1]
    facts = sum(edit.facts for edit in card.edits)
    base = _base(card)
    lines = [f"# {escaped(card.repository.rpartition('/')[2])}\n"]
    lines.append(
        f"{base} with {plural(facts, 'fact')} written into it in {plural(len(card.edits), 'edit')} "
        f"({plural(card.tensors, 'weight matrix', 'weight matrices')} changed, every other byte is the base's). "
        f"This is version {code(card.version)}, {code(version.id[:12])}.\n"
    )
    if is_llama(card):
        lines.append("Built with Llama.\n")
    if card.base_path is not None:
        lines.append(f"The base's own card is [{escaped(card.base_path)}]({card.base_path}).\n")
    return "\n".join(lines)


def _base(card: Card) -> str:
    if card.base_model is None:
        return f"A model whose base has the fingerprint {code(card.base_fingerprint[:12])}"
    at = f" at {code(card.base_revision)}" if card.base_revision else ""
    return f"[{escaped(card.base_model)}](https://huggingface.co/{card.base_model}){at}"


def _edits(card: Card) -> str:
    rows = [
        (
            code(edit.name),
            escaped(edit.message) or "–",
            f"{edit.facts:,}",
            link(edit.editor, edit.editor_url),
            _filter(edit),
            human_bytes(edit.patch_bytes),
        )
        for edit in card.edits
    ]
    where = (
        "The facts stand in `edits/*/facts.jsonl`, their single results beside them."
        if card.facts_included
        else "The facts' text is not published; their hashes are in the manifests."
    )
    header = ("version", "message", "facts", "editor", "filter", "patch")
    return f"## Edits\n\n{table(header, rows)}\n{where} Each `edits/*/manifest.json` explains every changed byte.\n"


def _filter(edit: CardEdit) -> str:
    detail = (
        f", rank {edit.rank:,}"
        if edit.rank is not None
        else f", energy {edit.energy:g}"
        if edit.energy is not None
        else ""
    )
    return escaped(edit.filter) + detail


def _metrics(card: Card) -> str:
    rows = [(escaped(name), value) for name, value in _flattened(card.metrics)][:100]
    if not rows:
        return ""
    lead = "As measured on the bytes that were written, when the version was made."
    return f"## Measured\n\n{lead}\n\n{table(('metric', 'value'), rows)}"


def _flattened(metrics: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield every number among the metrics under its joined name; text and lists are left out."""
    for name, value in sorted(metrics.items()):
        if isinstance(value, Mapping) and depth < 4:
            yield from _flattened(value, f"{prefix}{name} ", depth + 1)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}".replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _loading(card: Card) -> str:
    return f"""## Load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{card.repository}", revision="{card.version}")
tokenizer = AutoTokenizer.from_pretrained("{card.repository}", revision="{card.version}")
```
"""


def _rebuilding(card: Card) -> str:
    base = "FOLDER_OF_THE_BASE"
    if card.base_model is not None:
        base = card.base_model + (f"@{card.base_revision}" if card.base_revision else "")
    return f"""## Check and rebuild

`SHA256SUMS` covers every file: `sha256sum -c SHA256SUMS` in a downloaded copy. With reviver
the same bytes come out of the base and the patches in `edits/`; `checkout` compares
every hash with the manifests and leaves nothing behind where one differs:

```bash
hf download {card.repository} --revision {card.version} --local-dir published
reviver init {base} rebuilt
cp -r published/edits/v* rebuilt/edits/
reviver checkout {card.version} -C rebuilt
```
"""


def _hashes(card: Card) -> str:
    rows = [(escaped(path), human_bytes(size), code(sha256)) for path, size, sha256 in card.changed_files]
    rows += [(f"facts of {edit.name}", plural(edit.facts, "fact"), code(edit.facts_sha256)) for edit in card.edits]
    return f"## Hashes\n\n{table(('what', 'size', 'SHA-256'), rows)}"
