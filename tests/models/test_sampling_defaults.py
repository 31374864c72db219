"""What a model's files recommend for sampling, in both forms, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import pytest

from weighbridge.errors import BadInput
from weighbridge.models.sampling_defaults import NO_DEFAULTS, SamplingDefaults, read_sampling_defaults


def config(folder: Path, **fields: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return folder


def test_a_folder_recommends_what_its_file_says(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == NO_DEFAULTS
    config(
        tmp_path,
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        repetition_penalty=None,
        do_sample=True,
        max_new_tokens=9,
    )
    found = read_sampling_defaults(tmp_path)
    assert found == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20, max_tokens=9)
    assert found.as_dict() == {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 9}
    assert read_sampling_defaults(tmp_path, "none") == NO_DEFAULTS


def test_another_file_or_folder_may_be_named(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    config(tmp_path, temperature=0.1)
    config(other, temperature=0.2)
    assert read_sampling_defaults(tmp_path, str(other)).temperature == 0.2
    assert read_sampling_defaults(tmp_path, str(other / "generation_config.json")).temperature == 0.2
    for wrong in (str(tmp_path / "missing"), str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(BadInput, match="generation-config"):
            read_sampling_defaults(tmp_path, wrong)


def test_a_gguf_recommends_under_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_float32(gguf.Keys.General.SAMPLING_TEMP, 0.5)
    writer.add_int32(gguf.Keys.General.SAMPLING_TOP_K, 40)
    writer.add_float32(gguf.Keys.General.SAMPLING_PENALTY_REPEAT, 1.25)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_sampling_defaults(path)
    assert found == SamplingDefaults(temperature=0.5, top_k=40, repetition_penalty=1.25)


@pytest.mark.parametrize(
    "fields",
    [
        *({"temperature": "hot"}, {"temperature": 3}, {"top_p": 0}, {"top_k": 1.5}, {"min_p": True}),
        *({"top_k": math.inf}, {"top_k": math.nan}, {"max_new_tokens": math.inf}, {"temperature": math.nan}),
        *({"top_k": 10**30}, {"max_new_tokens": -math.inf}, {"repetition_penalty": math.inf}, {"top_k": [1]}),
    ],
)
def test_values_that_no_request_could_have_are_refused_with_the_way_out(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=f"{next(iter(fields))} is .*--generation-config none"):
        read_sampling_defaults(config(tmp_path, **fields))
