"""A classifier behind a real server: answers, lost votes, waiting, and money to the query."""

import logging
import pickle
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor, nn

from deepzero_apps.smoothing.answers import NO_VOTE, ClassifierError, labels_of
from deepzero_apps.smoothing.blackbox import Defended, ask, charge_retries
from deepzero_apps.smoothing.quantized import Quantized
from deepzero_apps.smoothing.services import HttpClassifier, Service
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter
from tests.smoothing.services.launch import Running

NAMES = [f"digit {n}" for n in range(10)]
SECRET = "sk-live-0123456789"
V2: dict[str, Any] = {"protocol": "open-inference"}


def behind(server: Running, kind: str = "scores", **fields: Any) -> HttpClassifier:  # noqa: ANN401
    path = "v2/models/svc/infer" if fields.get("protocol") == "open-inference" else kind
    chosen = {"classes": NAMES, "batch": 10, "backoff": 0.01, "retries": 2, **fields}
    return HttpClassifier(Service.model_validate({"url": f"{server.url}/{path}", **chosen}))


def expected_labels(scores: np.ndarray, lost: slice = slice(0, 0)) -> list[int]:
    labels = scores.argmax(1)
    labels[lost] = NO_VOTE
    found: list[int] = labels.tolist()
    return found


@pytest.mark.parametrize("protocol", [{}, V2])
@pytest.mark.parametrize("encoding", ["nested", "flat"])
def test_both_protocols_answer_as_the_estimator(
    *,
    server: Running,
    images: Tensor,
    scores: np.ndarray,
    protocol: dict[str, Any],
    encoding: str,
) -> None:
    classifier = behind(server, batch=7, encoding=encoding, **protocol)

    # the same estimator on the same doubles: float32 images are exact in JSON
    np.testing.assert_allclose(ask(classifier, images).numpy(), scores, rtol=1e-12)
    assert server.sizes() == [7, 7, 7, 7, 2]
    assert (classifier.sent, classifier.failures) == (30, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"encoding": "uint8"},
        {"encoding": "uint8", **V2},
        {"encoding": "png", **V2},
        {"encoding": "png", "request": {"files": "$images"}, "image": {"b64": "data:,$image"}},
    ],
)
def test_bytes_and_files_are_answered_as_rounded_images(
    server: Running, images: Tensor, fields: dict[str, Any]
) -> None:
    x, y = load_digits(return_X_y=True)
    noisy = images + 0.2 * torch.randn(images.shape, dtype=torch.float32)
    rounded = (noisy.clamp(0, 1) * 255).round().flatten(1).double().numpy() / 255
    scale = 255 if fields["encoding"] == "uint8" and "protocol" not in fields else 1
    local = SVC().fit(x[:500] / 16, y[:500]).decision_function(rounded * scale)

    np.testing.assert_allclose(behind(server, **fields)(noisy).numpy(), local, rtol=1e-9)


def test_other_answers_have_the_same_labels(
    server: Running, images: Tensor, scores: np.ndarray
) -> None:
    for kind, answer in (("names", "label"), ("numbers", "label"), ("best", "top-k")):
        labels = behind(server, kind, answer=answer)(images)
        assert labels.tolist() == expected_labels(scores)
        assert labels.dtype == torch.int64
    shares = behind(server, "shares", answer="probabilities")(images).numpy()
    exact = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    np.testing.assert_allclose(shares, np.maximum(exact, np.log(1e-6)), rtol=1e-9)


def test_a_service_of_one_image_a_request(
    server: Running, images: Tensor, scores: np.ndarray
) -> None:
    fields = {"request": {"inputs": "$image"}, "answers": "answer", "batch": 1, "concurrency": 4}
    classifier = behind(server, "one", **fields)

    np.testing.assert_allclose(classifier(images).numpy(), scores, rtol=1e-12)
    assert server.sizes() == [1] * 30


def test_answers_keep_the_order_of_the_images_whatever_comes_first(
    server: Running, images: Tensor, scores: np.ndarray
) -> None:
    server.script("slow:0.3", "slow:0.2", "slow:0.1")
    started = time.monotonic()

    answer = behind(server, concurrency=3)(images)

    np.testing.assert_allclose(answer.numpy(), scores, rtol=1e-12)
    assert time.monotonic() - started < 0.6  # one after the other: the sum, .6 s


