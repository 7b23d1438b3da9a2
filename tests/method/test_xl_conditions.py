import torch

from profusion_pipeline.method.xl_conditions import AddedConditions


def test_rows_stand_in_the_order_of_a_prediction():
    added = AddedConditions(
        null_pooled=torch.zeros(2, 3),
        class_pooled=torch.ones(2, 3),
        null_sizes=torch.zeros(6),
        sizes=torch.arange(6.0),
    )
    rows = added.of_rows(num_null=2, num_class=2, subject_pooled=torch.full((3, 3), 2.0))
    assert rows["text_embeds"][:, 0].tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert rows["time_ids"][:, 5].tolist() == [0, 0, 5, 5, 5, 5, 5]
    rows = added.of_rows(num_null=0, num_class=2)
    assert rows["text_embeds"].shape == (2, 3) and rows["time_ids"].shape == (2, 6)
