import pytest

from profusion_pipeline.common.sentences import sentence_of


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("Error(s) in loading state_dict for X:\n\tMissing key(s)\n\tb"), "X: Missing key(s)"),
        (OSError("\n\n404 Client Error. (Request ID: 1)\n\nRepository Not Found.\nSee"), "Repository Not Found."),
        (RuntimeError("Process 0:\nTraceback (most recent call last):\n  File\nValueError: why"), "ValueError: why"),
        (KeyError("x"), "KeyError 'x'"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_one_sentence(error, sentence):
    with pytest.raises(type(error)) as caught:
        raise error
    assert sentence_of(caught.value).endswith(sentence)


def test_our_own_are_longer_than_a_librarys():
    from profusion_pipeline.method.checks import check_choice

    with pytest.raises(ValueError) as theirs:
        raise ValueError("x" * 1000)
    with pytest.raises(ValueError) as ours:
        check_choice("name", "x", ["y" * 1000])
    assert (len(sentence_of(theirs.value)), len(sentence_of(ours.value))) == (300, 500)
