"""BM25 of chunks of text: equal to bm25s, the same in memories of any size, exact after chunks come and go."""
# ruff: noqa: RUF001 - curly, fullwidth and foreign characters are what is tested

import math
import random
import re
from collections.abc import Hashable
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remanence.data.biographies import biography, sample_person
from remanence.data.prose import paragraphs
from remanence.memory.lexical import Background, Postings, english, words

NOTHING = Background(0, 0, 0.0, {})
ALICE = "Alice's cat is called Marmalade. She found him under a bridge in Porto, three winters ago."
NORMANS = (
    "The Normans were the people who in the 10th and 11th centuries gave their name to Normandy, a region in France. "
    "They were descended from Norse raiders and pirates from Denmark, Iceland and Norway."
)
QUESTIONS = [
    (ALICE, "What is the name of Alice's cat?"),
    (ALICE, "Where did she find it, and how long ago?"),
    (NORMANS, "In what country is Normandy located?"),
    (NORMANS, "From which countries did the Norse originate?"),
]


def postings(texts: list[str], background: Background | None = None) -> Postings:
    made = Postings(background)
    for key, text in enumerate(texts):
        made.add(key, words(text))
    return made


def two_thousand() -> list[str]:
    """Paragraphs of novels, their sentences, and biographies of people with other names."""
    sentences = dict.fromkeys(s for p in paragraphs() for s in re.split(r"(?<=[.!?;]) ", p) if len(s.split()) >= 6)
    rng = random.Random(0)
    people = (biography(sample_person(rng, "train"), rng) for _ in range(2000))
    texts = list(dict.fromkeys([*paragraphs(), *sentences, *people]))[:2000]
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat, the CAT!", ["the", "cat", "the", "cat"]),
        ("Alice's O’Brien’s isn't l’homme п\u02bcять", ["alice", "o", "brien", "isn", "t", "l", "homme", "п", "ять"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("İstanbul ISTANBUL istanbul", ["istanbul"] * 3),
        ("café cafe\u0301 CAFE", ["cafe"] * 3),
        ("in 1990, 1,234,567 of 12,34", ["in", "1990", "1234567", "of", "12", "34"]),
        ("٣٤ ३४ ３４ 34", ["34"] * 4),
        ("foo_bar ice-cream co\u00adoperate", ["foo", "bar", "ice", "cream", "cooperate"]),
        ("Foo™ 5 m² word¹", ["foo", "tm", "5", "m", "2", "word", "1"]),
        ("ﬁne ＡＢＣ", ["fine", "abc"]),
        ("猫と東京都。犬", ["猫と", "と東", "東京", "京都", "犬"]),
        ("ガラス ｶﾞﾗｽ ジョン・スミス", ["ガラ", "ラス", "ガラ", "ラス", "ジョ", "ョン", "スミ", "ミス"]),
        ("我有iPhone手机", ["我有", "iphone", "手机"]),
        ("น้ำปี๒๕๖๐", ["น้", "้ํ", "ํา", "าป", "ปี", "2560"]),  # the vowel of two parts is split by NFKC
        ("앨리스는 집", ["앨리", "리스", "스는", "집"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("مُحَمَّد محمد", ["محمد"] * 2),
        ("I ❤️ 🍕🍕 👩‍💻", ["i", "❤", "🍕", "🍕", "👩", "💻"]),
        ("a\0b \ud800 \u200b… — ©", ["a", "b"]),
        ("", []),
    ],
)
def test_words_are_comparable_across_case_accents_width_and_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text(st.characters(exclude_categories=())))
def test_words_takes_any_text_and_gives_no_empty_word(text: str) -> None:
    found = words(text)
    assert all(found) and not any(re.search(r"\s", word) for word in found)


@given(st.text(st.characters(max_codepoint=0x2FF)))
def test_words_does_not_depend_on_case(text: str) -> None:
    assert words(text.upper()) == words(text.lower().upper())


@pytest.mark.parametrize("behind", [0, 60], ids=["no background", "background"])
def test_raw_scores_are_those_of_bm25s_over_background_and_chunks(behind: int) -> None:
    bm25s = pytest.importorskip("bm25s")
    texts = [words(text) for text in paragraphs()[:200]]
    background, chunks = texts[:behind], texts[behind:]
    ours = Postings(Background.count(background))
    for key, chunk in enumerate(chunks):
        ours.add(key, chunk)
    theirs = bm25s.BM25(method="lucene", dtype="float64")
    theirs.index(texts, show_progress=False)
    for text in [*paragraphs()[190:230], "the the the old house", "Zanzibar", "The Alhambra's old old gate"]:
        query = words(text)
        found = ours.raw_scores(query)
        expected = theirs.get_scores(query)[behind:].tolist()
        assert [found.get(key, 0.0) for key in range(len(chunks))] == pytest.approx(expected, abs=1e-6)


def test_scores_are_raw_scores_over_the_sum_of_what_each_word_is_worth() -> None:
    made = postings(paragraphs()[:50])
    query = words("Who lived in the old, old house with Zebedee?")
    most = 0.0
    for word in query:  # one that is asked twice counts twice, and one that nobody has counts
        having = 1000 * english().frequencies.get(word, 0) + sum(word in words(text) for text in paragraphs()[:50])
        most += math.log(1 + (1050 - having + 0.5) / (having + 0.5))
    raw, scores = made.raw_scores(query), made.scores(query)
    assert scores == pytest.approx({key: score / most for key, score in raw.items()}, rel=1e-9)


@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=8), max_size=8), st.lists(st.sampled_from("abcxyz")))
def test_scores_lie_between_0_and_1_and_name_only_chunks_that_share_a_word(
    chunks: list[list[str]], query: list[str]
) -> None:
    for background in (NOTHING, None):
        made = Postings(background)
        for key, chunk in enumerate(chunks):
            made.add(-key, chunk)
        scores = made.scores(query)
        assert list(scores) == sorted(-key for key, chunk in enumerate(chunks) if {*chunk} & {*query})
        assert all(0 < score <= 1 for score in scores.values())


