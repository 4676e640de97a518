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
        "session": [f"session {s * 5 // n_speakers:02}" for s in speaker], "fold": [f"{s % 5}" for s in speaker],
        "split": np.where(speaker % 5 == 0, "test", "train"), "gender": rng.choice(["female", "male"], n_speakers)[speaker],
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
    found = audit(make_splits(manifest, name, seed), manifest)
    speaker, text = (found.overlaps[found.overlaps.subject == subject] for subject in ("speaker", "sentence"))
    assert not speaker.affected.any() and (text.affected == text.utterances).all()
    assert "Speaker-independent" in found.conclusion and not found.leaks and "everybody says one of 1 sentences" in str(found)


@st.composite
def any_corpora(draw):
    "Manifests of arbitrary shape: uneven speakers, rare labels, nulls in sessions, one speaker in several sessions."
    n = draw(st.integers(12, 60))
    column = lambda values: draw(st.lists(values, min_size=n, max_size=n))
    return make_manifest(pd.DataFrame({
        "id": draw(st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=n, max_size=n, unique=True)), "corpus": "made", "text": "",
        "speaker": column(st.sampled_from("abcdefg")), "session": column(st.sampled_from(["1", "2", "3", "4", "5", None])), "gender": column(st.sampled_from(["female", "male", None])),
        "label": column(st.sampled_from(["anger", "anger", "anger", "joy", "fear"])), "split": column(st.sampled_from(["train", "train", "val", "test"])),
        "fold": column(st.sampled_from("12"))}))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(any_corpora(), st.sampled_from(list(PROTOCOLS)), seeds)
def test_any_corpus_is_split_well_or_refused_in_one_line(manifest, name, seed):
    try: splits = make_splits(manifest, name, seed)
    except InputError as e:
        assert "\n" not in str(e)
        return
    group = manifest.table.set_index("id", drop=False)[PROTOCOLS[name].group or "id"]
    for k in range(splits.n_folds):
        fold = splits.fold(k)
        assert sorted(sum(fold.values(), [])) == manifest.ids
        assert fold["train"] and fold["test"]
        groups = [set(group[fold[part]]) for part in PARTS]
        assert sum(map(len, groups)) == len(set.union(*groups))


def two_corpora(manifest, cut):
    "The same utterances as two corpora whose speakers, sessions and dialogues share their names."
    return make_manifest(manifest.table.assign(corpus=np.where(np.arange(len(manifest)) % cut == 0, "first", "se/cond"), dialogue=manifest.table.session))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(corpora, st.sampled_from(list(PROTOCOLS)), seeds, st.integers(2, 4))
def test_two_corpora_with_the_same_names_are_split_and_audited_like_two_with_other_names(manifest, name, seed, cut):
    both = two_corpora(manifest, cut)
    by_hand = {c: both.table.corpus.str.replace("/", "%2F") + "/" + both.table[c] for c in ("speaker", "session", "dialogue")}
    other = make_manifest(both.table.assign(corpus="one", **by_hand))
    try: splits = make_splits(both, name, seed)
    except InputError as e:
        with pytest.raises(InputError, match=str(e).split(",")[0]): make_splits(other, name, seed)
        return
    assert splits.fingerprint == make_splits(other, name, seed).fingerprint
    pd.testing.assert_frame_equal(audit(splits, both).overlaps, audit(splits, other).overlaps)


@few
@given(corpora, st.sampled_from(["loso", "speaker-kfold", "speaker-split"]), seeds)
def test_the_parts_of_two_corpora_share_no_speaker_of_either(manifest, name, seed):
    both = two_corpora(manifest, 2)
    splits, who = make_splits(both, name, seed), both.table.set_index("id")[["corpus", "speaker"]]
    for k in range(splits.n_folds):
        groups = [set(map(tuple, who.loc[ids].to_numpy())) for ids in splits.fold(k).values()]
        assert sum(map(len, groups)) == len(set.union(*groups))


@few
@given(corpora, st.sampled_from(["loso", "speaker-kfold", "speaker-split"]), st.floats(0, 1), seeds)
def test_unknown_speakers_are_no_speaker(manifest, name, share, seed):
    unknown = np.random.default_rng(seed).random(len(manifest)) <= share
    unknown[0] = True
    manifest = make_manifest(manifest.table.assign(speaker=manifest.table.speaker.mask(unknown, "unknown")))
    with pytest.raises(InputError, match=f"needs a speaker for every utterance, {unknown.sum():,} of .* Fill in column speaker"): make_splits(manifest, name)
    found = audit(make_splits(manifest, "random", seed), manifest)
    if unknown.all(): assert found.conclusion.startswith("Speakers are not recorded.") and "speaker" not in set(found.overlaps.subject)
    else: assert "Speaker-independent" not in found.conclusion and "have no speaker" in str(found)


@few
@given(corpora, st.sampled_from(["official", "folds"]), st.integers(1, 5), seeds)
def test_an_utterance_without_a_fold_stays_out_and_is_named(manifest, name, n, seed):
    column = {"official": "split", "folds": "fold"}[name]
    out = sorted(np.random.default_rng(seed).choice(manifest.ids, n, replace=False))
    holes = make_manifest(manifest.table.assign(**{column: manifest.table[column].mask(manifest.table["id"].isin(out))}))
    splits = make_splits(holes, name, seed)
    assert splits.left_out(holes) == out and f"{n} of {len(holes)} utterances" in str(audit(splits, holes))
    without = make_splits(holes.where(~holes.table["id"].isin(out)), name, seed)
    assert splits.fingerprint == without.fingerprint and not without.left_out(holes.take(without.table["id"].unique()))


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
    found = audit(make_splits(manifest, "random"), manifest)
    assert found.conclusion.startswith("Speakers are shared") and [f.subject for f in found.leaks] == ["speaker"]


