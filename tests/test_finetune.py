"LoRA, DoRA, frozen layers and packed bases: equal to peft, to the formula, and to a run that was never interrupted."
import json

import peft
import pytest
import torch
import transformers

from llmnb.model.config import TransformerConfig
from llmnb.model.transformer import Transformer
from llmnb.model.weights import load_model, save_model
from llmnb.shrink.quantize import quantize
from llmnb.text.batches import CausalLM, TextData
from llmnb.text.tokenizer import Tokenizer
from llmnb.train.adapters import load_adapter, save_adapter
from llmnb.train.lora import (AdapterError, adapted, drop, freeze, lora, merge, projections, unmerge, without_adapters)
from llmnb.train.preference import DPO, Preference, dpo_loss, log_probs
from llmnb.train.run import RunError
from llmnb.train.state import copy_weights
from llmnb.train.trainer import Trainer

IDS = torch.arange(20).view(2, 10)


def make(family="llama", seed=1, **more):
    return Transformer(getattr(TransformerConfig, family)("tiny", **{**dict(vocab_size=96, ctx=32, width=32, layers=2, heads=4), **more}), seed=seed)


def stir(model, seed=0, size=0.3):
    "Adapters as if they had been trained."
    g = torch.Generator().manual_seed(seed)
    for n, p in model.named_parameters():
        if n.endswith((".A", ".B")): p.data += size * torch.randn(p.shape, generator=g)
        if n.endswith(".length"): p.data *= 1 + size * torch.rand(p.shape, generator=g)
    return model


def both(tmp_path, family, dora, targets, **more):
    "The same base in llmnb and in transformers, the same adapters in both, to be trained."
    save_model(make(family, **more), tmp_path/"base")
    ours = stir(lora(load_model(tmp_path/"base"), rank=4, alpha=12, dora=dora, targets=targets))
    save_adapter(ours, tmp_path/"ours", base=tmp_path/"base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/"base", attn_implementation="eager")
    return ours, peft.PeftModel.from_pretrained(base, tmp_path/"ours", is_trainable=True).eval()


def pairs(ours, theirs):
    "(name, our parameter in their order, their parameter)."
    found = dict(theirs.named_parameters())
    for m in adapted(ours).values():
        for p in m.parts.values():
            stem = f"base_model.model.{p.name}"
            yield stem, p.A, found[f"{stem}.lora_A.default.weight"], slice(None)
            yield stem, p.B, found[f"{stem}.lora_B.default.weight"], p.order
            if p.length is not None: yield stem, p.length, found[f"{stem}.lora_magnitude_vector.default.weight"], p.order


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family, targets, more", [
    ("llama", None, dict(kv_heads=2)), ("gpt2", ["c_attn", "c_fc"], {}), ("gpt_neox", None, {}),
    pytest.param("llama", ["q_proj", "v_proj"], dict(kv_heads=2, tied=True), marks=pytest.mark.slow),
    pytest.param("qwen2", ["k_proj", "down_proj"], {}, marks=pytest.mark.slow)])
def test_equal_to_peft_in_logits_gradients_and_a_step(tmp_path, family, targets, more, dora):
    ours, theirs = both(tmp_path, family, dora, targets, **more)
    assert torch.allclose(ours(IDS), theirs(IDS).logits, atol=2e-4)
    for m in (ours, theirs):
        logits = m(IDS) if m is ours else m(IDS).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    found = list(pairs(ours, theirs))
    assert len(found) == sum(p.requires_grad for p in theirs.parameters()) == sum(p.requires_grad for p in ours.parameters())
    for name, a, b, order in found:
        assert b.grad.abs().max() > 0, name
        assert torch.allclose(a.grad[order], b.grad, rtol=2e-3, atol=2e-5), name
    for m in (ours, theirs): torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1).step()
    for name, a, b, order in found: assert torch.allclose(a[order], b, atol=1e-5), name
    assert torch.allclose(ours(IDS), theirs(IDS).logits, atol=5e-4)


