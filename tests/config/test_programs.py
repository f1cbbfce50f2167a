"""How a program ends: its exit code, and what it says on stderr."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from coe.cascade import ConfigError, InputError, ModelError, RuntimeMissing, TierTimeout, TierUnavailable
from coe.config.program import run_program


def raising(error):
    def run(arguments):
        raise error

    return run


def test_a_programs_own_code_is_its_exit_code(capsys):
    assert run_program("coe-edge", lambda arguments: len(arguments), ["a", "b"]) == 2
    assert run_program("coe-edge", lambda arguments: 0, []) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ConfigError(["a: wrong", "b: wrong too"], "x.yaml"), 2, ["x.yaml: a: wrong", "x.yaml: b: wrong too"]),
        (ModelError("a.onnx: changed"), 2, ["a.onnx: changed"]),
        (
            RuntimeMissing("ONNX", "pip install onnxruntime"),
            2,
            ["the ONNX runtime is not installed: pip install onnxruntime"],
        ),
        (InputError("expected an image"), 2, ["expected an image"]),
        (TierUnavailable("cloud", "refused"), 1, ["tier cloud: refused"]),
        (TierTimeout("cloud", "late"), 1, ["tier cloud: late"]),
        (FileNotFoundError(2, "No such file or directory", "out/x"), 1, ["out/x: No such file or directory"]),
        (OSError(28, "No space left on device"), 1, ["No space left on device"]),
        (OSError("odd"), 1, ["odd"]),
    ],
)
def test_an_expected_error_is_its_lines_on_stderr_without_a_traceback(capsys, error, code, lines):
    assert run_program("coe-edge", raising(error), []) == code
    told = capsys.readouterr()
    assert told.err.splitlines() == [f"coe-edge: {line}" for line in lines]
    assert told.out == ""


def test_a_bug_shows_its_traceback_and_asks_to_be_reported(capsys):
    assert run_program("coe-edge", raising(ZeroDivisionError("by zero")), []) == 3
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "ZeroDivisionError: by zero" in told
    assert told.splitlines()[-1] == "coe-edge: this is a bug; please report it with the lines above"


class VersionError(Exception):
    """As protobuf raises it."""


def test_packages_of_grpc_that_do_not_fit_together_are_one_line_with_versions_and_the_fix(capsys):
    assert run_program("coe-cloud", raising(VersionError("gencode 6.31.1 runtime 5.29.0")), []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("coe-cloud: installed packages do not fit together: protobuf ")
    assert "gencode 6.31.1 runtime 5.29.0" in line
    assert "(pip install --upgrade " in line


def test_a_terminal_without_utf_8_gets_what_it_lacks_escaped():
    code = "from coe.config.program import run_program; run_program('x', lambda _: print('caf\\u00e9'), [])"
    environment = os.environ | {"LANG": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9\n", "")


def test_images_that_the_door_refuses_are_not_warned_of_as_well():
    code = "import sys; from test_programs import refusing; sys.exit(refusing())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=Path(__file__).parent
    )
    assert (done.returncode, done.stdout) == (0, "expected at most 50000000 pixels, got 12000 x 12000\n")
    assert done.stderr == ""


def refusing() -> int:
    """A program that is given a PNG whose header claims 144 million pixels."""
    from coe.models import decode_image

    size = struct.pack(">IIBBBBB", 12000, 12000, 8, 0, 0, 0, 0)
    header = b"IHDR" + size
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(size)) + header + struct.pack(">I", zlib.crc32(header))
    data = zlib.compress(b"")
    png += struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))

    def run(arguments):
        try:
            decode_image(png, 1)
        except InputError as error:
            print(error)
        return 0

    return run_program("coe-edge", run, [])


def test_control_c_ends_with_130_and_says_nothing(capsys):
    assert run_program("coe-edge", raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == ""


def test_exits_of_the_argument_parser_pass_through():
    with pytest.raises(SystemExit) as caught:
        run_program("coe-edge", raising(SystemExit(2)), [])
    assert caught.value.code == 2


def test_a_reader_that_went_away_ends_the_program_quietly():
    code = (
        "import sys\n"
        "from coe.config.program import run_program\n"
        "def run(arguments):\n"
        "    for number in range(100000):\n"
        "        print(number)\n"
        "    return 0\n"
        "sys.exit(run_program('coe-edge', run, []))\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.readline()
    program.stdout.close()
    told = program.stderr.read()
    program.stderr.close()
    program.wait(timeout=120)
    assert b"Traceback" not in told
    assert b"bug" not in told


@pytest.mark.parametrize("package", ["edge", "cloud", "sim"])
@pytest.mark.parametrize("file", ["{}/__init__.py", "{}.py"])
def test_another_package_of_a_programs_name_is_one_line(tmp_path: Path, package, file):
    script = Path(sys.executable).parent / f"coe-{package}"
    if not script.exists() or "coe.config.program" not in script.read_text():
        pytest.skip("needs the console scripts of this version: pip install")
    other = tmp_path / file.format(package)
    other.parent.mkdir(exist_ok=True)
    other.write_text("raise RuntimeError('not ours')\n")
    path = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [script, "--version"], capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'coe-{package}: another package called "{package}" comes first on the Python path: ')
    assert str(other) in line
    assert "PYTHONPATH" in line
