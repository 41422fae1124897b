"""Language models of the hub: tokens go in untouched, padded logits are cut, folders open with transformers alone."""

import pytest
import torch
from torch import nn

import stillroom
from stillroom import hub
from stillroom.data import CharacterTokenizer
from stillroom.hub.language import tokenizer_of_models

TEXT = "to be or not to be, that is the question; whether it is nobler in the mind to suffer. " * 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two GPT-2s of one tiny tokenizer, the larger one padded, and one of another tokenizer."""
    import tokenizers
    import transformers

    def tokenizer(size):
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<end>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator([TEXT], trainer)
        return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")

    place = tmp_path_factory.mktemp("models")
    one, other = tokenizer(280), tokenizer(270)
    for name, made, width, vocabulary in (
        ("big", one, 32, 320),
        ("small", one, 16, len(one)),
        ("other", other, 16, len(other)),
    ):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=vocabulary, n_positions=64, n_embd=width, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(place / name)
        made.save_pretrained(place / name)
    return place


def test_tokens_go_through_untouched():
    net = nn.Embedding(7, 7)
    model = hub.language_model(hub.load(net, classes=7), None)
    tokens = torch.randint(7, (2, 5))
    assert torch.equal(model(tokens), net(tokens))
    with pytest.raises(TypeError, match=r"integers, given torch.float32"):
        model(tokens.float())


def test_the_embedded_model_is_causal():
    model = hub.load("gpt-1-48", classes=30, channels=12).eval()
    tokens = torch.randint(30, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 30
    assert model(tokens).shape == (2, 12, 30)
    assert torch.allclose(model(tokens)[:, :7], model(changed)[:, :7], atol=1e-6)
    assert not torch.allclose(model(tokens)[:, 7:], model(changed)[:, 7:])
    assert "takes token numbers" in hub.describe(model)
    with pytest.raises(ValueError, match="size of a vocabulary"):
        hub.load("gpt-1-48")


def test_padded_logits_are_cut_to_the_tokenizer(folders):
    tokenizer = hub.load_tokenizer(f"hf/{folders / 'big'}")
    model = hub.language_model(hub.load(f"hf/{folders / 'big'}", classes=len(tokenizer)), tokenizer).eval()
    tokens = torch.tensor([tokenizer.encode("to be or not")])
    assert model(tokens).shape == (1, tokens.shape[1], 280)
    assert torch.equal(model(tokens), model.net(tokens).logits[..., :280])
    assert model.net(tokens).logits.shape[-1] == 320
    with pytest.raises(ValueError, match=r"gives 320 logits.*400"):
        hub.load(f"hf/{folders / 'big'}", classes=400)


def test_the_tokenizer_of_transformers_gives_its_text_back(folders):
    tokenizer = hub.load_tokenizer(folders / "small")
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.offsets(TEXT)[-1][1] == len(TEXT)
    assert tokenizer.end_id == 0
    splits = stillroom.task.LanguageModelling([TEXT], length=8, tokenizer=tokenizer).load()
    assert int(splits.train.fields["characters"].sum() + splits.validation.fields["characters"].sum()) < len(TEXT)


def test_models_of_two_vocabularies_are_refused(folders):
    big, small, other = (f"hf/{folders / name}" for name in ("big", "small", "other"))
    assert tokenizer_of_models(big, small) == big
    assert tokenizer_of_models("gpt-3-128", "gpt-1-48") is None
    with pytest.raises(ValueError, match=r"big has a vocabulary of 280 .*other another one of 270"):
        tokenizer_of_models(big, other)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        hub.load_tokenizer(tmp_path)


def test_a_saved_model_of_transformers_opens_with_transformers_alone(folders, tmp_path):
    import transformers

    tokenizer = hub.load_tokenizer(folders / "small")
    model = hub.language_model(hub.load(f"hf/{folders / 'small'}", classes=280), tokenizer).eval()
    hub.save(model, tmp_path / "student")
    tokens = torch.tensor([tokenizer.encode("to be")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    assert torch.allclose(theirs(tokens).logits, model(tokens), atol=1e-6)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "student")
    assert again("to be", add_special_tokens=False)["input_ids"] == tokens[0].tolist()
    ours = stillroom.load(tmp_path / "student")
    assert torch.equal(ours(tokens), model(tokens))
    assert ours.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert "AutoModelForCausalLM" in (tmp_path / "student" / "README.md").read_text()


def test_an_embedded_model_keeps_its_tokenizer(tmp_path):
    tokenizer = CharacterTokenizer("abc")
    model = hub.language_model(hub.load("gpt-1-16", classes=5, channels=8), tokenizer).eval()
    hub.save(model, tmp_path)
    again = stillroom.load(tmp_path)
    tokens = torch.tensor([tokenizer.encode("abacab")])
    assert torch.equal(again(tokens), model(tokens))
    assert again.tokenizer == tokenizer


def test_a_language_model_is_exported(tmp_path):
    model = hub.load("gpt-1-16", classes=5, channels=8).eval()
    written = hub.export(model, tmp_path / "model.onnx")
    assert written.max_error < 1e-4


def test_a_module_of_transformers_is_saved_for_transformers(folders, tmp_path):
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(folders / "small").eval()
    hub.save(hub.load(net, classes=280), tmp_path / "student")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    tokens = torch.randint(280, (1, 6))
    assert torch.allclose(theirs(tokens).logits, net(tokens).logits, atol=1e-6)


def test_a_tokenizer_of_transformers_is_taken_as_it_is(folders):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / "small")
    splits = stillroom.task.LanguageModelling([TEXT], length=8, tokenizer=tokenizer).load()
    assert len(splits.tokenizer) == 280
