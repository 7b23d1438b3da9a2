import os
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import replace

import pytest
import torch
from diffusers.utils import is_peft_available
from torch import nn

from calls import needs_group_offloading
from concepts import PROMPTS, QUICK, assert_same, everything, learn, merged, photo, sample, tiny_pipeline
from profusion_pipeline.method import adapters
from profusion_pipeline.method.adapters import active_adapters
from profusion_pipeline.method.base_hash import base_hash
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from tiny import make_components

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def learnt() -> dict:
    """Concepts made for the tiny pipeline of seed 0."""
    return learn()


def hash_of(pipe) -> str:
    return base_hash(pipe.unet, pipe.text_encoder, pipe.promptnet)


# --- Loaded and gone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ada", "full"])
def test_a_concept_is_its_changes_added_to_the_weights(pipe, learnt, name):
    """Against a pipeline whose weights were changed by hand, which knows nothing of adapters."""
    concept = learnt[name]
    by_hand = sample(merged(tiny_pipeline(), concept, 0.7), subject=concept, class_noun="man")
    pipe.load_concept(concept)
    pipe.set_concept_scale(0.7)
    ours = sample(pipe)
    torch.testing.assert_close(ours, by_hand, atol=1e-4, rtol=1e-4)
    assert (ours - sample(tiny_pipeline(), subject=concept, class_noun="man")).abs().max() > 0.01


@pytest.mark.parametrize("name", ["ada", "full"])
def test_unloaded_the_pipeline_is_the_one_of_before_bit_for_bit(pipe, learnt, name):
    state, images = everything(pipe), sample(pipe, image=photo())
    pipe.load_concept(learnt[name])
    sample(pipe)
    pipe.unload_concept()
    assert pipe.concepts == {}
    assert torch.equal(sample(pipe, image=photo()), images)
    after = everything(pipe)
    for key in state:  # PEFT freezes what it adds adapters to; nothing else may differ
        if key.endswith(" learns"):
            after[key] = state[key]
    assert_same(state, after)


@pytest.mark.parametrize("name", ["ada", "full"])
def test_scale_0_is_the_untouched_base_bit_for_bit(pipe, learnt, name):
    base = sample(pipe, subject=learnt[name], class_noun="man")
    pipe.load_concept(learnt[name])
    changed = sample(pipe)
    pipe.set_concept_scale(0.0)
    assert torch.equal(sample(pipe), base)
    pipe.set_concept_scale(1)
    assert torch.equal(sample(pipe), changed)


@pytest.mark.parametrize("name", ["ada", "full"])
def test_a_call_with_a_photo_does_not_see_the_loaded_concept(pipe, learnt, name):
    images = sample(pipe, image=photo(24))
    pipe.load_concept(learnt[name])
    assert torch.equal(sample(pipe, image=photo(24)), images)


def test_no_image_encoder_is_needed(learnt):
    pipe = tiny_pipeline(image_encoder=None, feature_extractor=None)
    pipe.load_concept(learnt["ada"])
    assert sample(pipe).isfinite().all()


def test_a_concept_brings_its_class_noun(pipe, learnt):
    pipe.load_concept(learnt["bob"])
    pipe.set_concept_scale(0.0)
    expected = sample(pipe, subject=learnt["bob"], class_noun="dog")
    assert torch.equal(sample(pipe, class_noun="man"), expected)
    assert not torch.equal(sample(pipe, class_prompt="a man"), expected)


def test_a_folder_will_do(pipe, learnt, tmp_path):
    learnt["ada"].save_pretrained(tmp_path)
    pipe.load_concept(learnt["ada"])
    images = sample(pipe)
    pipe.unload_concept()
    pipe.load_concept(str(tmp_path))
    assert torch.equal(sample(pipe), images)


# --- Several --------------------------------------------------------------------------------------------------------


def test_two_concepts_in_one_batch_one_per_prompt(pipe, learnt):
    pipe.load_concept(learnt["ada"], name="ada")
    pipe.load_concept(learnt["bob"], name="bob")
    both = sample(pipe, concept=["ada", "bob"], num_images_per_prompt=2)
    for name, rows in (("ada", slice(0, 2)), ("bob", slice(2, 4))):
        alone = sample(pipe, concept=name, num_images_per_prompt=2)
        torch.testing.assert_close(both[rows], alone[rows], atol=1e-4, rtol=1e-4)
        assert (both - alone).abs().max() > 0.01
    pipe.unload_concept("ada")
    assert list(pipe.concepts) == ["bob"]
    torch.testing.assert_close(sample(pipe)[1], sample(pipe, concept="bob")[1])


