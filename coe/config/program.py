"""How a program starts and ends: its entry point, exit codes, and errors of the user as one line each.

0 done; 1 failed at work (unreachable, full disk): trying again may help; 2 a person must edit something: one line a
finding, no traceback; 3 a bug: traceback, and where to report it; 130 stopped by ^C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module, metadata
from pathlib import Path

from coe.cascade.errors import CascadeError, NotUsableNow, TierError


def _start(package: str) -> int:
    """The exit code of a program's `main`; 2 where another package of that name comes first on Python's path."""
    ours = Path(__file__).parents[2] / package / "__init__.py"
    spec = importlib.util.find_spec(package)
    found = None if spec is None or spec.origin is None else Path(spec.origin)
    if found is not None and found.resolve() != ours.resolve():
        message = f'another package called "{package}" comes first on the Python path: {found}'
        return _print_error(f"coe-{package}", f"{message} (take its folder out of PYTHONPATH)", 2)
    code: int = import_module(f"{package}.main").main()
    return code


edge, cloud, sim = (partial(_start, package) for package in ("edge", "cloud", "sim"))


def run_program(name: str, run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """The exit code of `run(arguments)`; its errors are printed on stderr."""
    if sys.stderr is None:  # whoever started this program closed it; `print` would take standard output in its place
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the program runs
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":  # LANG=C: what it lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", r"Image size \(")  # Pillow's, of images that the input decoder refuses by itself
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 0
    except (TierError, NotUsableNow) as error:
        return _print_error(name, str(error), 1)
    except CascadeError as error:
        return _print_error(name, str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _print_error(name, f"{where}{error.strerror or error}", 1)
    except Exception as error:  # noqa: BLE001 - the last boundary
        if reason := mismatch_of(error):
            return _print_error(name, reason, 2)
        traceback.print_exc()
        return _print_error(name, "this is a bug; please report it with the lines above", 3)


def mismatch_of(error: BaseException) -> str:
    """Versions and fix, where an import failed because installed packages of protobuf and gRPC do not fit together; ""
    for another error."""
    text = str(error)
    signs = ("Descriptors cannot be created directly", "but the generated code in", "google.protobuf")
    if type(error).__name__ != "VersionError" and not any(sign in text for sign in signs):
        return ""
    found = []
    for package in ("protobuf", "grpcio", "grpcio-health-checking", "grpcio-reflection"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    reason = text.splitlines()[0][:200]
    fix = "pip install --upgrade 'protobuf>=6.31.1,<8' 'grpcio-health-checking' 'grpcio-reflection' grpcio"
    return f"installed packages do not fit together: {', '.join(found)}: {reason} ({fix})"


def positive_int(text: str) -> int:
    """A whole number from 1: a `type=` for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)


def _print_error(name: str, message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"{name}: {line}", file=sys.stderr)
    return code
