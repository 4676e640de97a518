"The audit finds every kind of leak that is planted, by its name, and none in clean splits."
import time

import numpy as np, pandas as pd, pytest, soundfile as sf
from hypothesis import given, settings, strategies as st

from mser.audit import PAIRS, SUBJECTS, audio_digests, audit, compare, digest_sound, near_graph, nearest_in, overlaps, plain_text, tells, values_of
from mser.core import InputError
from mser.encoders.base import EncoderCard
from mser.manifest import make_manifest
from mser.protocols import PARTS, PROTOCOLS, Splits, make_splits

few = settings(max_examples=20, deadline=None, derandomize=True)
WORDS = "amber birch cedar dune ember fjord grove heath islet jetty knoll ledge marsh north ocean perch quay ridge shore tarn".split()


def apart(n=90, seed=0, **columns):
    "A corpus whose three parts share nothing: speakers, sessions, dialogues and sentences belong to one part each."
    rng = np.random.default_rng(seed)
    part = np.array(PARTS)[np.arange(n) % 3]
    text = [" ".join(f"{word}{p}{i}" for word in rng.choice(WORDS, 4)) for i, p in enumerate(part)]
    table = pd.DataFrame({"id": [f"u{i:03}" for i in range(n)], "corpus": "made", "text": text, "split": part,
                          "label": rng.choice(["anger", "happiness", "sadness"], n), "speaker": [f"{p}-s{i % 4}" for i, p in enumerate(part)],
                          "session": [f"{p}-room{i % 2}" for i, p in enumerate(part)], "dialogue": [f"{p}-d{i % 5}" for i, p in enumerate(part)]})
    return table.assign(**columns)


def audited(table, cards=(), recordings=None, protocol="unnamed"):
    manifest = make_manifest(table)
    parts = manifest.table.set_index("id").split
    return audit(Splits(protocol, pd.DataFrame({"id": parts.index, "fold": 0, "part": parts.to_numpy()})), manifest, cards, recordings)


def levels(found): return {f.subject: f.level for f in found.findings}


@few
@given(st.integers(30, 120), st.integers(0, 10**6))
def test_nothing_is_found_where_nothing_is_shared(n, seed):
    found = audited(apart(n, seed))
    assert not found.overlaps.affected.any() and not found.leaks and "No leak found" in found.conclusion
    assert {levels(found)[s] for s in found.overlaps.subject.unique()} == {"fine"}


@few
@given(st.sampled_from(["speaker", "dialogue", "session"]), st.sampled_from(PAIRS), st.integers(0, 10**6))
def test_one_planted_group_is_found_where_it_is(subject, pair, seed):
    table, (first, second) = apart(seed=seed), pair
    giver, taker = (table.index[table.split == part][seed % 20] for part in pair)
    table.loc[taker, subject] = table.loc[giver, subject]
    found = audited(table)
    hit = found.overlaps[found.overlaps.affected > 0]
    assert hit[["subject", "first", "second", "affected"]].values.tolist() == [[subject, first, second, 1]]
    assert hit.example.iloc[0] == table.loc[giver, subject]
    wanted = "caution" if subject == "session" or second == "val" else "leak"
    assert levels(found)[subject] == wanted and bool(found.leaks) == (wanted == "leak")


@few
@given(st.integers(0, 10**6))
def test_one_planted_sentence_and_one_nearly_the_same(seed):
    table = apart(seed=seed)
    rng = np.random.default_rng(seed)
    giver, other = rng.choice(table.index[table.split == "train"], 2, replace=False)
    taker, nearly = rng.choice(table.index[table.split == "test"], 2, replace=False)
    table.loc[taker, "text"] = f"  {table.text[giver].upper()}! "
    table.loc[nearly, "text"] = f"{table.text[other]}, {table.text[other].split()[0]}."
    hit = audited(table).overlaps.query("affected > 0").set_index("subject")
    assert set(hit.index) == {"sentence", "near-sentence"} and (hit.affected == 1).all()
    assert (hit["first"] == "train").all() and (hit.second == "test").all()
    assert hit.example.to_dict() == {"sentence": table.text[giver], "near-sentence": table.text[other]}


@pytest.mark.parametrize("subject, level", [("sound", "leak"), ("file", "leak")])
def test_a_recording_that_is_there_twice(tmp_path, subject, level):
    rng = np.random.default_rng(0)
    table = apart(12).assign(audio=lambda t: t["id"] + ".wav")
    sounds = {name: rng.integers(-9000, 9000, 1600, dtype=np.int16) for name in table.audio}
    train, test = (table.audio[table.split == part].iloc[0] for part in ("train", "test"))
    if subject == "sound": table.loc[table.audio == test, "audio"] = test = "other-name.flac"
    sounds[test] = sounds[train]
    for name in table.audio: sf.write(tmp_path/name, sounds[name], 16000)
    manifest = make_manifest(table, root=tmp_path)
    found = audited(table, recordings=audio_digests(manifest, progress=False))
    wanted = {"sound": {"sound"}, "file": {"file", "sound"}}[subject]
    assert set(found.overlaps.subject[found.overlaps.affected > 0]) == wanted and {f.subject for f in found.leaks} == wanted
    assert levels(found)[subject] == level


