"""A bundle of the builder whose functions throw and catch, in a process that runs."""

from typing import Any

import pytest

MAIN = """
#include <cstdio>
int work(int);
int main() { for (int a; scanf("%d", &a) == 1;) { printf("%d\\n", work(a)); fflush(stdout); } }
"""
LIB = """
#include <stdexcept>
#include <string>
#include <vector>
__attribute__((noinline)) int risky(const std::string &s, int a) {
    std::vector<int> room(a);
    if (a > @) throw std::runtime_error(s);
    return a;
}
int work(int a) {
    try { return risky("value", a); }
    catch (const std::runtime_error &e) { return @ * 100 + std::string(e.what()).size(); }
}
"""
# Old code throws what new code catches, by type information that is this file's own.
LOCAL = """
namespace { struct low { int a; }; }
int kept;
__attribute__((noinline)) int risky(int a) {
    if (a > 2) throw low{a};
    return a;
}
int work(int a) {
    struct high { int a; };
    try {
        if (a > 4 && @ > 3) throw high{a};
        return risky(a);
    }
    catch (const low &e) { return @ * 100 + e.a; }
    catch (const high &e) { return @ * 200 + e.a; }
}
"""


@pytest.mark.engine
@pytest.mark.parametrize(
    ("text", "before", "after"),
    [(LIB, ["2", "305", "305"], ["2", "4", "505"]), (LOCAL, ["2", "304", "309"], ["2", "504", "1009"])],
)
def test_new_code_throws_to_new_code(
    project: Any, running: Any, text: str, before: list[str], after: list[str]
) -> None:
    """Both functions are new: one throws and cleans up, the other catches; types may be those of one file."""
    project.command = "g++ -O2 -fPIE -pie -Wl,-z,now -o prog main.cc lib.cc"
    outcome = project.build({"main.cc": MAIN, "lib.cc": text.replace("@", "3")}, {"lib.cc": text.replace("@", "5")})
    with running(outcome.running) as program:
        assert [program.ask(number) for number in (2, 4, 9)] == before
        program.apply()
        assert [program.ask(number) for number in (2, 4, 9)] == after
