"""Invented conversations: who asks what of whom."""

from remanence.data.conversations import Post, conversations

POSTS = [
    Post(
        f"I bought a bike in town{n}. My turtle eats melon{n} every day. It rains a lot here.",
        [
            ("Where did the author buy a bike?", [f"town{n}"]),
            ("What does the poster's turtle eat?", [f"melon{n}"]),
            ("What is nowhere?", ["nowhere"]),
        ],
    )
    for n in range(40)
] + [Post("He lives in Rome.", [("Where does he live?", ["Rome"])])]


def test_conversations_put_the_speaker_in_place_of_the_author() -> None:
    made = list(conversations(POSTS, turns=60, length=20))
    questions = [(question, turn.text) for turn in made for question in turn.questions]
    assert len(questions) > 20
    for question, text in questions:
        assert "author" not in question
        assert "poster" not in question
        speaker = next(word for word in question.split() if word[0].isupper() and word not in ("Where", "What"))
        assert speaker.removesuffix("'s") in text
        assert ("town" if "bike" in question else "melon") in text


def test_conversations_are_between_two_and_of_about_the_length_asked_for() -> None:
    made = list(conversations(POSTS, turns=60, length=20))
    assert 60 <= len(made) < 64
    sizes = [sum(turn.conversation == number for turn in made) for number in range(3)]
    assert all(20 <= size < 24 for size in sizes[:2])
    assert not any("Rome" in turn.text for turn in made)


def test_conversations_depend_on_the_seed_alone() -> None:
    assert list(conversations(POSTS, turns=50, seed=3)) == list(conversations(POSTS, turns=50, seed=3))
    assert list(conversations(POSTS, turns=50, seed=3)) != list(conversations(POSTS, turns=50, seed=4))
