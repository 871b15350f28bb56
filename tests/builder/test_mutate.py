"""Random edits of a small program, as `make mutate` makes them of Redis: a patched process equals a fresh one."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from hack.mutate import play
from hack.mutate.editor import KINDS, Edit, functions
from hack.mutate.known import Known
from hack.mutate.play import UNWRITTEN, Ground, Result
from hack.mutate.target import Ask, Target

SOURCE = """
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct entry {
    char name[16];
    int value;
};
typedef struct client { int argc; int asked; char word[16]; } client;
static struct entry entries[8];
static int used;

__attribute__((noinline)) static void reply(client *c, int value) {
    printf("%d ", value + c->asked);
}

static int lookup(const char *name) {
    for (int i = 0; i < used; i++) {
        if (strcmp(entries[i].name, name) == 0) return i;
    }
    return -1;
}

void countCommand(client *c) {
    int at = lookup(c->word);
    if (at < 0 && used < 8) {
        at = used++;
        strcpy(entries[at].name, c->word);
    }
    if (at >= 0) {
        entries[at].value += 3;
        reply(c, entries[at].value);
    }
    c->asked++;
}

void sizeCommand(client *c) {
    reply(c, used);
    reply(c, (int)strlen(c->word) * 2);
}

int main(void) {
    client c = { 2, 0, "" };
    while (scanf("%15s", c.word) == 1) {
        if (strcmp(c.word, "reset") == 0) { used = 0; c.asked = 0; memset(entries, 0, sizeof entries); }
        else if (c.word[0] == '?') sizeCommand(&c);
        else countCommand(&c);
        printf("\\n");
        fflush(stdout);
    }
    return 0;
}
"""
WORDS = ["reset", "one", "two", "one", "?x", "three", "?yy", "two", "a", "b", "c", "d", "e", "f", "?"]
# A word on each line of the answer shows what the edited code said to it.
EXTRA = "if (VALUE % 3 == 0) { reply(c, VALUE); return; }"


@contextmanager
def start(binary: Path, _folder: Path, env: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Ask]]:
    with subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **env}) as child:

        def ask() -> list[str]:
            assert child.stdin is not None
            assert child.stdout is not None
            answers = []
            try:
                for word in WORDS:
                    child.stdin.write(f"{word}\n".encode())
                    child.stdin.flush()
                    answers.append(child.stdout.readline().decode())
            except BrokenPipeError:
                answers.append("gone")
            return answers

        try:
            yield child, ask
        finally:
            child.kill()
            with contextlib.suppress(BrokenPipeError):
                child.communicate()


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    monkeypatch.setenv("PODGRAFT_CACHE", str(tmp_path / "cache"))
    return ground_of(tmp_path, SOURCE, "gcc -O2 -fPIE -pie -Wl,-z,now -o small small.c")


def ground_of(tmp_path: Path, text: str, build: str) -> Ground:
    source = tmp_path / "source"
    source.mkdir()
    (source / "small.c").write_text(text)
    running = tmp_path / "small"
    built = shutil.copytree(source, tmp_path / "built")
    subprocess.run(["sh", "-c", build], cwd=built, check=True)
    shutil.copy(built / "small", running)
    work = tmp_path / "work"
    work.mkdir()
    files = {"small.c": r"\w+Command|lookup"}
    sanitized = f"{build} -fsanitize=address -ftrivial-auto-var-init="
    pair = f"{sanitized}zero", f"{sanitized}pattern"
    return Ground(Target(source, built, build, pair, "small", running, files, EXTRA, start), work)


def test_edits_behave_as_after_a_new_start(ground: Ground) -> None:
    """A few random edits: refused, or a patched process answers as a fresh one does, and as before once reverted."""
    results = [ground.play(number, seed=5) for number in range(3)]
    assert [result.wrong for result in results] == [[], [], []]
    assert any(result.verdict == "accepted" and result.seen for result in results)


def test_a_wrong_answer_is_seen(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that does something else than the edit is a mismatch."""
    monkeypatch.setattr(Ground, "fresh_build", lambda _self: True)  # the fresh program stays the unedited one
    results = [ground.play(number, seed=5) for number in range(3)]
    assert any("answers differ" in problem for result in results for problem in result.wrong)


