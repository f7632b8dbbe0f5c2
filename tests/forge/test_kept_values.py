"""The configuration that an asset was made with is kept, sources outside the graph count, and staleness follows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import tiny_forge
from forge_instance import Make, failure_text
from pydantic import BaseModel, ConfigDict, Field
from test_run_graph import actions, planned, run

from forge_assets import kept_values
from forge_assets.factory import DataRun, data_asset, sources_of
from forge_assets.graph_view import Forge, UserError
from forge_assets.kept_values import Kept, differences, given_values, in_effect, nested
from forge_resources.gatekeeping import latest_materialization
from forge_resources.model_store import ModelStore
from training_core.config import Config
from training_core.store.bundle import open_bundle


class Inner(Config):
    steps: int = 10
    rate: float = 0.5


class Outer(Config):
    inner: Inner = Inner()
    name: str = "demo"
    widths: tuple[int, ...] = (2, 3)


class NotesConfig(BaseModel):
    model_config = ConfigDict(frozen=True)

    folder: str = Field("", description="Folder of the notes.")


def notes_of(config: NotesConfig) -> Mapping[str, str]:
    found = sorted(Path(config.folder).glob("*.txt"))
    if not found:
        raise ValueError(f"no note is in {config.folder}")
    return {str(path): path.read_text() for path in found}


@data_asset(preset=tiny_forge.no_preset, reads=notes_of)
def notes(run: DataRun, config: NotesConfig) -> Mapping[str, float | str]:
    """Join the notes."""
    texts = notes_of(config).values()
    (run.out / "notes").write_text("\n".join(texts))
    return {"notes": len(texts)}


@data_asset(inputs=("notes",), preset=tiny_forge.no_preset)
def words(run: DataRun, config: tiny_forge.TokensConfig) -> Mapping[str, float | str]:
    """Count the words."""
    (run.out / "count").write_text(str(len((run.inputs["notes"] / "notes").read_text().split()) * config.count))
    return {}


@data_asset(inputs=("words",), preset=tiny_forge.no_preset)
def index(run: DataRun, config: tiny_forge.TokensConfig) -> Mapping[str, float | str]:
    """Copy the count."""
    (run.out / "count").write_text((run.inputs["words"] / "count").read_text())
    return {}


@pytest.fixture
def forge(instance: dg.DagsterInstance, store: ModelStore) -> Forge:
    return Forge(tiny_forge.defs, instance, store, tiny_forge.GATES)


@pytest.fixture
def noted(instance: dg.DagsterInstance, store: ModelStore, tmp_path: Path) -> Forge:
    """A graph whose first asset reads files: notes -> words -> index, made once from a.txt and b.txt."""
    (tmp_path / "a.txt").write_text("one two")
    (tmp_path / "b.txt").write_text("three")
    resources = {"store": store, "tracking": tiny_forge.MlflowTracking(enabled=False)}
    definitions = dg.Definitions([notes, words, index], resources=resources, executor=dg.in_process_executor)
    forge = Forge(definitions, instance, store, ())
    outcome, _ = run(forge, {"notes": {"folder": str(tmp_path)}})
    assert outcome.made == ["notes", "words", "index"]
    return forge


def value_of(forge: Forge, asset: str) -> float:
    folder = forge.store.open_materialized(asset, latest_materialization(forge.instance, dg.AssetKey(asset))).folder
    return float(open_bundle(folder).tensors()["weight"][0, 0])


def recorded(forge: Forge, asset: str) -> Kept:
    return kept_values.recorded(latest_materialization(forge.instance, dg.AssetKey(asset)))


def test_differences_name_what_is_unlike_the_profile() -> None:
    config = Outer(inner=Inner(rate=0.25), widths=(4,))
    assert differences(config, Outer()) == {"inner.rate": 0.25, "widths": [4]}
    assert differences(Outer(), Outer()) == {}
    assert nested({"inner.rate": 0.25, "name": "x"}) == {"inner": {"rate": 0.25}, "name": "x"}
    back_to_demo = given_values(Outer(), Outer(), Kept({"inner.rate": 0.25, "gone": 1}, "nano"))
    assert back_to_demo == {"inner": {"rate": 0.5}}


def test_kept_values_stand_in_for_the_profile_only_where_nothing_is_given() -> None:
    kept = Kept({"inner.rate": 0.25}, "nano")
    assert in_effect("a", Outer(), {}, kept, "nano") == Outer(inner=Inner(rate=0.25))
    assert in_effect("a", Outer(), {}, kept, "nano", defaults=True) == Outer()
    given = {"inner": {"rate": 0.75, "steps": 3}}
    assert in_effect("a", Outer(**given), given, kept, "nano") == Outer(**given)
    with pytest.raises(UserError, match=r"a was made with inner\.rate=0\.25, which .* leaves out.*--defaults"):
        in_effect("a", Outer(name="x"), {"name": "x"}, kept, "nano")
    with pytest.raises(UserError, match=r"at profile nano with .*--profile mini --config FILE.*--defaults"):
        in_effect("a", Outer(), {}, kept, "mini")
    with pytest.raises(UserError, match=r"no longer accepted \(there is no value 'inner\.speed'"):
        in_effect("a", Outer(), {}, Kept({"inner.speed": 1}, "nano"), "nano")


def test_following_command_keeps_what_the_first_was_told(forge: Forge) -> None:
    run(forge, {"left": {"value": 0.25}})
    assert recorded(forge, "left") == Kept({"value": 0.25}, "nano")
    assert recorded(forge, "right").values == {}  # the profile's own 0.75 is no configuration of the user's
    assert set(actions(planned(forge)).values()) == {"keep"}
    outcome, _ = run(forge, {"trunk": {"value": 0.125}})  # left is made again, from another trunk
    assert "left" in outcome.made
    assert value_of(forge, "left") == 0.25
    assert recorded(forge, "left") == Kept({"value": 0.25}, "nano")
    outcome, _ = run(forge, defaults=True)
    assert {"trunk", "left"} <= set(outcome.made)
    assert (value_of(forge, "left"), recorded(forge, "left").values) == (0.5, {})
    assert set(actions(planned(forge)).values()) == {"keep"}


def test_run_without_configuration_from_anywhere_keeps_the_values(
    instance: dg.DagsterInstance, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make("trunk", config={"trunk": {"value": 0.25}}).success
    assert make("trunk").success  # as the UI's button and the schedules do it
    record = latest_materialization(instance, dg.AssetKey("trunk"))
    assert kept_values.recorded(record) == Kept({"value": 0.25}, "nano")
    refused = make("trunk", config={"trunk": {"steps": 2}})
    assert not refused.success
    assert "trunk was made with value=0.25, which the configuration of this run leaves out" in failure_text(
        refused, "trunk"
    )
    monkeypatch.setenv("FORGE_PROFILE", "mini")
    assert "trunk was made at profile nano with value=0.25" in failure_text(make("trunk"), "trunk")


def test_tag_in_a_run_takes_the_profiles_values(instance: dg.DagsterInstance, make: Make) -> None:
    assert make("trunk", config={"trunk": {"value": 0.25}}).success
    result = dg.materialize(
        [*tiny_forge.ASSETS],
        selection=["trunk"],
        instance=instance,
        resources=dict(tiny_forge.defs.resources or {}),
        tags={kept_values.DEFAULTS: "true"},
    )
    assert result.success
    assert kept_values.recorded(latest_materialization(instance, dg.AssetKey("trunk"))).values == {}


def test_source_that_grew_or_appeared_makes_the_asset_stale(noted: Forge, tmp_path: Path) -> None:
    assert set(actions(planned(noted)).values()) == {"keep"}
    (tmp_path / "a.txt").write_text("one two two")
    assert planned(noted)["notes"].reason == f"its source {tmp_path / 'a.txt'} changed"
    (tmp_path / "a.txt").write_text("one two")
    (tmp_path / "c.txt").write_text("four")
    steps = planned(noted)
    assert steps["notes"].reason == f"its source {tmp_path / 'c.txt'} is new"
    assert steps["words"].action == "make"
    (tmp_path / "b.txt").unlink()
    assert planned(noted)["notes"].reason == (
        f"its source {tmp_path / 'c.txt'} is new, its source {tmp_path / 'b.txt'} is gone"
    )


def test_source_that_is_gone_is_said_and_what_was_made_from_it_is_kept(noted: Forge, tmp_path: Path) -> None:
    (tmp_path / "b.txt").unlink()
    steps = planned(noted)
    assert set(actions(steps).values()) == {"keep"}
    assert steps["notes"].note == (
        f"notes: {tmp_path / 'b.txt'} is gone; the stored notes made from it is kept (--force notes reads what is left)"
    )
    (tmp_path / "a.txt").unlink()
    steps = planned(noted)
    assert set(actions(steps).values()) == {"keep"}
    assert steps["notes"].note == f"notes: no note is in {tmp_path}; the stored notes made from it is kept"
    before = latest_materialization(noted.instance, dg.AssetKey("notes"))
    outcome, _ = run(noted, force=["notes"])
    assert outcome.problems == [f"notes: ValueError: no note is in {tmp_path}"]
    after = latest_materialization(noted.instance, dg.AssetKey("notes"))
    assert before is not None
    assert after is not None
    assert after.storage_id == before.storage_id
    (tmp_path / "b.txt").write_text("three")
    outcome, _ = run(noted, force=["notes"])
    assert list(sources_of(latest_materialization(noted.instance, dg.AssetKey("notes")))) == [str(tmp_path / "b.txt")]
    assert len(noted.store.versions("notes")) == 2  # the first stays


def test_selected_asset_is_not_fresh_if_something_further_up_is_stale(noted: Forge, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two two")
    (step,) = planned(noted, select=["index"]).values()
    assert (step.action, step.gated) == ("closed", False)
    assert step.reason == (
        f"index is made from something outdated (notes: its source {tmp_path / 'a.txt'} changed): "
        "forge run --select notes --select words --select index makes what lies between"
    )
    (step,) = planned(noted, select=["index"], force=["index"]).values()
    assert (step.action, step.note) == ("make", planned(noted, select=["index"])["index"].reason)
    outcome, _ = run(noted, select=["notes", "words", "index"])
    assert outcome.made == ["notes", "words", "index"]
    assert actions(planned(noted, select=["index"])) == {"index": "keep"}


def test_source_belongs_to_its_configuration(noted: Forge, tmp_path: Path) -> None:
    other: dict[str, dict[str, Any]] = {"notes": {"folder": str(tmp_path / "other")}}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("elsewhere")
    assert planned(noted, other)["notes"].action == "make"
    (tmp_path / "other" / "a.txt").unlink()
    outcome, _ = run(noted, other)
    assert outcome.problems == [f"notes: ValueError: no note is in {tmp_path / 'other'}"]
    assert set(actions(planned(noted)).values()) == {"keep"}  # a failed run changes nothing
