"""``deepzero-apps report``: the page of a run, with its images where they are at hand."""

from pathlib import Path

import pytest

from deepzero_apps.cli import main
from deepzero_apps.cli.report import title_of_page
from tests.smoothing.sound_certificates import sound, write

VOTES = ["--images", "4", "--n", "60", "--n0", "10", "--sigma", "0.25"]


def test_the_page_of_a_run_has_its_images_and_queries(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", *VOTES, "--out", "run", "--classifier", centroids]) == 0
    Path("run/report.html").unlink(missing_ok=True)

    assert main(["report", "run", "--price", "0.5", "--radii", "0.1", "0.2"]) == 0

    text = Path("run/report.html").read_text(encoding="utf-8")
    assert "report in run/report.html" in capsys.readouterr().out
    assert f"<h1>Certified robustness of {centroids} on digits</h1>" in text
    assert text.count("data:image/png;base64,") == 4
    # 70 votes an image, 4 canaries at 4 queries, and the image that opens it
    assert '<dd class="value">297</dd>' in text
    assert '<dd class="value">148.50</dd>' in text
    assert "<td>0.2</td>" in text


def test_certificates_alone_make_a_page_without_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [sound(0), sound(1)], votes=False)
    out = tmp_path / "elsewhere.html"

    assert main(["report", str(tmp_path / "certificates.jsonl"), "--out", str(out)]) == 0
    assert main(["report", str(tmp_path), "--title", "A <b>"]) == 0

    assert "<img" not in out.read_text(encoding="utf-8")
    assert "<h1>A &lt;b&gt;</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().err == ""


def test_data_that_is_gone_costs_the_images_and_says_so(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", *VOTES, "--out", "run", "--classifier", centroids]) == 0
    config = Path("run/config.json")
    config.write_text(config.read_text().replace('"digits"', '"cifar10"'))

    assert main(["report", "run"]) == 0

    assert "warning: a page without images: " in capsys.readouterr().err
    assert "<img" not in Path("run/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, b"", b"garbage\n"])
def test_what_holds_no_certificates_is_refused(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "certificates.jsonl").write_bytes(content)

    assert main(["report", str(tmp_path)]) == (1 if content else 2)

    assert "certificate" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_title_says_what_is_known() -> None:
    config = {"classifier": "svc", "dataset": "digits", "run": None}

    assert title_of_page({}) == "Certified robustness"
    assert title_of_page(config) == "Certified robustness of svc on digits"
    assert title_of_page({**config, "run": "x"}) == (
        "Certified robustness of svc behind a trained denoiser on digits"
    )
