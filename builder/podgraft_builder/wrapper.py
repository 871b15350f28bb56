"""The compiler wrapper: runs as gcc, cc, clang… inside a build, adds flags, records what each call made.

It runs by itself (`python -I -S wrapper.py NAME ARGS…`), hundreds of times in a build, and so imports what Python has
loaded anyway: pathlib, json and subprocess would take four times as long as all the rest. It writes one line per
object and per link to $PODGRAFT_STORE/log, a literal of Python, and a copy of every object beside it: a build that
compiles and links in one call leaves no objects behind.
"""

import os
import sys
import time

SOURCES = (".c", ".cc", ".cpp", ".cxx", ".c++", ".C", ".s", ".S", ".asm", ".i", ".ii", ".m")
PREPROCESSED = (".s", ".i", ".ii")  # they have no #include, and no rule is written for them
HEADERS = (".h", ".hh", ".H", ".hp", ".hxx", ".hpp", ".HPP", ".h++", ".tcc")
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
        if argument.startswith("@") and os.path.isfile(argument[1:]):
            with open(argument[1:]) as file:
                out += file.read().split()
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


def sources(arguments: list[str], endings: tuple[str, ...] = SOURCES) -> list[str]:
    """Return the source files among the arguments, or files with other endings."""
    found, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word in WITH_VALUE:
            skip = True
        elif not word.startswith("-") and word.endswith(endings):
            found.append(word)
    return found


def real_compiler(name: str) -> str:
    """Find the compiler that this wrapper stands before."""
    if "/" in name:
        return name
    here = os.environ["PODGRAFT_BIN"]
    for folder in os.environ["PATH"].split(os.pathsep):
        path = os.path.join(folder or ".", name)
        if folder != here and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    sys.stderr.write(f"podgraft wrapper: no {name} on PATH\n")
    sys.exit(127)


def call(compiler: str, arguments: list[str]) -> int:
    """Run a compiler to its end and return its exit code."""
    code = os.spawnv(os.P_WAIT, compiler, [compiler, *arguments])  # noqa: S606 (a compiler)
    return code if code >= 0 else 128 - code


def added_flags() -> list[str]:
    """Return the flags that every compile and link gets."""
    return os.environ["PODGRAFT_FLAGS"].split("\n")


def new_name() -> str:
    """Return a name in the store that no other call has."""
    return f"{os.getpid():x}{time.time_ns():x}"


