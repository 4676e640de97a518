"The fast step against the plain one: every form of the model, resuming, and determinism."
import copy

import pytest
import torch
from torch import nn

from mser.lanes import HAS_BF16
from mser.late_fusion import LateFusionConfig, LateFusionNetwork
from mser.losses import LossConfig, TotalLoss
from mser.model import ModelConfig, MultimodalSER, acting
from mser.step import FastStep, PlainStep, fast_step_fits, make_step

SMALL = dict(text_dim=32, audio_dim=48, hidden_dim=32, n_heads=4, projection_dim=16)


def training(size=16, tokens=(1, 1), steps=4, **config):
    "A model without dropout unless asked for, and a function that gives the loss of the i-th batch."
    torch.manual_seed(0)
    model = MultimodalSER(ModelConfig(**acting({**SMALL, "dropout": 0.0, **config}))).train()
    for p in model.parameters(): p.data.add_(0.1*torch.randn_like(p))
    batches, objective = [], TotalLoss(LossConfig(), torch.ones(4))
    for _ in range(steps):
        inputs = [torch.randn(size, n, d) for n, d in zip(tokens, (32, 48))]
        masks = [None if n == 1 else torch.arange(n) < torch.randint(1, n + 1, (size, 1)) for n in tokens]
        batches.append(((*inputs, *masks), torch.randint(0, 4, (size,)), torch.rand(size, 3)*2 - 1))
    def loss(model, i):
        inputs, labels, vad = batches[i % steps]
        return objective(model(*inputs), labels, vad)[0]
    return model, loss


def optimiser(model, **options):
    "A large epsilon: where a gradient is nearly zero, AdamW without it makes a whole step of rounding errors."
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, **{"lr": 1e-2, "weight_decay": 0.05, "eps": 1e-3, "fused": True, **options})


def run(step, loss, n=4):
    with step: return [step(loss(step.model, i)) for i in range(n)]


def compare(model, loss, rtol=1e-4, atol=2e-5, **options):
    "Both steps from the same start; returns the models."
    other = copy.deepcopy(model)
    plain, fast = PlainStep(model, optimiser(model, **options), 0.7), FastStep(other, optimiser(other, **options), 0.7)
    torch.testing.assert_close(run(fast, loss), run(plain, loss), rtol=1e-4, atol=1e-5)
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(b, a, rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}")
    ours, theirs = (step.optimiser.state_dict()["state"] for step in (fast, plain))
    assert ours.keys() == theirs.keys()
    for i in ours:
        assert ours[i].keys() == theirs[i].keys() and ours[i]["step"] == theirs[i]["step"]
        torch.testing.assert_close(ours[i]["exp_avg"], theirs[i]["exp_avg"], rtol=1e-3, atol=1e-5)
    return model, other, fast


@pytest.mark.parametrize("config", [
    {}, dict(vga=False), dict(eaaf=False), dict(micl=False), dict(micl_on="unmixed"), dict(n_layers=0, vga=False), dict(learn_lambda=True), dict(input_norm=False),
    dict(modalities="text"), dict(modalities="audio"), dict(hidden_dim=48, n_heads=4), dict(hidden_dim=40, n_heads=4),
    dict(init="zero residual", head_layers=1)], ids=str)
@pytest.mark.parametrize("tokens", [(1, 1), (5, 7), (1, 4)], ids=["pooled", "sequence", "mixed"])
def test_fast_step_is_the_plain_step(config, tokens): compare(*training(tokens=tokens, **config))


@pytest.mark.parametrize("size", [2, 11, 16, 17, 40, 64, 128, 140])
def test_any_batch_size(size): compare(*training(size=size))


def test_the_network_really_runs_on_tape():
    model, loss = training()
    step = FastStep(model, optimiser(model), 1.0)
    with step:
        loss(model, 0).backward()
        learned = {x.parameter for x in step.networks[0].tape.in_use()}
    unused = {p for name, p in model.named_parameters() if ".query." in name or ".key." in name or ".vad." in name}
    assert all(p.grad is None for p in model.parameters()) and learned == set(model.parameters()) - unused


@pytest.mark.parametrize("kept", ["text", "audio"])
def test_a_missing_modality_goes_the_way_of_pytorch(kept):
    model, loss = training()
    inputs = {"text": torch.randn(16, 1, 32), "audio": torch.randn(16, 1, 48)}
    def mixed(model, i):
        alone = model(**{kept: inputs[kept]})
        return loss(model, i) + alone.logits.square().mean()
    compare(model, mixed)


