"""Padded logits are cut to the tokenizer's size, and other vocabularies are refused with names and sizes."""

import pytest
import torch

from stillroom.data import CharacterTokenizer
from stillroom.language import cut_to_vocabulary, require_one_vocabulary
from stillroom.losses import kl_divergence, vocabulary_kl


@pytest.mark.parametrize(("width", "size"), [(98, 98), (128, 98), (151_936, 151_665), (51_200, 50_295)])
def test_padding_is_cut(width, size):
    logits = torch.arange(2.0 * width).view(1, 2, width).requires_grad_()
    cut = cut_to_vocabulary(logits, size)
    assert torch.equal(cut, logits[..., :size])
    cut.softmax(-1).square().sum().mul(3).backward()
    assert not logits.grad[..., size:].any()


def test_output_layers_of_different_padding_are_cut_to_one_vocabulary():
    tokenizer = CharacterTokenizer("abc")
    hidden, theirs = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2)
    wide, wider, bias = torch.randn(8, 3, requires_grad=True), torch.randn(64, 2), torch.randn(64)
    heads = [cut_to_vocabulary(one, tokenizer, dim=0) for one in (wide, wider, bias)]
    assert [tuple(head.shape) for head in heads] == [(5, 3), (5, 2), (5,)]
    loss = vocabulary_kl(hidden, heads[0], theirs, heads[1], teacher_bias=heads[2])
    logits = cut_to_vocabulary(hidden @ wide.T, tokenizer), cut_to_vocabulary(theirs @ wider.T + bias, tokenizer)
    right = kl_divergence(*logits)
    torch.testing.assert_close(loss, right)
    for found, expected in zip(*(torch.autograd.grad(3 * one, [hidden, wide]) for one in (loss, right)), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"teacher gives 4 logits.*\(3 characters\) has 5 tokens"):
        cut_to_vocabulary(wider[:4], tokenizer, whose="the teacher", dim=0)
    with pytest.raises(ValueError, match=r"student_matrix has 8 rows, but teacher_matrix has 64: .*dim=0"):
        vocabulary_kl(hidden, wide, theirs, wider)


def test_the_size_is_asked_of_the_tokenizer():
    tokenizer = CharacterTokenizer("abc")
    assert cut_to_vocabulary(torch.zeros(4, 8), tokenizer).shape == (4, 5)
    with pytest.raises(ValueError, match=r"teacher gives 4 logits.*\(3 characters\) has 5 tokens"):
        cut_to_vocabulary(torch.zeros(2, 4), tokenizer, whose="the teacher")


@pytest.mark.parametrize(("width", "size", "most"), [(300, 100, 128), (51_400, 50_257, 1024), (2400, 2000, 250)])
def test_too_many_logits_are_no_padding(width, size, most):
    with pytest.raises(ValueError, match=rf"gives {width} logits.*{width - size} more than the {size}.*at most {most}"):
        cut_to_vocabulary(torch.zeros(1, width), size)


def test_two_vocabularies_are_refused_with_both_sizes():
    one, other = CharacterTokenizer("abc"), CharacterTokenizer("abdc")
    require_one_vocabulary(one, CharacterTokenizer("abc"), teacher_name="big", student_name="small")
    with pytest.raises(ValueError, match=r"teacher big has a vocabulary of 3 .*student small another one of 4 .*'c'"):
        require_one_vocabulary(one, other, teacher_name="big", student_name="small")


def test_one_size_is_not_one_vocabulary():
    with pytest.raises(ValueError, match="'a' is number 2 and number 3"):
        require_one_vocabulary(CharacterTokenizer("ab"), CharacterTokenizer("ba"), teacher_name="a", student_name="b")