@pytest.mark.parametrize(
    ("new", "undefined"), [("entries[at + 8].value += 3", True), ("entries[at].value += 4", False)]
)
def test_only_an_edit_without_a_meaning_is_excused(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, new: str, undefined: bool
) -> None:
    """Of two edits with other answers, AddressSanitizer tells the one that goes behind an array from the other."""
    text = SOURCE.replace("entries[at].value += 3", new)
    monkeypatch.setattr(play, "edit", lambda *_: Edit("constant", "countCommand", text))
    monkeypatch.setattr(Ground, "fresh_build", lambda _self: True)  # the fresh program stays the unedited one
    result = ground.play(1, seed=5)
    assert ("global-buffer-overflow" in result.undefined) is undefined
    assert bool(result.wrong) is not undefined


def test_a_refusal_that_the_build_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of a function without a site is refused by apply, as the build has said; the process is as before."""
    monkeypatch.setenv("PODGRAFT_CACHE", str(tmp_path / "cache"))
    text = SOURCE + "__attribute__((noinline)) int twice(int a) { return a * 2; }\n"
    text = text.replace("int main", "int twice(int);\nint main")
    text = text.replace(r'printf("\n")', r'printf("%d\n", twice(c.argc))')
    ground = ground_of(tmp_path, text, "gcc -O2 -falign-functions=1 -fPIE -pie -Wl,-z,now -o small small.c")
    monkeypatch.setattr(play, "edit", lambda *_: Edit("constant", "twice", text.replace("a * 2", "a * 9")))
    result = ground.play(1, seed=5)
    assert (result.verdict, result.problems, result.differences, result.seen) == ("NoPatchSite", [], [], True)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_editor(kind: str) -> None:
    """Each kind of edit finds its place in C, and leaves strings alone unless it is for them."""
    dice = random.Random(1)
    found = [
        changed
        for function in functions(SOURCE, r"\w+")
        for changed in [KINDS[kind](SOURCE, function, EXTRA, dice)]
        if changed is not None and changed != SOURCE
    ]
    assert found
    if kind != "text":
        assert all('"%15s"' in text for text in found)


def test_results_are_kept_for_the_same_state_alone(tmp_path: Path) -> None:
    """What one run has added the next one knows, with all its fields; another builder or seed begins anew."""
    file = tmp_path / "mutate.json"
    first = Known(file, "state")
    for number in (7, 3):
        first.add(Result(number, "constant", "t.c: f", "accepted", 2, seen=True, differences=["1 answer"]))
    assert Known(file, "state").results == first.results
    assert Known(file, "other").results == {}


def test_a_fault_that_comes_now_and_then_is_found(ground: Ground, tmp_path: Path) -> None:
    """An edit that goes behind an array at every other start has no meaning either."""
    late = f'static int late = -1; if (late < 0 && !(late = !access("{tmp_path}/flag", 0)))'
    late += f' fclose(fopen("{tmp_path}/flag", "w")); entries[at + 8 * late].value += 3'
    assert "global-buffer-overflow" in ground._fault("small.c", SOURCE.replace("entries[at].value += 3", late))


@pytest.mark.parametrize(
    ("new", "fault"),
    [
        ("int old[4]; old[1] = 1; entries[at].value += old[at & 1]", UNWRITTEN),
        ("int old[4]; old[0] = old[1] = 1; entries[at].value += old[at & 1]", ""),
        ("int *old = malloc(8); entries[at].value += *old", UNWRITTEN),
        ("int *old = calloc(1, 8); entries[at].value += *old", ""),
        ("entries[at].value += (int)clock()", ""),
    ],
)
def test_an_answer_from_memory_that_nobody_has_written_is_found(ground: Ground, new: str, fault: str) -> None:
    """What memory holds before it is written has no meaning; answers that differ at each start prove nothing."""
    text = SOURCE.replace("#include <stdio.h>", "#include <stdio.h>\n#include <stdlib.h>\n#include <time.h>")
    assert ground._fault("small.c", text.replace("entries[at].value += 3", new)) == fault
