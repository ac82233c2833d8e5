"""The page: self-contained, escaped, and its command works."""

import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser

import torch

from deepzero_apps.smoothing.serving import Limits
from deepzero_apps.smoothing.serving.page import page
from deepzero_apps.smoothing.serving.pixels import image_from
from tests.smoothing.serving.subjects import LIGHT, subject

ADDRESS = "http://127.0.0.1:8000/"
EXAMPLE = torch.tensor(LIGHT)


def commands(text: str) -> list[list[str]]:
    return [
        shlex.split(unescape(found)) for found in re.findall("<pre>(.*?)</pre>", text, re.DOTALL)
    ]


def test_the_commands_carry_an_image_of_the_data() -> None:
    text = page(subject(example=EXAMPLE), Limits(), ADDRESS, "ab12")

    predict, certify = commands(text)

    assert predict[:3] == ["curl", "-s", ADDRESS + "v1/predict"]
    assert certify[2] == ADDRESS + "v1/certify"
    (image,) = json.loads(predict[-1])["images"]
    assert image == json.loads(certify[-1])["image"]
    found = image_from(image, (1, 2, 2), field="image")
    assert torch.equal(found, (EXAMPLE * 255).round().float() / 255)


def test_a_long_example_becomes_a_file_s_name() -> None:
    noisy = torch.rand(3, 40, 40)
    fields = {"shape": (3, 40, 40), "example": noisy}

    text = page(subject(**fields), Limits(), ADDRESS, "ab12")  # type: ignore[arg-type]

    predict, certify = (command[-1] for command in commands(text))
    image = "\"$(base64 < IMAGE.png | tr -d '\\n')\""
    assert predict == f'{{"images": [{image}]}}'
    assert certify == f'{{"image": {image}}}'


def test_the_page_loads_nothing_and_escapes_what_it_is_given() -> None:
    classes = ("<script>alert(1)</script>", "b")
    text = page(subject(classes=classes), Limits(), 'http://x"><i>/', "ab12")

    class Tags(HTMLParser):
        seen: set[str] = set()  # noqa: RUF012 - of one test

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.add(tag)
            assert not {name for name, _ in attrs} & {"src", "href", "onload"}

    Tags().feed(text)
    assert not Tags.seen & {"script", "link", "img", "iframe", "i"}
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_many_classes_are_cut_and_counted() -> None:
    many = subject().settings
    names = tuple(f"c{i}" for i in range(25))

    class Wide:
        classes = 25
        fingerprint = "x"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), dtype=torch.int64)

    text = page(
        subject(classes=names, classifier=Wide(), settings=many), Limits(), ADDRESS, "ab12"
    )
    assert "c19 and 5 more" in text
    assert "c20" not in text