def test_classes_take_the_order_asked_for(
    server: Running, images: Tensor, scores: np.ndarray
) -> None:
    service = behind(server).service
    moved = HttpClassifier(service, order=NAMES[::-1])(images)
    server.script("row:null")
    labels = HttpClassifier(
        service.model_copy(update={"url": f"{server.url}/names", "answer": "label"}),
        order=NAMES[::-1],
    )(images)

    np.testing.assert_allclose(moved.numpy(), scores[:, ::-1], rtol=1e-12)
    assert labels.tolist() == [-1, *(9 - scores.argmax(1)[1:]).tolist()]
    with pytest.raises(ValueError, match="order must hold the service's classes"):
        HttpClassifier(service, order=NAMES[:9])


@pytest.mark.parametrize("protocol", [{}, V2])
@pytest.mark.parametrize(
    "behavior",
    ["500", "503:", "429:0", "408", "garbage", "half", "rows", "slow:0.7"],
)
def test_what_may_pass_is_tried_again_and_nothing_is_lost(
    *,
    server: Running,
    images: Tensor,
    scores: np.ndarray,
    protocol: dict[str, Any],
    behavior: str,
) -> None:
    server.script("well", behavior, "well", behavior)
    meter, classifier = Meter(), behind(server, timeout=0.5, **protocol)
    classifier.meter = meter

    np.testing.assert_allclose(classifier(images).numpy(), scores, rtol=1e-12)
    assert server.sizes() == [10] * 5
    assert (classifier.sent, classifier.failures, meter.spent) == (50, 0, 20)


@pytest.mark.parametrize("behavior", ["500", "429:0", "garbage", "rows", "half", "slow:0.7"])
@pytest.mark.parametrize("answer", ["scores", "label"])
def test_after_the_last_attempt_the_images_of_that_request_are_lost(
    *, server: Running, images: Tensor, scores: np.ndarray, behavior: str, answer: str
) -> None:
    server.script("well", behavior, behavior, behavior, "well")
    kind = "numbers" if answer == "label" else "scores"
    classifier = behind(server, kind, timeout=0.5, answer=answer)

    found = ask(Defended(nn.Identity(), classifier), images)

    assert labels_of(found).tolist() == expected_labels(scores, lost=slice(10, 20))
    assert (classifier.sent, classifier.failures) == (50, 10)
    assert server.sizes() == [10] * 5


@pytest.mark.parametrize("behavior", ["400", "422"])
def test_a_refused_request_is_lost_at_once(
    server: Running, images: Tensor, scores: np.ndarray, behavior: str
) -> None:
    server.script("well", behavior)
    classifier = behind(server)

    assert labels_of(classifier(images)).tolist() == expected_labels(scores, slice(10, 20))
    assert server.sizes() == [10] * 3


@pytest.mark.parametrize(
    ("behavior", "message"),
    [
        ("401", "status 401: check the credentials in headers"),
        ("403", "status 403: check the credentials in headers"),
        ("404", "status 404: check url"),
        ("405", "status 405: check url and protocol"),
        ("413", "status 413: choose a smaller batch"),
        ("redirect", "status 307: redirects are not followed"),
    ],
)
def test_a_service_of_another_kind_stops_the_work(
    server: Running, images: Tensor, behavior: str, message: str
) -> None:
    server.script(behavior)
    with pytest.raises(ClassifierError, match=message):
        behind(server)(images)
    assert len(server.sizes()) == 1


@pytest.mark.parametrize(
    ("kind", "answer", "item"),
    [
        ("scores", "scores", "null"),
        ("scores", "scores", "[]"),
        ("scores", "scores", "[NaN, 0, 0, 0, 0, 0, 0, 0, 0, 0]"),
        ("scores", "scores", "[1, 2]"),
        ("names", "label", "null"),
        ("names", "label", '""'),
        ("names", "label", '"never seen before"'),
        ("best", "top-k", "[]"),
        ("best", "top-k", '[{"label": "never seen", "score": 1}]'),
    ],
)
def test_a_row_without_an_answer_loses_that_row_alone(
    *,
    server: Running,
    images: Tensor,
    scores: np.ndarray,
    kind: str,
    answer: str,
    item: str,
) -> None:
    server.script("well", f"row:{item}")
    classifier = behind(server, kind, answer=answer)

    found = labels_of(classifier(images)).tolist()

    assert found == expected_labels(scores, lost=slice(10, 11))
    assert (classifier.sent, classifier.failures) == (30, 1)