@pytest.mark.parametrize("options", [dict(use_dora=True), dict(use_rslora=True), dict(target_modules=["q_proj", "o_proj"]), dict(target_modules="all-linear")])
def test_adapters_that_peft_made(tmp_path, options):
    save_model(make(kv_heads=2), tmp_path/"base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/"base")
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, lora_dropout=0.1, task_type="CAUSAL_LM", **options)).eval()
    theirs.save_pretrained(tmp_path/"theirs")
    ours = load_adapter(load_model(tmp_path/"base"), tmp_path/"theirs")
    assert torch.allclose(ours(IDS), theirs(IDS).logits, atol=2e-4)
    save_adapter(ours, tmp_path/"back")
    back = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path/"base"), tmp_path/"back").eval()
    assert torch.allclose(back(IDS).logits, theirs(IDS).logits, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", *(pytest.param(f, marks=pytest.mark.slow) for f in ("bert", "olmo2"))])
def test_off_merged_and_back(family, dora):
    model = make(family).eval()
    run = lambda: model(IDS, IDS) if model.config.arch.pair else model(IDS)
    before = run().detach()
    lora(model, rank=2, dora=dora)
    assert torch.allclose(run(), before, atol=1e-5)
    tuned = stir(model) and run().detach()
    with without_adapters(model): assert torch.allclose(run(), before, atol=1e-6)
    changed = (tuned - before).abs().max()
    assert changed > 1e-3
    assert ((merge(model) and run()) - tuned).abs().max() < 1e-3 * changed and not adapted(model)
    assert torch.equal(unmerge(model) and run(), tuned)
    assert torch.allclose(drop(model) and run(), before, atol=1e-6)


def test_a_saved_model_is_the_tuned_one(tmp_path):
    model = stir(lora(make(), dora=True)).eval()
    save_model(model, tmp_path/"m")
    assert torch.allclose(load_model(tmp_path/"m")(IDS), model(IDS), atol=1e-4)


@pytest.mark.parametrize("how", ["int8", "int4", "dynamic-int8", "packed"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_a_packed_base(how, dora):
    packed = quantize(make(), how)
    model, plain = lora(packed, rank=4, dora=dora, seed=3), make()
    plain.load_state_dict(packed.state_dict())
    stir(lora(plain, rank=4, dora=dora, seed=3)); copy_weights(model, plain)
    assert model.flops_per_token() == plain.flops_per_token()
    for m in (model, plain):
        logits = m(IDS)
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    given = {n: p.grad for n, p in plain.named_parameters() if p.requires_grad}
    assert {n for n, _ in model.named_parameters() if n.endswith((".A", ".B", ".length"))} == set(given)
    own = torch.cat([dict(model.named_parameters())[n].grad.flatten() for n in given])      # the kernels round inputs, to bfloat16 or 8 bits
    assert torch.cosine_similarity(own, torch.cat([g.flatten() for g in given.values()]), 0) > (0.9999 if how == "packed" else 0.99)
    layer, x, g = packed.layers[0].attn.o.base, torch.randn(3, 32, requires_grad=True), torch.randn(3, 32)
    layer(x).backward(g)
    with torch.no_grad(): said = layer.product(x)                       # oneDNN may take another kernel where a gradient is wanted
    assert torch.equal(x.grad, g @ layer.weight) and torch.equal(layer(x), said)


def test_freeze():
    model = make()
    freeze(model, "embed", "layers.0")
    still = {n for n, p in model.named_parameters() if p.requires_grad}
    assert still and not any(n.startswith(("embed", "layers.0.")) for n in still)
    freeze(model, but="layers.1.mlp")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n, _ in model.named_parameters() if n.startswith("layers.1.mlp.")}
    with pytest.raises(AdapterError, match="'layer.0'"): freeze(model, "layer.0")


@pytest.mark.parametrize("call, words", [
    (lambda m: lora(m, rank=0), "rank = 0"), (lambda m: lora(m, alpha=-1), "alpha"), (lambda m: lora(m, targets=["q_prj"]), "q_proj"),
    (lambda m: lora(m, targets=[]), r"targets = \[\]: expected names"), (lambda m: lora(m, targets=5), r"targets = \[5\]: expected names"), (lambda m: lora(m, rank=10**6), "rank = 1000000: no matrix"),
    (lambda m: lora(m, dora="x"), "dora = 'x'"), (lambda m: lora(m, seed="x"), "seed = 'x'"), (lambda m: lora(None), "not a NoneType"), (lambda m: freeze(m, 5), "5 is no name"), (lambda m: freeze(m, "layer.0"), r"nor lies in it\. Did you mean"),
    (lambda m: lora(lora(m)), "already"), (merge, "no adapters"), (unmerge, "no adapters")])
def test_errors_say_what_to_do(call, words):
    with pytest.raises(AdapterError, match=words): call(make())


def test_files_that_do_not_fit_are_refused(tmp_path):
    save_adapter(lora(make()), tmp_path/"a")
    with pytest.raises(AdapterError, match="which this model has not"): load_adapter(make("gpt2"), tmp_path/"a")
    with pytest.raises(AdapterError, match="shape"): load_adapter(make(width=64), tmp_path/"a")
    said = json.loads((tmp_path/"a"/"adapter_config.json").read_text())
    (tmp_path/"a"/"adapter_config.json").write_text(json.dumps({**said, "modules_to_save": ["lm_head"]}))
    with pytest.raises(AdapterError, match="modules_to_save"): load_adapter(make(), tmp_path/"a")
    with pytest.raises(FileNotFoundError, match="adapter_config"): load_adapter(make(), tmp_path)
    model = lora(make()); model.norm.weight.requires_grad_(True)
    with pytest.raises(AdapterError, match="norm.weight"): save_adapter(model, tmp_path/"b")
    assert not (tmp_path/"b").exists()


def test_projections_name_every_row_once():
    for family in ("llama", "gpt2", "gpt_neox", "bert", "t5"):
        model = make(family)
        for name, m in model.named_modules():
            if not isinstance(m, torch.nn.Linear) or ".layers." not in f".{name}": continue
            rows = torch.cat([r for _, r, _ in projections(model, name, m.out_features)])
            assert sorted(rows.tolist()) == list(range(m.out_features)), (family, name)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tok = Tokenizer.train(["the cat sat on the mat and the dog sat on the log " * 20], vocab_size=64, kind="char")
    return TextData.pack(["the cat sat on the mat and the dog sat on the log " * 40], tok, objective=CausalLM(16), path=tmp_path_factory.mktemp("d")/"data", valid=0.1)


@pytest.mark.parametrize("how", ["lora", "dora", "freeze"])
def test_a_tuned_run_goes_on_bit_for_bit(tmp_path, data, how):
    def begin(name):
        model = make(seed=5)
        if how == "freeze": freeze(model, "embed", "layers.0")
        else: lora(model, rank=4, dora=how == "dora")
        return Trainer(model, data, steps=8, batch_size=4, lr=1e-2, seed=2, device="cpu", dtype="float32", run=tmp_path/name, valid_every=4, callbacks=["ema"])
    whole, part = begin("whole").fit(), begin("part")
    part.callbacks.append(Stop(3)); part.fit()
    assert part.step == 3
    again = Trainer.reopen(tmp_path/"part", callbacks=["ema"]).fit()
    assert again.history["loss"].tolist() == whole.history["loss"].tolist() and again.valid_loss == whole.valid_loss
    ours = dict(again.model.named_parameters())
    for n, p in whole.model.named_parameters():
        assert torch.equal(p, ours[n]) and p.requires_grad == ours[n].requires_grad, n
    assert torch.allclose(load_model(tmp_path/"whole")(IDS.clamp(max=20)), whole.model.eval()(IDS.clamp(max=20)), atol=1e-4)


class Stop:
    "Stops a run after some steps."
    def __init__(self, at): self.at = at
    def on_update(self, t, loss, norm):
        if t.step == self.at: t.stop()


def test_a_packed_run_is_reopened_with_its_base(tmp_path, data):
    base = lambda: lora(quantize(make(seed=5), "int8"), rank=4)
    begin = lambda name: Trainer(base(), data, steps=6, batch_size=4, lr=1e-2, seed=2, device="cpu", dtype="float32", run=tmp_path/name)
    whole, part = begin("whole").fit(), begin("part")
    part.callbacks.append(Stop(3)); part.fit()
    with pytest.raises(RunError, match="packed base .then -> now.:\n  model.parameters"): Trainer.reopen(tmp_path/"part", callbacks=[])
    again = Trainer.reopen(tmp_path/"part", model=base(), callbacks=[]).fit()
    assert again.history["loss"].tolist() == whole.history["loss"].tolist()
    assert whole.history["loss"].iloc[-1] < whole.history["loss"].iloc[0]
    snap = whole.snapshot()
    assert torch.equal(whole.snapshot(into=snap)(IDS.clamp(max=20)), whole.model.eval()(IDS.clamp(max=20)))


KIND = [Preference(f"say {a} {b}: ", f"{b} good", f"{a} bad") for a in "abcdef" for b in "ghijkl"]


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    tok = Tokenizer.train(["say abcdefghijkl: good bad " * 5], vocab_size=64, kind="char")
    return TextData.pack(KIND, tok, objective=DPO(ctx=24, beta=0.5), path=tmp_path_factory.mktemp("d")/"data", valid=0.2)


def test_dpo_is_the_formula(choices):
    "Token by token, with two models, in float64."
    tok, objective, base, model = choices.tok, choices.objective, make(seed=4).double(), stir(lora(make(seed=4), seed=1)).double()
    rows = [r for rs in objective.encode(KIND[:3], tok) for r in rs]
    batch = objective.batch(dict(zip(objective.columns, map(list, zip(*rows)))), tok)
    def log_p(m, prompt, answer):
        ids, answer = tok.encode(prompt), [*tok.encode(answer), tok.eos_id]
        table = m(torch.tensor([ids + answer]))[0].log_softmax(-1)
        return sum(table[len(ids) + i - 1, t] for i, t in enumerate(answer))
    plain = 0
    for r in KIND[:3]:
        margin = (log_p(model, r.prompt, r.chosen) - log_p(base, r.prompt, r.chosen)) - (log_p(model, r.prompt, r.rejected) - log_p(base, r.prompt, r.rejected))
        plain = plain - torch.log(1 / (1 + torch.exp(-0.5 * margin)))
    names, params = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad])
    assert torch.allclose(batch.loss(model).double(), plain, atol=1e-5) and batch.n_targets == 3
    for n, a, b in zip(names, torch.autograd.grad(batch.loss(model), params), torch.autograd.grad(plain, params)):
        assert torch.allclose(a, b, atol=1e-5), n
    with pytest.raises(AdapterError, match="lora"): batch.loss(base)
    assert len(log_probs(model, batch)) == 6


