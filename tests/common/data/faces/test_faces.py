"""The embedded faces: what labels say, how splits differ, and that every person can be made by itself."""

import numpy as np
import pytest

from common.data import faces
from common.data.faces.people import categorize, draw_feelings, draw_person, express
from common.data.faces.rendering import contact_sheet, render

SMALL = {"train_identities": 4, "validation_identities": 2, "test_identities": 2, "frames": 20}


def load(**options):
    return faces.load("faces", image_size=24, options=SMALL | options)


def test_splits_and_labels():
    data = load()
    assert data.synthetic
    sizes = {name: (len(split.identity_names), len(split)) for name, split in data.splits.items()}
    assert sizes == {"train": (4, 64), "seen": (4, 16), "validation": (2, 40), "test": (2, 40)}
    assert data.splits["seen"].identity_names == data.splits["train"].identity_names
    assert data.splits["test"].identity_names == ("synth006", "synth007")
    assert not set(data.splits["seen"].files) & set(data.splits["train"].files)
    for split in data.splits.values():
        assert split.images.shape[1:] == (24, 24, 3)
        assert np.abs(split.valence_arousal).max() <= 1
        assert ((split.age >= 18) & (split.age <= 85)).all()
        assert np.array_equal(split.category, categorize(split.valence_arousal.astype(np.float64)))


def test_people_do_not_depend_on_how_many_there_are():
    few, more = load(), load(train_identities=5, validation_identities=2)
    assert np.array_equal(few.splits["train"].images[:16], more.splits["train"].images[:16])
    assert not np.array_equal(few.splits["train"].images, load(seed=1).splits["train"].images)
    assert np.array_equal(few.splits["test"].images, load().splits["test"].images)


def test_style_can_be_taken_away():
    plain, styled = (draw_person(0, 3, *stds) for stds in ((0.0, 0.0), (0.35, 0.3)))
    other = draw_person(0, 4, 0.0, 0.0)
    assert plain.tone == styled.tone
    assert other.tone != plain.tone
    same = {"curvature", "opening", "openness", "brow_distance", "brow_tilt"}
    a, b, c = (express(person, 0.5, -0.3)._asdict() for person in (plain, other, styled))
    assert all(a[name] == b[name] for name in same)
    assert all(a[name] != c[name] for name in same)
    assert a["folds"] == c["folds"]  # everybody's


def test_expressions_go_the_right_way():
    person = draw_person(0, 0, 0.35, 0.3)
    happy, sad, calm, excited = (express(person, *of) for of in ((0.9, 0), (-0.9, -0.4), (0, -0.8), (0, 0.8)))
    assert happy.curvature > sad.curvature
    assert happy.folds > 0 == sad.folds
    assert sad.frown > 0 == happy.frown
    assert sad.brow_tilt > person.brow_tilt  # inner end up
    assert express(person, -0.9, 0.8).brow_tilt < person.brow_tilt  # angry
    assert excited.openness > calm.openness
    assert excited.opening > calm.opening


def test_mood_goes_with_looks_in_training_only():
    def correlation(in_training, confounding):
        tones, moods = [], []
        for number in range(80):
            person = draw_person(0, number, 0.35, 0.3)
            tones.append(person.tone)
            moods.append(draw_feelings(0, number, person, 40, confounding, in_training)[:, 0].mean())
        return np.corrcoef(tones, moods)[0, 1]

    assert correlation(True, 1.0) > 0.5
    assert abs(correlation(True, 0.0)) < 0.25
    assert abs(correlation(False, 1.0)) < 0.25


def test_pictures():
    person = draw_person(0, 1, 0.35, 0.3)
    one, two, moved = (
        render(person, express(person, v, 0.2), 32, np.random.default_rng(s))
        for v, s in ((0.5, 0), (0.5, 0), (-0.5, 0))
    )
    assert one.shape == (32, 32, 3)
    assert np.array_equal(one, two)
    mouth = np.abs(one.astype(int) - moved)[18:28].mean()
    assert mouth > 3 * np.abs(one.astype(int) - moved)[:6].mean()
    assert contact_sheet(np.stack([one] * 5), 2).shape == (96, 64, 3)


def test_sectors_of_the_plane():
    angles = np.radians([0, 60, 120, 180, 240, 300, 29, -29])
    points = 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    names = [faces.CATEGORIES[i] for i in categorize(points)]
    assert names == ["happy", "surprise", "fear", "anger", "disgust", "sad", "happy", "happy"]
    assert categorize(np.array([[0.1, 0.1]])).tolist() == [0]


def test_nobody_is_in_two_splits():
    split = load().splits["train"]
    with pytest.raises(ValueError, match="identity 'synth000' of data set 'x' is in both 'test' and 'train'"):
        faces.FaceData("x", {"train": split, "test": split}, "", "")
