"""The compiler wrapper: runs as gcc, cc, clang… inside a build, adds flags, records what each call made.

It runs by itself (`python -I -S wrapper.py NAME ARGS…`) and so imports the standard library alone. It writes one
JSON line per object and per link to $PODGRAFT_STORE/log.jsonl, and a copy of every object beside it: a build
that compiles and links in one call leaves no objects behind.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = (".c", ".cc", ".cpp", ".cxx", ".c++", ".C", ".s", ".S", ".asm", ".i", ".ii", ".m")
# Options whose value is the next word (GCC manual, "Option Summary"); a value must not be taken for a source.
WITH_VALUE = frozenset(
    {
        *("-o", "-I", "-include", "-imacros", "-D", "-U", "-L", "-l", "-x", "-MF", "-MT", "-MQ", "-Xlinker"),
        *("-Xpreprocessor", "-Xassembler", "-isystem", "-iquote", "-idirafter", "-isysroot", "-iprefix", "-T", "-u"),
        *("-z", "-e", "-A", "-aux-info", "--param", "-arch", "-target", "-wrapper", "-B", "-Xclang"),
    }
)
NO_OBJECT = ("-E", "-S", "-M", "-MM", "-fsyntax-only", "--version", "-###", "--help")
QUESTIONS = ("-print", "-dumpfullversion", "-dumpmachine", "-dumpspecs", "-dumpversion")


def words(arguments: list[str]) -> list[str]:
    """Expand @file arguments, for looking only (GCC manual, "Overall Options")."""
    out: list[str] = []
    for argument in arguments:
        if argument.startswith("@") and Path(argument[1:]).is_file():
            out += Path(argument[1:]).read_text().split()
        else:
            out.append(argument)
    return out


def option(arguments: list[str], name: str) -> str | None:
    """Return the value of an option in either spelling (-oX, -o X); the last one wins."""
    found = None
    for index, word in enumerate(arguments):
        if word == name and index + 1 < len(arguments):
            found = arguments[index + 1]
        elif word.startswith(name) and word != name and name in ("-o", "-MF"):
            found = word[len(name) :]
    return found


def sources(arguments: list[str]) -> list[str]:
    """Return the source files among the arguments."""
    found, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word in WITH_VALUE:
            skip = True
        elif not word.startswith("-") and word.endswith(SOURCES):
            found.append(word)
    return found


def real_compiler(name: str) -> str:
    """Find the compiler that this wrapper stands before."""
    here = os.environ["PODGRAFT_BIN"]
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != here)
    found = shutil.which(name, path=path)
    if found is None:
        sys.stderr.write(f"podgraft wrapper: no {name} on PATH\n")
        sys.exit(127)
    return found


def record(store: Path, **line: object) -> None:
    """Append one line in one write, so that parallel compilers do not mix theirs."""
    with (store / "log.jsonl").open("ab", buffering=0) as log:
        log.write(json.dumps(line).encode() + b"\n")


def read_dependencies(path: Path) -> list[str]:
    """Return the absolute paths of the files that a make rule names (GCC manual, "Preprocessor Options", -M)."""
    if not path.is_file():
        return []
    rules = path.read_text(errors="replace").replace("\\\n", " ")
    rule = rules.split("\n", 1)[0].partition(": ")[2]
    return [str(Path.cwd() / word.replace("\0", " ")) for word in rule.replace("\\ ", "\0").split() if word]


def compile_one(compiler: str, name: str, arguments: list[str], source: str, output: Path) -> int:
    """Run one compile with the flags added, and record it."""
    store = Path(os.environ["PODGRAFT_STORE"])
    token = hashlib.sha256(f"{Path.cwd()}\0{output}\0{os.getpid()}".encode()).hexdigest()[:24]
    own = store / f"{token}.d"
    # Headers found by -isystem belong to the tree, too: ask for all of them (GCC manual, -MD).
    arguments = [re.sub(r"^(-Wp,)?-MMD\b", r"\1-MD", word) for word in arguments]
    explicit = any(word.startswith(("-M", "-Wp,-M")) for word in arguments)
    # Not by DEPENDENCIES_OUTPUT, which ccache does not know and which leaves out the headers of -isystem folders.
    rule = [] if explicit else ["-MD", "-MF", str(own), "-MT", "object"]
    code = subprocess.call([compiler, *arguments, *shlex.split(os.environ["PODGRAFT_FLAGS"]), *rule])
    if code == 0 and output.is_file():
        if explicit:
            own = Path(option(arguments, "-MF") or output.with_suffix(".d"))
        copy = store / f"{token}.o"
        shutil.copyfile(output, copy)
        record(
            store,
            kind="compile",
            cwd=str(Path.cwd()),
            compiler=name,
            arguments=arguments,
            source=str(Path.cwd() / source),
            output=str(Path.cwd() / output),
            copy=str(copy),
            depends=[str(Path.cwd() / source), *read_dependencies(own)],
        )
    return code


def link(compiler: str, name: str, arguments: list[str]) -> int:
    """Compile the sources of a link one by one, so that their objects are known; then link with a map."""
    store = Path(os.environ["PODGRAFT_STORE"])
    output = Path.cwd() / (option(words(arguments), "-o") or "a.out")
    token = hashlib.sha256(f"{output}\0{os.getpid()}".encode()).hexdigest()[:24]
    if "-x" not in arguments:
        for source in sources(arguments):
            made = store / f"{token}-{Path(source).stem}.o"
            others = [word for word in arguments if word not in sources(arguments)]
            code = compile_one(compiler, name, [*without_link(others), "-c", source, "-o", str(made)], source, made)
            if code != 0:
                return code
            arguments = [str(made) if word == source else word for word in arguments]
    flags = shlex.split(os.environ["PODGRAFT_FLAGS"])
    code = subprocess.call([compiler, *arguments, *flags, f"-Wl,-Map={store / token}.map"])
    if code == 0:
        record(store, kind="link", cwd=str(Path.cwd()), output=str(output), map=f"{store / token}.map")
    return code


def without_link(arguments: list[str]) -> list[str]:
    """Leave out what only the linker wants: -o, -l, -L, -Wl, objects and archives."""
    out, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word in {"-o", "-l", "-L", "-Xlinker"}:
            skip = True
        elif not (word.startswith(("-o", "-l", "-L", "-Wl,")) or word.endswith((".o", ".a", ".so", ".lo"))):
            out.append(word)
    return out


def main() -> int:
    """Run as the compiler that the first argument names."""
    name, arguments = sys.argv[1], sys.argv[2:]
    compiler = real_compiler(name)
    seen = words(arguments)
    idle = all(word.startswith("-") for word in seen)  # "-v" alone, and the like
    if idle or any(
        word in NO_OBJECT or word.startswith(("-print", "-dumpm", "-dumpv", "-dumpf", "-dumps")) for word in seen
    ):
        # By its path: gcc looks for its parts beside the name that it was called by, as far as PATH has it.
        os.execv(compiler, [compiler, *arguments])  # noqa: S606 (becomes the compiler)
    files = sources(seen)
    if "-c" not in seen:
        return link(compiler, name, arguments)
    if len(files) != 1:
        return subprocess.call([compiler, *arguments, *shlex.split(os.environ["PODGRAFT_FLAGS"])])
    output = Path(option(seen, "-o") or Path(files[0]).with_suffix(".o").name)
    return compile_one(compiler, name, arguments, files[0], output)


if __name__ == "__main__":
    sys.exit(main())