def test_scales_are_those_of_each_concept(pipe, learnt):
    pipe.load_concept(learnt["ada"], name="ada")
    pipe.load_concept(learnt["bob"], name="bob")
    before = sample(pipe, concept="ada")
    pipe.set_concept_scale(0.3, "bob")
    assert torch.equal(sample(pipe, concept="ada"), before)
    assert pipe.concepts["ada"].scale == 1 and pipe.concepts["bob"].scale == 0.3


def test_base_guidance_leaves_null_and_class_rows_to_the_base(learnt):
    """One DDIM step is affine in the prediction, so each row's share can be had alone, from merged weights."""
    concept, size = learnt["ada"], dict(num_inference_steps=1, num_fusion_steps=0)
    base, changed = tiny_pipeline(), merged(tiny_pipeline(), concept)
    only_class = dict(guidance_scale=0.0, class_guidance_scale=1.0)
    null = sample(base, subject=concept, class_prompt=["", ""], **only_class, **size)
    of_class = sample(base, subject=concept, class_noun="man", **only_class, **size)
    of_subject = sample(changed, subject=concept, guidance_scale=1.0, class_guidance_scale=0.0, **size)
    expected = null + 3 * (of_subject - null) + 2 * (of_class - null)
    pipe = tiny_pipeline()
    pipe.load_concept(concept)
    scales = dict(guidance_scale=3.0, class_guidance_scale=2.0)
    torch.testing.assert_close(sample(pipe, base_guidance=True, **scales, **size), expected, atol=1e-3, rtol=1e-3)
    assert (sample(pipe, **scales, **size) - expected).abs().max() > 0.003


@pytest.mark.parametrize(("mode", "by_the_base"), [("ada", True), ("full", False)])
def test_the_base_guides_where_a_concept_lets_it(pipe, learnt, mode, by_the_base):
    pipe.load_concept(learnt[mode])
    assert torch.equal(sample(pipe, base_guidance=None), sample(pipe, base_guidance=by_the_base))


def test_base_guidance_without_subject_rows_is_the_base_bit_for_bit(pipe, learnt):
    settings = dict(guidance_scale=0.0, num_fusion_steps=0)
    base = sample(pipe, subject=learnt["ada"], class_noun="man", **settings)
    pipe.load_concept(learnt["ada"])
    assert torch.equal(sample(pipe, base_guidance=True, **settings), base)


def test_several_full_concepts_can_be_loaded_and_used_in_turn(pipe, learnt):
    pipe.load_concept(learnt["full"], name="one")
    alone = sample(pipe)
    pipe.load_concept(learnt["full"], name="two")
    pipe.set_concept_scale(0.5, "two")
    assert torch.equal(sample(pipe, concept="one"), alone)
    assert not torch.equal(sample(pipe, concept="two"), alone)


@pytest.mark.parametrize("name", ["ada", "full"])
def test_concepts_are_laid_out_once_per_call_and_not_at_every_step(pipe, learnt, name, monkeypatch):
    """Which row is whose, hooks and weights: what a concept costs once doesn't grow with the steps."""
    counts = Counter()

    def count(owner, name):
        before = getattr(owner, name)

        def counting(*args, **kwargs):
            counts[name] += 1
            return before(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    pipe.load_concept(learnt[name])
    count(torch.Tensor, "tolist")  # waits for a GPU
    count(nn.Module, "register_forward_pre_hook")
    count(pipe, "_adapters_of")
    count(adapters, "with_changes")
    work = []
    for steps in (1, 4):
        counts.clear()
        sample(pipe, num_inference_steps=steps)
        work.append(dict(counts))
    assert work[0] == work[1]
    assert work[0]["_adapters_of"] == 3  # both stages, and one without guidance
    assert work[0].get("with_changes", 0) == (2 if name == "full" else 0)  # UNet and PromptNet


def test_a_callback_changes_the_scale_from_the_next_step_on(pipe, learnt):
    pipe.load_concept(learnt["ada"])

    def steps(scale_after_the_first: float) -> list[torch.Tensor]:
        latents = []

        def change(pipe, index, timestep, tensors):
            latents.append(tensors["latents"])
            pipe.set_concept_scale(scale_after_the_first)
            return tensors

        pipe.set_concept_scale(1.0)
        sample(pipe, callback_on_step_end=change)
        return latents

    kept, muted = steps(1.0), steps(0.0)
    assert torch.equal(kept[0], muted[0]) and not torch.equal(kept[1], muted[1])


def test_a_lora_of_somebody_else_stays_active(pipe, learnt):
    """For all rows, with a concept and without; it is not touched by loading, unloading and customising."""
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False), "style")
    images = sample(pipe, image=photo())
    pipe.load_concept(learnt["ada"])
    assert active_adapters(pipe.unet) == ["style"]
    assert torch.equal(sample(pipe, image=photo()), images)
    with_both = sample(pipe)
    pipe.set_concept_scale(0.0)
    with_style = sample(pipe)
    pipe.set_concept_scale(1.0)
    assert torch.equal(with_style, sample(pipe, subject=learnt["ada"], class_noun="man"))
    assert not torch.equal(with_style, with_both)
    pipe.customize(photo(), QUICK, steps=1)
    pipe.unload_concept()
    assert active_adapters(pipe.unet) == ["style"]
    assert torch.equal(sample(pipe, image=photo()), images)


