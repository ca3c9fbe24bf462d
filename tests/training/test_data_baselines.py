"""The baselines' arithmetic against second implementations, and the search for twins against a plain one."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from training.data_baselines import auroc, ecod, neighbour_distance, principal
from training.data_twins import Likeness, nearest


def test_auroc_is_scikit_learn_s_ties_and_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        low, high = random.integers(0, 8, 30).astype(float), random.integers(2, 10, 17).astype(float)
        expected = roc_auc_score([0] * 30 + [1] * 17, np.concatenate([low, high]))
        assert auroc(low, high) == pytest.approx(expected, abs=1e-12)


def test_the_nearest_neighbour_is_scikit_learn_s() -> None:
    random = np.random.default_rng(1)
    train, test = (random.normal(size=(count, 24)).astype(np.float32) for count in (700, 600))
    expected, _ = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(test)
    np.testing.assert_allclose(neighbour_distance(train, test), expected[:, 0], rtol=1e-4)


def test_ecod_is_pyod_s() -> None:
    """Scores that PyOD 3.6.7 gives each row alone, ECOD().fit(train).decision_function(row); compared live if there."""
    train = np.array([[(3 * i * (j + 2) + i * i) % 11 for j in range(3)] for i in range(12)], np.float64)
    test = np.array([[0, 5, 10], [12, -1, 3], [4, 4, 4], [7, 0, 1.5]], np.float64)
    recorded = [4.922259350144829, 5.903088603156555, 2.165418984873187, 3.418181953368555]
    np.testing.assert_allclose(ecod(train, test), recorded, rtol=1e-12)
    if importlib.util.find_spec("pyod") is not None:
        from pyod.models.ecod import ECOD

        live = [ECOD().fit(train).decision_function(row[None])[0] for row in test]
        np.testing.assert_allclose(ecod(train, test), live, rtol=1e-12)


def test_components_are_no_more_than_the_images_carry() -> None:
    random = np.random.default_rng(2)
    known, seen = principal(*(random.normal(size=(count, 100)).astype(np.float32) for count in (5, 9)))
    assert known.shape == (5, 4)
    assert seen.shape == (9, 4)


def test_neighbours_by_blocks_are_the_whole_matrix_s() -> None:
    random = np.random.default_rng(3)
    first, second = (random.normal(size=(count, 16)).astype(np.float32) for count in (1500, 900))
    groups = random.integers(0, 300, 1500), random.integers(0, 300, 900)
    places, cosines = nearest(first, second, *groups, 3)
    whole = first @ second.T
    whole[groups[0][:, None] == groups[1][None, :]] = -1.0
    np.testing.assert_allclose(cosines, -np.sort(-whole, axis=1)[:, :3], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(whole, places, axis=1), cosines, rtol=1e-5)


def test_descriptors_have_unit_length_and_leave_out_gain_and_offset() -> None:
    random = np.random.default_rng(4)
    thumbs = random.uniform(0, 255, (60, 32, 32)).astype(np.float32)
    likeness = Likeness(thumbs)
    rows = likeness(thumbs)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-4)
    same = likeness(0.6 * thumbs + 20)
    assert float((rows * same).sum(axis=1).min()) > 0.98
    assert float(np.abs(rows @ rows.T - np.eye(60)).max()) < 0.6
