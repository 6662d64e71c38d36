"""A drawn set of recipe 3."""

import json

from wide_scans import small_variety

from luna16_monai.phantom.drawn import read_drawn
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.variety.data_set import write_varied_phantom
from luna16_monai.variety.shapes import load_allowed_shapes, measured_patients


def test_write_varied_phantom_writes_a_data_folder_of_recipe_3(tmp_path):
    told = write_varied_phantom(tmp_path / "set", 2, 0, 1, progress=False, settings=small_variety())
    assert (told["scans"], told["cached"]) == (2, False)
    manifest = json.loads((tmp_path / "set" / "phantom.json").read_text("utf-8"))
    assert (manifest["recipe"], manifest["large"]) == (3, 0.0)
    drawn = read_drawn(tmp_path / "set")
    patients = {patient for one in drawn.values() for patient in one.patients}
    assert {one.recipe for one in drawn.values()} == {3}
    assert patients == set(load_allowed_shapes().patient.tolist())
    assert not patients & measured_patients()
    assert len(read_candidates(tmp_path / "set")) == told["candidates"]
    assert write_varied_phantom(tmp_path / "set", 2, 0, 1, progress=False, settings=small_variety())["cached"]
