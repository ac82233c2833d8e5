"""``deepzero-apps serve`` as a process: real port, real signals, more requests than it can take."""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from torch import nn

from deepzero_apps.cli import main
from deepzero_apps.cli.black_boxes import black_box
from deepzero_apps.smoothing.blackbox import Defended, ask
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certify import predict
from deepzero_apps.smoothing.services import HttpClassifier, Service
from deepzero_apps.vision import Splits, digits
from tests.cli import processes

JSON = {"Content-Type": "application/json"}
MALFORMED = (
    (b'{"images": [[[[0.5', 400),
    (b"\xff\xfe\x00", 400),
    (b"[" * 30_000, 400),
    (b'{"images": [[[[NaN]]]]}', 422),
    (b'{"images": ["aGVsbG8="]}', 422),
    (b" " * 200_000, 413),
)


@contextmanager
def service(*flags: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server and its address; killed in the end, if it still lives."""
    process = processes.start("serve", "--port", "0", "--sigma", "0.25", *flags)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on http://"), line + process.communicate()[1]
        yield process, line.split()[2]
    finally:
        process.kill()
        process.communicate()


def ended(process: "subprocess.Popen[str]", by: signal.Signals = signal.SIGTERM) -> str:
    process.send_signal(by)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out + errors


class Callers:
    """Many clients of one server; keeps what each request became."""

    def __init__(self, address: str, splits: Splits, *, n: int) -> None:
        self.address, self.n = address, n
        self.images = splits.test.pixels(slice(0, 32))
        self.outcomes: Counter[str] = Counter()
        self.answers: list[tuple[int, dict[str, dict[str, int]]]] = []
        self.stopped = float("inf")

    def ask(self, seed: int, requests: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=self.address, timeout=60) as client:
            for _ in range(requests):
                sent = time.monotonic()
                try:
                    outcome = self._malformed(client, chance) or self._good(client, chance)
                except httpx.TransportError:
                    if sent < self.stopped:
                        self.outcomes["lost"] += 1
                    return
                self.outcomes[outcome] += 1

    def _malformed(self, client: httpx.Client, chance: random.Random) -> str | None:
        if chance.random() > 0.4:
            return None
        content, status = chance.choice(MALFORMED)
        response = client.post("v1/predict", content=content, headers=JSON)
        if response.status_code == status:
            return "named" if response.json()["error"] else "wrong"
        return self._refused(response)

    def _good(self, client: httpx.Client, chance: random.Random) -> str:
        which = chance.randrange(len(self.images))
        body = {"images": [self.images[which].tolist()], "n": self.n}
        response = client.post("v1/predict", json=body)
        if response.status_code != 200:
            return self._refused(response)
        self.answers.append((which, response.json()["predictions"][0]))
        return "answered"

    def _refused(self, response: httpx.Response) -> str:
        told = int(response.headers.get("retry-after", 0))
        return "refused" if response.status_code == 503 and told > 0 else "wrong"

    def check(self, classifier: Defended) -> None:
        """Asks the library again, with the noise that each answer tells."""
        for which, answer in self.answers:
            seed, place = answer["noise"]["seed"], answer["noise"]["place"]
            settings = Settings(sigma=0.25, n=self.n, alpha=0.001, seed=seed)
            rows = self.images[which].expand(place + 1, 1, 8, 8)
            (label,) = predict(classifier, rows, settings, indices=[place]).tolist()
            assert answer["index"] == (None if label < 0 else label)


@pytest.mark.slow
def test_under_overload_every_answer_is_right_or_a_refusal_also_when_it_stops(
    centroids: str,
) -> None:
    splits = digits()
    box = black_box(centroids, splits, weights=None, seed=0, device="cpu")
    flags = ["--classifier", centroids, "--queue", "3", "--max-n", "2000", "--json", "end.json"]
    with service(*flags) as (process, address), ThreadPoolExecutor(12) as pool:
        callers = Callers(address, splits, n=1_000)
        for each in [pool.submit(callers.ask, i, 15) for i in range(12)]:
            each.result()
        seen = Counter(callers.outcomes)
        counted = httpx.get(address + "metrics").json()

        endless = [pool.submit(callers.ask, 100 + i, 1_000_000) for i in range(8)]
        time.sleep(0.5)
        callers.stopped = time.monotonic()
        said = ended(process)
        for each in endless:
            each.result()

    assert sum(seen.values()) == 12 * 15 == counted["questions"]
    assert set(seen) == {"answered", "refused", "named"}
    assert set(callers.outcomes) == set(seen)  # nothing lost, nothing wrong
    assert counted["votes"] == 1_000 * seen["answered"] == 1_000 * counted["jobs"]
    assert counted["inside"] == 0
    assert "stopped; " in said
    assert "Traceback" not in said
    assert json.loads(Path("end.json").read_text())["counts"]["votes"] >= counted["votes"]
    callers.check(Defended(nn.Identity(), box.classifier))


@pytest.mark.slow
def test_what_is_inside_is_finished_within_the_grace_and_refused_after(
    own_module: object,
) -> None:
    slow = (
        "import time\n\n\ndef f(images):\n    time.sleep(0.5)\n    return images[:, 0, 0, 0] > 9\n"
    )
    slow = slow.replace("images[:, 0, 0, 0] > 9", "(images[:, 0, 0, 0] > 9).astype(int)")
    name = f"{own_module(slow)}:f"  # type: ignore[operator]
    body = {"images": [[[[0.5] * 8] * 8]], "n": 60}

    def asked(address: str, n: int) -> httpx.Response:
        return httpx.post(address + "v1/predict", json={**body, "n": n}, timeout=60)

    flags = ["--classifier", name, "--rows", "60"]
    with service(*flags, "--grace", "1") as (process, address), ThreadPoolExecutor(2) as pool:
        short = pool.submit(asked, address, 60)  # one call of half a second
        time.sleep(0.1)
        long = pool.submit(asked, address, 6_000)  # a hundred
        time.sleep(0.3)
        start = time.monotonic()
        ended(process, signal.SIGINT)
        took = time.monotonic() - start

        assert short.result().json()["predictions"][0]["index"] == 0
        assert long.result().status_code == 503
        assert "the service stopped" in long.result().json()["error"]
    assert took < 20  # one of grace, one to be told, and the end of a busy process


@pytest.mark.slow
def test_a_defend_run_is_served_as_certify_certifies_it(centroids: str) -> None:
    own = ["--classifier", centroids]
    train = ["--steps", "3", "--width", "2", "--batch", "16", "--method", "mse"]
    assert main(["defend", "--out", "run", *train, *own, "--sigma", "0.25"]) == 0
    votes = ["--n", "60", "--n0", "10", "--images", "1"]
    assert main(["certify", "--run", "run", *own, *votes, "--out", "certified"]) == 0
    (line,) = Path("certified/certificates.jsonl").read_text().splitlines()
    image = digits().test.pixels(slice(0, 1))[0]

    flags = ["--run", "run", *own, "--max-n", "60", "--n", "40", "--n0", "10", "--noise-seed", "5"]
    with service(*flags) as (process, address):
        answers = [
            httpx.post(address + "v1/certify", json={"image": image.tolist()}).json()[
                "certificate"
            ]
            for _ in range(2)
        ]
        metadata = httpx.get(address + "v2/models/smoothed").json()
        said = ended(process)

    assert address.startswith("http://127.0.0.1:")  # this machine only, unless asked otherwise
    assert "warning" not in said
    one, other = ({**answer, "seconds": 0.0} for answer in answers)
    expected = json.loads(line)
    assert one == other  # --noise-seed
    assert one["source"] == expected["source"]
    assert one["image"] == expected["image"]
    assert (one["settings"]["n"], one["settings"]["sigma"]) == (60, 0.25)
    assert metadata["inputs"][0]["shape"] == [-1, 1, 8, 8]


@pytest.mark.slow
def test_our_own_adapter_can_ask_it_by_either_protocol(centroids: str) -> None:
    test = digits().test
    images = test.pixels(slice(0, 24))
    with service("--classifier", centroids, "--noise-seed", "3") as (process, address):
        by_tensor = Service(
            url=address + "v2/models/smoothed/infer",
            classes=test.classes,
            protocol="open-inference",
            answer="label",
            output="label",
            batch=8,
        )
        by_name = Service(
            url=address + "v1/predict",
            classes=test.classes,
            request={"images": "$images"},
            answers="predictions",
            row="class",
            answer="label",
            batch=8,
        )
        found = [ask(HttpClassifier(each), images).tolist() for each in (by_tensor, by_name)]
        ended(process)

    assert found[0] == found[1]
    right = sum(map(int.__eq__, found[0], test.labels[:24].tolist()))
    assert right > 12


@pytest.mark.slow
def test_other_machines_are_let_in_with_a_warning_alone(centroids: str) -> None:
    with service("--classifier", centroids, "--host", "0.0.0.0") as (process, address):
        assert httpx.get(address + "v2/health/ready").json() == {"ready": True}
        said = ended(process)
    assert "warning: --host 0.0.0.0: there is no authentication" in said


def test_a_taken_port_is_misuse(centroids: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--classifier", centroids, "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["--n", "20000"], "--n must be at most --max-n, 10000, got 20000"),
        (["--name", "a/b"], "--name: "),
        (["--queue", "0"], "--queue: "),
        (["--timeout", "nan"], "--timeout: "),
        (["--max-n", "3", "--n", "2"], "n must be at least"),
        (["--n", "1"], "n must be at least"),
    ],
)
def test_flags_that_cannot_be_are_misuse(
    flags: list[str], said: str, centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", "--classifier", centroids, *flags]) == 2
    assert said in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "deepzero_apps.smoothing.serving.process", raising=False)

    assert main(["serve"]) == 2

    assert "serve needs uvicorn: pip install 'deepzero-apps[serve]'" in capsys.readouterr().err


def test_images_of_the_test_are_what_the_classifier_knows(centroids: str) -> None:
    splits = digits()
    box = black_box(centroids, splits, weights=None, seed=0, device="cpu")
    settings = Settings(sigma=0.25, n=200, alpha=0.001)
    found = predict(box.classifier, splits.test.pixels(slice(0, 50)), settings)
    assert torch.count_nonzero(found == splits.test.labels[:50]) > 25  # else it checks nothing
