"The API by example: the calls that people make, word for word, on a small run from text to reply."
import pytest

from llmnb.all import *
import llmnb


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    with settings.override(runs_path=folder/"runs", cache_path=folder/"cache", ui="none"):
        tok = Tokenizer.train(corpus("kjv"), vocab_size=600)
        data = TextData.pack(corpus("kjv").take(3), tok, objective=CausalLM(ctx=32), path=folder/"data", valid=0.1)
        cfg = TransformerConfig.gpt2("tiny", vocab_size=tok.vocab_size, ctx=64, layers=2, width=32, heads=2)
        model = Transformer(cfg)
        trainer = Trainer(model, data, steps=30, lr=3e-4, batch_size=4, run=folder/"hamlet")
        assert trainer.fit() is trainer
    return dict(folder=folder, tok=tok, data=data, cfg=cfg, model=model, trainer=trainer)


def test_text(made):
    tok = made["tok"]
    ids = tok.encode("To be")
    assert tok.decode(ids) == "To be" and tok.encode_batch(["To be", "or"])[0] == ids and tok.vocab_size == 600
    assert all(isinstance(i, int) for i in (tok.bos_id, tok.eos_id, tok.pad_id))
    tok.save(made["folder"]/"tok")
    from transformers import AutoTokenizer
    theirs = AutoTokenizer.from_pretrained(made["folder"]/"tok")
    text = "In the beginning 🌹 naïve\n\n"
    assert theirs(text).input_ids == tok.encode(text) == Tokenizer.load(made["folder"]/"tok").encode(text)
    assert "<script" not in tok.show("To be <script>").html


def test_model(made):
    import torch
    model, cfg = made["model"], made["cfg"]
    ids = torch.tensor([made["tok"].encode("And God said")])
    assert model(ids).shape == (1, ids.shape[1], cfg.vocab_size) and model.config is cfg and model.num_parameters() > 0
    assert model(ids, mask=torch.ones_like(ids)).shape == model(ids).shape
    save_model(model, made["folder"]/"model", tok=made["tok"])
    from transformers import AutoModelForCausalLM
    theirs = AutoModelForCausalLM.from_pretrained(made["folder"]/"model").eval()
    ours = load_model(made["folder"]/"model")
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-5
        assert (ours(ids) - model.eval()(ids)).abs().max() < 1e-6


def test_train(made):
    trainer = made["trainer"]
    assert trainer.state == "done" and trainer.step == 30 and trainer.model is made["model"] and trainer.data is made["data"]
    assert {"step", "loss", "lr", "valid_loss", "tokens_per_second"} <= set(trainer.history.columns) and len(trainer.history)
    again = Trainer.reopen(made["folder"]/"hamlet")
    assert again.step == 30 and again.fit().state == "done"


def test_background(made):
    import time
    with settings.override(ui="none"):
        t = Trainer(Transformer(made["cfg"]), made["data"], steps=100_000, lr=1e-3, batch_size=2, run=made["folder"]/"bg")
        assert t.fit(background=True) is t
        for _ in range(600):
            if t.step >= 3: break
            time.sleep(0.05)
        t.pause(); at = t.step; time.sleep(0.2)
        assert t.state == "paused" and t.step == at
        t.resume(); time.sleep(0.2); t.stop(); t.wait()
        assert t.state == "stopped" and t.step >= at


def test_decode(made):
    import torch
    model, tok = made["model"], made["tok"]
    out = generate(model, tok, "And God", max_new_tokens=12, strategy=Sample(temperature=0.8, top_p=0.95), seed=7)
    assert len(out.ids) == len(out.logprobs) <= 12 and out.prompt_ids == tok.encode("And God") and out.finish_reason in ("length", "eos")
    assert out.tokens_per_second > 0 and isinstance(out.text, str)
    assert "".join(stream(model, tok, "And God", strategy=Greedy(), max_new_tokens=12)) == generate(model, tok, "And God", strategy=Greedy(), max_new_tokens=12).text
    many = generate(model, tok, ["And God", "In the beginning was"], max_new_tokens=5)
    assert [m.ids for m in many] == [generate(model, tok, p, max_new_tokens=5).ids for p in ("And God", "In the beginning was")]
    ids = tok.encode("And God")
    assert generate(model, None, ids, max_new_tokens=5).ids == generate(model, None, torch.tensor(ids), max_new_tokens=5).ids
    generate(model, tok, "And God", max_new_tokens=5, stop=["\n\n"])


def test_measure(made):
    p = perplexity(made["model"], made["tok"], ["And God said, Let there be light."])
    assert float(p) > 1 and p.bits_per_byte > 0


def test_errors_are_of_the_promised_kinds(made):
    for wrong, kind in ((lambda: TransformerConfig.gpt2("tiny", width=100, heads=3), ValueError), (lambda: Tokenizer.train([], vocab_size=300), ValueError),
                        (lambda: Trainer.reopen(made["folder"]/"nowhere"), (FileNotFoundError, llmnb.LLMNBError)), (lambda: Sample(temperature=0), ValueError),
                        (lambda: load_model(made["folder"]/"nothing"), (FileNotFoundError, llmnb.LLMNBError, ValueError)),
                        (lambda: Trainer(made["model"], made["data"]), (ValueError, TypeError))):
        with pytest.raises(kind) as e: wrong()
        assert len(str(e.value)) > 20