def test_a_label_never_seen_before_is_named_once(
    server: Running, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    server.script(*['all:"newt"'] * 3)
    assert behind(server, "names", answer="label")(images).tolist() == [-1] * 30

    said = [record.getMessage() for record in caplog.records if "newt" in record.getMessage()]
    assert len(said) == 1
    assert "label 'newt' is no class; its votes are lost" in said[0]


def test_labels_never_seen_before_are_no_outage(server: Running, images: Tensor) -> None:
    server.script(*['all:"newt"'] * 30)
    classifier = behind(server, "names", answer="label", batch=1, give_up=2)

    assert classifier(images).tolist() == [-1] * 30


def test_an_outage_stops_the_work_before_it_eats_the_budget(
    server: Running, images: Tensor
) -> None:
    server.script(*["well"] * 2, *["500"] * 100)
    classifier = behind(server, batch=2, give_up=3, retries=1)
    meter = Meter(100)
    classifier.meter = meter

    with pytest.raises(ClassifierError, match=r"does not answer: 3 requests in a row.*status 500"):
        classifier(images)
    assert server.sizes() == [2] * 8  # 2 answered, 3 times 2 attempts
    assert (meter.spent, classifier.failures) == (6, 6)

    server.script()
    assert classifier(images[:4]).isfinite().all()  # it is back, and so are we


def test_an_answer_between_failures_is_no_outage(server: Running, images: Tensor) -> None:
    server.script(*["500", "500", "well"] * 5)
    classifier = behind(server, batch=2, give_up=3, retries=0)

    lost = labels_of(classifier(images)) == NO_VOTE
    assert int(lost.sum()) == classifier.failures == 20


def test_no_connection_and_no_answer_are_outages(images: Tensor) -> None:
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and never answers
        closed.bind(("127.0.0.1", 0))
        for port, reason in (
            (silent.getsockname()[1], "no answer within 0.05 s"),
            (closed.getsockname()[1], "no connection"),
        ):
            down = behind(Running(f"http://127.0.0.1:{port}"), timeout=0.05, give_up=2)
            with pytest.raises(ClassifierError, match=f"2 requests in a row.*{reason}"):
                down(images)
            assert down.sent == 2 * 3 * 10


def test_the_budget_ends_to_the_query_before_it_is_overdrawn(
    server: Running, images: Tensor
) -> None:
    server.script(*["500"] * 5)
    classifier, meter = behind(server, retries=9, give_up=9), Meter(30 + 25, spent=30)
    wrapped = Defended(nn.Identity(), Quantized(classifier))
    charge_retries(wrapped, meter)

    with pytest.raises(BudgetExhausted, match="budget of 55 queries does not cover 10 more"):
        ask(wrapped, images)

    assert meter.spent == 50
    assert server.sizes() == [10] * 3  # the first attempt, and two that the budget covers
    assert classifier.sent == 30


def test_repetitions_side_by_side_are_charged_one_by_one(server: Running, images: Tensor) -> None:
    server.script(*["500"] * 40)
    classifier, meter = behind(server, batch=1, concurrency=8, retries=9), Meter()
    classifier.meter = meter

    assert classifier(images).isfinite().all()
    assert meter.spent == 40
    assert classifier.sent == len(server.sizes()) == 70


@pytest.mark.parametrize("behavior", ["429:1", "503:1", "date:2"])
def test_retry_after_is_waited_for_in_seconds_and_as_a_date(
    server: Running, images: Tensor, behavior: str
) -> None:
    server.script(behavior)
    behind(server)(images[:10])

    first, second = (one["time"] for one in server.seen())
    # a date has whole seconds: two from now are more than one away; 50 ms of clocks
    assert 0.95 < second - first < 2.5


def test_retry_after_holds_back_the_other_requests(server: Running, images: Tensor) -> None:
    server.script("429:1", "slow:0.1")
    behind(server, concurrency=2)(images)

    times = [one["time"] for one in server.seen()]
    assert times[2] - times[0] > 0.9  # the third request waits, though it was refused nothing


@pytest.mark.parametrize(
    "behavior", ["429:3600", "date:3600", "429:soon", "429:-5", "429:" + "9" * 99]
)
def test_a_wait_that_is_too_long_or_none_is_capped(
    server: Running, images: Tensor, behavior: str
) -> None:
    server.script(behavior)
    started = time.monotonic()

    assert behind(server, longest_wait=0.2)(images[:10]).isfinite().all()
    assert time.monotonic() - started < 1


def test_requests_are_no_more_than_the_rate(server: Running, images: Tensor) -> None:
    behind(server, batch=3, concurrency=4, rate=20)(images)

    times = [one["time"] for one in server.seen()]
    # nine intervals of 50 ms; a request may arrive some ms early or late
    assert 0.4 < times[-1] - times[0] < 1.5
    assert len(times) == 10


def test_a_response_without_end_is_cut_off(server: Running, images: Tensor) -> None:
    server.script(*["huge"] * 3)
    service = behind(server).service
    classifier = HttpClassifier(service, largest=2**20)

    assert classifier(images[:10]).isnan().all()
    assert classifier.failures == 10


def test_a_response_that_comes_too_slowly_is_cut_off(server: Running, images: Tensor) -> None:
    server.script("drip")  # a byte each 50 ms, for 10 s: no single wait is too long
    started = time.monotonic()

    assert behind(server, timeout=0.3, retries=0)(images[:10]).isnan().all()
    assert time.monotonic() - started < 3


def refusals(classifier: HttpClassifier, images: Tensor) -> list[BaseException]:
    """The error of a call, and all that it is chained to."""
    try:
        classifier(images)
    except ClassifierError as error:
        chain: list[BaseException] = [error]
        while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(before)
        return chain
    return []


def test_credentials_reach_the_service_and_nothing_else(
    *,
    server: Running,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SERVICE_KEY", SECRET)
    written: list[object] = []
    for behavior in ("well", "500", "garbage", "half", "401", "404", "422", "redirect", "drip"):
        server.script(*[behavior] * 9)
        classifier = behind(
            server, headers={"Authorization": "Bearer ${SERVICE_KEY}"}, timeout=0.2, give_up=1
        )
        written += refusals(classifier, images[:1])
        assert {one["key"] for one in server.seen()} == {f"Bearer {SECRET}"}
        written += [classifier, classifier.service, classifier.service.model_dump_json()]
        written += [classifier.fingerprint, classifier.name, pickle.dumps(classifier)]

    texts = [f"{one!r} {one}" for one in written] + [
        f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in caplog.records
    ]
    assert len(texts) > 60
    assert not [text for text in texts if SECRET in text or SECRET[8:] in text]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "SERVICE_KEY, which is not set or empty; export SERVICE_KEY first"),
        ("", "SERVICE_KEY, which is not set or empty"),
        (f"{SECRET}\n", "SERVICE_KEY to be printable ASCII.* line break at its end"),
        (f"{SECRET} ", "SERVICE_KEY to be printable ASCII"),
        (f"{SECRET}é", "SERVICE_KEY to be printable ASCII"),
    ],
)
def test_a_credential_that_cannot_be_sent_is_refused_unseen(
    server: Running, monkeypatch: pytest.MonkeyPatch, value: str | None, message: str
) -> None:
    monkeypatch.delenv("SERVICE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SERVICE_KEY", value)
    with pytest.raises(ClassifierError, match=message) as refusal:
        behind(server, headers={"X-Api-Key": "${SERVICE_KEY}"})
    assert SECRET not in repr(refusal.value)