def test_workers_change_nothing(small_emodb):
    from mser.corpora.emodb import emodb
    manifest = emodb(small_emodb)
    one, two = (audio_digests(manifest, workers, progress=False) for workers in (1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert one.sound.notna().all() and (one.problem == "").all() and one["id"].tolist() == manifest.ids


def test_recordings_that_cannot_be_decoded_are_counted_and_named(copy_of_small_emodb):
    from mser.corpora.emodb import emodb
    manifest = emodb(copy_of_small_emodb)
    for path, content in zip(manifest.audio_paths(), (b"", b"RIFF", None, b"version https://git-lfs.github.com/spec/v1")):
        path.unlink() if content is None else path.write_bytes(content)
    found = audit(make_splits(manifest, "loso"), manifest, recordings=audio_digests(manifest, progress=False))
    [missing] = [f.text for f in found.findings if "decoded" in f.text]
    assert missing.startswith(f"4 recordings could not be decoded, e.g. {manifest.ids[0]!r}: the file is empty")
    assert not found.leaks


def test_two_silences_are_not_the_same_recording(tmp_path):
    for name in "ab": sf.write(tmp_path/f"{name}.wav", np.zeros(800 + 10 * (name == "b")), 16000)
    assert digest_sound(tmp_path/"a.wav") is None and digest_sound(tmp_path/"b.wav") is None


@few
@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50).filter(any), st.integers(0, 20), st.integers(0, 20), st.sampled_from([1, 2, 4]))
def test_a_sound_keeps_its_name_through_padding_and_channels(tmp_path_factory, samples, before, after, channels):
    folder, sound = tmp_path_factory.mktemp("sounds"), np.array(samples, dtype=np.int16)
    sf.write(folder/"plain.wav", sound, 16000)
    sf.write(folder/"changed.flac", np.tile(np.pad(sound, (before, after))[:, None], channels), 16000)
    assert digest_sound(folder/"plain.wav") == digest_sound(folder/"changed.flac")


@few
@given(st.data())
def test_comparison_agrees_with_sets_and_counting(data):
    codes, labels = st.integers(-1, 6), st.integers(0, 3)
    first, second = (data.draw(st.lists(st.tuples(codes, labels), min_size=1, max_size=40)) for _ in range(2))
    (x, a), (y, b) = (np.array(rows).T for rows in (first, second))
    found, known = compare(x, a, y, b), set(x) - {-1}
    affected = [(value, label) for value, label in second if value in known]
    most = {value: max(range(4), key=lambda l: (sum(r == (value, l) for r in first), -l)) for value in known}
    usual = max(range(4), key=lambda l: ((a == l).sum(), -l))
    assert found["values"] == len(set(y) - {-1}) and found["shared"] == len({v for v, _ in affected})
    assert (found["utterances"], found["affected"]) == (len(second), len(affected))
    assert found["told"] == sum(most[v] == label for v, label in affected)
    assert found["usual"] == sum(label == usual for _, label in affected)
    assert found["differ"] == sum((most[v] == label) != (label == usual) for v, label in affected)


sentences = st.lists(st.text("abc ", min_size=4, max_size=12), min_size=2, max_size=12)


@few
@given(sentences)
def test_nearness_is_symmetric_and_the_nearest_is_the_nearest(texts):
    plain = sorted(set(plain_text(pd.Series(texts, dtype="str")).dropna()))
    graph = near_graph(plain, near=0.3)
    dense = graph.toarray()
    np.testing.assert_allclose(dense, dense.T, atol=1e-6)
    first, second = np.arange(0, len(plain), 2), np.arange(len(plain))
    for code, nearest in zip(second, nearest_in(graph, first, second)):
        if code in first or not dense[code, first].max(initial=0) > 0: assert nearest == -1
        else: assert np.isclose(dense[code, nearest], dense[code, first].max())


@pytest.mark.parametrize("texts", [["oh", "oh oh"], ["a", "b"], ["…", "!"], ["", "x"], ["好", "好的"]])
def test_very_short_sentences(texts):
    table = apart(12)
    table.loc[:1, "text"] = texts
    assert audited(table).conclusion


