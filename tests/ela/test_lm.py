"""The language model: the paper's size, no sight of the future, and decoding that gives what training saw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from yolo_lat.ela import KERNELS
from yolo_lat.ela.lm import LanguageModel, LMConfig, rotary_angles, rotate

SMALL = LMConfig(vocabulary=50, width=32, layers=2, heads=2, hidden=24, experts=3, k=2)
CAUSAL = {
    **{name: replace(SMALL, attention=name) for name in (*KERNELS, "softmax")},
    "residual": replace(SMALL, link="residual"),
    "softmax, residual": replace(SMALL, attention="softmax", link="residual"),
    "causal lobe": replace(SMALL, lobe="causal"),
    "softmax, causal lobe": replace(SMALL, attention="softmax", lobe="causal"),
    "one expert": replace(SMALL, experts=1, k=1, bias=None),
}
VARIANTS = pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)


def built(config: LMConfig) -> LanguageModel:
    """A model in float64 whose lobes have learned something, so that their outputs are not zero."""
    torch.manual_seed(0)
    model = LanguageModel(config).double().eval()
    for layer in model.layers:
        if layer.lobe is not None:
            torch.nn.init.normal_(layer.lobe.value.weight, std=0.3)
    return model


def text(length: int = 21, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, SMALL.vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [({}, 5_838_080), ({"link": "residual"}, 5_839_104), ({"lobe": "bidirectional"}, 6_624_512)],
)
def test_it_has_the_size_of_the_paper(changes, parameters):
    """5.84 M, and 6.62 M with the lobe."""
    with torch.device("meta"):
        model = LanguageModel(replace(LMConfig(), **changes))
    assert sum(p.numel() for p in model.parameters()) == parameters


@VARIANTS
def test_decoding_gives_what_training_saw(config):
    model, tokens = built(config), text()
    expected = model(tokens).logits
    logits, memory = model.prefill(tokens[:, :9], capacity=21)
    found = [logits]
    for parts in (tokens[:, 9:10], tokens[:, 10:11], tokens[:, 11:18], tokens[:, 18:19], tokens[:, 19:20]):
        logits, memory = model.step(parts, memory)
        found.append(logits)
    torch.testing.assert_close(torch.stack(found, 1), expected[:, [8, 9, 10, 17, 18, 19]], rtol=1e-10, atol=1e-10)
    assert memory.length == 20


@VARIANTS
def test_no_position_sees_what_comes_later(config):
    model, tokens = built(config), text()
    other = tokens.clone()
    other[:, 12:] = (other[:, 12:] + 7) % SMALL.vocabulary
    before, after = model(tokens).logits, model(other).logits
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=0, atol=1e-12)
    assert (before[:, 12:] - after[:, 12:]).abs().amin(dim=(0, 2)).max() > 0


def test_the_lobe_of_the_paper_sees_what_comes_later():
    model, tokens = built(replace(SMALL, lobe="bidirectional")), text()
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 7) % SMALL.vocabulary
    assert (model(tokens).logits - model(other).logits)[:, 0].abs().max() > 1e-9
    with pytest.raises(ValueError, match="a bidirectional lobe reads tokens that are not there yet; decode with lobe="):
        model.prefill(tokens)


@pytest.mark.parametrize("attention", ["HadamardExp", "softmax"])
def test_what_is_remembered_grows_with_softmax_alone(attention):
    model = built(replace(SMALL, attention=attention))
    sizes = [model.prefill(text(length))[1].nbytes for length in (8, 16, 160)]
    if attention == "softmax":
        assert sizes == [2 * 2 * 2 * 8 * 32 * length for length in (8, 16, 160)]  # layers, k and v, batch, bytes, D
    else:
        assert sizes == [2 * 2 * 2 * 8 * (16 * 16 + 2 * 16)] * 3  # layers, batch, heads, bytes, (S, C and their scale)


def test_a_cache_that_is_full_says_so():
    model = built(replace(SMALL, attention="softmax"))
    _, memory = model.prefill(text(8), capacity=9)
    _, memory = model.step(text(1), memory)
    with pytest.raises(ValueError, match="a cache of 9 tokens is full; give prefill a larger capacity"):
        model.step(text(1), memory)


@pytest.mark.parametrize("attention", ["HadamardExp", "softmax"])
def test_generation_takes_the_likeliest_token_each_time(attention):
    model = built(replace(SMALL, attention=attention))
    tokens = text(5)
    for _ in range(6):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    torch.testing.assert_close(model.generate(text(5), 6), tokens[:, 5:])


@pytest.mark.slow
def test_it_learns_what_attention_alone_can_know():
    """The first token of a sequence comes again after a mark at its end."""
    torch.manual_seed(0)
    model = LanguageModel(replace(SMALL, link="residual", bias="inner"))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(150):
        tokens = torch.randint(1, 6, (32, 12))
        tokens[:, -1] = 0
        output = model(tokens)
        loss = F.cross_entropy(output.logits[:, -1], tokens[:, 0])
        optimizer.zero_grad()
        (loss + 0.01 * output.balance).backward()
        optimizer.step()
    assert loss < 0.5 < torch.tensor(5.0).log()
    assert all(p.grad is not None for p in model.parameters())


def test_products_of_turned_vectors_depend_on_their_distance_alone():
    a, b = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).unbind()
    turned = [
        (rotate(a, rotary_angles(i, i + 1, 8, a.device)) * rotate(b, rotary_angles(i + 3, i + 4, 8, a.device))).sum()
        for i in (0, 5, 900)
    ]
    torch.testing.assert_close(turned[0], turned[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(turned[0], turned[2], rtol=1e-4, atol=1e-4)
    assert (turned[0] - (a * b).sum()).abs() > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "softmx"}, "attention='softmx' is unknown; use one of 'softmax', 'HadamardExp'"),
        ({"link": "dense"}, "link='dense' is unknown; use one of 'hyper', 'residual'"),
        ({"lobe": "both"}, "lobe='both' is unknown; use one of None, 'causal', 'bidirectional'"),
        *(
            ({name: 0}, f"{name}=0 leaves no model; use 1 or more")
            for name in ("vocabulary", "width", "layers", "heads", "hidden", "experts")
        ),
        ({"k": 5, "experts": 4}, "k=5 experts a token out of 4 is impossible; use 1 to 4"),
        ({"heads": 32}, "heads=32 leaves no even number of channels a head of width=32"),
    ],
)
def test_a_variant_that_does_not_exist_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize(("length", "count"), [(0, 3), (3, 0), (3, -1)])
def test_generation_needs_a_prompt_and_something_to_do(length, count):
    prompt = torch.zeros(1, length, dtype=torch.long)
    with pytest.raises(ValueError, match=f"by 1 token or more; got {length} and count={count}"):
        LanguageModel(SMALL).generate(prompt, count)