def test_each_repetition_is_one_line_in_the_log(
    server: Running, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("500", "garbage")
    behind(server)(images[:10])

    said = [r.getMessage() for r in caplog.records if "deepzero_apps" in r.name]
    assert len(said) == 2
    assert "status 500; attempt 1 of 3 failed, the next in" in said[0]
    assert "a body that is no JSON; attempt 2 of 3" in said[1]


def test_a_copy_in_another_process_answers_the_same(
    server: Running, images: Tensor, scores: np.ndarray
) -> None:
    classifier = behind(server)
    classifier.close()
    with pickle.loads(pickle.dumps(classifier)) as copy:
        np.testing.assert_allclose(copy(images).numpy(), scores, rtol=1e-12)
        assert copy.fingerprint == classifier.fingerprint


def test_images_that_are_not_finite_are_not_sent(server: Running, images: Tensor) -> None:
    broken = images.clone()
    broken[3] = torch.nan
    with pytest.raises(ClassifierError, match="images must be finite"):
        behind(server)(broken)
    assert server.sizes() == []


@pytest.mark.parametrize("make", [lambda x: x.double(), lambda x: x.requires_grad_()])
def test_images_stay_as_they_are(
    server: Running, images: Tensor, make: Callable[[Tensor], Tensor]
) -> None:
    given = make(images.clone())
    before = given.detach().clone()

    answer = behind(server)(given)

    assert torch.equal(given.detach(), before)
    assert not answer.requires_grad
