"""Stems are those that published figures are taken with."""

import pytest

from remanence.evaluation.stemming import stem


@pytest.mark.parametrize(
    ("word", "stemmed"),
    [
        *[("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("caress", "caress"), ("dies", "die")],
        *[("feed", "feed"), ("agreed", "agre"), ("plastered", "plaster"), ("bled", "bled"), ("motoring", "motor")],
        *[("conflated", "conflat"), ("hopping", "hop"), ("falling", "fall"), ("filing", "file"), ("failing", "fail")],
        *[("happy", "happi"), ("enjoy", "enjoy"), ("fly", "fli"), ("by", "by")],
        *[("relational", "relat"), ("conditional", "condit"), ("vietnamization", "vietnam"), ("decisiveness", "decis")],
        *[("sensibiliti", "sensibl"), ("archaeology", "archaeolog"), ("hopefully", "hope"), ("formally", "formal")],
        *[("triplicate", "triplic"), ("electrical", "electr"), ("goodness", "good"), ("formative", "form")],
        *[("adoption", "adopt"), ("allowance", "allow"), ("replacement", "replac"), ("effective", "effect")],
        *[("rate", "rate"), ("cease", "ceas"), ("controlling", "control"), ("roll", "roll"), ("ice", "ice")],
        *[("skies", "sky"), ("dying", "die"), ("news", "news"), ("succeed", "succeed"), ("7", "7"), ("Running", "run")],
    ],
)
def test_stem_gives_published_stems(word: str, stemmed: str) -> None:
    assert stem(word) == stemmed
