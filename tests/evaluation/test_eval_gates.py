"""Gates: what parses, where what does not parse goes wrong, and what holds."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reviver.errors import UsageError
from reviver.evaluation.gates import METRICS, Gate, check_gates, parse_gates


def test_several_gates_with_and_without_spaces() -> None:
    assert parse_gates(" es >= 0.9 ,perplexity<=1.05x,norm_growth< 1e1, efficacy>.5") == (
        Gate(metric="es", comparison=">=", bound=0.9, relative=False),
        Gate(metric="perplexity", comparison="<=", bound=1.05, relative=True),
        Gate(metric="norm_growth", comparison="<", bound=10.0, relative=False),
        Gate(metric="efficacy", comparison=">", bound=0.5, relative=False),
    )


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("", 1, "the name of a metric was expected"),
        ("es", 3, "`>=`, `<=`, `>` or `<` was expected"),
        ("es=0.9", 3, "not `=0.9`"),
        ("es>=", 5, "a number was expected"),
        ("es>=high", 5, "not `high`"),
        ("es>=-1", 5, "a number was expected"),
        ("es>=0.9;ps>=0.9", 8, "a comma was expected before `;ps>=0.9`"),
        ("es>=0.9y", 8, "a comma was expected"),
        ("es>=0.9,", 9, "the name of a metric was expected"),
        ("es>=0.9,,ps>=1", 9, "the name of a metric was expected"),
        ("es>=0.9, perplexty<=1", 10, "there is no metric `perplexty`"),
        ("es>=1e999", 5, "too large"),
        ("es>=0.9 x", 9, "a comma was expected"),
        ("norm_growth<=2,es>=95", 20, "`es` is a share, from 0 to 1"),
        ("es>=\x1b[31m", 5, "\\x1b[31m"),
    ],
)
def test_what_does_not_parse_names_the_place(text: str, position: int, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gates(text)
    assert caught.value.exit_code == 2
    assert f"at character {position}:" in caught.value.message and said in caught.value.message
    assert caught.value.facts["position"] == position
    assert caught.value.hint


def _gates(metrics: list[str], relative: st.SearchStrategy[bool], largest: int) -> st.SearchStrategy[Gate]:
    return st.builds(
        Gate,
        metric=st.sampled_from(metrics),
        comparison=st.sampled_from([">=", "<=", ">", "<"]),
        # What six digits can say: `%g` writes no more.
        bound=st.integers(0, largest).map(lambda number: number / 1000),
        relative=relative,
    )


GATES = st.one_of(
    _gates(sorted(METRICS), st.just(True), 99_999),
    _gates(sorted(METRICS), st.just(False), 1000),
    _gates(["perplexity", "fluency", "norm_growth"], st.just(False), 99_999),
)


@given(st.lists(GATES, min_size=1, max_size=5))
def test_what_is_written_is_read(gates: list[Gate]) -> None:
    assert parse_gates(",".join(map(str, gates))) == tuple(gates)


@given(st.text(max_size=30))
def test_any_text_parses_or_is_a_usage_error(text: str) -> None:
    try:
        assert parse_gates(text)
    except UsageError as error:
        assert 1 <= int(str(error.facts["position"])) <= len(text) + 1


def test_what_holds() -> None:
    gates = parse_gates("es>=0.9,perplexity<=1.05x,ns>0.5,fluency>=0.9x,ps>=0.1,paraphrase>=0")
    measured = {"es": 0.9, "perplexity": 10.6, "ns": 0.5, "fluency": 5.0, "ps": None, "paraphrase": math.nan}
    parent = {"perplexity": 10.0}
    es, perplexity, ns, fluency, ps, paraphrase = check_gates(gates, measured, parent)
    assert es.held and es.limit == 0.9 and es.parent is None
    assert not perplexity.held and perplexity.limit == 10.5 and perplexity.parent == 10.0
    assert not ns.held, "more than, not as much"
    assert not fluency.held and fluency.limit is None, "nothing to compare with"
    assert not ps.held and ps.value is None, "what cannot be measured cannot hold"
    assert not paraphrase.held, "NaN compares with nothing"
    assert check_gates(parse_gates("perplexity<=1.06x"), measured, parent)[0].held


def test_parsing_imports_no_torch() -> None:
    program = "import sys; from reviver.evaluation.gates import parse_gates; parse_gates('es>=1'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