def test_a_speaker_in_two_sessions_is_found():
    manifest = corpus(8, 10)
    moved = make_manifest(manifest.table.assign(session=[f"session {i % 4}" for i in range(len(manifest))]))
    assert [f.subject for f in audit(make_splits(moved, "loso-session"), moved).leaks] == ["speaker"]


@few
@given(corpora, st.sampled_from(list(PROTOCOLS)), seeds)
def test_published_folds_give_the_same_splits_back(manifest, name, seed):
    splits = make_splits(manifest, name, seed)
    folds = {f"fold_{k + 1}": {{"val": "valid"}.get(part, part): ids[::-1] for part, ids in splits.fold(k).items()} for k in range(splits.n_folds)}
    again = from_folds(manifest, dict(reversed(folds.items())), name)
    assert again.fingerprint == splits.fingerprint


@few
@given(corpora, st.sampled_from(["session", "speaker", "id"]), seeds)
def test_validation_is_cut_as_the_test_part_was(manifest, column, seed):
    table = manifest.table
    order = sorted(table[column].unique()) if column != "id" else sorted(table["id"])[::7]
    tested = [order[seed % len(order)]] if column == "session" else [order[0], order[-1]] if column == "speaker" else order
    test = table["id"][table[column].isin(tested)]
    splits = from_folds(manifest, {1: {"train": table["id"][~table[column].isin(tested)], "test": test}}, seed=seed)
    fold, groups = splits.fold(0), table.set_index("id")
    assert fold["val"] and fold["test"] == sorted(test) and sorted(sum(fold.values(), [])) == manifest.ids
    apart = lambda name: set(groups[name][fold["val"]]).isdisjoint(groups[name][fold["train"]])
    if column == "session": assert set(groups.session[fold["val"]]) == {order[(seed + 1) % len(order)]}  # the next one, going round
    if column == "speaker": assert apart("speaker")
    if column == "id": assert not apart("speaker") and abs(len(fold["val"]) - (len(manifest) - len(test)) / 9) < 5


def test_folds_by_session_validate_on_the_next_session_going_round():
    manifest = corpus(10, 10)
    folds = {name: {"train": group["id"][group.session != name], "test": group["id"][group.session == name]}
             for group in [manifest.table] for name in sorted(group.session.unique())}
    assert from_folds(manifest, folds, "loso-session").fingerprint == make_splits(manifest, "loso-session").fingerprint


@few
@given(corpora, seeds)
def test_published_folds_of_a_whole_corpus_narrow_to_a_label_set(manifest, seed):
    whole, kept = make_splits(manifest, "random", seed), manifest.where(manifest.table.label != "anger")
    narrow = whole.only(kept.ids)
    assert all(set(narrow.fold(0)[part]) == set(whole.fold(0)[part]) & set(kept.ids) for part in PARTS)
    assert (narrow.protocol, narrow.title, narrow.seed) == (whole.protocol, whole.title, seed)


def test_emobox_folds_of_emodb(shared):
    "The real published folds: five of 428 and 107 utterances, all ten speakers on both sides, no validation."
    import json
    from mser.corpora.emodb import emodb
    manifest, folder = emodb(shared/"emodb"), shared/"emodb"/"emobox"
    ids = lambda part, k: [json.loads(line)["key"] for line in (folder/f"emodb_{part}_fold_{k}.jsonl").read_text().splitlines()]
    splits = from_folds(manifest, {k: {part: ids(part, k) for part in ("train", "test")} for k in range(1, 6)}, "emobox")
    assert splits.n_folds == 5 and sorted(splits.table["id"][splits.table.part == "test"]) == manifest.ids
    assert splits.table.groupby("fold").part.value_counts().unstack().test.tolist() == [107] * 5
    assert "speaker" in [f.subject for f in audit(splits, manifest).leaks]


def test_meld_official(shared):
    tables = [pd.read_csv(shared/"meld"/f"{name}_sent_emo.csv").assign(split=split) for split, name in (("train", "train"), ("val", "dev"), ("test", "test"))]
    lines = pd.concat(tables)
    place = lines.split + "-dia" + lines.Dialogue_ID.astype(str)
    manifest = make_manifest(pd.DataFrame({"id": place + "_utt" + lines.Utterance_ID.astype(str), "corpus": "meld", "speaker": lines.Speaker,
                                           "dialogue": place, "text": lines.Utterance, "label": lines.Emotion, "split": lines.split}))
    splits = make_splits(manifest, "official")
    assert splits.table.part.value_counts().to_dict() == {"train": 9989, "test": 2610, "val": 1109}
    assert not audit(splits, manifest).leaks


@pytest.mark.parametrize("name, n_speakers, message", [
    ("loso", 2, "protocol 'loso' needs at least 3 speakers, made has 2 (s000, s001)"),
    ("loso-session", 2, "needs at least 3 sessions, made has 2 (session 00, session 02)"),
    ("sessions-3-1-1", 4, "needs at least 5 sessions, made has 4"),
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
    assert (back.fingerprint, back.protocol, back.seed, back.title) == (splits.fingerprint, name, 7, PROTOCOLS[name].title)
    pd.testing.assert_frame_equal(back.table, splits.table)


def test_large_corpora_take_seconds():
    manifest, start = corpus(91, 55), time.perf_counter()  # the size of CREMA-D
    for name in PROTOCOLS: audit(make_splits(manifest, name), manifest)
    assert time.perf_counter() - start < 60