def test_a_late_fusion_network_runs_on_tape():
    torch.manual_seed(0)
    model = LateFusionNetwork(LateFusionConfig(text_dim=24, audio_dim=40, n_classes=4, dropout=0, input_dropout=0)).train()
    x, labels = (torch.randn(128, 1, 24), torch.randn(128, 1, 40)), torch.randint(0, 4, (128,))
    _, _, fast = compare(model, lambda model, i: nn.functional.cross_entropy(model(*x).logits, labels))
    with fast: nn.functional.cross_entropy(fast.model(*x).logits, labels).backward()
    assert all(p.grad is None for p in fast.model.parameters())


def test_two_corpora_in_one_step_stay_on_tape():
    "As in adaptation: of the second pass only the fused vector is used."
    model, loss = training()
    target = torch.randn(16, 1, 32), torch.randn(16, 1, 48)
    _, other, fast = compare(model, lambda model, i: loss(model, i) + 0.1*model(*target).fused.square().mean())
    with fast:
        other(*target).fused.sum().backward()
        learned = {x.parameter for x in fast.networks[0].tape.active}
    assert learned and not learned & {p for name, p in other.named_parameters() if "head" in name}


def test_frozen_parameters_stay():
    model, loss = training()
    for p in [*model.text.parameters(), model.class_head[0].weight, model.cross[0].text_to_audio.norm_attention.weight]: p.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    _, other, _ = compare(model, loss)
    for name, p in other.named_parameters():
        if name in before: assert torch.equal(p, before[name]), name


def test_unused_parameters_are_not_decayed():
    model, loss = training()
    unused = {name for name, _ in model.named_parameters() if ".query." in name or ".key." in name or ".vad." in name}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _, other, _ = compare(model, loss)
    assert unused and all(torch.equal(p, before[name]) == (name in unused) for name, p in other.named_parameters())


def test_two_passes_in_one_step():
    model, loss = training()
    compare(model, lambda model, i: loss(model, i) + 0.5*loss(model, i + 1))