def record(store: str, **line: object) -> None:
    """Append one line in one write, so that parallel compilers do not mix theirs."""
    log = os.open(f"{store}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(log, ascii(line).encode() + b"\n")
    os.close(log)


def read_dependencies(path: str) -> list[str]:
    """Return the absolute paths of the files that a make rule names (GCC manual, "Preprocessor Options", -M)."""
    if not os.path.isfile(path):
        return []
    with open(path, errors="replace") as file:
        rules = file.read().replace("\\\n", " ")
    rule = rules.split("\n", 1)[0].partition(": ")[2]
    return [absolute(word.replace("\0", " ")) for word in rule.replace("\\ ", "\0").split() if word]


def absolute(path: str) -> str:
    """Return a path that holds in every folder."""
    return os.path.join(os.getcwd(), path)


def with_system_headers(word: str) -> str:
    """Headers found by -isystem belong to the tree, too: ask for all of them (GCC manual, -MD)."""
    for short, full in (("-MMD", "-MD"), ("-Wp,-MMD", "-Wp,-MD")):
        if word == short or word.startswith(f"{short},"):
            return full + word[len(short) :]
    return word


def compile_one(  # noqa: PLR0917 (what is recorded)
    compiler: str, name: str, arguments: list[str], source: str, output: str, program: str = ""
) -> int:
    """Run one compile with the flags added, and record it; program is what one call compiles and links."""
    store = os.environ["PODGRAFT_STORE"]
    copy = f"{store}/{new_name()}.o"
    own = f"{copy}.d"
    arguments = [with_system_headers(word) for word in arguments]
    explicit = any(word.startswith(("-M", "-Wp,-M")) for word in arguments)
    # Not by DEPENDENCIES_OUTPUT, which ccache does not know and which leaves out the headers of -isystem folders.
    rule = [] if explicit else ["-MD", "-MF", own, "-MT", "object"]
    code = call(compiler, [*arguments, *added_flags(), *rule])
    if code == 0 and os.path.isfile(output):
        if explicit:
            named = [word.split(",", 2)[2] for word in arguments if word.startswith(("-Wp,-MD,", "-Wp,-MMD,"))]
            own = option(arguments, "-MF") or (named or [f"{os.path.splitext(output)[0]}.d"])[-1]
        depends = [absolute(source), *read_dependencies(own)]
        if len(depends) == 1 and not source.endswith(PREPROCESSED):
            record(store, kind="blind", cwd=os.getcwd(), output=absolute(output), source=absolute(source))
        with open(output, "rb") as made, open(copy, "wb") as kept:
            kept.write(made.read())
        record(
            store,
            kind="compile",
            cwd=os.getcwd(),
            compiler=name,
            arguments=arguments,
            source=absolute(source),
            output=absolute(output),
            copy=copy,
            program=program,
            depends="\0".join(depends),  # one literal: it is parsed at once
        )
    return code


def link(compiler: str, name: str, arguments: list[str]) -> int:
    """Compile the sources of a link one by one, so that their objects are known; then link with a map."""
    store, token = os.environ["PODGRAFT_STORE"], new_name()
    output = absolute(option(words(arguments), "-o") or "a.out")
    given = words(arguments)
    if not any(word.startswith("-x") for word in arguments):
        stems: list[str] = []
        for source in sources(arguments):
            stems.append(stem(source))
            again = stems.count(stems[-1])  # files of several folders may have one name
            made = f"{store}/{token}-{stems[-1]}{f'.{again}' if again > 1 else ''}.o"
            others = [word for word in arguments if word not in sources(arguments)]
            alone = [*without_link(others), "-c", source, "-o", made]
            code = compile_one(compiler, name, alone, source, made, output)
            if code != 0:
                return code
            arguments = [made if word == source else word for word in arguments]
    code = call(compiler, [*arguments, *added_flags(), f"-Wl,-Map={store}/{token}.map"])
    if code == 0:
        record(store, kind="link", cwd=os.getcwd(), output=output, arguments=given, map=f"{store}/{token}.map")
    return code


def makes_header(arguments: list[str]) -> bool:
    """Say whether headers are compiled into something that other compiles read in their place (GCC manual, 3.22)."""
    return (option(arguments, "-x") or "").endswith("-header") or bool(sources(arguments, HEADERS))


def stem(path: str) -> str:
    """Return the name of a file without folder and suffix."""
    return os.path.splitext(os.path.basename(path))[0]


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
        for source in map(absolute, sources(seen) if {"-E", "-S"}.intersection(seen) else ()):
            record(os.environ["PODGRAFT_STORE"], kind="text", cwd=os.getcwd(), output=source, source=source)
        # By its path: gcc looks for its parts beside the name that it was called by, as far as PATH has it.
        os.execv(compiler, [compiler, *arguments])  # noqa: S606 (becomes the compiler)
    files = sources(seen)
    if "-c" not in seen and not makes_header(seen):
        return link(compiler, name, arguments)
    if len(files) == 1:
        return compile_one(compiler, name, arguments, files[0], option(seen, "-o") or f"{stem(files[0])}.o")
    if not files or not set(files) <= set(arguments):
        return call(compiler, [*arguments, *added_flags()])
    codes = [  # one by one, so that the objects are known
        compile_one(compiler, name, [w for w in arguments if w == file or w not in files], file, f"{stem(file)}.o")
        for file in files
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
