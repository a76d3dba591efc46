"""Drawing a caption: probabilities, and texts that can occur."""

from collections import Counter

import pytest

from everclip.config import CaptionConfig
from everclip.data.sampling.captions import draw_caption
from everclip.data.sampling.order import generator

CONFIG = CaptionConfig(
    templates=("a photo of {}", "{}, drawn"), template_probability=0.3, keyword_probability=0.2, keywords=2
)
KEYWORDS = ("sea", "animal", "fin")


def draws(
    config: CaptionConfig, keywords: tuple[str, ...] | None = KEYWORDS, count: int = 3000
) -> Counter[str]:
    return Counter(draw_caption("whale", keywords, config, generator("captions", i)) for i in range(count))


def kinds(found: Counter[str]) -> dict[str, float]:
    total = sum(found.values())
    plain = found["whale"] / total
    template = (found["a photo of whale"] + found["whale, drawn"]) / total
    return {"plain": plain, "template": template, "keywords": 1 - plain - template}


def test_probabilities_are_those_asked_for() -> None:
    assert kinds(draws(CONFIG)) == pytest.approx({"plain": 0.5, "template": 0.3, "keywords": 0.2}, abs=0.03)


def test_keywords_are_distinct_and_bounded() -> None:
    words = [text.split(", ") for text in draws(CONFIG) if "whale" not in text]
    assert all(len(w) == len(set(w)) and len(w) in (1, 2) for w in words)
    assert {word for w in words for word in w} == set(KEYWORDS)


def test_all_templates_occur_equally_often() -> None:
    found = draws(CONFIG)
    assert found["a photo of whale"] == pytest.approx(found["whale, drawn"], rel=0.15)


@pytest.mark.parametrize("keywords", [None, ()])
def test_without_keywords_the_caption_stands_plain_and_templates_keep_their_share(
    keywords: tuple[str, ...] | None,
) -> None:
    found = kinds(draws(CONFIG, keywords))
    assert found == pytest.approx({"plain": 0.7, "template": 0.3, "keywords": 0}, abs=0.03)


def test_by_default_the_caption_stands_for_itself() -> None:
    assert draws(CaptionConfig(), count=50) == {"whale": 50}


def test_the_same_key_draws_the_same_text() -> None:
    for i in range(20):
        assert draw_caption("w", KEYWORDS, CONFIG, generator(i)) == draw_caption(
            "w", KEYWORDS, CONFIG, generator(i)
        )
