import math
import sys

import numpy as np
import pytest

from solvers.py_pde import PyPde


@pytest.fixture(scope="module")
def heat() -> PyPde:
    pytest.importorskip("pde", reason="py-pde is an optional extra")
    equation = {"u": "nu * laplace(u)", "v": "-nu * v + t"}
    return PyPde(equation, [16], length=16, dt=0.5, substeps=2, backend="numpy")


def test_components_parameters_and_time_reach_the_equation(heat: PyPde) -> None:
    mode, h = 2 * math.pi * 3 / 16, 0.25
    fields = np.zeros((2, 2, 16))
    fields[:, 0] = np.cos(mode * np.arange(16))
    fields[:, 1] = 1.0
    nu, times = np.array([0.1, 0.3]), np.array([[0.0], [2.0]])
    after, clock = heat.step(fields, nu, times)
    # Runge and Kutta's factor of a decaying mode, twice; the discrete Laplacian's eigenvalue.
    z = -nu * (2 - 2 * math.cos(mode)) * h
    factor = (1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24) ** 2
    assert np.abs(after[:, 0] - factor[:, None] * fields[:, 0]).max() < 1e-14
    # v' = -nu v + t has an exact solution; the scheme errs by h^5 / 120 or less a stage.
    end = times[:, 0] + 0.5
    line = (end - 1 / nu) / nu
    start = (times[:, 0] - 1 / nu) / nu
    exact = line + (1 - start) * np.exp(-nu * 0.5)
    assert np.abs(after[:, 1] - exact[:, None]).max() < 2 * h**5 / 120
    np.testing.assert_array_equal(clock, times + 0.5)


def test_forcing_adds_and_rows_stand_alone(heat: PyPde) -> None:
    rng = np.random.default_rng(0)
    fields, nu, push = rng.normal(size=(3, 2, 16)), rng.uniform(size=3), np.ones((3, 2, 16))
    free, pushed = heat.step(fields, nu)[0], heat.step(fields, nu, forcing=push)[0]
    # The Laplacian of a constant is zero: a uniform push adds dt.
    assert np.abs(pushed[:, 0] - free[:, 0] - 0.5).max() < 1e-14
    np.testing.assert_array_equal(heat.step(fields[1:2], nu[1:2])[0], free[1:2])


def test_compiled_burgers_equals_the_uncompiled(heat: PyPde) -> None:
    pytest.importorskip("numba", reason="py-pde compiles with numba")
    del heat
    equation = {"u": "nu * laplace(u) - u * d_dx(u)"}
    fields, nu = np.random.default_rng(0).normal(size=(2, 1, 16)), np.array([0.1, 0.5])
    results = [
        PyPde(equation, [16], backend=backend).step(fields, nu)[0]
        for backend in ("numba", "numpy")
    ]
    assert np.abs(results[0] - results[1]).max() < 1e-14


def test_what_does_not_fit_is_refused(heat: PyPde) -> None:
    fields = np.zeros((1, 2, 16))
    with pytest.raises(ValueError, match=r"native must have shape \(1, 1\), got \(1, 2\)"):
        heat.step(fields, np.ones(1), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"fields must have shape \(b, 2, 16\)"):
        heat.step(fields[:, :1], np.ones(1))
    with pytest.raises(ValueError, match=r"equation must be one of py-pde's, got .*nonsense"):
        PyPde({"u": "nonsense(u, 3)"}, [8], backend="numpy")


def test_a_component_named_as_the_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"other than the parameter 'nu', got \['nu'\]"):
        PyPde({"nu": "laplace(nu)"}, [8])
    with pytest.raises(ValueError, match=r"other than the parameter 'nu', got \[\]"):
        PyPde({}, [8])


def test_a_missing_package_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pde", None)
    with pytest.raises(ImportError, match="py-pde: pip install py-pde"):
        PyPde({"u": "laplace(u)"}, [8])
