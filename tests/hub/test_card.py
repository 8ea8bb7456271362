"""The card: what it says, and that nothing untrusted in it can become a link, a heading, a tag or a line of YAML."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from reviver.hub.card import (
    BaseCard,
    Card,
    CardEdit,
    front_matter,
    is_llama,
    license_warnings,
    read_base_card,
    render_card,
)
from reviver.hub.markdown import escaped, link
from reviver.text import printable

HEADINGS = ["edited", "Edits", "Measured", "Load", "Check and rebuild", "Hashes"]
NASTY = st.text(max_size=60) | st.sampled_from(
    [
        "](https://evil.example)",
        "<script>alert(1)</script>",
        "# heading",
        "\n# heading\n",
        "---\nlicense: evil\n---",
        "| cell | cell |",
        "`code` **bold** _it_ ~~no~~",
        "https://evil.example www.evil.example a@evil.example",
        "<!-- hidden",
        "&lt;b&gt; &#60;",
        "![image](https://evil.example/x.png)",
        "\u202e\u2028\x1b[31m\x00\ud800",
        "\\](x) \\\\",
    ]
)


def make_card(text: str = "correct the capitals", **changes: object) -> Card:
    edit = CardEdit(
        name="v1",
        id="a" * 64,
        message=text,
        facts=3,
        facts_sha256="b" * 64,
        patch_bytes=4096,
        editor=text,
        editor_url=text,
        filter=text,
        rank=8,
    )
    fields: dict[str, object] = {
        "repository": "alice/edited",
        "version": "v1",
        "base_model": "org/base",
        "base_revision": "c" * 40,
        "base_fingerprint": "d" * 64,
        "edits": (edit,),
        "metrics": {text: 0.5, "neighbourhood": {text: 1}},
        "changed_files": ((text, 10, "e" * 64),),
        "tensors": 2,
    }
    return Card(**(fields | changes))  # type: ignore[arg-type]


def split(card: Card) -> tuple[dict[str, object], list[Token]]:
    text = render_card(card).decode()
    opening, front, body = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(front), MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)


def inline(tokens: list[Token], kind: str) -> list[Token]:
    return [child for token in tokens for child in token.children or () if child.type == kind]


def plain(token: Token) -> str:
    return "".join(child.content for child in token.children or ())


@given(NASTY)
def test_untrusted_text_stays_text(text: str):
    metadata, tokens = split(make_card(text))
    assert metadata == front_matter(make_card(text))
    headings = [plain(tokens[index + 1]) for index, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == HEADINGS
    assert not [token for token in tokens if token.type == "html_block"]
    assert not inline(tokens, "html_inline") and not inline(tokens, "image")
    assert not inline(tokens, "strong_open") and not inline(tokens, "em_open")
    links = {str(token.attrs["href"]) for token in inline(tokens, "link_open")}
    assert links <= {"https://huggingface.co/org/base", text}
    cells = [plain(tokens[index + 1]) for index, token in enumerate(tokens) if token.type == "td_open"]
    assert cells[1].strip() == (printable(text, 300).strip() or "–") or not text.strip()
    assert cells[1].strip() == cells[3].strip() or not text.strip()
    assert len(cells) == 6 + 2 * 2 + 2 * 3, "no text makes a new row or cell"


@given(NASTY)
def test_nothing_raw_survives(text: str):
    shown = escaped(text, 1000)
    assert not set("<>\n\r") & set(shown)
    assert "://" not in shown and "www." not in shown and "](" not in shown


@given(st.text(max_size=200))
def test_a_base_card_that_anybody_wrote_gives_only_safe_words(text: str):
    for body in (
        text,
        f"---\n{text}\n---\n",
        f"---\nlicense: {text!r}\nlicense_name: [{text!r}]\nlanguage: {text!r}\n---",
    ):
        base = read_base_card(body)
        metadata, _ = split(make_card(base=base))
        for key in ("license", "license_name", "license_link", "pipeline_tag"):
            assert metadata.get(key) == (getattr(base, key) or ("text-generation" if key == "pipeline_tag" else None))


def test_the_bases_licence_goes_along():
    base = read_base_card(
        "\ufeff---\r\nlicense: other\r\nlicense_name: gemma-terms\r\nlicense_link: https://ai.google.dev/gemma/terms\r\n"
        "language:\r\n- en\r\n- zh-Hans\r\n- '<b>'\r\npipeline_tag: text-generation\r\n"
        "base_model: someone/else\r\n---\r\n# Text\r\n"
    )
    assert base == BaseCard(
        license="other",
        license_name="gemma-terms",
        license_link="https://ai.google.dev/gemma/terms",
        pipeline_tag="text-generation",
        language=("en", "zh-Hans"),
    )
    metadata, _ = split(make_card(base=base))
    assert metadata["license_name"] == "gemma-terms"
    assert metadata["base_model"] == "org/base"
    assert metadata["base_model_relation"] == "finetune"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no metadata",
        "---\n",
        "---\n- a\n- list\n---\n",
        "---\n{\n---\n",
        "---\nlicense: " + "x" * 100_000 + "\n---\n",
        "---\na: &a [x]\nb: &b [*a, *a]\nlicense: *b\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['true']\n---\n",
        "---\nlicense: 2024-01-01\n---\n",
        "---\nlicense: " + "[" * 15_000 + "\n---\n",
        "---\nlicense: " + "[" * 150 + "\n---\n",
    ],
)
def test_odd_base_cards_declare_nothing(text: str):
    assert read_base_card(text) == BaseCard()


def test_a_long_list_of_results_does_not_hide_the_licence():
    results = "".join(f"  - name: result {index}\n    value: [{index}]\n" for index in range(5000))
    card = f"---\nmodel-index:\n{results}license: mit\nlanguage:\n- en\n- de\n---\n# Text\n"
    assert read_base_card(card) == BaseCard(license="mit", language=("en", "de"))


def test_a_base_from_a_folder_is_not_invented():
    card = make_card(base_model=None, base_revision=None)
    metadata, _ = split(card)
    assert "base_model" not in metadata and "base_model_relation" not in metadata
    assert any("--base-model" in warning for warning in license_warnings(card))
    assert "FOLDER_OF_THE_BASE" in render_card(card).decode()


@pytest.mark.parametrize(
    ("model", "license", "expected"),
    [
        ("meta-llama/Llama-3.1-8B", None, True),
        ("meta-llama/Meta-Llama-3-8B", None, True),
        ("org/thing", "llama3", True),
        ("org/thing", "llama4", True),
        ("meta-llama/Llama-2-7b-hf", "llama2", False),
        ("org/TinyLlama-1.1B", "apache-2.0", False),
        ("org/ollama-3", "mit", False),
    ],
)
def test_llama_licences_that_ask_for_a_name(model, license, expected):
    card = make_card(base_model=model, base=BaseCard(license=license))
    assert is_llama(card) is expected
    assert any("begin with `Llama`" in warning for warning in license_warnings(card)) is expected
    assert ("Built with Llama" in render_card(card).decode()) is expected


def test_only_plain_addresses_become_links():
    assert link("memit", "https://arxiv.org/abs/2210.07229") == "[memit](https://arxiv.org/abs/2210.07229)"
    for address in ("javascript:alert(1)", "http://plain.example", "https://x.example/a)b", "https://x.example/ b", ""):
        assert link("memit", address) == "memit"


def test_the_same_version_gives_the_same_bytes():
    assert render_card(make_card()) == render_card(make_card())