def test_dpo_of_a_tie_is_log_2():
    z = torch.randn(5)
    assert torch.allclose(dpo_loss(z, z, z, z), torch.tensor(2.0).log().expand(5))


def test_a_preference_run_learns_and_goes_on_bit_for_bit(tmp_path, choices):
    begin = lambda name: Trainer(lora(make(seed=5), rank=4), choices, steps=8, batch_size=6, lr=3e-2, seed=2, device="cpu", dtype="float32", run=tmp_path/name)
    whole, part = begin("whole").fit(), begin("part")
    part.callbacks.append(Stop(4)); part.fit()
    again = Trainer.reopen(tmp_path/"part", callbacks=[]).fit()
    assert again.history["loss"].tolist() == whole.history["loss"].tolist()
    assert whole.history["loss"].iloc[0] == pytest.approx(0.6931, abs=1e-3) and whole.valid_loss < 0.6


def test_a_preference_in_a_chat():
    tok = Tokenizer.train(["user: assistant: hello good bad\n" * 5], vocab_size=300)
    (ids, other, learn, _), = DPO(chat=True).encode([Preference("hello", "good", "bad")], tok)[0]
    assert "good" in tok.decode(ids[slice(*learn)]) and "hello" not in tok.decode(ids[slice(*learn)])
    assert DPO(ctx=2).encode([Preference("hello hello hello", "good", "bad")], tok) == [[]]


