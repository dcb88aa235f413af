"""Shapes of trees, as text and as files."""

from __future__ import annotations

import json

import pytest

from foredraft.engine.drafters.tree_shape import Shape
from foredraft.errors import UserError


def test_the_text_of_a_shape():
    assert Shape.parse("1x1x1").parents == (0, 1, 2)
    shape = Shape.parse("2x2x1")
    assert len(shape.parents) == 2 + 4 + 4 and len(set(shape.paths)) == 10
    # a node after its parent and its earlier siblings; the branch of first children comes first
    assert shape.paths[:3] == [(0,), (0, 0), (0, 0, 0)]
    for number, path in enumerate(shape.paths):
        before = shape.paths[:number]
        assert len(path) == 1 or path[:-1] in before
        assert path[-1] == 0 or (*path[:-1], path[-1] - 1) in before
    assert Shape.of_paths(shape.paths) == shape
    tree = shape.tree(replaced=True)
    assert tree.parents.tolist() == list(shape.parents) and tree.replaced
    assert tree.depths.tolist() == [len(path) for path in shape.paths]


@pytest.mark.parametrize(("text", "message"), [
    ("2x", "is no shape"), ("0x1", "is no shape"), ("", "is no shape"), ("4x4x4x4", "more than 64 nodes"),
    ("99999999999x99999999999", "more than 64 nodes"), ("none.json", "no such shape"),
])
def test_what_is_no_shape(text, message):
    with pytest.raises(UserError, match=message) as caught:
        Shape.parse(text)
    assert "\n" not in str(caught.value)


def test_a_file(tmp_path):
    file = tmp_path / "folder" / "shape.json"
    Shape((0, 0, 1, 2), {"speed": 2.0}).save(file)
    assert Shape.parse(str(file)) == Shape((0, 0, 1, 2), {"speed": 2.0})
    assert [path.name for path in file.parent.iterdir()] == ["shape.json"]
    for wrong in ({"parents": [0, 2]}, {"parents": []}, {"parents": [0] * 65}, {"parents": [-1]}, {"parents": "x"}, {}, []):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="not a shape"):
            Shape.load(file)