REMOTE = """
import sys
sys.path += {paths}
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("pipeline", trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
pipe.load_concept("ada")
generator = torch.Generator().manual_seed(0)
torch.save(pipe({prompts}, num_inference_steps=2, generator=generator, output_type="latent").images, "latents.pt")
try:
    pipe.customize("me.png")
except ImportError as error:
    print(error)
"""


def test_where_only_the_code_of_a_repository_is(pipe, learnt, tmp_path):
    """A concept gives the same there; making one needs the package, and the sentence says so."""
    pipe.save_pretrained(tmp_path / "pipeline")
    learnt["ada"].save_pretrained(tmp_path / "ada")
    # -I and -S leave out everything but what is named here, an editable installation of this project included.
    code = REMOTE.format(paths=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")], prompts=PROMPTS)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Customising is not part of the code that a pipeline carries: install the package" in done.stdout
    pipe.load_concept(learnt["ada"])
    assert torch.equal(torch.load(tmp_path / "latents.pt", weights_only=True), sample(pipe, base_guidance=None))


def offload(pipe) -> None:
    """What `enable_sequential_cpu_offload` does, which insists on an accelerator."""
    accelerate = pytest.importorskip("accelerate")
    for component in ("text_encoder", "unet", "promptnet"):
        accelerate.cpu_offload(getattr(pipe, component), torch.device("cpu"), offload_buffers=True)


def test_loaded_before_sequential_offload(pipe, learnt):
    pipe.load_concept(learnt["ada"])
    in_memory = {}
    for scale in (0, 1):
        pipe.set_concept_scale(scale)
        in_memory[scale] = sample(pipe)
    assert not torch.equal(in_memory[0], in_memory[1])
    offload(pipe)
    assert pipe.unet.device.type == "meta"
    for scale, latents in in_memory.items():
        pipe.set_concept_scale(scale)
        assert torch.equal(sample(pipe), latents)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_a_compiled_pipeline_draws_the_same_with_concepts(pipe, learnt, how):
    """Loaded, several, weakened, unloaded; over the steps of a call nothing is compiled again."""
    torch.compiler.reset()
    plain = tiny_pipeline()
    for name in ("unet", "promptnet"):
        if how == "in place":
            getattr(pipe, name).compile(backend="eager")
        else:
            setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))

    def assert_equal(**settings):
        assert torch.equal(sample(pipe, **settings), sample(plain, **settings))

    assert_equal(image=photo())
    for one in (pipe, plain):
        one.load_concept(learnt["ada"], name="ada")
    assert_equal(concept="ada")
    assert_equal(concept="ada", base_guidance=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_equal(concept="ada", num_inference_steps=4)
        assert_equal(concept="ada", num_inference_steps=4, base_guidance=True)
    assert_equal(image=photo())
    for one in (pipe, plain):
        one.set_concept_scale(0.3)
        one.load_concept(learnt["bob"], name="bob")
        one.load_concept(learnt["full"], name="full")
    for concept in (["ada", "bob"], "full"):
        assert_equal(concept=concept)
    for one in (pipe, plain):
        one.unload_concept()
    assert_equal(image=photo())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["ada", "full"])
