"""Generation: the same from a cache and from whole sequences, eval meanwhile, no gradient, limits and ends."""

import pytest
import torch
from torch import nn

from stillroom.blocks import CausalTransformer
from stillroom.language import Sequences, draw, evaluating, generate, logits_of

VOCABULARY, CONTEXT = 23, 24


@pytest.fixture(scope="module")
def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # fresh ones say nearly the same everywhere
    return model


class Whole(nn.Module):
    """The same model as a plain module tokens -> logits: asked about whole sequences."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens).logits


def prompts():
    draws = torch.Generator().manual_seed(1)
    return Sequences(torch.randint(1, VOCABULARY, (4, 6), generator=draws), torch.tensor([6, 2, 4, 1]))


def same(first, second):
    assert torch.equal(first.lengths, second.lengths)
    for one, other, length in zip(first.tokens, second.tokens, first.lengths, strict=True):
        assert torch.equal(one[:length], other[:length])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_cache_with_left_padding_says_what_whole_sequences_say(gpt2, temperature):
    found = [
        generate(
            model,
            prompts(),
            max_length=torch.tensor([20, 9, 24, 24]),
            temperature=temperature,
            end_token=3,
            generator=torch.Generator().manual_seed(5),
        )
        for model in (gpt2, Whole(gpt2))
    ]
    same(*found)
    assert len(set(found[0].lengths.tolist())) > 1


def test_it_is_what_transformers_generate(gpt2):
    ours = generate(gpt2, Sequences(prompts().tokens, torch.full((4,), 6)), max_length=16, temperature=0)
    tokens = prompts().tokens
    theirs = gpt2.eval().generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_length=16,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(ours.tokens, theirs)


def test_left_padding_brings_the_ends_together():
    tokens, mask, positions = Sequences(torch.tensor([[7, 8, 9], [5, 0, 0]]), torch.tensor([3, 1])).left_padded(2)
    assert tokens.tolist() == [[7, 8, 9], [2, 2, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 0]]


class Scripted(nn.Module):
    """Says that the token after t is t + 1; has dropout and a batch norm that would notice training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.modes: list[bool] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, tokens):
        self.modes.append(self.training or self.drop.training)
        return self.weight * 50 * nn.functional.one_hot((tokens + 1) % 10, 12).float()


def test_rows_end_at_their_limit_or_with_the_end_token_which_counts():
    found = generate(
        Scripted(),
        Sequences(torch.tensor([[1, 2], [5, 0], [7, 0]]), torch.tensor([2, 1, 1])),
        max_length=torch.tensor([5, 8, 8]),
        end_token=9,
    )
    assert [row[:end].tolist() for row, end in zip(found.tokens, found.lengths, strict=True)] == [
        [1, 2, 3, 4, 5],
        [5, 6, 7, 8, 9],
        [7, 8, 9],
    ]


def test_the_model_is_in_eval_meanwhile_and_every_part_in_its_own_mode_afterwards():
    model = Scripted().train()
    model.frozen.eval()
    found = generate(model, Sequences(torch.tensor([[1]]), torch.tensor([1])), max_length=4)
    assert model.modes == [False, False, False]
    assert (model.training, model.drop.training, model.frozen.training) == (True, True, False)
    assert not found.tokens.requires_grad
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        raise RuntimeError("inside")
    assert model.training


def test_padded_vocabularies_are_never_drawn():
    class Padded(nn.Module):
        def forward(self, tokens):
            return torch.cat([torch.zeros(*tokens.shape, 5), torch.full((*tokens.shape, 3), 9.0)], dim=-1)

    found = generate(Padded(), Sequences(torch.zeros(8, 1, dtype=torch.int64), torch.ones(8).long()), max_length=9,
                     vocabulary_size=5)  # fmt: skip
    assert int(found.tokens.max()) < 5


def test_draws_follow_temperature_top_k_and_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    draws = torch.Generator().manual_seed(0)
    share = draw(logits, generator=draws).bincount(minlength=4) / 4000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03, rtol=0)
    assert draw(logits, top_k=2, generator=draws).unique().tolist() == [0, 1]
    assert draw(logits, top_p=0.6, generator=draws).unique().tolist() == [0, 1]
    assert draw(logits, top_p=0.01, generator=draws).unique().tolist() == [0]
    assert draw(logits, temperature=0, generator=draws).unique().tolist() == [0]
    assert float((draw(logits, temperature=100.0, generator=draws) == 3).float().mean()) > 0.2


def test_one_seed_gives_one_text():
    model = CausalTransformer(VOCABULARY, width=8, depth=1, heads=2, context=CONTEXT)
    texts = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        texts.append(generate(model, prompts(), max_length=CONTEXT).tokens)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_wrong_arguments_are_refused():
    model = Scripted()
    with pytest.raises(ValueError, match="prompt 0 has 6 tokens, more than max_length=5"):
        generate(model, prompts(), max_length=5)
    with pytest.raises(ValueError, match=r"given -1, 0 and 1\.0"):
        generate(model, prompts(), max_length=9, temperature=-1)
    with pytest.raises(ValueError, match=r"lengths must lie in \[1, 6\], given 0 to 3"):
        Sequences(prompts().tokens, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"tokens must be \(N, L\) int64"):
        Sequences(torch.zeros(2, 3), torch.tensor([1, 1]))
    with pytest.raises(TypeError, match="must answer with logits"):
        logits_of({"scores": 1})
