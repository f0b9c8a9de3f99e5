"""Passages: how documents are split, which passages a question finds, and in which order.

Layer: tests.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.demo.passages import LONGEST_PASSAGE, Library, cut_into_passages, library, terms

GUIDE = """# The guide

What it is in a sentence.

## Refresh

A page that reloads in the middle of an answer shows the whole text so far.

## Writers

A writer holds a lease. When it dies, its message becomes interrupted.

### Leases over HTTP

The default term of a lease is fifteen seconds:

```python
async with hub.message("chat:1") as message:

    await message.append("# not a heading")
```

## Storage

- SQLite keeps a commit log beside the documents.
- Redis comes later.
"""

markdown = st.lists(
    st.one_of(
        st.sampled_from(["", "", "# One", "## Two", "### Three ###", "```", "~~~", "| a | b |", "|---|---|"]),
        st.text(max_size=40),
        st.text(alphabet="ab .;:漢🌊", min_size=400, max_size=2_000),
    ),
    max_size=30,
).map("\n".join)


@pytest.fixture(scope="module")
def guide() -> Library:
    return Library({"docs/guide.md": GUIDE, "docs/other.md": "# Other\n\nNothing of interest is written here.\n"})


def test_a_passage_knows_its_file_and_its_headings() -> None:
    passages = cut_into_passages("docs/guide.md", GUIDE)
    assert [passage.headings for passage in passages] == [
        ("The guide",),
        ("The guide", "Refresh"),
        ("The guide", "Writers"),
        ("The guide", "Writers", "Leases over HTTP"),
        ("The guide", "Storage"),
    ]
    assert {passage.source for passage in passages} == {"docs/guide.md"}


def test_a_block_after_a_colon_stays_with_the_block_before_it() -> None:
    lease = cut_into_passages("docs/guide.md", GUIDE)[3]
    assert lease.text.startswith("The default term of a lease is fifteen seconds:\n\n```python\n")
    assert lease.text.endswith('    await message.append("# not a heading")\n```')


def test_pieces_of_a_long_table_repeat_its_head() -> None:
    rows = [f"| row {number} | {'word ' * 20}|" for number in range(20)]
    passages = cut_into_passages("t.md", "\n".join(["| name | text |", "|---|---|", *rows]))
    assert len(passages) == 3
    assert all(passage.text.startswith("| name | text |\n|---|---|\n| row ") for passage in passages)


def test_long_list_items_are_passages_of_their_own() -> None:
    items = [f"- item {number} {'word ' * 40}" for number in range(3)]
    assert [passage.text for passage in cut_into_passages("l.md", "\n".join(items))] == items


def test_wrapped_lines_are_joined_and_list_items_are_not() -> None:
    text = "One sentence\n  continues.\n- An item\n  with more.\n- Another.  \nAfter a hard break."
    (passage,) = cut_into_passages("w.md", text)
    assert passage.text == "One sentence continues.\n- An item with more.\n- Another.  \nAfter a hard break."


def test_pictures_are_described() -> None:
    text = "# Chosen\n\n![Two tabs](a.svg) that agree."
    (passage,) = cut_into_passages("d.md", text)
    assert passage.text == "(Picture: Two tabs) that agree."


def test_code_is_unchanged() -> None:
    code = "```js\nfirst\nsecond\n\nthird\n```"
    (passage,) = cut_into_passages("c.md", code)
    assert passage.text == code


def test_a_short_block_joins_the_next_one() -> None:
    long = "A paragraph that is long enough to stand alone, " * 3
    texts = [passage.text for passage in cut_into_passages("t.md", f"Briefly.\n\n{long}\n\n{long}")]
    assert texts == [f"Briefly.\n\n{long}", long]


@given(markdown)
def test_no_passage_is_too_long_or_blank(text: str) -> None:
    for passage in cut_into_passages("any.md", text):
        assert 0 < len(passage.text) <= LONGEST_PASSAGE
        assert passage.text.strip()


@given(st.lists(st.text(alphabet="abc .漢é🌊", min_size=1, max_size=50), max_size=20))
def test_splitting_keeps_every_word(lines: list[str]) -> None:
    passages = cut_into_passages("any.md", "\n".join(lines))
    assert [term for passage in passages for term in terms(passage.text)] == terms("\n".join(lines))


@pytest.mark.parametrize(
    ("question", "heading"),
    [
        ("What happens when I press F5?", "Refresh"),
        ("does reloading lose text", "Refresh"),
        ("How long is a lease?", "Leases over HTTP"),
        ("WHAT IF THE AGENT CRASHES?", "Writers"),
        ("Which database does it use?", "Storage"),
        ("commit logs", "Storage"),
    ],
)
def test_the_best_passage_is_under_the_right_heading(guide: Library, question: str, heading: str) -> None:
    assert guide.search(question)[0].headings[-1] == heading


def test_a_passage_without_a_word_of_the_question_is_not_found(guide: Library) -> None:
    assert {passage.headings[-1] for passage in guide.search("leases")} == {"Writers", "Leases over HTTP"}
    assert guide.search("zebra") == []
    assert guide.search("what is it?") == []
    assert Library({}).search("lease") == []


def test_equal_passages_keep_their_order() -> None:
    twins = Library({"a.md": "# A\n\nThe same words.", "b.md": "# A\n\nThe same words."})
    assert [passage.source for passage in twins.search("same words")] == ["a.md", "b.md"]


def test_characters_of_scripts_without_spaces_are_found() -> None:
    languages = Library({"ja.md": "海藻の付着器について。", "en.md": "About kelp."})
    assert languages.search("付着器とは")[0].source == "ja.md"


@given(st.text(max_size=200))
def test_a_question_always_finds_the_same_passages(question: str) -> None:
    first = Library({"docs/guide.md": GUIDE}).search(question)
    assert Library({"docs/guide.md": GUIDE}).search(question) == first


@pytest.mark.parametrize(
    "words",
    [
        ("store", "stores", "stored", "storing"),
        ("stop", "stops", "stopped"),
        ("query", "queries"),
        ("process", "processes"),
    ],
)
def test_forms_of_one_word_have_one_stem(words: tuple[str, ...]) -> None:
    assert len({terms(word)[0] for word in words}) == 1


def test_the_projects_own_documentation_is_found() -> None:
    sources = {passage.source for passage in library().passages}
    assert all(source == "README.md" or source.startswith("docs/") for source in sources)
    assert library() is library()


def test_printed_figures_of_benchmarks_are_left_out() -> None:
    passages = [passage for passage in library().passages if passage.source == "docs/benchmarks.md"]
    assert passages
    assert not any("us_per_delivery" in passage.text or "tenuto serve: CPU per" in passage.text for passage in passages)
