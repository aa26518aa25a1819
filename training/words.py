"""Make the tokenizer and teach the text encoder its first meanings.

    python -m training.words --out build/words

The tokenizer is CLIP's (byte-level pairs, 77 tokens) with a vocabulary learned from the drawer's sentences: any text can
be encoded, and the words that matter are one token each. The text encoder is then taught to know what a sentence asks
for, read off by linear maps that are thrown away afterwards. CLIP's own encoder comes to Stable Diffusion taught as well
(Radford et al. 2021, arXiv 2103.00020), from pictures; here the drawer knows the answer, which is quicker.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training import draw, loop

START, END = "<|startoftext|>", "<|endoftext|>"
LIMIT = 77
WIDTH = 128


def new_tokenizer(folder: Path, seed: int = 0) -> CLIPTokenizer:
    """Learn byte pairs from sentences, and leave a CLIP tokenizer in `folder`."""
    rng = random.Random(seed)
    corpus = [draw.say(draw.sample(rng, rng.choice(draw.KINDS[:5]))[0], rng) for _ in range(20_000)]
    corpus += [draw.fill(rng, 8) for _ in range(2_000)]
    splitter = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.normalizer = splitter.normalizer or normalizers.NFC()
    learner.pre_tokenizer = splitter.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # 256 bytes, the same at a word's end, the pairs, two marks: the count of pairs is what covers the corpus's words.
    learner.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=1_400, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    names = alphabet + [c + "</w>" for c in alphabet]
    names += [a + b for a, b in merges if a + b not in set(names)]
    vocab = {name: i for i, name in enumerate(dict.fromkeys([*names, START, END]))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LIMIT)
    tokenizer.save_pretrained(folder)
    # The classic pair of files beside tokenizer.json, which is what other readers of the layout look for.
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return tokenizer


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained CLIP text encoder of 3 layers, width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LIMIT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def long(sentence: str, rng: random.Random, chunks: int, tokenizer: CLIPTokenizer) -> str:
    """Fill `sentence` up with words that ask for nothing until it takes `chunks` chunks of 75 tokens."""
    for words in range(72 * chunks, 0, -4):
        before = rng.randint(0, words)
        text = f"{draw.fill(rng, before)}, {sentence}, {draw.fill(rng, words - before)}"
        if len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) - 2 <= 75 * chunks:
            return text
    raise AssertionError("the sentence alone is too long")


def encode(texts: list[str], tokenizer: CLIPTokenizer, chunks: int = 1) -> torch.Tensor:
    """Return token ids (len(texts), chunks, 77): each chunk with its own start, end and padding."""
    limit, start, end = LIMIT - 2, tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = []
    for ids in tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]:
        parts = [ids[i * limit : (i + 1) * limit] for i in range(chunks)]
        rows.append([[start, *p, end] + [end] * (limit - len(p)) for p in parts])
    return torch.tensor(rows)


COLOURS = list(draw.COLOURS)
# What a linear map must read at a sentence's end: its name -> how many answers.
ANSWERS = {
    "background": len(COLOURS) + 1,
    "first_colour": len(COLOURS) + 1,
    "first_shape": len(draw.SHAPES),
    "second_colour": len(COLOURS) + 1,
    "second_shape": len(draw.SHAPES) + 1,
    "size": 3,
    "place": len(draw.PLACES) + 1,
    "relation": len(draw.RELATIONS) + 1,
    "count": 4,
}


def answers(asked: draw.Ask) -> list[int]:
    """Return the right answer of every question of `ANSWERS`; the last number of most is "not said"."""

    def of(names: list[str], name: str | None) -> int:
        return names.index(name) if name else len(names)

    first, second = asked.things[0], asked.things[1] if len(asked.things) > 1 else (None, None)
    return [
        of(COLOURS, asked.background),
        of(COLOURS, first[0]),
        draw.SHAPES.index(first[1] or ""),
        of(COLOURS, second[0]),
        of(list(draw.SHAPES), second[1]),
        of(list(draw.SIZES), asked.size),
        of(list(draw.PLACES), asked.place),
        of(list(draw.RELATIONS), asked.relation),
        asked.count - 1,
    ]


class Layout(torch.nn.Module):
    """A linear map from a sentence's encoded end to what is in each third by third of its picture."""

    CELLS = 9

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(WIDTH, self.CELLS * (len(COLOURS) + 1 + len(draw.SHAPES) + 1))

    def loss(self, ends: torch.Tensor, asked: list[draw.Ask]) -> torch.Tensor:
        """Return the mean cross-entropy for encoded ends (sentences, width) of what their sentences ask for."""
        wanted = torch.tensor([[cells_of(a, which) for which in (0, 1)] for a in asked])
        colours, shapes = (
            self.map(ends).unflatten(1, (self.CELLS, -1)).split([len(COLOURS) + 1, len(draw.SHAPES) + 1], 2)
        )
        # A colour that is left open is not asked for.
        colour = functional.cross_entropy(colours.flatten(0, 1), wanted[:, 0].flatten(), ignore_index=-1)
        return colour + functional.cross_entropy(shapes.flatten(0, 1), wanted[:, 1].flatten())


