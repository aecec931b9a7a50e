"What a size costs, which model a task asks for, and models that llmnb has no family for."
import pytest
import torch

from llmnb.model.config import TransformerConfig
from llmnb.model.layouts import WeightsError
from llmnb.model.transformer import Transformer
from llmnb.model.weights import load_model, save_model

V = 97


def draw(): return torch.randint(0, V, (3, 20), generator=torch.Generator().manual_seed(0))


def test_a_plan_measures_the_machine_once(monkeypatch):
    import llmnb.model.plan as plans
    config = TransformerConfig.llama("tiny", vocab_size=61, ctx=18, width=40, layers=1, heads=2)     # no other test's
    measured = []
    real = plans._measured_rate
    monkeypatch.setattr(plans, "_measured_rate", lambda *a: measured.append(a) or real(*a, seconds=0.01))
    first, again = plans.plan(config), plans.plan(Transformer(config))
    assert len(measured) == 1 and first == again and first.rate > 0 and first.hours > 0
    assert first.parameters == Transformer(config).num_parameters()


def test_sizes_may_be_written_as_people_write_them(tmp_path):
    from llmnb.model.plan import choose, count_tokens, plan
    assert plan(parameters="1.5M", rate=1e11) == plan(parameters=1.5e6, rate=1e11)
    assert plan(memory="0.2 GB", rate=1e11) == plan(memory=2e8, rate=1e11)
    assert (count_tokens("20 MB"), count_tokens("3M"), count_tokens("1.5B"), count_tokens("to be!!!")) == (5e6, 3e6, 1.5e9, 2)
    (tmp_path / "a.txt").write_text("x" * 40)
    assert count_tokens(tmp_path / "a.txt") == 10
    with pytest.raises(FileNotFoundError, match="'b.txt' looks like a file"): count_tokens("b.txt")
    with pytest.raises(ValueError, match="parameters = 'many'"): plan(parameters="many", rate=1e11)
    slow = choose("dialogue", data="3M", rate=1e6)                       # a machine too slow even for the smallest still gets advice
    assert slow.config.layers == 1 and "would take" in slow.reasons[2][1]


@torch.no_grad()
def test_an_adapted_model_is_saved_as_its_own(tmp_path):
    from transformers import GPTJConfig, GPTJForCausalLM
    from llmnb.model.adapter import adapt, load_adapted
    model, ids = adapt(GPTJForCausalLM(GPTJConfig(vocab_size=V, n_embd=32, n_layer=1, n_head=4, rotary_dim=8, n_positions=64)).eval()), draw()
    assert torch.equal(load_adapted(save_model(model, tmp_path / "m"))(ids), model(ids))
    with pytest.raises(WeightsError, match="model_type = 'gptj'.*adapt"): load_model(tmp_path / "m")
    for file in ("m.gguf", "m.onnx"):
        with pytest.raises(WeightsError, match="adapted GPTJForCausalLM has no table"): save_model(model, tmp_path / file)


@pytest.mark.parametrize("hours, rate", [(1, 3e11), (0.1, 1e11), (24, 1e14)])
def test_advice_keeps_to_what_it_says(hours, rate):
    from llmnb.model.plan import MOST_EPOCHS, PARAMETERS_PER_TOKEN, TASKS, TOKENS_PER_PARAMETER, choose
    for task in TASKS:
        sizes = []
        for tokens in (3e4, 9e5, 2e7, 1e9):
            c = choose(task, data=tokens, hours=hours, rate=rate)
            n, smallest = c.plan.parameters, c.config.layers == 1
            assert c.hours <= hours or smallest
            assert n < 2.5 * PARAMETERS_PER_TOKEN * tokens or smallest     # the nearest on the dial: doubling depth is eight times the weights
            read, most = c.epochs * tokens, min(MOST_EPOCHS * tokens, TOKENS_PER_PARAMETER * n)
            assert read < most * (1 + 1e-9) and (abs(read / most - 1) < 1e-9 or c.hours == hours)
            assert read > (1 - 1e-9) * min(MOST_EPOCHS * tokens, TOKENS_PER_PARAMETER / 2 * n)
            each = c.plan.flops_per_token / (2 if c.config.arch.pair else 1)
            assert abs(c.hours / (each * c.epochs * tokens / rate / 3600) - 1) < 1e-9
            assert c.config.dropout >= 0.1 or c.epochs <= 4
            sizes.append(n)
        if hours == 24: assert sizes == sorted(sizes)


def test_a_translator_is_as_large_as_the_page_on_translation_trains():
    from llmnb.model.plan import choose
    c = choose("translation", data=29_000 * 30, hours=1, rate=3e11)
    assert c.start == "from scratch" and (c.config.layers, c.config.decoder_layers, c.config.width) == (3, 3, 192)
    assert 3e6 < c.plan.parameters < 5e6 and 0.1 < c.hours < 0.5 and c.epochs == 16
    assert any("3 + 3 layers" in a for _, a in c.reasons) and any("epochs=16" in a for _, a in c.reasons)


def test_advice_fits_the_data_that_it_was_given(tmp_path):
    from llmnb.model.plan import choose
    from llmnb.text.batches import CausalLM, TextData
    from llmnb.text.tokenizer import Tokenizer
    from llmnb.train.trainer import Trainer
    text = ["To be, or not to be, that is the question. " * 60] * 4
    data = TextData.pack(text, Tokenizer.train(text, vocab_size=300), CausalLM(24), path=tmp_path/"d", valid=["To be. " * 20])
    c = choose("generation", data, rate=1e11)
    assert (c.config.vocab_size, c.config.ctx) == (data.vocab_size, 24)
    Trainer(Transformer(c.config), data, epochs=c.epochs, run=tmp_path/"run")      # refuses a vocabulary or a context that do not fit
    for wrong in (0, -1, "soon", float("inf")):
        with pytest.raises(ValueError, match="hours = .*expected a number above 0"): choose("generation", data, rate=1e11, hours=wrong)
