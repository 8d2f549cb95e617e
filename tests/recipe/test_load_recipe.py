"""Files and overrides to one typed recipe: what is wrong is named with its key, its value and what to do."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from raycap.errors import RecipeError
from raycap.metrics.score import METRICS
from raycap.recipe import Recipe, RewardRecipe, list_recipes, load_recipe, to_yaml
from raycap.recipe.load import validate

MINIMAL: dict[str, Any] = {"name": "mine", "stages": ["mle"]}


def load(*overrides: str, **environ: str) -> Recipe:
    return load_recipe("scenes", overrides, environ)


def refused(*overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as error:
        load(*overrides)
    assert error.value.exit_code == 2
    return error.value


def test_a_carried_recipe_by_name_and_any_file_by_path(tmp_path: Path) -> None:
    assert load().name == "scenes"
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nstages: [mle]\nmle: {lr: 3e-4, epochs: 2}\n")
    recipe = load_recipe(str(file), environ={})
    assert (recipe.name, recipe.stages, recipe.mle.lr, recipe.mle.epochs) == ("mine", ["mle"], 3e-4, 2)
    assert recipe.mle.batch_size == Recipe(**MINIMAL).mle.batch_size


def test_overrides_win_over_the_file_and_the_last_one_wins() -> None:
    recipe = load("scst.steps=7", "scst.lr=2e-5", "scst.steps=9", "mle.epochs = 3")
    assert (recipe.scst.steps, recipe.scst.lr, recipe.mle.epochs) == (9, 2e-5, 3)
    assert recipe.scst.baseline == "leave_one_out", "the file's other values should stay"
    assert load().scst.steps not in (7, 9)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("stages=[mle, scst]", ("stages",), ["mle", "scst"]),
        ("scst.lr=1e-5", ("scst", "lr"), 1e-5),
        ("scst.lr=1", ("scst", "lr"), 1.0),
        ("storage=/runs/a=b", ("storage",), "/runs/a=b"),
        ("clip.judge=null", ("clip", "judge"), None),
        ("clip.judge=", ("clip", "judge"), None),
        ("data.skip=all", ("data", "skip"), "all"),
        ("captioner.lm_config={model_type: llama, hidden_size: 8}", ("captioner", "lm_config"),
         {"model_type": "llama", "hidden_size": 8}),
        ("clip.reward.prompt='see: '", ("clip", "reward", "prompt"), "see: "),
    ],
)  # fmt: skip
def test_values_are_read_as_yaml(override: str, path: tuple[str, ...], value: Any) -> None:
    found: Any = load(override)
    for part in path:
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_overrides_reach_into_mappings_and_into_sections_that_are_not_there() -> None:
    recipe = load("captioner.lm_config.n_layer=7", "rewards.clip.weight=0.5", "rewards.cider.options.eos=false")
    assert recipe.captioner.lm_config["n_layer"] == 7
    assert recipe.captioner.lm_config["model_type"] == "gpt2"
    assert recipe.rewards["clip"].weight == 0.5
    assert recipe.rewards["cider"].options == {"eos": False}
    built = load_recipe("flickr8k", ["clip.judge.model=ViT-B-32", "clip.judge.pretrained=openai"], {})
    assert built.clip.judge is not None
    assert built.clip.judge.pretrained == "openai"


@pytest.mark.parametrize(
    ("override", "key", "value", "words"),
    [
        ("scst.steps=many", "scst.steps", "many", "valid integer"),
        ("scst.steps=1.5", "scst.steps", 1.5, "valid integer"),
        ("scst.steps=0", "scst.steps", 0, "greater than or equal to 1"),
        ("scst.steps=", "scst.steps", None, "valid integer"),
        ("scst.lr=-1e-5", "scst.lr", -1e-5, "greater than 0"),
        ("scst.lr=.inf", "scst.lr", math.inf, "finite"),
        ("mle.ema=1", "mle.ema", 1, "less than 1"),
        ("captioner.lm_tuning=lorra", "captioner.lm_tuning", "lorra", "'full', 'lora' or 'frozen'"),
        ("scst.baseline=critic", "scst.baseline", "critic", "'greedy', 'leave_one_out' or 'mean'"),
        ("data.web_share=1.2", "data.web_share", 1.2, "less than 1"),
        ("stages=[mle, scts]", "stages.1", "scts", "'scst'"),
        ("stages=[]", "stages", [], "at least 1"),
        ("seeds=[1, x]", "seeds.1", "x", "valid integer"),
        ("seed=-1", "seed", -1, "greater than or equal to 0"),
        ("evaluate.metrics=[cider, blue]", "evaluate.metrics.1", "blue", "'bleu'"),
        ("rewards.cider.weight=heavy", "rewards.cider.weight", "heavy", "valid number"),
        ("name=a/b", "name", "a/b", "pattern"),
        ("data.select_size=-1", "data.select_size", -1, "greater than or equal to 0"),
        ("name=..", "name", "..", "pattern"),
        ("scst=3", "scst", 3, "dictionary"),
        ("clip.reward={pretrained: openai}", "clip.reward.model", {"pretrained": "openai"}, "required"),
    ],
)
def test_values_of_the_wrong_type_or_out_of_range(override: str, key: str, value: Any, words: str) -> None:
    error = refused(override)
    assert (error.key, error.value) == (key, value)
    assert words in str(error)
    assert str(error).startswith(f"{key} = {value!r}: ")


@pytest.mark.parametrize(
    ("override", "key", "suggestion"),
    [
        ("scst.stepz=3", "scst.stepz", "did you mean steps?"),
        ("scts.steps=3", "scts", "did you mean scst?"),
        ("captioner.vocabulary.min_cuont=2", "captioner.vocabulary.min_cuont", "did you mean min_count?"),
        ("clip.reward.pretraind=x", "clip.reward.pretraind", "did you mean pretrained?"),
        ("rewards.cider.wieght=2", "rewards.cider.wieght", "did you mean weight?"),
        ("clip.train.xyz=2", "clip.train.xyz", "keys here: epochs, batch_size, lr"),
        ("learning_rate=1", "learning_rate", "keys here: name, stages"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(override: str, key: str, suggestion: str) -> None:
    error = refused(override)
    assert error.key == key
    assert error.what == "no such key"
    assert error.remedy is not None
    assert suggestion in error.remedy


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("scst.steps", "override"),
        ("name.first=a", "name.first"),
        ("stages.0=mle", "stages.0"),
        ("scst.steps=[1", "scst.steps"),
        ("data={[a]: 1}", "data"),
    ],
)
def test_overrides_that_cannot_be_read(override: str, key: str) -> None:
    error = refused(override)
    assert error.key == key
    assert error._has_value
    assert "\n" not in str(error)


CONTRADICTIONS = [
    (("scst.num_samples=1",), "scst.baseline", "scst.num_samples"),
    (("data.num_labeled=10", "data.labeled_fraction=0.1"), "data.num_labeled", "data.labeled_fraction"),
    (("clip.judge={model: raycap-scenes-reward, seed: 9}",), "clip.judge.model", "clip.reward"),
    (
        (
            "clip.reward={model: ViT-B-32, pretrained: openai}",
            "clip.judge={model: ViT-B-32-quickgelu, pretrained: metaclip_400m}",
        ),
        "clip.judge.model",
        "another backbone",
    ),
    (("clip.judge={model: raycap-scenes-reward, seed: 1}",), "clip.judge", "must not judge"),
    (("clip.reward=null", "features.encoder=clip.reward"), "features.encoder", "clip.reward"),
    (("clip.reward=null", "stages=[mle]", "rewards.clip.weight=1"), "rewards.clip", "clip.reward"),
    (("features.kind=pooled",), "captioner.mapping", "mlp or transformer"),
    (("seeds=[3, 4, 3]",), "seeds", "[3, 4, 3]"),
    (("rewards={}",), "rewards", "cider"),
    (("scst.baseline=mean", "scst.num_samples=1"), "scst.baseline", "scst.num_samples"),
    (("scst.scaling=group", "scst.baseline=greedy"), "scst.scaling", "scst.baseline"),
    (("scst.lr_schedule=cosine", "scst.lr_floor=1"), "scst.lr_schedule", "scst.lr_floor"),
    (("scst.objective=ppo", "scst.importance=sequence"), "scst.importance", "scst.objective"),
    (("scst.ppo_epochs=2",), "scst.ppo_epochs = 2", "scst.objective"),
    (("scst.minibatches=2",), "scst.minibatches = 2", "scst.objective"),
    (("scst.objective=ppo", "scst.minibatches=41"), "scst.minibatches = 41", "40 images"),
    (("cluster.learner_sharding=fsdp",), "cluster.learner_sharding", "cluster.learner_workers = 1"),
    (("cluster.learner_workers=2", "cluster.learner_gpus=0.5"), "cluster.learner_gpus = 0.5", "learner_workers = 2"),
]


@pytest.mark.parametrize(("overrides", "key", "other"), CONTRADICTIONS)
def test_values_that_contradict_each_other_are_both_named(overrides: tuple[str, ...], key: str, other: str) -> None:
    message = str(refused(*overrides))
    assert key in message
    assert other in message


def test_no_such_recipe_names_those_that_are(tmp_path: Path) -> None:
    for name in ("scene", str(tmp_path / "nowhere.yaml")):
        with pytest.raises(RecipeError, match=f"recipe = '{name}': no such recipe") as error:
            load_recipe(name, environ={})
        for known in list_recipes():
            assert known in str(error.value)


@pytest.mark.parametrize("content", [b"name: [", b"- a\n- b\n", b"", b"\xff\xfe\x00", b"just words"])
def test_files_that_hold_no_recipe_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        load_recipe(str(file), environ={})
    assert (error.value.key, error.value.value) == ("recipe", str(file))
    assert "\n" not in str(error.value)


def test_a_weight_on_the_command_line_adds_a_component() -> None:
    recipe = load_recipe("scenes", ["rewards.clip.weight=0.1"], {})
    assert {name: reward.weight for name, reward in recipe.rewards.items()} == {"cider": 1.0, "clip": 0.1}
    assert list(load_recipe("scenes", ["rewards={clip: {}}"], {}).rewards) == ["clip"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stages=[scst, mle]",), r"each once, in this order: mle, scst"),
        (("stages=[mle, mle]",), r"each once"),
        (("evaluate.split=dev", "data.splits=[train, test]"), r"evaluate.split = 'dev', but data.splits"),
        (("evaluate.split=dev", "data.scenes.num_dev=0"), r"data.scenes.num_dev = 0"),
        (("data.splits=[val]",), r"data.splits"),
        (("seeds=[-1]",), r"seeds"),
        (("data.web_share=1",), r"data.web_share"),
        (("data.num_labeled=100", "rewards.clip.weight=1"), r"data.web_share=0.5"),
        (("data.num_labeled=100", "rewards.mine={source: 'a.b:C'}"), r"data.web_share=0.5"),
        (("data.num_labeled=100", "rewards.critic={}"), r"data.web_share=0.5"),
        (("data.labeled_fraction=0.1", "rewards={self_retrieval: {}}"), r"data.web_share=0.5"),
        (("data.num_labeled=100", "features.encoder=clip.reward"), r"data.web_share=0.5"),
        (("clip.reward=null", "rewards={self_retrieval: {}}"), r"rewards.self_retrieval needs clip.reward"),
        (("features.kind=pooled", "captioner.mapping=mlp", "mle.flip=true"), r"mle.flip need"),
        (("features.views=2", "mle.views=false", "scst.views=false"), r"no stage looks at them"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_starts(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("scenes", overrides, {})


def test_a_clip_that_saw_other_captions_may_reward_images_without_labels() -> None:
    for overrides in (
        ["data.num_labeled=100", "rewards.clip.weight=1", "data.web_share=0.5"],
        ["data.num_labeled=100", "rewards.clip.weight=1", "clip.reward.pretrained=/w.pt"],
        ["data.labeled_fraction=1.0", "rewards.clip.weight=1"],
        ["data.num_labeled=100"],
    ):
        load_recipe("scenes", overrides, {})


@pytest.mark.parametrize("override", ["scst.steps=true", "mle.lr=false", "seeds=[0, true]", "name=true"])
def test_true_is_no_number(override: str) -> None:
    assert override.split("=")[0] in str(refused(override))
    assert load_recipe("scenes", ["mle.flip=true", "rewards.cider.options={eos: false}"], {}).mle.flip


@pytest.mark.parametrize("content", ["name: a\nname: b\n", "scst: {steps: 1, lr: 1, steps: 2}\n"])
def test_a_key_that_comes_twice_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(RecipeError, match=r"the key '(name|steps)' comes twice"):
        load_recipe(str(file), environ={})


def test_a_file_is_held_to_the_same_rules_as_overrides(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nstages: [mle]\nmle: {epoch: 3}\n")
    with pytest.raises(RecipeError, match=r"mle.epoch = 3: no such key \(did you mean epochs\?\)"):
        load_recipe(str(file), environ={})
    file.write_text("stages: [mle]\n")
    with pytest.raises(RecipeError, match=r"name.*required"):
        load_recipe(str(file), environ={})


def test_the_environment_stands_in_where_nothing_else_says_it() -> None:
    said = {"RAYCAP_STORAGE": "/env/runs", "RAYCAP_DATA": "/env/data"}
    recipe = load(**said)
    assert (recipe.storage, recipe.data.root) == ("/env/runs", "/env/data")
    recipe = load("storage=/own", "data.root=/mine", **said)
    assert (recipe.storage, recipe.data.root) == ("/own", "/mine")
    recipe = load(RAYCAP_STORAGE="", RAYCAP_DATA="")
    assert (recipe.storage, recipe.data.root) == (None, None)


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCAP_STORAGE", "/from/the/process")
    assert load_recipe("scenes").storage == "/from/the/process"


def test_a_recipe_cannot_change_after_loading_and_travels() -> None:
    recipe = load()
    with pytest.raises(Exception, match="frozen"):
        recipe.scst.steps = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_seeds_of_a_run() -> None:
    assert load("seed=4").run_seeds == [4]
    assert load("seed=4", "seeds=[1, 2]").run_seeds == [1, 2]


def test_metrics_are_those_that_can_be_computed() -> None:
    """The recipe may not import the metrics, so it spells their names again."""
    assert load(f"evaluate.metrics=[{', '.join(METRICS)}]").evaluate.metrics == list(METRICS)
    with pytest.raises(RecipeError) as error:
        load("evaluate.metrics=[none_such]")
    assert str(error.value).count("'") == 2 * (len(METRICS) + 1)


def again(recipe: Recipe, folder: Path) -> Recipe:
    file = folder / "again.yaml"
    file.write_text(to_yaml(recipe), encoding="utf-8")
    return load_recipe(str(file), environ={})


@pytest.mark.parametrize(
    "overrides",
    [
        (), ("seeds=[1, 2]", "clip.judge=null", "data.root=/a b/#c"), ("scst.lr=1e-7", "clip.reward.prompt=''"),
        ("rewards.yes.weight=2", "rewards.1.weight=3", "rewards.null.weight=1"), ("stages=[mle]", "rewards={}"),
        ("rewards.mine={source: 'a.b:C', options: {words: [yes, no, null, 1e-3], deep: {x: {y: '1'}}}}",),
    ],
)  # fmt: skip
def test_the_resolved_recipe_loads_back_to_the_same(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    recipe = load(*overrides)
    assert again(recipe, tmp_path) == recipe


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=4,
)


@given(source=text, options=st.dictionaries(text, plain, max_size=3), weight=st.floats(-1e30, 1e30))
@example(source="a\nb", options={"~": "..."}, weight=1e-5)
@example(source="...", options={"# x": " y", "a: b": "- c"}, weight=1e22)
@example(source="a\u2028b\x85c\t", options={"1": "1e5", "\x85": None}, weight=0.1)
def test_any_text_and_number_survives_the_way_through_yaml(source: str, options: dict[str, Any], weight: float) -> None:
    reward = RewardRecipe(source=source, options=options, weight=weight)
    lines = to_yaml(reward).splitlines()
    assert len(lines) == len(RewardRecipe.model_fields), "one line a value: it stands at any depth then"
    assert RewardRecipe(**yaml.safe_load("\n".join(lines))) == reward


@pytest.mark.parametrize("name", ["on", "1", "~", "a: b", "# c", "d\ne", "é", "...", " f", "'", '"', "{", "-"])
def test_any_name_of_a_reward_survives(tmp_path: Path, name: str) -> None:
    recipe = validate({**MINIMAL, "rewards": {name: {"weight": 2}}})
    assert list(again(recipe, tmp_path).rewards) == [name]


def test_the_resolved_recipe_shows_every_value_with_its_meaning() -> None:
    text = to_yaml(load("scst.steps=77"))
    assert "  steps: 77  # learner steps\n" in text
    assert "\nrewards:  # components by name\n  cider:\n    weight: 1.0  # w_c in A" in text
