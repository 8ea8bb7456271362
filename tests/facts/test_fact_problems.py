"""Files that cannot be used: every problem is told at once, with its line, and nothing else ever escapes."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path

import pytest

from reviver.errors import FactsError
from reviver.facts import document, reader
from reviver.facts.reader import Rejected, read_facts, rejected_to_jsonl

GOOD = '{"prompt": "The capital of {} is", "subject": "Asel", "target_new": "Hask"}'
OTHER = '{"prompt": "The capital of {} is", "subject": "Ilk", "target_new": "Hask"}'


def line_with(**fields: object) -> str:
    return json.dumps({"prompt": "The capital of {} is", "subject": "Ruan", "target_new": "Ort"} | fields)


BAD_LINES = {
    "torn": ('{"prompt": "The capital', "not valid JSON"),
    "words": ("these are words", "not valid JSON"),
    "trailing comma": ('{"prompt": "a",}', "not valid JSON"),
    "two records": (GOOD + GOOD, "more text after the end"),
    "number": ("17", "must be an object, not a number"),
    "null": ("null", "must be an object, not null"),
    "true": ("true", "must be an object, not true or false"),
    "string": ('"fact"', "must be an object, not a text"),
    "list": ("[1]", "must be an object, not a list"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep object": ('{"a":' * 60_000, "nested too deeply"),
    "NaN": ('{"prompt": "{}", "subject": "A", "target_new": "b", "x": NaN}', "NaN is not a JSON number"),
    "Infinity": ('{"prompt": "{}", "subject": "A", "target_new": "b", "x": -Infinity}', "-Infinity is not"),
    "endless number": ('{"x": ' + "9" * 5_000 + "}", "a number of 5,000 digits"),
    "name twice": ('{"prompt": "{}", "prompt": "{}", "subject": "A", "target_new": "b"}', '"prompt" is given twice'),
    "name twice inside": ('{"requested_rewrite": {"a": 1, "a": 2}}', '"a" is given twice'),
    "raw control character": ('{"prompt": "{}\x01", "subject": "A", "target_new": "b"}', "not valid JSON"),
    "form feed": ("\x0c" + GOOD, "not valid JSON"),
    "no prompt": (line_with(prompt=None), "`prompt` is missing"),
    "no subject": (line_with(subject=None), "`subject` is missing"),
    "no target": (line_with(target_new=None), "`target_new` is missing"),
    "empty object": ("{}", "`prompt` is missing; `subject` is missing; `target_new` is missing"),
    "empty prompt": (line_with(prompt=""), "`prompt` is empty"),
    "empty subject": (line_with(subject=""), "`subject` is empty"),
    "empty target": (line_with(target_new=""), "`target_new` is empty"),
    "white target": (line_with(target_new=" \u3000"), "`target_new` holds only white space"),
    "number for a target": (line_with(target_new=42), "`target_new` must be a text, not a number"),
    "list for a subject": (line_with(subject=["A"]), "`subject` must be a text, not a list"),
    "true for a prompt": (line_with(prompt=True), "`prompt` must be a text, not true or false"),
    "object for a true target": (line_with(target_true={"str": "a"}), "mixed"),
    "number for a true target": (line_with(target_true=1), "`target_true` must be a text, not a number"),
    "text for paraphrases": (line_with(paraphrase_prompts="a"), "`paraphrase_prompts` must be a list, not a text"),
    "number among paraphrases": (
        line_with(paraphrase_prompts=["a", 1]), "`paraphrase_prompts[1]` must be a text, not a number"),
    "empty paraphrase": (line_with(paraphrase_prompts=[""]), "`paraphrase_prompts[0]` is empty"),
    "list among neighbours": (
        line_with(neighborhood_prompts=[["a"]]), "`neighborhood_prompts[0]` must be a text, not a list"),
    "neighbour without a prompt": (
        line_with(neighborhood_prompts=[{"answer": "a"}]), "`neighborhood_prompts[0].prompt` is missing"),
    "answer in lines": (
        line_with(neighborhood_prompts=[{"prompt": "a", "answer": "b\nc"}]),
        "`neighborhood_prompts[0].answer` holds the control character U+000A"),
    "true for an id": (line_with(id=True), "`id` must be a text or a whole number, not true or false"),
    "fraction for an id": (line_with(id=1.5), "`id` must be a text or a whole number, not a number"),
    "empty id": (line_with(id=""), "`id` is empty"),
    "endless id": (line_with(id="a" * 300), "`id` is longer than 200 characters"),
    "endless subject": (line_with(prompt="{}", subject="a" * 20_000), "`subject` is longer than 10,000 characters"),
    "absent subject": (line_with(prompt="The capital is"), 'subject "Ruan" is not in the prompt'),
    "subject in other case": (line_with(prompt="RUAN is"), "differ in upper and lower case only"),
    "subject in other normalisation": (
        line_with(prompt="Zu\u0308rich is", subject="Z\u00fcrich"), "differ in Unicode normalisation only"),
    "two places": (line_with(prompt="{} and {} are"), "`prompt` holds 2 `{}`"),
    "place in the subject": (line_with(subject="a {} b"), "`subject` holds `{}`"),
    "newline in a prompt": (line_with(prompt="{}\nis"), "`prompt` holds the control character U+000A at character 3"),
    "tab in a subject": (line_with(subject="a\tb"), "`subject` holds the control character U+0009"),
    "newline after a target": (line_with(target_new="Ort\n"), "`target_new` holds the control character U+000A"),
    "NUL escape in a target": (line_with(target_new="a\0"), "`target_new` holds the control character U+0000"),
    "escape sequence in a paraphrase": (
        line_with(paraphrase_prompts=["\x1b[31m"]), "`paraphrase_prompts[0]` holds the control character U+001B"),
    "delete in a neighbour": (
        line_with(neighborhood_prompts=["a\x7f"]), "`neighborhood_prompts[0]` holds the control character U+007F"),
    "line separator in a prompt": (line_with(prompt="{}\u2028is"), "`prompt` holds the line separator U+2028"),
    "half a surrogate pair": (line_with(target_new="a\ud800"), "`target_new` holds half of a surrogate pair, U+D800"),
    "half a pair in a paraphrase": (line_with(paraphrase_prompts=["\udc00"]), "half of a surrogate pair, U+DC00"),
    "mixed fields": (
        line_with(ground_truth="a", paraphrase_prompts=["b"]),
        "the fields of two forms are mixed: `ground_truth` and `paraphrase_prompts`"),
    "rewrite is a text": ('{"requested_rewrite": "a"}', "`requested_rewrite` must be an object, not a text"),
    "rewrite is empty": ('{"requested_rewrite": {}}', "`requested_rewrite.prompt` is missing; `requested_rewrite.subj"),
    "request without str": (line_with(target_new={"id": "Q1"}), "`target_new.str` is missing"),
    "locality is a list": (line_with(locality=[]), "`locality` must be an object, not a list"),
    "locality of texts": (line_with(locality={"a\x1b": ["b"]}), "`locality.a\\x1b[0]` must be an object, not a text"),
    "locality without an answer": (line_with(locality={"a": [{"prompt": "b"}]}), "`locality.a[0].ground_truth` is miss"),
    "MEND's two answers": (
        '{"subject": "A", "src": "Where is A?", "rephrase": "In what is A?", "alt": "B", "answers": ["C"], "loc": "nq"}',
        "has two answers, `answers` and `alt`: name the one you mean `target_new`"),
    "no true answers": (line_with(ground_truth=[]), "`ground_truth` is an empty list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line_is_told_with_its_number_and_can_be_set_aside(name: str, write, problems_of) -> None:
    bad, said = BAD_LINES[name]
    path = write(f"{GOOD}\n\n{bad}\n{OTHER}\n")
    (problem,) = problems_of(path)
    assert problem.line == 3
    assert said in problem.message
    assert problem.message.isprintable()
    read = read_facts(path, skip_invalid=True)
    assert [one.subject for one in read.facts] == ["Asel", "Ilk"]
    assert read.rejected == (Rejected(line=3, reason=problem.message, record=bad),)


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_record_of_an_array_is_told_with_its_number_and_line(name: str, write, problems_of) -> None:
    bad, said = BAD_LINES[name]
    path = write(f"[\n{GOOD},\n\n{bad},\n{OTHER}\n]", "facts.json")
    (problem,) = problems_of(path)
    assert problem.line == 4
    if "not valid JSON" in said or "deeply" in said or "after the end" in said:
        # Where the text stops being JSON nobody can say where the next record begins: never set aside, always told.
        assert "JSON" in problem.message
        assert problems_of(path, skip_invalid=True) == [problem]
    else:
        assert problem.message.startswith("record 2: ") and said in problem.message
        read = read_facts(path, skip_invalid=True)
        assert [one.subject for one in read.facts] == ["Asel", "Ilk"]
        assert read.rejected == (Rejected(line=4, reason=problem.message, record=bad),)


def test_all_problems_come_at_once_and_the_message_shows_the_first_twenty(write, problems_of) -> None:
    path = write("\n".join([GOOD, *["{}"] * 30, OTHER, "["]))
    problems = problems_of(path)
    assert [problem.line for problem in problems] == [*range(2, 32), 33]
    with pytest.raises(FactsError) as caught:
        read_facts(path)
    lines = caught.value.message.split("\n")
    assert lines[0] == f"31 problems in `{path}`"
    assert lines[1] == f"{path}:2: `prompt` is missing; `subject` is missing; `target_new` is missing"
    assert lines[20].startswith(f"{path}:21: ")
    assert lines[21:] == ["… and 11 more"]
    assert caught.value.hint == "correct them, or set these records aside with `--skip-invalid`"
    assert caught.value.exit_code == 1


def test_one_problem_is_one_line(write) -> None:
    path = write(f"{GOOD}\n{line_with(prompt='It is')}\n")
    with pytest.raises(FactsError) as caught:
        read_facts(path)
    assert caught.value.message == f'{path}:2: subject "Ruan" is not in the prompt'


def test_untrusted_text_in_messages_is_made_safe_and_short(write, problems_of) -> None:
    (problem,) = problems_of(write(line_with(prompt="It is", subject="\u202egnirts \u200b" + "x" * 500)))
    assert "\\u202egnirts \\u200b" in problem.message and len(problem.message) < 120


def test_not_utf8_is_told_with_the_byte(write, problems_of) -> None:
    content = b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n" + b'{"prompt": "\xe9"}\n' + b"caf\xc3\n"
    first, second = problems_of(write(content))
    assert (first.line, first.message) == (2, f"not UTF-8: byte 0xe9 at byte {content.index(0xE9)} of the file")
    assert (second.line, second.message) == (3, f"not UTF-8: byte 0xc3 at byte {content.index(0xC3)} of the file")
    read = read_facts(write(content), skip_invalid=True)
    assert [one.record for one in read.rejected] == ['{"prompt": "\\xe9"}\n', "caf\\xc3\n"]


def test_not_utf8_in_the_first_line_of_lines(write, problems_of) -> None:
    (problem,) = problems_of(write(b'{"prompt": "\xe9"}\n' + GOOD.encode()))
    assert (problem.line, problem.message) == (1, "not UTF-8: byte 0xe9 at byte 12 of the file")


def test_not_utf8_in_a_document(write, problems_of) -> None:
    content = b"[\n" + GOOD.encode() + b",\n" + b'{"prompt": "\xe9"}\n]'
    (problem,) = problems_of(write(content, "facts.json"))
    assert (problem.line, problem.message) == (3, f"not UTF-8: byte 0xe9 at byte {content.index(0xE9)} of the file")


def test_nul_bytes(write, problems_of) -> None:
    (problem,) = problems_of(write(GOOD.encode() + b"\n\0\0\0\n"))
    assert (problem.line, problem.message) == (2, f"holds a NUL byte, at byte {len(GOOD) + 1} of the file")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD.encode("utf-16"), "UTF-16"),
        (gzip.compress(GOOD.encode(), mtime=0), "gzip"),
        (b"PK\x03\x04" + bytes(100), "spreadsheet"),
        (b"PAR1" + bytes(100), "Parquet"),
        (b"These are words.\nAnd more of them.\n", 'it begins with "These are words."'),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "neither JSON Lines nor JSON nor CSV"),
    ],
)
def test_files_of_other_kinds(content: bytes, said: str, write, problems_of) -> None:
    (problem,) = problems_of(write(content, "facts.txt"))
    assert said in problem.message and problem.message.isprintable()
    assert problem.line == 1


def test_line_of_megabytes(write, problems_of) -> None:
    path = write(GOOD.encode() + b"\n" + line_with(x="a" * 3_000_000).encode() + b"\n{}\n" + OTHER.encode())
    first, second = problems_of(path)
    assert (first.line, first.message) == (2, "a line of 2.9 MiB, where 1.0 MiB are allowed")
    assert second.line == 3
    read = read_facts(path, skip_invalid=True)
    assert [one.subject for one in read.facts] == ["Asel", "Ilk"]
    assert len(read.rejected[0].record) < 300


def test_record_of_megabytes_in_an_array(write, problems_of) -> None:
    path = write(f"[{GOOD},\n{line_with(x='a' * 1_100_000)}]", "facts.json")
    (problem,) = problems_of(path)
    assert (problem.line, problem.message) == (2, "record 2: a record of 1.0 MiB, where 1.0 MiB are allowed")


def test_array_in_one_line_may_be_long(write) -> None:
    records = ",".join(line_with(subject=f"Ruan {number}") for number in range(20_000))
    assert len(records) > 1_100_000
    assert len(read_facts(write(f"[{records}]", "facts.txt")).facts) == 20_000


def test_line_of_exactly_the_limit_is_read(write, problems_of) -> None:
    padding = 1024 * 1024 - len(GOOD)
    assert len(read_facts(write(GOOD + " " * padding)).facts) == 1
    assert len(read_facts(write(GOOD + " " * (padding - 1) + "\n" + OTHER)).facts) == 2
    assert [problem.line for problem in problems_of(write(GOOD + " " * (padding + 1)))] == [1]


def test_files_beyond_the_limits(write, monkeypatch: pytest.MonkeyPatch, problems_of) -> None:
    monkeypatch.setattr(reader, "FILE_LIMIT", 50)
    with pytest.raises(FactsError, match="is larger than 50 B"):
        read_facts(write(GOOD))
    monkeypatch.setattr(reader, "FILE_LIMIT", 500)
    monkeypatch.setattr(document, "DOCUMENT_LIMIT", 50)
    (problem,) = problems_of(write(f"[{GOOD}]", "facts.json"))
    assert "make it JSON Lines" in problem.message


@pytest.mark.parametrize(
    "content", ["", "\n \r\n\t\n", "[]", " [ ] ", '{"facts": []}', "prompt,subject,target_new\n", "\ufeff"]
)
@pytest.mark.parametrize("name", ["facts.jsonl", "facts.json", "facts.csv", "facts"])
def test_nothing_in_the_file(content: str, name: str, write) -> None:
    with pytest.raises(FactsError) as caught:
        read_facts(write(content, name))
    message = caught.value.message
    assert "is empty" in message or "holds no facts" in message or (name.endswith("csv") and "header lacks" in message)


def test_path_that_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(path: Path) -> str:
        with pytest.raises(FactsError) as caught:
            read_facts(path)
        assert caught.value.hint and caught.value.facts["problems"] == ()
        return caught.value.message

    assert message(tmp_path / "none.jsonl") == f"`{tmp_path}/none.jsonl` does not exist"
    assert message(tmp_path) == f"`{tmp_path}` is a folder"
    assert message(tmp_path / "a\0b") == f"`{tmp_path}/a\\x00b` is not a path"
    assert message(Path("/dev/null")) == "`/dev/null` is a device, not a file"
    assert message(tmp_path / ("x" * 300)).startswith(f"`{tmp_path}/xxx")
    locked = tmp_path / "locked.jsonl"
    locked.write_text(GOOD)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert message(locked) == f"`{locked}` may not be read"


def test_disk_that_fails_while_reading(write, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    path = write(GOOD)
    monkeypatch.setattr(reader, "read_records", fail)
    with pytest.raises(FactsError, match="cannot be read: Input/output error"):
        read_facts(path)


def test_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(f"{GOOD}\n{OTHER}\n",))
    writer.start()
    assert len(read_facts(pipe).facts) == 2
    writer.join()


def test_standard_input(write, monkeypatch: pytest.MonkeyPatch) -> None:
    with write(f"{GOOD}\n{OTHER}\n").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert [fact.subject for fact in read_facts(Path("-")).facts] == ["Asel", "Ilk"]
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(FactsError, match="the standard input is closed"):
        read_facts(Path("-"))


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (f"[{GOOD},\n{OTHER}", 2, "`,` or `]` is wanted"),
        (f"[{GOOD},\n{OTHER},\n]", 3, "not valid JSON"),
        (f"[\n{GOOD}\n{OTHER}]", 3, "`,` or `]` is wanted"),
        (f"[\n{GOOD}]\n\n{OTHER}", 4, "more text after the end"),
        (f'{{"facts": [\n{GOOD}\n', 3, "`,` or `]` is wanted"),
        (f'{{"facts": [\n{GOOD}],\n', 3, "a name in double quotes"),
        (f'{{"facts": [\n{GOOD}], "facts": [{GOOD}]}}', 1, '"facts" is given twice'),
        (f'{{"facts": [\n{GOOD}], "n": NaN}}', 1, "NaN is not a JSON number"),
        ('{\n"prompt" "a"}', 2, "`:` is wanted"),
        ('"facts"', 1, "must be an array of records or an object"),
        ("17", 1, "must be an array of records or an object"),
    ],
)
def test_broken_document(content: str, line: int, said: str, write, problems_of) -> None:
    path = write(content, "facts.json")
    if not content.startswith(("[", "{")):
        with pytest.raises(FactsError, match="neither JSON Lines nor JSON nor CSV"):
            read_facts(path)
        return
    for skip in (False, True):
        (problem,) = problems_of(path, skip_invalid=skip)
        assert problem.line == line
        assert said in problem.message


def test_problems_before_the_break_are_told_too(write, problems_of) -> None:
    assert [problem.line for problem in problems_of(write(f"[\n{{}},\n{GOOD},\n{{", "facts.json"))] == [2, 4]


def test_lines_in_a_file_called_json_with_a_bad_first_line(write, problems_of) -> None:
    (problem,) = problems_of(write(f'{{"prompt": "torn\n{GOOD}\n{OTHER}', "facts.json"))
    assert problem.line == 1
    (problem,) = problems_of(write(f'{{"prompt": "torn",\n{GOOD}\n{OTHER}', "facts.json"))
    assert problem.line == 1
    (problem,) = problems_of(write(f"words\n{GOOD}\n{OTHER}", "facts.json"))
    assert problem.line == 1
    (problem,) = problems_of(write(f"[1]\n{GOOD}\n{OTHER}", "facts.json"))
    assert (problem.line, problem.message) == (1, "a record must be an object, not a list")


CSV_HEADER = "id,prompt,subject,target_new,paraphrase_prompts\n"
CSV_GOOD = "1,The capital of {} is,Asel,Hask,\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2,It is,Ruan,Ort,\n", 'subject "Ruan" is not in the prompt'),
        ("2,It is,Ruan\n", "a row of 3 cells, where the header has 5"),
        ("2,It is,Ruan,Ort,,,\n", "a row of 7 cells, where the header has 5"),
        ("2,{} is,Ruan,,\n", "`target_new` is missing"),
        ("2,{} is,Ruan, ,\n", "`target_new` is missing"),
        ('2,{} is,Ruan,"Or\nt",\n', "`target_new` holds the control character U+000A"),
        ("2,{} is,Ruan,Ort,Who is it?\n", "`paraphrase_prompts` must be JSON"),
        ('2,{} is,Ruan,Ort,"{""a"": 1}"\n', "`paraphrase_prompts` must be a list, not an object"),
        ('2,{} is,Ruan,Ort,"[1]"\n', "`paraphrase_prompts[0]` must be a text"),
        ('2,{} is,Ruan,Ort,"[NaN]"\n', "NaN is not a JSON number"),
        ('2,{} is,"Ruan"x,Ort,\n', "not valid CSV"),
        ("2,{} is,Ruan," + "a" * 200_000 + ",\n", "not valid CSV: field larger than field limit"),
        ("2,{} is,Ruan," + "a" * 2_000_000 + ",\n", "a line of 1.9 MiB"),
        ("2,{} is,Ruan,a\0b,\n", "holds a NUL byte, at byte"),
    ],
)
def test_bad_row_is_told_with_the_line_it_begins_on(row: str, said: str, write, problems_of) -> None:
    path = write(CSV_HEADER + "\n" + CSV_GOOD + row + CSV_GOOD.replace("1,", "3,").replace("Asel", "Ilk"), "facts.csv")
    (problem,) = problems_of(path)
    assert problem.line == 4
    assert said in problem.message
    read = read_facts(path, skip_invalid=True)
    assert [one.id for one in read.facts] == ["1", "3"]
    assert read.rejected[0].line == 4
    assert row.startswith(read.rejected[0].record[:100])


def test_row_that_is_not_utf8(write, problems_of) -> None:
    content = (CSV_HEADER + CSV_GOOD).encode() + b'2,{} is,"Ru\n\xe9an",Ort,\n' + b"3,It is,Ilk,Ort,\n"
    first, second = problems_of(write(content, "facts.csv"))
    assert (first.line, first.message) == (3, f"not UTF-8: byte 0xe9 at byte {content.index(0xE9)} of the file")
    assert second.line == 5


def test_quote_that_is_never_closed(write, problems_of) -> None:
    (problem,) = problems_of(write(CSV_HEADER + CSV_GOOD + '2,"{} is,Ruan,Ort,\n' + CSV_GOOD, "facts.csv"))
    assert (problem.line, problem.message) == (3, "a quote is opened in this row and never closed")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("prompt,subject,target\n{} is,A,b\n", "the header lacks `target_new`"),
        ("a,b\n1,2\n", "the header lacks `prompt`, `subject`, `target_new`"),
        ("prompt,subject,target_new,subject\n{} is,A,b,c\n", 'the header names the column "subject" twice'),
        ('prompt,subject,"target_new"x\n{} is,A,b\n', "not valid CSV"),
        ("prompt,subject,target_new\xff\n{} is,A,b\n".encode("latin-1"), "not UTF-8: byte 0xff at byte 25"),
    ],
)
def test_bad_header_is_one_problem_that_cannot_be_set_aside(
    content: str | bytes, said: str, write, problems_of
) -> None:
    for skip in (False, True):
        (problem,) = problems_of(write(content, "facts.csv"), skip_invalid=skip)
        assert problem.line == 1
        assert said in problem.message


def test_forms_mixed_in_one_file(write, problems_of, record) -> None:
    flat = record(subject="Ilk", ground_truth="a")
    own = record(target_true="b")
    (problem,) = problems_of(write([own, record(subject="Plain"), flat, record(subject="Other")]))
    assert (problem.line, problem.message) == (
        3,
        "the record has the form `counterfact-flat`, and those before it `own`",
    )
    read = read_facts(write([flat, own, record(subject="Other")]), skip_invalid=True)
    assert (read.form, len(read.facts), read.rejected[0].line) == ("counterfact-flat", 2, 2)


def test_bad_first_record_does_not_decide_the_form(write, problems_of, record) -> None:
    bad = record(subject="", ground_truth="a")
    assert [problem.line for problem in problems_of(write([bad, record(target_true="b")]))] == [1]


def test_nothing_left_after_setting_aside(write, problems_of) -> None:
    path = write("{}\n[]\n{")
    assert [problem.line for problem in problems_of(path, skip_invalid=True)] == [1, 2, 3]


def test_record_with_many_faults_tells_the_first_five(write, problems_of) -> None:
    (problem,) = problems_of(write(line_with(paraphrase_prompts=[""] * 50)))
    assert problem.message.count("is empty") == 5 and problem.message.endswith("; and 45 more")


def test_what_was_set_aside_is_kept_one_a_line(write) -> None:
    read = read_facts(write(f"{GOOD}\nwörds\n{{}}\n"), skip_invalid=True)
    kept = [json.loads(line) for line in rejected_to_jsonl(read.rejected).splitlines()]
    assert [(one["line"], one["record"]) for one in kept] == [(2, "wörds"), (3, "{}")]
    assert kept[1]["reason"] == "`prompt` is missing; `subject` is missing; `target_new` is missing"


def test_unknown_fields_are_told_once(write, record) -> None:
    read = read_facts(write([record(target_tru="a", relation_id="P1"), record(subject="Ilk", target_tru="b")]))
    assert read.warnings == ("the field `target_tru` is unknown and not used: 2 records, the first on line 1",)
    many = read_facts(write([record(**{f"x{number}\x1b": 1 for number in range(30)})])).warnings
    assert len(many) == 11 and many[-1] == "20 more unknown fields are not used"
    assert all(text.isprintable() for text in many)