def cells_of(asked: draw.Ask, which: int) -> list[int]:
    """Return for each cell, row by row, the number of the colour (`which` 0) or shape (1) there, the last for nothing."""
    names = (COLOURS, list(draw.SHAPES))[which]
    cells = [len(names)] * Layout.CELLS
    for (x, y), thing in draw.centres(asked):
        cells[int(y * 3) * 3 + int(x * 3)] = names.index(thing[which]) if thing[which] else -1
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/words"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tokenizer = new_tokenizer(args.out / "tokenizer", args.seed)
    torch.manual_seed(args.seed)
    encoder = new_text_encoder(tokenizer)
    ends = torch.nn.Linear(WIDTH, sum(ANSWERS.values()))
    # At a shape's own word its colour must be readable, so that words, not only the end, carry the meaning.
    nouns = torch.nn.Linear(WIDTH, len(COLOURS) + 1 + len(draw.SHAPES))
    shape_of = {}
    for i, shape in enumerate(draw.SHAPES):
        for word in (shape, "crosses" if shape == "cross" else shape + "s"):
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            assert len(ids) == 1, f"{word} is not one token"
            shape_of[ids[0]] = i
    parameters = [*encoder.parameters(), *ends.parameters(), *nouns.parameters()]
    print(f"{len(tokenizer)} tokens, {sum(p.numel() for p in encoder.parameters()):,} parameters")
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    right: list[float] = []

    def loss_of(step: int) -> torch.Tensor:
        rng = random.Random(args.seed * 1_000_003 + step)
        asked = [draw.loosen(draw.ask(rng, rng.choice(draw.KINDS[:5])), rng) for _ in range(args.batch)]
        ids = encode([draw.say(a, rng) for a in asked], tokenizer)[:, 0]
        ids = ids[:, : int((ids != tokenizer.eos_token_id).sum(1).max()) + 4]  # few enough marks of the end to be quick
        hidden = encoder(ids).last_hidden_state
        wanted = torch.tensor([answers(a) for a in asked])
        first_end = (ids == tokenizer.eos_token_id).int().argmax(1)
        rows = torch.arange(len(asked))
        loss = hidden.new_zeros(())
        for at in (first_end, torch.full_like(first_end, ids.shape[1] - 1)):
            parts = ends(hidden[rows, at]).split(list(ANSWERS.values()), 1)
            loss = loss + sum(functional.cross_entropy(p, wanted[:, i]) for i, p in enumerate(parts))
        if step % 100 == 99:
            right.append(
                float(torch.stack([p.argmax(1) == wanted[:, i] for i, p in enumerate(parts)]).all(0).float().mean())
            )
            print(f"step {step + 1}: {right[-1]:.1%} of sentences understood in all")
        at = [(r, c, shape_of[int(t)]) for r, row in enumerate(ids) for c, t in enumerate(row) if int(t) in shape_of]
        colour, shape = nouns(hidden[[a[0] for a in at], [a[1] for a in at]]).split(
            [len(COLOURS) + 1, len(draw.SHAPES)], 1
        )
        of_shape = [{s: c for c, s in reversed(asked[r].things)} for r, _, _ in at]
        colours = torch.tensor([answers_colour(m[draw.SHAPES[s]]) for m, (_, _, s) in zip(of_shape, at, strict=True)])
        shapes = torch.tensor([s for _, _, s in at])
        return loss + functional.cross_entropy(colour, colours) + functional.cross_entropy(shape, shapes)

    loop.run(
        folder=args.out,
        steps=args.steps,
        optimizer=optimizer,
        average=(average := loop.Average(parameters, 0.99)),
        modules={"encoder": encoder, "ends": ends, "nouns": nouns},
        loss_of=loss_of,
        peak=1e-3,
    )
    average.copy_to_parameters()
    encoder.eval().save_pretrained(args.out / "text_encoder")


def answers_colour(colour: str | None) -> int:
    """Return a colour's number, the last one for none."""
    return COLOURS.index(colour) if colour else len(COLOURS)


if __name__ == "__main__":
    main()
