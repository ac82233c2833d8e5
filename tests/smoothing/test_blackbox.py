"""The adapters against the estimators and modules behind them, and what the door refuses."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn

from deepzero_apps.smoothing.blackbox import (
    CallableClassifier,
    Classifier,
    ClassifierError,
    Defended,
    SklearnClassifier,
    TorchClassifier,
    ask,
    labels_of,
)
from deepzero_apps.zeroth_order.oracle import BudgetExhausted


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x / 16, y


@pytest.fixture(scope="module")
def svc(digits: tuple[np.ndarray, np.ndarray]) -> SVC:
    x, y = digits
    return SVC().fit(x[:300], y[:300] + 3)  # classes 3 ... 12, not 0 ... 9


def as_images(rows: np.ndarray) -> Tensor:
    return torch.tensor(rows).reshape(-1, 1, 8, 8)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))


class Broken:
    """A classifier of the user's own that answers as told."""

    classes = 10
    fingerprint = "0"

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        self.function = function

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images)  # type: ignore[return-value]


def test_torch_answers_are_the_module_s_in_evaluation_mode() -> None:
    module, x = network(), torch.rand(5, 1, 8, 8)
    scores = TorchClassifier(module, classes=10)(x)

    torch.testing.assert_close(scores, module.eval()(x).detach(), rtol=0, atol=0)


def test_no_gradient_passes_a_torch_classifier() -> None:
    module, x = network(), torch.rand(5, 1, 8, 8, requires_grad=True)
    scores = TorchClassifier(module, classes=10)(x)

    assert not scores.requires_grad
    (scores.sum() + 0 * x.sum()).backward()
    assert x.grad is not None
    assert x.grad.abs().max() == 0
    assert all(p.grad is None for p in module.parameters())


def test_flags_statistics_and_images_stay_as_they_were() -> None:
    module, x = nn.Sequential(nn.ReLU(inplace=True), *network()), torch.randn(5, 1, 8, 8)
    module[2].eval()
    flags = [part.training for part in module.modules()]
    before, mean = x.clone(), module[2].running_mean.clone()

    TorchClassifier(module, classes=10)(x)
    Defended(nn.ReLU(inplace=True), TorchClassifier(module, classes=10))(x)
    CallableClassifier(lambda a: np.zeros((len(a.__imul__(0)), 10)), classes=10, name="f")(
        x.float()
    )

    assert [part.training for part in module.modules()] == flags
    assert torch.equal(x, before)
    assert torch.equal(module[2].running_mean, mean)


def test_images_are_cast_to_the_module_s_dtype() -> None:
    scores = TorchClassifier(network().float(), classes=10)(torch.rand(2, 1, 8, 8).double())

    assert scores.dtype == torch.float32


def test_sklearn_labels_are_places_in_classes(
    digits: tuple[np.ndarray, np.ndarray], svc: SVC
) -> None:
    x = digits[0][300:700]
    labels = SklearnClassifier(svc, answer="labels")(as_images(x))

    assert labels.tolist() == (svc.predict(x) - 3).tolist()


def test_sklearn_scores_are_the_decision_function_or_clipped_log_probabilities(
    digits: tuple[np.ndarray, np.ndarray], svc: SVC
) -> None:
    x, y = digits
    forest = RandomForestClassifier(5, random_state=0).fit(x[:300], y[:300])
    images = as_images(x[300:320])

    np.testing.assert_array_equal(
        SklearnClassifier(svc)(images).numpy(), svc.decision_function(x[300:320])
    )
    scores = SklearnClassifier(forest)(images)
    np.testing.assert_allclose(
        np.maximum(forest.predict_proba(x[300:320]), 1e-6), scores.exp(), rtol=1e-12
    )


def test_two_classes_give_two_scores_whose_difference_is_the_decision(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = digits
    svc = SVC().fit(x[:300], y[:300] > 4)
    scores = SklearnClassifier(svc)(as_images(x[300:350]))

    decision = svc.decision_function(x[300:350])
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], decision, rtol=1e-12)
    assert labels_of(scores).tolist() == svc.predict(x[300:350]).astype(int).tolist()