def test_concepts_under_model_offload_on_a_gpu(pipe, learnt, name):
    """The UNet comes and goes while its weights are the concept's."""
    pytest.importorskip("accelerate")
    pipe.to("cuda")
    base = sample(pipe, image=photo())
    pipe.load_concept(learnt[name])
    changed = sample(pipe)
    pipe.to("cpu")
    pipe.enable_model_cpu_offload()
    for _ in range(2):
        torch.testing.assert_close(sample(pipe), changed, atol=1e-4, rtol=1e-4)
    pipe.unload_concept()
    torch.testing.assert_close(sample(pipe, image=photo()), base, atol=1e-4, rtol=1e-4)


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["concept", "lora"])
def test_a_pipeline_with_adapters_is_not_saved(pipe, learnt, kind, tmp_path):
    from peft import LoraConfig

    def refused():
        return pytest.raises(ValueError, match=r"can't be saved while .* adapters in unet.*: `unload_concept\(\)`")

    if kind == "concept":
        pipe.load_concept(learnt["ada"])
    else:
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"]), "style")
    with refused():
        pipe.save_pretrained(tmp_path / "saved")
    with refused():
        pipe.push_to_hub("me/saved")
    assert not (tmp_path / "saved").exists()
    pipe.unload_concept() if kind == "concept" else pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    assert hash_of(ProFusionPipeline.from_pretrained(tmp_path / "saved")) == hash_of(pipe)


def test_a_pipeline_with_a_full_concept_is_saved_without_it(pipe, learnt, tmp_path):
    pipe.load_concept(learnt["full"])
    pipe.save_pretrained(tmp_path)
    assert hash_of(ProFusionPipeline.from_pretrained(tmp_path)) == hash_of(tiny_pipeline())


def test_a_concept_for_another_base(learnt):
    with pytest.raises(ValueError, match=r"was made for .*, but those of this pipeline have .* fits its own base only"):
        tiny_pipeline(unet=make_components(seed=3)["unet"]).load_concept(learnt["ada"])


@pytest.mark.parametrize("name", ["", "ada.v2", "a b", 3])
def test_a_name_that_is_none(pipe, learnt, name):
    with pytest.raises(ValueError, match="`name` must be made of up to 100 letters, digits, `_` and `-`, got"):
        pipe.load_concept(learnt["ada"], name=name)


def test_both_models_or_neither(learnt, monkeypatch):
    """PromptNet's part fails: the UNet is as before, and the good concept loads under that name."""
    pipe, broken = tiny_pipeline(), RuntimeError("no room")
    before = sample(pipe, image=photo())
    monkeypatch.setattr(pipe.promptnet, "load_lora_adapter", lambda *args, **kwargs: (_ for _ in ()).throw(broken))
    with pytest.raises(RuntimeError, match="no room"):
        pipe.load_concept(learnt["ada"], name="ada")
    monkeypatch.undo()
    assert not pipe.concepts and not getattr(pipe.unet, "peft_config", None)
    assert torch.equal(sample(pipe, image=photo()), before)
    pipe.load_concept(learnt["ada"], name="ada")
    assert not torch.equal(sample(pipe), before)


def test_changes_of_other_shapes_are_refused_before_anything_is_touched(pipe, learnt):
    for name in ("ada", "full"):
        changes = learnt[name].changes
        one = next(iter(changes))
        for bad in (changes[one][:1], changes[one].flatten()[:1], changes[one][None]):
            concept = replace(learnt[name], changes=changes | {one: bad})
            with pytest.raises(ValueError, match="change weights that UNet2DConditionModel has, in their own"):
                pipe.load_concept(concept)
        elsewhere = replace(learnt[name], changes=changes | {f"promptnet.{one}": changes[one]})
        with pytest.raises(ValueError, match="must change weights that PromptNet has"):
            pipe.load_concept(elsewhere)
    assert not pipe.concepts and not getattr(pipe.unet, "peft_config", None)


def test_a_name_that_is_taken(pipe, learnt):
    pipe.load_concept(learnt["ada"])
    with pytest.raises(ValueError, match="`name` 'concept' is taken: unload that concept first"):
        pipe.load_concept(learnt["bob"])


def test_without_peft(pipe, learnt, monkeypatch):
    assert is_peft_available()
    monkeypatch.setattr("profusion_pipeline.method.concept_loader.is_peft_available", lambda: False)
    with pytest.raises(ImportError, match="A concept in lora mode needs PEFT: `pip install peft`"):
        pipe.load_concept(learnt["ada"])
    pipe.load_concept(learnt["full"])  # which needs none


def test_names_that_are_not_loaded(pipe, learnt):
    for act in (
        lambda: sample(pipe, concept="ada"),
        lambda: pipe.unload_concept("ada"),
        lambda: pipe.set_concept_scale(1.0, "ada"),
    ):
        with pytest.raises(ValueError, match=r"must be the name of a loaded concept \(none\), got 'ada'"):
            act()
    pipe.load_concept(learnt["ada"], name="ada")
    with pytest.raises(ValueError, match=r"`concept` must be the name of a loaded concept \('ada'\), got 'eve'"):
        sample(pipe, concept=["ada", "eve"])


