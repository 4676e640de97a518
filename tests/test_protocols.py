"Properties of the splits: they partition, keep groups apart, and depend on nothing but content, protocol and seed."
import time

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from mser.core import InputError
from mser.manifest import make_manifest
from mser.audit import audit
from mser.protocols import PARTS, PROTOCOLS, Splits, from_folds, make_splits

GROUPED = [name for name, protocol in PROTOCOLS.items() if protocol.group]
few = settings(max_examples=12, deadline=None, derandomize=True)


def corpus(n_speakers, n_each, n_labels=3, seed=0, **columns):
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(n_speakers), rng.integers(n_each, 2 * n_each, n_speakers))
    n = len(speaker)
    return make_manifest(pd.DataFrame({
        "id": [f"u{i:05}" for i in rng.permutation(n)], "corpus": "made", "text": "the same sentence", "speaker": [f"s{s:03}" for s in speaker],
        "session": [f"session {s // 2:02}" for s in speaker], "gender": rng.choice(["female", "male"], n_speakers)[speaker],
        "label": rng.choice(["anger", "happiness", "neutral", "sadness"][:n_labels], n), **columns}))


corpora = st.builds(corpus, n_speakers=st.integers(10, 14), n_each=st.integers(6, 9), n_labels=st.integers(2, 4), seed=st.integers(0, 10**6))
seeds = st.integers(0, 100)


@few
@given(corpora, st.sampled_from(list(PROTOCOLS)), seeds)
def test_parts_are_a_partition_and_groups_stay_apart(manifest, name, seed):
    splits = make_splits(manifest, name, seed)
    group = manifest.table.set_index("id")[PROTOCOLS[name].group or "speaker"]
    for k in range(splits.n_folds):
        fold = splits.fold(k)
        assert sorted(sum(fold.values(), [])) == manifest.ids
        assert all(fold[part] for part in PARTS)
        groups = [set(group[fold[part]]) for part in PARTS]
        if name in GROUPED: assert sum(map(len, groups)) == len(set.union(*groups))
    if splits.n_folds > 1: assert sorted(splits.table["id"][splits.table.part == "test"]) == manifest.ids


@few
@given(corpora, st.sampled_from(list(PROTOCOLS)), seeds, st.randoms(use_true_random=False))
def test_neither_order_of_rows_nor_root_matters(manifest, name, seed, random):
    order = list(range(len(manifest)))
    random.shuffle(order)
    other = make_manifest(manifest.table.iloc[order], root="elsewhere")
    assert make_splits(other, name, seed).fingerprint == make_splits(manifest, name, seed).fingerprint


@few
@given(corpora, st.sampled_from(GROUPED), seeds)
def test_no_speaker_leaks_and_the_shared_sentence_is_named_as_a_property(manifest, name, seed):
    table = audit(make_splits(manifest, name, seed), manifest)
    assert (table.shared[table.key == "speaker"] == 0).all() and (table.affected[table.key == "text"] == 1).all()
    assert "Speaker-independent" in verdict(table) and "LEAK" not in verdict(table) and "property of the corpus" in verdict(table)


@few
@given(st.integers(3, 12), st.integers(0, 10**6))
def test_loso_validates_on_other_speakers_of_both_sexes(n_speakers, seed):
    manifest = corpus(n_speakers, 20, seed=seed)
    facts = manifest.table.set_index("id")[["speaker", "gender"]]
    splits = make_splits(manifest, "loso")
    for k in range(n_speakers):
        val, rest = facts.loc[splits.fold(k)["val"]], facts.drop(splits.fold(k)["test"])
        assert val.speaker.nunique() == (2 if n_speakers >= 6 else 1)
        if n_speakers >= 6 and rest.gender.nunique() == 2: assert val.gender.nunique() == 2


def test_loso_keeps_a_class_in_training():
    manifest = corpus(8, 10)
    rare = make_manifest(manifest.table.assign(label=np.where(manifest.table.speaker == "s001", "fear", manifest.table.label)))
    splits, labels = make_splits(rare, "loso"), rare.table.set_index("id").label
    assert all("fear" in set(labels[splits.fold(k)["train"]]) for k in range(8) if k != 1)


def test_random_leaks_and_is_called_so():
    manifest = corpus(10, 30)
    table = audit(make_splits(manifest, "random"), manifest)
    assert verdict(table).startswith("Speakers are shared") and "LEAK" in verdict(table)


def test_a_speaker_in_two_sessions_is_found():
    manifest = corpus(8, 10)
    moved = make_manifest(manifest.table.assign(session=[f"session {i % 4}" for i in range(len(manifest))]))
    assert "LEAK" in verdict(audit(make_splits(moved, "loso-session"), moved))


@pytest.mark.parametrize("name, n_speakers, message", [
    ("loso", 2, "protocol 'loso' needs at least 3 speakers, made has 2 (s000, s001)"),
    ("loso-session", 4, "needs at least 3 sessions, made has 2 (session 00, session 01)"),
    ("speaker-kfold", 4, "needs at least 5 speakers, made has 4"),
    ("speaker-split", 2, "needs at least 3 speakers, made has 2"),
])
def test_too_few_groups_are_refused_with_counts(name, n_speakers, message):
    with pytest.raises(InputError) as error: make_splits(corpus(n_speakers, 10), name)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_sessions_must_be_known():
    with pytest.raises(InputError, match="needs a session for every utterance"): make_splits(corpus(6, 5, session=None), "loso-session")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_splits_come_back_from_their_file(tmp_path, name):
    splits = make_splits(corpus(10, 6), name, seed=7)
    splits.save(tmp_path/"splits.parquet")
    back = Splits.load(tmp_path/"splits.parquet")
    assert (back.fingerprint, back.protocol, back.seed) == (splits.fingerprint, name, 7)
    pd.testing.assert_frame_equal(back.table, splits.table)


def test_large_corpora_take_seconds():
    manifest, start = corpus(91, 55), time.perf_counter()  # the size of CREMA-D
    for name in PROTOCOLS: make_splits(manifest, name)
    audit(make_splits(manifest, "speaker-kfold"), manifest)
    assert time.perf_counter() - start < 60