def test_scores_with_nothing_asked_or_nothing_there_are_none() -> None:
    assert postings(paragraphs()[:3]).scores([]) == {}
    assert Postings().scores(["house"]) == {}
    assert Postings(NOTHING).scores(["house"]) == {}
    wordless = Postings(NOTHING)
    wordless.add(1, [])
    assert wordless.scores(["house"]) == {} and len(wordless) == 1


def test_scores_hold_for_one_chunk_as_among_a_hundred_and_two_thousand() -> None:
    others = two_thousand()
    for text, question in QUESTIONS:
        made, query = Postings(), words(question)
        made.add(-1, words(text))
        score, adding = {}, iter(enumerate(words(other) for other in others))
        for size in (0, 1, 100, 2000):
            for key, chunk in islice(adding, size - len(made) + 1):
                made.add(key, chunk)
            score[size] = made.scores(query)[-1]
        assert score[0] > 0.1, question
        assert abs(score[1] - score[0]) < 0.001, question
        assert abs(score[100] - score[0]) < 0.02, question
        assert abs(score[2000] - score[0]) < 0.1, question


def test_scores_find_a_name_dear_and_the_cheap_in_a_memory_of_one_chunk() -> None:
    made = postings([ALICE])
    assert made.scores(words("Marmalade"))[0] > 0.5
    assert made.scores(words("the Marmalade"))[0] > 0.99 * made.scores(words("Marmalade"))[0]
    assert made.scores(words("She is in a hotel with Bob"))[0] < 0.2  # four words of seven are there


def test_scores_of_questions_put_the_chunk_that_answers_first() -> None:
    made = postings([*paragraphs(), ALICE, NORMANS, "我的猫叫小橘，住在北京。", "แมวของฉันชื่อส้ม อยู่ที่กรุงเทพ"])
    first = len(paragraphs())
    for question, right in [
        ("What is the name of ALICE’S cat?", first),
        ("From which countries did the Norse originate?", first + 1),
        ("我的猫住在哪里？", first + 2),
        ("แมวของฉันชื่ออะไร", first + 3),
    ]:
        scores = made.scores(words(question))
        assert max(scores, key=scores.__getitem__) == right


