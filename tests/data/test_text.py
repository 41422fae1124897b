"""Text as token blocks: labels one token later, nothing lost, no paragraph in two splits."""

import pytest
import torch

from stillroom.data import CharacterTokenizer, Passage, documentation, load_data, text_splits, token_blocks
from stillroom.data.text import documentation_topics


@pytest.fixture(scope="module")
def splits():
    return documentation(length=64)


def test_characters_come_back_and_unknown_ones_are_marked():
    tokenizer = CharacterTokenizer.fit(["to be or not to be"], size=5)
    assert len(tokenizer) == 7
    assert tokenizer.decode(tokenizer.encode("to be")) == "to be"
    assert tokenizer.encode("t?") == [tokenizer.encode("t")[0], 0]
    assert tokenizer.decode([0, 1]) == "\N{REPLACEMENT CHARACTER}"
    assert tokenizer.offsets("be") == [(0, 1), (1, 2)]
    with pytest.raises(ValueError, match="each once"):
        CharacterTokenizer("aa")


def test_a_tokenizer_is_kept_beside_a_model(tmp_path):
    tokenizer = CharacterTokenizer("ab\n\N{EURO SIGN}")
    tokenizer.save_pretrained(tmp_path)
    assert CharacterTokenizer.from_pretrained(tmp_path) == tokenizer


def test_labels_are_the_next_tokens():
    inputs, labels = token_blocks(torch.arange(10, 18), length=3, fill=1)
    assert inputs.tolist() == [[10, 11, 12], [13, 14, 15], [16, 1, 1]]
    assert labels.tolist() == [[11, 12, 13], [14, 15, 16], [17, -100, -100]]
    with pytest.raises(ValueError, match="shape"):
        token_blocks(torch.zeros(2, 3, dtype=torch.int64))


def test_every_character_is_a_label_once(splits):
    tokenizer = splits.tokenizer
    for part, topics in documentation_topics().items():
        samples = getattr(splits, part)
        batch = samples.batch(range(len(samples)))
        assert torch.equal(
            batch.inputs[:, 1:][batch.labels[:, 1:] != -100], batch.labels[:, :-1][batch.labels[:, 1:] != -100]
        )
        told = tokenizer.decode(batch.labels[batch.labels != -100].tolist())
        assert len(told) == sum(map(len, topics.values())) == int(batch.characters.sum())


def test_no_paragraph_is_in_two_splits():
    parts = documentation_topics()
    found = {
        part: {" ".join(paragraph.split()) for text in topics.values() for paragraph in text.split("\n\n")} - {""}
        for part, topics in parts.items()
    }
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]
    assert sum(len(topics) for topics in parts.values()) == len(set().union(*parts.values()))
    sizes = {part: sum(map(len, topics.values())) for part, topics in parts.items()}
    assert sizes["train"] > 5 * sizes["test"]
    assert sizes["test"] > sizes["validation"] > 20_000


def test_the_cut_does_not_depend_on_the_seed():
    one, other = (load_data("documentation", seed=seed, train_size=20) for seed in (0, 1))
    assert torch.equal(one.test.index, other.test.index)
    assert not torch.equal(one.train.index, other.train.index)
    assert one.tokenizer == other.tokenizer
    assert len(one.train) == 20
    assert not set(one.train.index.tolist()) & set(one.test.index.tolist())


def test_a_prompt_is_read_and_not_learned():
    tokenizer = CharacterTokenizer("abcdefgh")
    given = [Passage("fgh", prompt="abc")]
    batch = text_splits({"train": given, "test": given}, tokenizer, length=8).train.batch([0])
    assert tokenizer.decode(batch.inputs[0, :6].tolist()) == "abcfgh"
    assert batch.labels[0, :2].tolist() == [-100, -100]
    assert tokenizer.decode(batch.labels[0, 2:5].tolist()) == "fgh"
    assert batch.labels[0, 5:].tolist() == [tokenizer.end_id, -100, -100]
    assert batch.characters[0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


def test_what_does_not_fit_is_cut_and_told():
    tokenizer = CharacterTokenizer("abcdefgh")
    given = [Passage("abcdefgh", prompt="abcdefgh"), Passage("a", prompt="bcdef")]
    found = text_splits({"train": given, "test": given}, tokenizer, length=6)
    batch = found.train.batch([0])
    assert tokenizer.decode(batch.inputs[0].tolist()) == "fghabc"
    assert tokenizer.decode(batch.labels[0, 2:].tolist()) == "abcd"
    assert tokenizer.decode(found.train.batch([1]).inputs[0].tolist()) == "bcdefa"
    assert any(note.startswith("1 of 2 train answers") for note in found.notes)


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="no text"):
        text_splits({"train": [Passage("")], "test": [Passage("a")]}, CharacterTokenizer("a"))
    with pytest.raises(ValueError, match="given 1"):
        documentation(length=1)
