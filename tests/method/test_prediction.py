"""The loop's equations are in the tests of the pipeline; here is which rows a call's state asks for."""

import torch

from profusion_pipeline.method.concept_loader import CallConcepts
from profusion_pipeline.method.guidance_rows import ReferenceRows
from profusion_pipeline.method.guidance_scales import Guidance
from profusion_pipeline.method.pipeline_profusion import ProFusionPipeline
from profusion_pipeline.method.prediction import CallState, SharedSubject, plan_rows, predict
from profusion_pipeline.method.subject_embedding import SubjectEmbedding


def make_state(models=None, **guidance) -> CallState:
    subject = SubjectEmbedding(torch.ones(2, 4, 8, 8), torch.ones(2, 5, 24), torch.tensor([3.0, 1.0]))
    states = torch.zeros(1, 77, 32)
    return CallState(
        guidance=Guidance.from_call(ProFusionPipeline.__call__, **guidance),
        null_states=states,
        class_states=states + 1,
        references=ReferenceRows.of([subject], torch.zeros(1, 77).long(), torch.tensor([4]), 1, like=states),
        concepts=CallConcepts(),
        models=models or {},
        cross_attention_kwargs=None,
        lora_scale=1.0,
    )


def test_the_fusion_stage_reads_proportions_and_the_refinement_stage_weights():
    fusion, refinement, _ = plan_rows(make_state(fusion_guidance_scale=4.0, guidance_scale=2.0))
    assert fusion.weights.tolist() == [3.0, 1.0] and fusion.owner.tolist() == [0, 0, 0]
    assert refinement.weights.tolist() == [5.0, 6.0, 2.0] and refinement.owner.tolist() == [0, 0, 0, 0]
    assert (fusion.subject_scale, refinement.subject_scale) == (0.6, 1.0)


@torch.no_grad()
def test_without_weights_it_is_the_prediction_of_the_null_text(pipe):
    models = {"unet": pipe.unet}
    state = make_state(models, guidance_scale=0.0, class_guidance_scale=0.0)
    latents, t = torch.randn(1, 4, 8, 8), torch.tensor(500)
    expected = pipe.unet(latents, t, state.null_states).sample
    assert torch.equal(predict(state, plan_rows(state)[1], latents, t, SharedSubject(state.guidance)), expected)


def test_without_guidance_rows_are_mixed_by_proportions():
    *_, unguided = plan_rows(make_state(guidance_scale=7.0))
    assert (unguided.weights.tolist(), unguided.owner.tolist(), unguided.num_null) == ([0.75, 0.25], [0, 0], 0)
    *_, unguided = plan_rows(make_state(guidance_scale=0.0, class_guidance_scale=5.0))
    assert (unguided.weights.tolist(), unguided.has_subject, unguided.num_null) == ([1.0], False, 0)


def test_the_deviation_to_keep_is_that_of_all_references_mixed_or_of_the_text():
    _, refinement, unguided = plan_rows(make_state(guidance_rescale=0.5))
    assert refinement.target.tolist() == [0.0, 0.75, 0.25] and refinement.rescale == 0.5
    assert unguided.target is None and unguided.rescale == 0
    refinement = plan_rows(make_state(guidance_rescale=0.5, guidance_scale=0.0))[1]
    assert refinement.target.tolist() == [1.0]
    refinement = plan_rows(make_state(guidance_rescale=0.5, guidance_scale=0.0, class_guidance_scale=0.0))[1]
    assert refinement.rescale == 0