def test_several_and_none_named(pipe, learnt):
    pipe.load_concept(learnt["ada"], name="ada")
    pipe.load_concept(learnt["bob"], name="bob")
    with pytest.raises(ValueError, match=r"must name one of the 2 loaded concepts \('ada', 'bob'\), or one for each"):
        sample(pipe)


def test_contradictions_of_a_call(pipe, learnt):
    pipe.load_concept(learnt["ada"], name="ada")
    with pytest.raises(ValueError, match="`concept` must have an entry for each of 2 prompts, got 1"):
        sample(pipe, concept=["ada"])
    with pytest.raises(ValueError, match="`concept` holds its own subject: give it, or `image` or `subject`, not both"):
        sample(pipe, concept="ada", image=photo())
    pipe.load_concept(learnt["full"], name="full")
    for settings in (dict(concept="full", base_guidance=True), dict(concept=["ada", "full"])):
        with pytest.raises(ValueError, match="'full' was made in full mode, .* with `base_guidance=False`"):
            sample(pipe, **settings)


@pytest.mark.parametrize("kind", ["sequential", pytest.param("group", marks=needs_group_offloading)])
def test_a_full_concept_under_offloading(pipe, learnt, kind):
    from diffusers.hooks import apply_group_offloading

    pipe.load_concept(learnt["full"])
    if kind == "sequential":
        offload(pipe)
    else:
        apply_group_offloading(pipe.unet, torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(ValueError, match="'concept' was made in full mode, .* under sequential or group off-loading"):
        sample(pipe)


def test_a_scale_below_0_leads_away(pipe, learnt):
    """The changes count with the other sign: what full mode adds, it takes away."""
    for name in ("ada", "full"):
        pipe.load_concept(learnt[name], name=name)
        pipe.set_concept_scale(-1.0, name)
        turned = replace(learnt[name], changes=turn(learnt[name].changes))
        pipe.load_concept(turned, name="turned")
        torch.testing.assert_close(sample(pipe, concept=name), sample(pipe, concept="turned"), rtol=1e-4, atol=1e-4)
        pipe.unload_concept()


def turn(changes: dict) -> dict:
    return {name: change if ".lora_A." in name else -change for name, change in changes.items()}


@pytest.mark.parametrize("concept", [3, None, [], object])
def test_what_is_no_concept(pipe, concept):
    with pytest.raises(TypeError, match="`concept` must be a Concept, or where one lies, got"):
        pipe.load_concept(concept)


def test_a_concept_that_changes_one_model_only(pipe, learnt):
    changes = {name: change for name, change in learnt["ada"].changes.items() if name.startswith("unet.")}
    with pytest.raises(ValueError, match="The concept must change something of PromptNet, got nothing"):
        pipe.load_concept(replace(learnt["ada"], changes=changes))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_out_of_range(pipe, scale):
    with pytest.raises(ValueError, match="`scale` must be a finite number, got"):
        pipe.set_concept_scale(scale)


@pytest.mark.parametrize("scale", ["1", None, True])
def test_a_scale_that_is_no_number(pipe, scale):
    with pytest.raises(TypeError, match="`scale` must be a number, got"):
        pipe.set_concept_scale(scale)


def test_adapters_that_somebody_took_away(pipe, learnt):
    pipe.load_concept(learnt["ada"])
    pipe.unload_lora_weights()
    with pytest.raises(ValueError, match="adapters of the concept 'concept' are gone, as after `unload_lora_weights`"):
        sample(pipe)
    pipe.unload_concept()
    pipe.load_concept(learnt["ada"])
    assert len(sample(pipe)) == len(PROMPTS)


def test_fused_projections(pipe, learnt):
    pipe.load_concept(learnt["ada"])
    pipe.fuse_qkv_projections()
    with pytest.raises(ValueError, match="'concept' changes to_q, to_k and to_v, which UNet2DConditionModel has fused"):
        sample(pipe)
    pipe.unfuse_qkv_projections()
    assert len(sample(pipe)) == len(PROMPTS)


def test_concepts_are_shown_in_a_few_lines(pipe):
    assert repr(pipe.concepts) == "no concepts"
    pipe.load_concept(learn()["ada"], "ada")
    assert repr(pipe.concepts).startswith("1 concept\n'ada' x 1: Concept('man', mode='lora', 3 steps")
    for number in range(9):
        pipe.load_concept(learn()["bob"], f"bob-{number}")
    assert len(repr(pipe.concepts)) <= 300 and repr(pipe.concepts).endswith(" more")
    html = pipe.concepts._repr_html_()
    assert html.count("<tr>") == 10 and "<td>ada</td><td>x 1</td>" in html
