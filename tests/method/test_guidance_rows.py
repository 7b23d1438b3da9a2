import math

import pytest
import torch

from profusion_pipeline.method.guidance_rows import GuidanceRows, ReferenceRows
from profusion_pipeline.method.subject_embedding import SubjectEmbedding

pytestmark = pytest.mark.numeric


def subject(number, weights):
    references = len(weights)
    latents = torch.full((references, 4, 8, 8), float(number)) + torch.arange(references)[:, None, None, None] / 10
    return SubjectEmbedding(latents, torch.full((references, 5, 24), float(number)), torch.tensor(weights).double())


@pytest.fixture
def references():
    """Two prompts, two pictures of each; three references of one subject, one without weight, and one of the other."""
    ids = torch.stack([torch.full((77,), 1), torch.full((77,), 2)])
    subjects = [subject(1, [0.5, 0.0, 1.5]), subject(2, [3.0])]
    return ReferenceRows.of(subjects, ids, torch.tensor([4, 7]), 2, like=torch.zeros(1, dtype=torch.bfloat16))


def test_references_stand_picture_by_picture(references):
    assert references.owner.tolist() == [0, 0, 1, 1, 2, 3]
    assert references.weights == [0.5, 1.5, 0.5, 1.5, 3.0, 3.0]
    assert references.proportions == [0.25, 0.75, 0.25, 0.75, 1.0, 1.0]
    assert references.positions.tolist() == [4, 4, 4, 4, 7, 7]
    assert references.input_ids[:, 0].tolist() == [1, 1, 1, 1, 2, 2]
    expected = torch.tensor([1.0, 1.2, 1.0, 1.2, 2.0, 2.0]).bfloat16()
    assert torch.equal(references.latents[:, 0, 0, 0], expected)
    assert references.image_states.shape == (6, 5, 24) and references.image_states.dtype == torch.bfloat16


def plan(references, class_weight, subject_weight):
    states = torch.zeros(4, 77, 8)
    weights = [subject_weight * proportion for proportion in references.proportions]
    return GuidanceRows.plan(states, states + 1, references.owner, class_weight, weights, subject_scale=0.6)


def test_all_kinds_of_rows(references):
    rows = plan(references, 5.0, 7.0)
    assert rows.owner.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 1, 1, 2, 3]
    assert rows.weights.tolist() == [5.0] * 4 + [1.75, 5.25, 1.75, 5.25, 7.0, 7.0]
    assert rows.text_states[:, 0, 0].tolist() == [0.0] * 4 + [1.0] * 4
    assert (rows.num_null, rows.has_subject, rows.subject_scale) == (4, True, 0.6)


@pytest.mark.parametrize(
    ("class_weight", "subject_weight", "null", "classes", "subjects"),
    [
        (0.0, 7.0, 4, 0, 6),
        (5.0, 0.0, 4, 4, 0),
        (0.0, 0.0, 4, 0, 0),
        (1.0, 0.0, 0, 4, 0),
        (0.0, 1.0, 0, 0, 6),
        (0.25, 0.75, 0, 4, 6),
    ],
)
def test_rows_without_weight_are_left_out(references, class_weight, subject_weight, null, classes, subjects):
    rows = plan(references, class_weight, subject_weight)
    assert len(rows.owner) == null + classes + subjects
    assert len(rows.text_states) == null + classes
    assert len(rows.weights) == classes + subjects
    assert (rows.num_null, rows.has_subject) == (null, subjects > 0)
    if not null:
        totals = [0.0] * 4
        for picture, weight in zip(rows.owner.tolist(), rows.weights.tolist(), strict=True):
            totals[picture] += weight
        assert all(math.isclose(total, 1) for total in totals)


def test_null_stays_if_one_picture_needs_it():
    states, owner = torch.zeros(2, 77, 8), torch.tensor([0, 1])
    assert GuidanceRows.plan(states, None, owner, 0.0, [1.0, 2.0], subject_scale=1.0).num_null == 2


def test_proportions_that_sum_to_one_up_to_rounding_need_no_null():
    weights = [w / math.fsum([0.1, 0.7, 0.7]) for w in (0.1, 0.7, 0.7)]
    assert math.fsum(weights) != 1
    assert (
        GuidanceRows.plan(torch.zeros(1, 77, 8), None, torch.zeros(3).long(), 0.0, weights, subject_scale=1.0).num_null
        == 0
    )