def test_scores_of_token_ids_fall_with_the_chunks_that_have_them() -> None:
    made = Postings()
    for key in range(50):
        made.add(key, [1, 2, 100 + key, *range(1000 + 10 * key, 1010 + 10 * key)])
    scores = made.scores([1, 2, 107])
    assert len(scores) == 50 and max(scores, key=scores.__getitem__) == 7
    assert scores[7] > 2 * scores[8] > 0


def test_remove_leaves_to_the_last_bit_what_was_there_before_add() -> None:
    made = postings(paragraphs()[:60])
    queries = [words(text) for text in paragraphs()[50:80]]
    before = [made.scores(query) for query in queries]
    for key, text in enumerate(paragraphs()[60:80], start=60):
        made.add(key, words(text))
    assert [made.scores(query) for query in queries] != before
    for key in random.Random(0).sample(range(60, 80), 20):
        made.remove(key)
    assert [made.scores(query) for query in queries] == before
    assert len(made) == 60 and 60 not in made


def test_add_in_another_order_or_after_others_left_gives_the_same_scores() -> None:
    texts = paragraphs()[:40]
    plain, other = postings(texts), postings(paragraphs()[100:130])
    for key in range(30):
        other.remove(key)
    for key in random.Random(1).sample(range(40), 40):
        other.add(key, words(texts[key]))
    for text in paragraphs()[30:60]:
        assert list(other.scores(words(text)).items()) == list(plain.scores(words(text)).items())


def test_add_of_a_taken_key_and_remove_of_an_unknown_one_change_nothing() -> None:
    made = postings(["a red house", "a blue door"])
    before = made.scores(["red", "blue"])
    with pytest.raises(ValueError, match="chunk 1 is already there"):
        made.add(1, ["red"])
    with pytest.raises(KeyError, match="chunk 2 is not there"):
        made.remove(2)
    assert made.scores(["red", "blue"]) == before


class Interrupting:
    """A word that lets itself be hashed so often, and at the next time is interrupted once."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __hash__(self) -> int:
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt
        return 7


@pytest.mark.parametrize("calls", range(3))
def test_add_that_is_interrupted_changes_nothing(calls: int) -> None:
    made = postings(["a red house", "a blue door"])
    queries: list[list[Hashable]] = [["red", "a"], ["green"], ["door", "blue"]]
    before = [made.scores(query) for query in queries]
    with pytest.raises(KeyboardInterrupt):
        made.add(2, ["red", "green", Interrupting(calls), "a"])
    assert [made.scores(query) for query in queries] == before and 2 not in made
    made.add(2, ["green"])
    assert list(made.scores(["green"])) == [2]


def test_remove_that_is_interrupted_takes_the_whole_chunk() -> None:
    made = postings(["a red house", "a blue door"])
    before = made.scores(["red", "a"])
    word = Interrupting(1000)
    made.add(2, ["red", word, "a", "house"])
    word.left = 0
    with pytest.raises(KeyboardInterrupt):
        made.remove(2)
    assert made.scores(["red", "a"]) == before and 2 not in made


def test_copy_changes_alone_and_so_does_what_was_copied() -> None:
    made = postings(paragraphs()[:30])
    query = words(paragraphs()[5]) + words(paragraphs()[31])
    before = made.scores(query)
    copy = made.copy()
    again = copy.copy()
    made.add(30, words(paragraphs()[31]))
    made.remove(5)
    assert copy.scores(query) == before
    copy.add(30, words(paragraphs()[5]))
    copy.remove(7)
    assert again.scores(query) == before and len(again) == 30
    fresh = postings([*paragraphs()[:30], paragraphs()[31]])
    fresh.remove(5)
    assert made.scores(query) == fresh.scores(query)


def test_english_knows_common_words_and_few_names() -> None:
    shares = english().frequencies
    assert len(shares) == 3000 and all(0 < share <= 1 for share in shares.values())
    assert shares["the"] > 0.9 > shares["what"] > shares["king"] > 0.01
    assert all(words(str(word)) == [word] for word in shares)
    assert not {"alice", "porto", "marmalade"} & shares.keys()
