#!/usr/bin/python3
"""Line coverage of the product code by all tests: `make coverage` calls it.

Builds everything with counters, runs all tests, and reports per folder. What a process has counted is lost when it
is killed; that of all others is merged, also of the programs that the tests start. Test code is left out by the same
rules as in tests/tidy. Needs llvm-profdata and llvm-cov of rustc's LLVM.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEST_FILES = {"fuzz.rs", "planted.rs", "testing.rs", "tests.rs"}
PRODUCT = re.compile(r"^(src|mountpoint-helper/src)/")
FOLDERS = re.compile(r"^(src/[a-z]+/|mountpoint-helper/|src/)")
BUILD = ["test", "--workspace", "--locked", "--lib", "--bins", "--tests"]


def run(command, **how):
    return subprocess.run(command, cwd=ROOT, check=True, **how)


def counted(place, version):
    """The lines of all files that have counters, with how often each was run."""
    environment = dict(os.environ, CARGO_TARGET_DIR=str(place), RUSTFLAGS="-C instrument-coverage")
    raw = place / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    # A test may run a program as another user.
    raw.chmod(0o1777)
    for old in raw.glob("*.profraw"):
        old.unlink()
    environment["LLVM_PROFILE_FILE"] = "/dev/null"
    built = run(
        ["cargo", *BUILD, "--no-run", "--message-format=json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    programs = {m["executable"] for m in said if m.get("executable")}
    environment["LLVM_PROFILE_FILE"] = f"{raw}/%4m.profraw"
    tested = subprocess.run(["cargo", *BUILD, "--no-fail-fast"], cwd=ROOT, env=environment)
    if tested.returncode != 0:
        print("a test has failed: the figures are those of what ran", file=sys.stderr)
    return read(place, raw, sorted(programs), version)


def read(place, raw, programs, version):
    merged = place / "all.profdata"
    files = [str(file) for file in raw.glob("*.profraw")]
    # A process that is killed while it writes leaves a file that cannot be read.
    merge = [f"llvm-profdata-{version}", "merge", "--sparse", "--failure-mode=all"]
    run([*merge, *files, "-o", str(merged)])
    objects = [word for program in programs[1:] for word in ("--object", program)]
    export = [f"llvm-cov-{version}", "export", "--format=lcov", f"--instr-profile={merged}"]
    told = run([*export, programs[0], *objects], stdout=subprocess.PIPE, text=True).stdout
    lines, name = {}, ""
    for line in told.splitlines():
        if line.startswith("SF:"):
            name = os.path.relpath(line[3:], ROOT)
        elif line.startswith("DA:"):
            at, count = line[3:].split(",")[:2]
            found = lines.setdefault(name, {})
            found[int(at)] = max(found.get(int(at), 0), int(count))
    return lines


def test_lines(text):
    """Numbers of the lines that only tests have: an item behind `cfg(test)`, to its last brace."""
    lines, found = text.splitlines(), set()
    for first, line in enumerate(lines):
        condition = re.match(r"\s*#\[cfg\((.*)\)\]", line)
        if not condition or not re.search(r"\btest\b", condition[1]) or "not(test" in condition[1]:
            continue
        depth = 0
        for last in range(first + 1, len(lines)):
            code = re.sub(r"//.*|\"(\\.|[^\"\\])*\"|'(\\.|[^'\\])'", "", lines[last])
            depth += code.count("{") - code.count("}")
            if depth == 0 and code.rstrip().endswith(("}", ";", ",")):
                break
        found.update(range(first + 1, last + 2))
    return found


def product(lines):
    for name in sorted(lines):
        parts = name.split("/")
        is_test = {"tests", "testing"} & set(parts) or parts[-1] in TEST_FILES
        if PRODUCT.match(name) and not is_test:
            tests = test_lines((ROOT / name).read_text())
            yield name, {at: n for at, n in lines[name].items() if at not in tests}


def report(place, lines):
    folders = {}
    with open(place / "uncovered.txt", "w") as uncovered:
        for name, counts in product(lines):
            folder = folders.setdefault(FOLDERS.match(name)[1], [0, 0])
            folder[0] += sum(count > 0 for count in counts.values())
            folder[1] += len(counts)
            for at in sorted(at for at, count in counts.items() if count == 0):
                uncovered.write(f"{name}:{at}\n")
    folders["all"] = [sum(column) for column in zip(*folders.values())]
    for folder, (run_lines, all_lines) in folders.items():
        print(f"{folder:20} {run_lines:6} of {all_lines:6} lines  {100 * run_lines / all_lines:5.1f} %")
    print(f"lines that no test runs: {place / 'uncovered.txt'}")


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1]).resolve()
    report(target, counted(target, sys.argv[2]))
