"""Nested configurations, and the profiles."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic import BaseModel, Field

from training_core.config import Config, ConfigError, paths, suggestion, unknown_paths, validated, with_values
from training_core.phases.p5_curriculum.config import CharacterConfig
from training_core.profiles import ASSETS, PROFILES, Profile, nano, preset, profile_of
from training_core.registry import PHASES


class Part(BaseModel):
    size: int = Field(1, ge=1)
    rate: float = 0.5


class Whole(Config):
    part: Part = Part(size=7)
    steps: int = 3


def test_a_section_given_in_part_keeps_the_other_defaults_of_its_owner() -> None:
    assert Whole.model_validate({"part": {"rate": 0.1}}).part == Part(size=7, rate=0.1)
    assert CharacterConfig.model_validate({"training": {"steps": 2}}).training.seq_len == 64


def test_values_have_paths() -> None:
    assert list(paths(Whole)) == ["part.size", "part.rate", "steps"]
    assert with_values(Whole(), {"part.size": 2, "steps": 9}) == Whole(part=Part(size=2), steps=9)
    with pytest.raises(ConfigError, match=r"^part\.size: must be at least 1, got 0$"):
        with_values(Whole(), {"part.size": 0})
    with pytest.raises(ConfigError, match=r"^part is a section: name one of its values, for instance part\.size$"):
        with_values(Whole(), {"part": {"size": 2}})
    with pytest.raises(ValueError, match=r"there is no value 'size': did you mean part\.size\?"):
        with_values(Whole(), {"size": 2})
    with pytest.raises(ValueError, match=r"there is no value 'part_rate': did you mean part\.rate\?"):
        with_values(Whole(), {"part_rate": 2})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"steps": "many"}, "whole.steps: must be a whole number, got 'many'"),
        ({"steps": 2.5}, "whole.steps: must be a whole number, got 2.5"),
        ({"steps": None}, "whole.steps: must be a whole number, got null"),
        ({"steps": "x" * 200}, f"whole.steps: must be a whole number, got '{'x' * 56}..."),
        ({"part": "big"}, "whole.part: must be fields with values, got 'big'"),
        ({"part": {"rate": []}}, "whole.part.rate: must be a number, got []"),
        ({"part": {"size": 0}, "steps": "a"}, "whole.part.size: must be at least 1, got 0; whole.steps: must be a"),
        ({"part": {"sise": 1}}, "whole.part.sise: there is no such value, did you mean part.size?"),
        ({"stebs": 1}, "whole.stebs: there is no such value, did you mean steps?"),
    ],
)
def test_a_wrong_value_is_one_line(values: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validated(Whole, values, "whole")
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_an_old_flat_name_is_told_its_path() -> None:
    given = {"steps": 1, "part": {"size": 2, "rat": 3}, "part_rate": 1}
    assert unknown_paths(Whole, given) == ["part.rat", "part_rate"]
    assert unknown_paths(CharacterConfig, {"self_steps": 3, "training": {"steps": 2}}) == ["self_steps"]
    known = list(paths(CharacterConfig))
    assert suggestion("steps", known) == "did you mean self_model.steps or training.steps?"
    assert suggestion("council_questions", known) == "did you mean decisions.council_questions?"


def test_every_profile_sets_every_asset() -> None:
    assert set(PHASES) <= set(ASSETS)
    for name in PROFILES:
        for asset in ASSETS:
            config = preset(name, asset)
            if asset in PHASES:
                assert type(config) is PHASES[asset].config
    values = {field.name: getattr(nano(), field.name) for field in dataclasses.fields(Profile)}
    del values["baked_model"]
    with pytest.raises(TypeError, match="baked_model"):
        Profile(**values)


def test_larger_profiles_are_not_part_nano() -> None:
    """Where a larger model trains, its rows or its steps grow with it."""
    smaller = profile_of("nano")
    for name in ("mini", "forge_25m"):
        larger = profile_of(name)
        for asset in ("baked_model", "practised_model"):
            mine, theirs = getattr(larger, asset).training, getattr(smaller, asset).training
            assert mine.steps > theirs.steps, (name, asset)
            assert mine.seq_len > theirs.seq_len, (name, asset)
        assert larger.expert_model != smaller.expert_model


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="profile must be one of nano, mini, forge_25m, got 'huge'"):
        preset("huge", "trunk")
    with pytest.raises(ValueError, match="asset must be one of corpus"):
        preset("nano", "trunks")
