"""One table from an exception to what a person reads: a line of what, a line of what next, and an exit code."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from reviver.cli.output import Mode, dump_json, plain, with_place, write_labelled, write_line, write_raw
from reviver.editing.ranks import may_speak
from reviver.errors import ReviverError
from reviver.text import plural

DEBUG_VARIABLE = "REVIVER_DEBUG"
INTERRUPTED = 130
USAGE = 2

_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception as the command line tells it.

    `problems` are the single findings behind one error (bad lines of a file of facts): each is one more line for
    people, and `problems` of the JSON object.
    """

    type: str
    message: str
    hint: str | None
    exit_code: int
    problems: tuple[str, ...] = ()


def describe(error: BaseException, *, verb: str | None = None) -> Failure:
    """Return how to tell `error`; anything that is not foreseen is a defect, told in one line all the same."""
    name = type(error).__name__
    if isinstance(error, ReviverError):
        problems = _problems(error.facts.get("problems"))
        # Where the problems have lines of their own, the message need not hold them as well.
        message = error.message.partition("\n")[0] if problems else error.message
        return Failure(
            type=name,
            message=_line(message),
            hint=None if error.hint is None else _line(error.hint),
            exit_code=error.exit_code,
            problems=problems,
        )
    if isinstance(error, KeyboardInterrupt) and error.args:
        # The operation itself was done before the interrupt.
        return Failure(
            type="Interrupted",
            message=_line(f"interrupted, but {error.args[0]}"),
            hint="do not run it again; see with `reviver status` how things stand",
            exit_code=INTERRUPTED,
        )
    if isinstance(error, KeyboardInterrupt):
        again = f"run `reviver {verb}` again" if verb else "run the command again"
        return Failure(
            type="Interrupted",
            message="interrupted; nothing is lost",
            hint=f"{again} to go on where it was",
            exit_code=INTERRUPTED,
        )
    if isinstance(error, typer.TyperException):
        return _usage_failure(error, verb)
    if _is_out_of_memory(error):
        return Failure(
            type="ResourceError",
            message="out of memory; nothing was changed",
            hint="use smaller rounds, another `--device`, or a machine with more memory",
            exit_code=1,
        )
    if isinstance(error, OSError) and error.errno is not None:
        return _os_failure(error)
    return Failure(
        type="UnexpectedError",
        message=_line(f"unexpected {name}: {error}" if str(error) else f"unexpected {name}"),
        hint=f"this is a defect of reviver: set `{DEBUG_VARIABLE}=1` to see the traceback, and report it",
        exit_code=1,
    )


def report(error: BaseException, *, mode: Mode, verb: str | None = None, directory: Path = Path()) -> int:
    """Tell `error` on stderr in the form that `mode` asks for and return the exit code.

    Args:
        error: any exception.
        mode: the command's.
        verb: its name.
        directory: the workspace's folder, which the commands in the hint name.
    """
    failure = describe(error, verb=verb)
    hint = None if failure.hint is None else with_place(failure.hint, directory)
    if not may_speak():
        return failure.exit_code
    if mode == "json":
        fields: dict[str, object] = {"type": failure.type, "message": failure.message, "hint": hint}
        if failure.problems:
            fields["problems"] = plain(failure.problems)
        write_raw(dump_json({"error": fields}))
    else:
        write_labelled("error", failure.message)
        for problem in _told_apart(failure)[:_SHOWN_PROBLEMS]:
            write_line(f"  {problem}")
        if len(failure.problems) > _SHOWN_PROBLEMS:
            write_line(f"  … and {plural(len(failure.problems) - _SHOWN_PROBLEMS, 'more problem')}")
        if hint is not None:
            write_labelled("hint", hint)
    if os.environ.get(DEBUG_VARIABLE) and not isinstance(error, KeyboardInterrupt):
        write_raw("".join(traceback.format_exception(error)))
    return failure.exit_code


def _line(text: str) -> str:
    """Return `text` as one line without a final full stop."""
    line = " ".join(text.split())
    return line[:-1] if line.endswith(".") and not line.endswith("..") else line


def _told_apart(failure: Failure) -> tuple[str, ...]:
    """Return the problems that have lines of their own: not a single one that the message holds already."""
    problems = failure.problems
    if len(problems) == 1 and re.sub(r"^line \d+: ", "", problems[0]) in failure.message:
        return ()
    return problems


def _problems(value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    return tuple(_problem(item) for item in value)


def _problem(item: object) -> str:
    line, message = getattr(item, "line", None), getattr(item, "message", None)
    if isinstance(message, str):
        return message if line is None else f"line {line}: {message}"
    return str(item)


def _usage_failure(error: typer.TyperException, verb: str | None) -> Failure:
    """Return a usage error in our words; typer's own are sentences of several kinds."""
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", None) or ("reviver" if verb is None else f"reviver {verb}")
    message = re.sub(r"'([^'\s]+)'", r"`\1`", _line(error.format_message()))
    hint = f"see `{command} --help`"
    option = getattr(error, "option_name", None)
    if message.startswith("No such option"):
        message = f"no such option `{option}`"
        near = sorted(getattr(error, "possibilities", None) or ())
        if context is not None and context.parent is None:
            hint = f"options follow the verb, as in `reviver VERB {option}`; see `reviver --help`"
        elif near:
            hint = f"did you mean {' or '.join(f'`{name}`' for name in near)}? See `{command} --help`"
    elif message.startswith("Missing argument"):
        message = f"missing argument `{_argument_name(error)}`"
    elif extra := re.fullmatch(r"Got unexpected extra arguments? ?\(?s?\)? ?\((.*)\)", message):
        message = f"unexpected argument `{extra[1]}`"
    else:
        message = message[:1].lower() + message[1:].replace(": Input ", ": input ")
    return Failure(type="UsageError", message=message, hint=hint, exit_code=USAGE)


def _argument_name(error: typer.TyperException) -> str:
    argument = getattr(error, "param", None)
    return str(getattr(argument, "metavar", None) or str(getattr(argument, "name", "")).upper())


def _is_out_of_memory(error: BaseException) -> bool:
    # torch is not imported here, so its error is known by its name; on the CPU it is a RuntimeError with this text.
    return (
        isinstance(error, MemoryError)
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _os_failure(error: OSError) -> Failure:
    reason = (error.strerror or os.strerror(error.errno or 0)).lower()
    where = "" if error.filename is None else f" `{os.fsdecode(error.filename)}`"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message, hint = "no space left on the disk", "free some space and run the command again; nothing was lost"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
        message, hint = f"cannot find{where}", "check the path; `reviver status` says what the workspace holds"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        message, hint = f"no permission for{where}", "make it readable and writable for you, or choose another folder"
    elif error.errno == errno.EMFILE:
        message, hint = "too many open files", "raise the limit with `ulimit -n` and run the command again"
    else:
        message, hint = (
            f"the system refused{where}: {reason}",
            "check the disk and the path, then run the command again",
        )
    return Failure(type="ResourceError", message=_line(message), hint=hint, exit_code=1)