def test_the_chat_objective_teaches_the_adapters_only_what_the_assistant_says(tmp_path):
    from llmnb.text.records import Dialogue
    from llmnb.text.targets import Chat
    talks = [Dialogue.of(f"what is {c}?", f"{c} is a letter", "and more?", "no") for c in "abcdefgh"]
    tok = Tokenizer.train([m["content"] for d in talks for m in d.messages], vocab_size=300)
    data = TextData.pack(talks, tok, objective=Chat(ctx=120), path=tmp_path/"chats", valid=0.2)
    b = data.batch(0, 2)
    said = tok.decode(b.labels[b.labels >= 0].tolist())
    assert "is a letter" in said and "what is" not in said
    begin = lambda name: Trainer(lora(make(vocab_size=tok.vocab_size, ctx=128, seed=5), rank=4), data, steps=6, batch_size=2, lr=2e-2, seed=2,
                                 device="cpu", dtype="float32", run=tmp_path/name)
    whole, part = begin("whole").fit(), begin("part")
    part.callbacks.append(Stop(3)); part.fit()
    again = Trainer.reopen(tmp_path/"part", callbacks=[]).fit()
    assert again.history["loss"].tolist() == whole.history["loss"].tolist() and whole.history["loss"].iloc[-1] < whole.history["loss"].iloc[0]


