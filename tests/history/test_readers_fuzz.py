"""Every reader is fed with bytes, broken samples and records with odd values.

Whatever it is given, a reader returns or raises one of our errors, in one printable line with a hint. A small sample runs here;
`python tests/history/fuzz.py` feeds each reader for ten minutes, guided by what its code does, and watches time and memory.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutations import changed_record, spliced
from readers import NAMES, Reader, make_readers


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return make_readers(tmp_path_factory.mktemp("fuzz"))


def inputs(reader: Reader) -> st.SearchStrategy[bytes]:
    chances = st.randoms(use_true_random=False)
    return st.one_of(
        st.binary(max_size=200),
        chances.map(lambda chance: spliced(reader.sample, chance)),
        chances.map(lambda chance: changed_record(reader.sample, chance, lines=reader.lines)),
        chances.map(lambda chance: changed_record(reader.sample, chance, lines=reader.lines)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_sample_itself_is_read(name: str, readers: dict[str, Reader]) -> None:
    assert set(NAMES) == set(readers)
    readers[name].read(readers[name].sample)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_returns_or_refuses(name: str, readers: dict[str, Reader]) -> None:
    reader = readers[name]

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=inputs(reader))
    @example(data=b"")
    @example(data=b"[" * 100_000)
    @example(data=b"\xff\xfe")
    def feed(data: bytes) -> None:
        reader.read_or_refuse(data)

    feed()