def test_words_that_give_the_emotion_away_are_a_caution():
    table = apart(300)
    words = {"anger": "damn it all", "happiness": "what a joy", "sadness": "it is hopeless"}
    assert levels(audited(table.assign(text=table.label.map(words))))["sentence"] == "caution"
    said_by_all = table.assign(text=np.random.default_rng(1).choice(list(words.values()), len(table)))
    found = audited(said_by_all)
    assert levels(found)["sentence"] == "note" and any("one of 3 sentences" in f.text for f in found.findings)


@few
@given(st.integers(0, 10**6))
def test_words_that_mean_nothing_seldom_seem_to(seed):
    rng = np.random.default_rng(seed)
    right, usual = rng.random((2, 500)) < 0.3
    assert not tells(500, right.sum(), usual.sum(), (right != usual).sum())


def test_promises_and_admissions():
    table = apart()
    table.loc[table.split == "test", ["speaker", "dialogue", "session"]] = table[table.split == "train"][["speaker", "dialogue", "session"]].to_numpy()
    wanted = {"unnamed": "leak caution leak", "random": "leak caution leak", "official": "caution caution leak", "loso": "leak caution caution",
              "loso-session": "leak leak leak", "official/10%": "caution caution leak"}
    for protocol, expected in wanted.items():
        found = levels(audited(table, protocol=protocol))
        assert [found[s] for s in ("speaker", "session", "dialogue")] == expected.split(), protocol


@pytest.mark.parametrize("seen, level", [(("made",), "leak"), (("MADE",), "leak"), (("ma-de",), "leak"), (("other",), "fine"), ((), "fine"),
                                         (None, "caution"), (("other", "others"), "caution"), (("made", "others"), "leak")])
def test_an_encoder_that_knows_the_corpus(seen, level):
    card = EncoderCard(name="e", modality="audio", frame_dim=1, utterance_dim=1, pretraining="things", contamination=seen, licence="MIT")
    found = audited(apart(), cards=[card])
    assert ("cautions: encoder." in found.conclusion) == (level == "caution")
    assert levels(found)["encoder"] == level and ("Leaks: encoder." in found.conclusion) == (level == "leak")


def test_a_class_that_training_lacks():
    table = apart().assign(label=lambda t: np.where((t.split == "test") & (t.index % 2 == 0), "fear", t.label))
    [finding] = [f for f in audited(table).findings if f.subject == "labels"]
    assert finding.level == "caution" and "train of fold 0 has no fear and cannot learn it" in finding.text


def test_what_a_corpus_does_not_record_is_said():
    texts = [f.text for f in audited(apart(session=None, dialogue=None, text="")).findings if f.subject == "not audited"]
    assert texts == ["the corpus does not record session, dialogue, sentence", "the recordings"]


def test_splits_of_another_corpus_are_refused():
    manifest = make_manifest(apart(30))
    with pytest.raises(InputError, match="ids are not in the manifest"): audit(make_splits(manifest, "official"), make_manifest(apart(20)))


@few
@given(st.integers(0, 10**6), st.sampled_from([name for name, p in PROTOCOLS.items() if p.group == "session"]))
def test_splits_by_session_are_clean(seed, protocol):
    rng = np.random.default_rng(seed)
    speaker = np.sort(rng.integers(10, size=200))
    table = pd.DataFrame({"id": [f"u{i:03}" for i in range(200)], "corpus": "made", "speaker": [f"s{s}" for s in speaker],
                          "session": [f"r{s // 2}" for s in speaker], "dialogue": [f"d{s // 2}{i % 3}" for i, s in enumerate(speaker)],
                          "text": "the same sentence", "label": rng.choice(["anger", "fear"], 200)})
    manifest = make_manifest(table)
    found = audit(make_splits(manifest, protocol, seed), manifest)
    assert not found.leaks and [levels(found)[s] for s in ("speaker", "session", "dialogue")] == ["fine"] * 3


def test_ten_thousand_sentences_against_three_thousand_take_seconds():
    rng = np.random.default_rng(0)
    text = [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(13_000)]
    part = np.where(np.arange(13_000) < 10_000, "train", np.where(np.arange(13_000) < 11_000, "val", "test"))
    manifest = make_manifest(pd.DataFrame({"id": [f"u{i:05}" for i in range(13_000)], "corpus": "made", "speaker": part, "split": part, "text": text,
                                           "label": rng.choice(["anger", "fear"], 13_000)}))
    start = time.perf_counter()
    found = overlaps(make_splits(manifest, "official"), values_of(manifest))
    assert time.perf_counter() - start < 30
    assert found[(found.subject == "near-sentence") & (found["first"] == "train")].affected.min() > 0
    assert set(found.subject) <= set(SUBJECTS)