def torchs_flops(model, run, monkeypatch):
    "FLOPs of what `run` does, as torch counts the products: attention and the loss in their plain form."
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    from llmnb.model import heads
    from llmnb.model.loss import loss_plain
    with monkeypatch.context() as m, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        m.setattr(heads, "loss_by_rows", loss_plain)
        run()
    return counted.get_total_flops()


@pytest.mark.parametrize("way", ["full", "first layer frozen", "all but the last layer frozen", "norms alone", "lora", "lora of one matrix", "dora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert", "vaswani", "t5", "gemma2", "mixtral"])
def test_flops_are_those_that_torch_counts(family, way, monkeypatch):
    from types import SimpleNamespace
    more = dict(kv_heads=2) if family in ("llama", "mixtral") else {}
    model, T, S = make(family, width=64, **more), 24, 16
    if way == "first layer frozen": freeze(model, "embed", "layers.0", *["positions"] * any(n.startswith("positions.") for n, _ in model.named_parameters()))
    if way == "all but the last layer frozen": freeze(model, but="layers.1")
    if way == "norms alone": freeze(model, but="*norm*")
    if "lora" in way or way == "dora": lora(model, rank=4, targets="o" if "one" in way else None, dora=way == "dora")
    ids, src = (torch.arange(2 * n).view(2, n) % 96 for n in (T, S))
    asked = ids if family != "bert" else torch.where(torch.arange(T) % 4 == 0, ids, -100)
    batch = SimpleNamespace(ids=ids, labels=asked, src=src)
    ours = model.flops_per_token(T, S, (asked != -100).float().mean().item()) * ids.numel()
    torchs = torchs_flops(model, lambda: model.loss(batch).backward(), monkeypatch)
    if way == "dora": torchs -= sum(2 * p.A.numel() * len(p.B) for m in adapted(model).values() for p in m.parts.values())   # lengths, once a step
    assert abs(ours / torchs - 1) < 0.02, (ours, torchs)


def test_the_dashboard_tells_the_part_of_the_peak_that_adapters_use(tmp_path, monkeypatch):
    "Rows much shorter than the model's context, frozen weights, weights in another format than the run says."
    from llmnb.device import matrix_rate
    from llmnb.notebook.dashboard import about_run
    from llmnb.notebook.frames import about_folder
    tok = Tokenizer.train(["to be or not to be " * 40], kind="byte")
    data = TextData.pack(["to be or not to be " * 400], tok, objective=CausalLM(32), path=tmp_path/"data")
    model = lora(make(width=64, ctx=2048, vocab_size=tok.vocab_size))
    trainer = Trainer(model, data, steps=1, batch_size=4, run=tmp_path/"run", dtype="float32", device="cpu").fit()
    batch, about = data.batch(0, 4), about_run(trainer)
    torchs = torchs_flops(model, lambda: model.loss(batch).backward(), monkeypatch) / batch.ids.numel()
    assert abs(about["flops"] / torchs - 1) < 0.02 and about["flops"] < 0.2 * make(width=64, ctx=2048, vocab_size=tok.vocab_size).flops_per_token()
    assert about["peak"] == matrix_rate("cpu", "float32")
    kept = about_folder(trainer.folder)
    assert (kept["flops"], kept["peak"]) == (about["flops"], about["peak"])
    trainer.model.to(torch.bfloat16)
    assert about_run(trainer)["peak"] == matrix_rate("cpu", "bfloat16") != matrix_rate("cpu", "float32")
