"""Pages point at what exists, commands in them are real, and the checker finds what is planted."""

from __future__ import annotations

import pytest

from tools import docs


def test_pages_are_true() -> None:
    assert docs.problems(docs.pages()) == []


def test_every_promise_names_a_test() -> None:
    """That the tests are there is checked with all other names on pages."""
    promised = (
        docs.read_page("SECURITY.md").text.partition("## What is promised")[2].partition("## What is not")[0]
    )
    rows = [line for line in promised.splitlines() if line.startswith("| ") and line != "| promise | tests |"]
    assert len(rows) > 20
    assert [row for row in rows if "`test_" not in row.split(" | ")[-1]] == []


def test_docstrings_name_what_exists() -> None:
    assert docs.problems_of_sources() == []


@pytest.mark.parametrize(
    "text",
    [
        '"""See `no_such_file.py`."""',
        'def f():\n    """As `fleet.no_such_module` does."""',
        "#: Measured: docs/no-such-page.md.",
    ],
)
def test_stale_names_in_sources_are_found(text: str) -> None:
    assert list(docs.stale_docstrings("planted.py", text, docs.Repository()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[here](no-such-page.md)", "no such file: no-such-page.md"),
        ("[here](README.md#no-such-heading)", "no such heading: README.md#no-such-heading"),
        ("`fleet/no_such_file.py`", "`fleet/no_such_file.py` does not exist"),
        ("`weighbridge.flow.no_such_name`", "`weighbridge.flow.no_such_name` does not exist"),
        ("`routes/no_such_folder`", "`routes/no_such_folder` does not exist"),
        ("`test_of_nothing_at_all`", "`test_of_nothing_at_all` does not exist"),
        ("`weighbridge serve --no-such-flag`", "weighbridge serve has no --no-such-flag"),
        ("```\nweighbridge fleet list|dance\n```", "there is no command weighbridge fleet dance"),
        ("```\nweighbridge plan M \\\n    --no-such-flag 3\n```", "weighbridge plan has no --no-such-flag"),
        ("```\nno end", "a block of code has no end"),
        ("`make nothing`", "make has no target 'nothing'"),
        ("`python benchmarks/no_such_program.py`", "no such program: benchmarks/no_such_program.py"),
        ("`python benchmarks/linear.py --no-such-flag`", "benchmarks/linear.py has no --no-such-flag"),
        ("<!-- files: cost -->\n<!-- end -->", "the table of files is not as the docstrings are"),
    ],
)
def test_what_is_wrong_is_found(text: str, words: str) -> None:
    page = docs.Page("docs/planted.md", text)
    assert [problem for problem in docs.problems([page]) if words in problem]


def test_a_bare_name_on_a_rooms_page_is_of_that_room() -> None:
    page = docs.Page("docs/design/cost.md", "`step.py`, `test_step_cost.py` and `door.py`")
    assert [line.split(": ")[1] for line in docs.problems([page]) if "elsewhere" in line] == [
        "`door.py` is elsewhere; write its path"
    ]


def test_what_is_right_passes() -> None:
    text = (
        "[here](README.md) and `cost/step.py`, `weighbridge.flow.guess`, `weighbridge serve --replicas 4`.\n"
        "`weighbridge fleet list|top`, `python benchmarks/linear.py`, `weighbridge.yaml`\n"
    )
    assert docs.problems([docs.Page("docs/planted.md", text)]) == []