def test_a_schedule_and_groups():
    model, loss = training()
    other = copy.deepcopy(model)
    steps = []
    for m, kind in ((model, PlainStep), (other, FastStep)):
        groups = [{"params": m.text.parameters(), "lr": 1e-3, "weight_decay": 0.2}, {"params": [p for n, p in m.named_parameters() if not n.startswith("text.")]}]
        o = torch.optim.AdamW(groups, lr=1e-2, eps=1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=8)  # moves the betas too
        step = kind(m, o, 1.0)
        with step:
            for i in range(6): step(loss(m, i)); schedule.step()
    for a, b in zip(model.parameters(), other.parameters()): torch.testing.assert_close(b, a, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", [FastStep, PlainStep])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 4)], ids=["pooled", "sequence"])
def test_resumed_is_bitwise_the_undisturbed(kind, tokens, tmp_path):
    model, loss = training(tokens=tokens, dropout=0.3)
    start = copy.deepcopy(model)
    torch.manual_seed(7)
    step = kind(model, optimiser(model), 1.0, seed=3)
    with step:
        for i in range(3): step(loss(model, i))
        torch.save({"model": model.state_dict(), "optimiser": step.optimiser.state_dict(), "step": step.state_dict(), "torch": torch.get_rng_state()}, tmp_path/"checkpoint")
        for i in range(3, 6): step(loss(model, i))
    saved = torch.load(tmp_path/"checkpoint", weights_only=True)
    resumed = kind(start, optimiser(start), 1.0, seed=99)
    start.load_state_dict(saved["model"]); resumed.optimiser.load_state_dict(saved["optimiser"]); resumed.load_state_dict(saved["step"])
    torch.set_rng_state(saved["torch"])
    with resumed:
        for i in range(3, 6): resumed(loss(start, i))
    for a, b in zip(model.parameters(), start.parameters()): assert torch.equal(a, b)


def test_plain_and_fast_can_take_turns():
    model, loss = training()
    other = copy.deepcopy(model)
    plain = PlainStep(model, optimiser(model), 0.7)
    o = optimiser(other)
    run(plain, loss, 4)
    for kind in (PlainStep, FastStep):
        step = kind(other, o, 0.7)
        with step:
            for i in (range(2) if kind is PlainStep else range(2, 4)): step(loss(other, i))
    for a, b in zip(model.parameters(), other.parameters()): torch.testing.assert_close(b, a, rtol=1e-4, atol=2e-5)


def test_same_seed_same_bits():
    results = []
    for seed in (1, 1, 2):
        model, loss = training(dropout=0.3)
        run(FastStep(model, optimiser(model), 1.0, seed=seed), loss)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_dropout_is_unbiased():
    "The mean gradient over many masks is that of many PyTorch masks, to its standard error."
    means = []
    for kind in (PlainStep, FastStep):
        model, loss = training(dropout=0.3)
        step, draws = kind(model, optimiser(model, lr=0.0), 1e9), []
        with step:
            for _ in range(400): step(loss(model, 0)); draws.append(float(loss(model, 0)))
        means.append((torch.tensor(draws).mean(), torch.tensor(draws).std()/20))
    assert abs(means[0][0] - means[1][0]) < 4*(means[0][1]**2 + means[1][1]**2)**0.5


def test_model_is_left_as_it_was():
    model, loss = training()
    with pytest.raises(RuntimeError, match="stop"):
        with FastStep(model, optimiser(model), 1.0): raise RuntimeError("stop")
    assert all("forward" not in vars(m) for m in model.modules())
    copy.deepcopy(model)


def test_an_error_between_the_passes_leaves_nothing_on_the_tape():
    model, loss = training()
    other = copy.deepcopy(model)
    steps = [FastStep(m, optimiser(m), 0.7) for m in (model, other)]
    with pytest.raises(RuntimeError, match="stop"):
        with steps[0]: loss(model, 0); raise RuntimeError("stop")
    for step in steps: run(step, loss)
    for a, b in zip(model.parameters(), other.parameters()): assert torch.equal(a, b)


def test_evaluation_inside_a_step_is_plain():
    model, loss = training()
    x = torch.randn(4, 1, 32), torch.randn(4, 1, 48)
    want = model(*x).logits
    with FastStep(model, optimiser(model), 1.0), torch.inference_mode(): got = model(*x).logits
    assert torch.equal(want, got)


def test_a_loss_that_is_not_finite_is_seen():
    model, loss = training()
    step = FastStep(model, optimiser(model), 1.0)
    with step:
        norm = step(loss(model, 0)*float("nan"))
        assert norm != norm and not torch.isfinite(loss(model, 0))


def test_make_step_falls_back():
    model, _ = training()
    assert isinstance(make_step(model, optimiser(model), 1.0), FastStep)
    double = training()[0].double()
    assert not fast_step_fits(double) and isinstance(make_step(double, optimiser(double), 1.0), PlainStep)


@pytest.mark.parametrize("kind", [FastStep, PlainStep])
def test_bf16_trains_nearly_alike(kind):
    model, loss = training()
    other = copy.deepcopy(model)
    norms = run(PlainStep(model, optimiser(model), 1.0), loss), run(kind(other, optimiser(other), 1.0, precision="bf16"), loss)
    torch.testing.assert_close(norms[1], norms[0], rtol=0.1, atol=0.01)
    assert all(p.dtype == torch.float32 for p in other.parameters())


@pytest.mark.skipif(not HAS_BF16, reason="no bfloat16 instructions")
@pytest.mark.parametrize("sizes", [[16]*8, [16, 140, 11, 140, 16, 16, 140, 16]], ids=["small", "large batches between"])
def test_bf16_resumed_is_bitwise_the_undisturbed(sizes, tmp_path):
    model, loss = training(dropout=0.3)
    _, large = training(dropout=0.3, size=140)
    losses = [loss if n < 20 else large for n in sizes]
    start = copy.deepcopy(model)
    def go(model, step, part):
        with step:
            for i in part: step(losses[i](model, i))
    step = FastStep(model, optimiser(model), 1.0, "bf16", seed=3)
    torch.manual_seed(7); go(model, step, range(4))
    torch.save({"model": model.state_dict(), "optimiser": step.optimiser.state_dict(), "step": step.state_dict(), "torch": torch.get_rng_state()}, tmp_path/"checkpoint")
    go(model, step, range(4, 8))
    saved = torch.load(tmp_path/"checkpoint", weights_only=True)
    resumed = FastStep(start, optimiser(start), 1.0, "bf16", seed=99)
    start.load_state_dict(saved["model"]); resumed.optimiser.load_state_dict(saved["optimiser"]); resumed.load_state_dict(saved["step"])
    torch.set_rng_state(saved["torch"]); go(start, resumed, range(4, 8))
    for a, b in zip(model.parameters(), start.parameters()): assert torch.equal(a, b)


@pytest.mark.skipif(not HAS_BF16, reason="no bfloat16 instructions")
def test_bf16_weights_are_whole_wherever_pytorch_reads_them():
    "Few rows, many rows, evaluation and an error in between: the model is always the one that was trained."
    model, loss = training()
    _, large = training(size=140)
    x = torch.randn(4, 1, 32), torch.randn(4, 1, 48)
    step = FastStep(model, optimiser(model), 1.0, "bf16")
    with pytest.raises(RuntimeError, match="stop"):
        with step:
            for f in (loss, large, loss):
                step(f(model, 0))
                with torch.inference_mode(): inside = model(*x).logits
            step(loss(model, 1)); raise RuntimeError("stop")
    with step, torch.inference_mode(): again = model(*x).logits
    assert not torch.equal(inside, again)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(*x).logits, again, rtol=0.05, atol=0.05)
