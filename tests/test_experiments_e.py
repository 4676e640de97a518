"""What inflates, breaks, explains and costs: the four notebooks on tiny corpora, and properties of what they are made of."""
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mser.core import project_root, read_json
from mser.corpora.simulated import SIMULATED, simulate
from mser.corruption import LOST, add_noise, corrupt_texts, draw_errors, word_error_rate
from mser.experiment import DoesNotApply
from mser.inflation import blind, honest_splits, known_share, test_selects as selected_on_test, with_test_speakers
from mser.manifest import UNKNOWN_SPEAKER, make_manifest
from mser.predict import kept_runs
from mser.protocols import make_splits
from mser.reproduce import execute
from mser.runs import RunStore

VOCABULARY = [f"w{i}" for i in range(40)]
texts = st.lists(st.lists(st.sampled_from(VOCABULARY[:20]), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(texts, st.floats(0, 1), st.integers(0, 5))
def test_word_error_rate_is_exact(said, rate, seed):
    words = sum(len(t.split()) for t in said)
    heard = corrupt_texts(said, rate, VOCABULARY, seed)
    assert word_error_rate(said, heard) == pytest.approx(round(rate*words)/words)
    assert all(heard) and corrupt_texts(said, rate, VOCABULARY, seed) == heard


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
def test_errors_of_a_lower_rate_are_among_those_of_a_higher_one(lengths, a, b, seed):
    fewer, more = (np.concatenate(draw_errors(lengths, rate, seed)) for rate in sorted((a, b)))
    assert (more[fewer > 0] > 0).all()
    assert not any((kinds == LOST).all() for kinds in draw_errors(lengths, b, seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100), st.floats(-10, 30), st.floats(1e-3, 0.05), st.floats(1e-4, 100))
def test_signal_to_noise_ratio_is_exact(seed, snr, loudness, of_noise):
    g = np.random.default_rng(seed)
    signal = (loudness*np.clip(g.standard_normal(4000), -1, 1)).astype(np.float32)
    mixed = add_noise(signal, of_noise*g.standard_normal(4000), snr).astype(np.float64)
    if np.abs(mixed).max() < 0.999:  # otherwise both were made quieter
        found = 10*np.log10((signal.astype(np.float64)**2).sum()/((mixed - signal)**2).sum())
        assert found == pytest.approx(snr, abs=0.05)
    assert np.abs(mixed).max() <= 1


@pytest.fixture(scope="module")
def manifest(): return simulate(SIMULATED["sim-cremad"].model_copy(update={"scale": 0.05, "text_dim": 32, "audio_dim": 32})).manifest


@pytest.mark.parametrize("seed", range(3))
def test_wrong_splits_differ_in_one_respect(manifest, seed):
    honest, label = make_splits(manifest, "speaker-kfold"), manifest.table.set_index("id").label
    informed, random, selected = with_test_speakers(honest, manifest, seed), blind(honest, manifest, seed), selected_on_test(honest)
    for k in range(honest.n_folds):
        parts = {name: s.fold(k) for name, s in (("honest", honest), ("informed", informed), ("random", random), ("selected", selected))}
        counts = {name: label[p["train"]].value_counts().to_dict() for name, p in parts.items()}
        assert len({tuple(sorted(c.items())) for c in counts.values()}) == 1  # the same training size, class by class
        assert set(parts["informed"]["test"]) < set(parts["honest"]["test"]) and parts["informed"]["val"] == parts["honest"]["val"]
        assert (parts["selected"]["val"], parts["selected"]["test"], parts["selected"]["train"]) == (parts["honest"]["test"], parts["honest"]["val"], parts["honest"]["train"])
        assert known_share(honest, manifest, k) == 0 < known_share(informed, manifest, k)


def test_nothing_is_said_where_nobody_recorded_speakers(manifest):
    nobody = make_manifest(manifest.table.assign(speaker=UNKNOWN_SPEAKER))
    with pytest.raises(DoesNotApply, match="Speakers cannot be kept apart"): honest_splits(make_splits(nobody, "random"), nobody)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    "One workspace for the notebooks, which share runs."
    return tmp_path_factory.mktemp("experiments")


def ran(name, out, corpora=None):
    done = execute(project_root()/"nbs"/"experiments"/f"{name}.ipynb", {"corpora": corpora or {"sim-cremad": None}, "out": str(out), "profile": "smoke", "workers": 1}, Path(out))
    assert not done.failure, done.failure
    return done


def table(out, name): return pd.read_csv(out/"tables"/f"{name}.csv")


def leads(out, name, n_lines):
    "Does every line of a table lead to runs that are there? The runs by row."
    told = read_json(out/"tables"/f"{name}.json")
    links, places = re.findall(r'href="#([^"]+)"', told["html"]), re.findall(r'id="([^"]+)"', told["runs_html"])
    assert len(links) == n_lines and set(links) <= set(places), name
    assert all((out/"runs"/h/"metrics.json").exists() for hashes in told["runs"].values() for h in hashes), name
    return told["runs"]


def test_protocols(workspace):
    ran("protocols", workspace)
    numbers = table(workspace, "protocols-sim-cremad")
    assert numbers["what is wrong"].tolist() == [*["test speakers in training"]*2, *["random split"]*2, "epoch chosen on test"]
    assert np.allclose(numbers.wrong - numbers.honest, numbers.difference)
    assert numbers.difference.iloc[-1] >= 0  # by construction
    assert [len(hashes) for hashes in leads(workspace, "protocols-sim-cremad", 5).values()] == numbers.runs.tolist()
    assert "not results" in read_json(workspace/"tables"/"protocols-sim-cremad.json")["caption"]
    assert ran("protocols", workspace).computed == 0


def test_robustness(workspace):
    ran("robustness", workspace)
    numbers = table(workspace, "robustness-sim-cremad")
    assert set(numbers.model) == {"full model", "cross-attention", "late fusion"}
    assert sorted(numbers.severity.dropna().unique()) == [0.1, 0.2, 0.3, 0.4, 0.5] and numbers.ua.between(0, 1).all()
    assert set(leads(workspace, "robustness-sim-cremad", 8)) == set(numbers.model)
    assert "Noise does not apply" in read_json(workspace/"tables"/"robustness-sim-cremad.json")["caption"]
    clean, store = numbers[numbers.corruption == "nothing"].set_index("model").ua, RunStore(workspace/"runs")
    kept = [p.parent.name for p in (workspace/"runs").glob("*/model.safetensors")]
    scores = {store.spec(run).method.kind: store.metrics(run)["test"]["ua"] for run in kept if store.spec(run).method.kind == "late_fusion"}
    assert clean["late fusion"] == pytest.approx(scores["late_fusion"])  # the kept weights are those of the run
    assert all(store.spec(run).method.kind == "network" for run in kept_runs(workspace))  # `mser predict` is not given late fusion


def test_interpretation(workspace):
    ran("interpretation", workspace)
    gates = table(workspace, "interpretation-sim-cremad-2-gates")
    assert len(gates) == 8 and gates["mean"].between(0, 1).all() and (gates.reliability[gates.modality == "text"] == 0).all()
    assert table(workspace, "interpretation-sim-cremad-3-knock-out")["mean"].between(-1, 1).all()
    assert leads(workspace, "interpretation-sim-cremad-2-gates", 4) == leads(workspace, "interpretation-sim-cremad-3-knock-out", 3)
    for name in ("1-attention", "sim-cremad-2-gates", "sim-cremad-3-knock-out", "sim-cremad-4-vad", "sim-cremad-5-embeddings"):
        assert (workspace/"figures"/f"interpretation-{name}.svg").exists()


def test_efficiency(workspace):
    ran("efficiency", workspace)
    size = table(workspace, "efficiency-sim-cremad").set_index("method")
    assert size.parameters["full model, paper"] > size.parameters["cross-attention, paper"] > size.parameters["text only, paper"]
    assert (size.training_bytes > 16*size.parameters).all()
    for name in ("throughput", "scaling", "cost"): assert "easured" in read_json(workspace/"tables"/f"efficiency-sim-cremad-measured-{name}.json")["caption"]
    assert (table(workspace, "efficiency-sim-cremad-measured-cost").seconds > 0).all()
    leads(workspace, "efficiency-sim-cremad-measured-cost", 10)
