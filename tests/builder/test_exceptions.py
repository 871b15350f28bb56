"""A bundle of the builder whose functions throw and catch, in a process that runs."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.torture.engines import run

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


@pytest.mark.engine
def test_new_code_throws_to_new_code(project: Any, tmp_path: Path) -> None:
    """Both functions are new: one throws and cleans up, the other catches."""
    project.command = "g++ -O2 -fPIE -pie -Wl,-z,now -o prog main.cc lib.cc"
    outcome = project.build({"main.cc": MAIN, "lib.cc": LIB.replace("@", "3")}, {"lib.cc": LIB.replace("@", "5")})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([outcome.running], **pipes) as program:

        def ask(number: int) -> str:
            program.stdin.write(f"{number}\n")
            program.stdin.flush()
            return program.stdout.readline().strip()

        assert [ask(2), ask(4), ask(9)] == ["2", "305", "305"]
        request = {"op": "apply", "bundle": str(tmp_path / "out.graft"), "pid": program.pid, "deadline": 30}
        assert run(tmp_path, **request).code == 0
        assert [ask(2), ask(4), ask(9)] == ["2", "4", "505"]
        program.stdin.close()
        assert program.wait(10) == 0