def test_a_pipeline_s_scaler_comes_after_the_noise(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    pipeline = make_pipeline(StandardScaler(), SVC()).fit(x[:300], y[:300])
    noisy = x[300:350] + 0.25 * np.random.default_rng(0).standard_normal((50, 64))
    scaler, svc = pipeline[0], pipeline[1]

    scores = SklearnClassifier(pipeline)(as_images(noisy)).numpy()

    by_hand = svc.decision_function((noisy - scaler.mean_) / scaler.scale_)
    np.testing.assert_allclose(scores, by_hand, rtol=1e-9)
    labels = SklearnClassifier(pipeline, answer="labels")(as_images(noisy))
    assert labels.tolist() == pipeline.predict(noisy).tolist()


def test_the_fingerprint_of_a_pipeline_knows_its_scaler(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = digits
    one, other, again = (
        make_pipeline(scaler, SVC()).fit(x[:300], y[:300])
        for scaler in (StandardScaler(), StandardScaler(with_mean=False), StandardScaler())
    )
    prints = [SklearnClassifier(pipeline).fingerprint for pipeline in (one, other, again)]

    assert prints[0] == prints[2] != prints[1]


def test_classes_of_strings_are_places(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    names = np.array(["zero", "one", "two", "three", "four"])  # sorted: four one three two zero
    chosen = y < 5
    svc = make_pipeline(StandardScaler(), SVC()).fit(x[chosen][:150], names[y[chosen][:150]])
    images = as_images(x[chosen][150:200])

    labels = SklearnClassifier(svc, answer="labels")(images)
    scores = SklearnClassifier(svc)(images)

    places = {"four": 0, "one": 1, "three": 2, "two": 3, "zero": 4}
    assert labels.tolist() == [places[name] for name in svc.predict(x[chosen][150:200])]
    assert labels_of(scores).tolist() == labels.tolist()


@pytest.mark.parametrize("answer", ["scores", "labels"])
def test_threads_change_nothing(
    digits: tuple[np.ndarray, np.ndarray], svc: SVC, answer: str
) -> None:
    images = as_images(digits[0][300:1000])
    one, three = (
        SklearnClassifier(svc, answer=answer, threads=threads)(images)  # type: ignore[arg-type]
        for threads in (1, 3)
    )

    assert torch.equal(one, three)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_a_callable_gets_float32_and_may_answer_any_integer(kind: type) -> None:
    def function(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32
        return images.sum((1, 2, 3)).astype(kind)

    labels = CallableClassifier(function, classes=10, name="sum")(torch.ones(3, 1, 2, 2))

    assert labels.dtype == torch.int64
    assert labels.tolist() == [4, 4, 4]


def test_an_identity_denoiser_gives_the_classifier_of_clipped_images() -> None:
    plain, x = TorchClassifier(network(), classes=10), torch.randn(5, 1, 8, 8)
    defended = Defended(nn.Identity(), plain)

    assert torch.equal(defended(x), plain(x.clamp(0, 1)))
    assert not torch.equal(defended(x), plain(x))
    assert defended.fingerprint != plain.fingerprint


def test_labels_are_the_highest_score() -> None:
    assert labels_of(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])).tolist() == [1, 0]
    assert labels_of(torch.tensor([4, 2])).tolist() == [4, 2]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.full((len(x), 10), torch.nan), r"Broken.*finite, got NaN.*row 0"),
        (lambda x: torch.zeros(len(x), 10).log(), r"finite, got infinite scores"),
        (lambda x: torch.zeros(len(x), 9), r"shape \(4, 10\) or labels.*got shape \(4, 9\)"),
        (lambda x: torch.zeros(len(x) - 1, 10), r"got shape \(3, 10\)"),
        (lambda x: torch.zeros(len(x), 10).long(), r"scores must be floating, got torch.int64"),
        (lambda x: torch.zeros(len(x)), r"labels must be integers, got torch.float64"),
        (lambda x: torch.zeros(len(x)).bool(), r"labels must be integers, got torch.bool"),
        (lambda x: torch.full((len(x),), 10), r"labels must be in 0 ... 9, got 10 ... 10"),
        (lambda x: torch.full((len(x),), -1), r"labels must be in 0 ... 9, got -1"),
        (lambda x: [0] * len(x), r"must be a tensor, got list"),
        (lambda x: x.no_such_thing, r"Broken raised AttributeError on images of shape \(4, 1, 8"),
    ],
)
def test_a_broken_answer_is_refused_by_name(
    function: Callable[[Tensor], object], message: str
) -> None:
    with pytest.raises(ClassifierError, match=message):
        ask(Broken(function), torch.rand(4, 1, 8, 8))


def test_an_exception_keeps_its_cause() -> None:
    def function(images: np.ndarray) -> np.ndarray:
        raise ConnectionError(f"no answer for {len(images)}")

    classifier = CallableClassifier(function, classes=10, name="remote v2")
    with pytest.raises(ClassifierError, match=r"remote v2 raised ConnectionError.*no answer") as e:
        Defended(nn.Identity(), classifier)(torch.rand(4, 1, 8, 8))
    assert isinstance(e.value.__cause__, ConnectionError)


def test_a_spent_budget_is_no_fault_of_the_classifier() -> None:
    def function(images: Tensor) -> object:
        raise BudgetExhausted(f"{len(images)} queries too many")

    with pytest.raises(BudgetExhausted, match="4 queries too many"):
        ask(Broken(function), torch.rand(4, 1, 8, 8))


def test_a_ragged_answer_is_refused() -> None:
    classifier = CallableClassifier(lambda _: [[0.0], [1.0, 2.0]], classes=2, name="ragged")  # type: ignore[arg-type, return-value]
    with pytest.raises(ClassifierError, match="ragged raised ValueError"):
        classifier(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(4, 8, 8), ValueError, r"images must be floating.*shape \(4, 8, 8\)"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), ValueError, r"got torch.uint8"),
        (torch.rand(0, 1, 8, 8), ValueError, r"n at least 1, got .* \(0, 1, 8, 8\)"),
        (np.zeros((4, 1, 8, 8)), TypeError, r"images must be a torch tensor, got ndarray"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(
    images: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TorchClassifier(network(), classes=10)(images)


def test_images_of_another_size_than_the_estimator_s_are_refused(svc: SVC) -> None:
    with pytest.raises(ClassifierError, match=r"SVC raised ValueError.*\(2, 1, 4, 4\).*features"):
        SklearnClassifier(svc)(torch.rand(2, 1, 4, 4))


def test_a_denoiser_that_changes_the_shape_is_refused() -> None:
    defended = Defended(nn.AvgPool2d(2), TorchClassifier(network(), classes=10))
    with pytest.raises(ClassifierError, match=r"denoiser must keep.*\(1, 1, 4, 4\)"):
        defended(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SklearnClassifier(SVC()), TypeError, r"fitted.*got SVC without classes_"),
        (lambda: SklearnClassifier(LinearRegression()), TypeError, "got LinearRegression"),
        (lambda: TorchClassifier(torch.sin, classes=10), TypeError, "module must be a torch mod"),
        (lambda: TorchClassifier(nn.ReLU(), classes=1), ValueError, "at least 2, got 1"),
        (lambda: CallableClassifier(3, classes=2, name="a"), TypeError, "callable, got int"),
        (lambda: CallableClassifier(abs, classes=2, name=""), ValueError, "name must not be"),
        (lambda: Defended(None, Broken(abs)), TypeError, "denoiser must be a torch module"),
    ],
)
def test_what_is_no_classifier_is_refused(
    make: Callable[[], Classifier], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_an_estimator_without_scores_must_be_asked_for_labels(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = digits
    voting = VotingClassifier([("svc", SVC())], voting="hard").fit(x[:100], y[:100])

    with pytest.raises(ValueError, match="answer must be 'labels' for VotingClassifier"):
        SklearnClassifier(voting)
    labels = SklearnClassifier(voting, answer="labels")(as_images(x[:50]))
    assert labels.tolist() == voting.predict(x[:50]).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer": "votes"}, r"answer must be 'scores' or 'labels', got 'votes'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(svc: SVC, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SklearnClassifier(svc, **options)  # type: ignore[arg-type]
